package overlayfs

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mountClassic mounts an overlay by mount(2). Where a path has special characters, or the line would be longer than the
// kernel takes, folders are named by descriptors.
func mountClassic(target string, s *Spec, options []param) error {
	failed := &MountError{FSType: "overlay", Target: target}
	line := classicLine(s, options)
	if len(line) >= os.Getpagesize() ||
		s.anyFolder(func(dir string) bool { return strings.ContainsAny(dir, special) }) {
		dirs, err := s.open()
		if err != nil {
			failed.Err = err
			return failed
		}
		defer dirs.close()
		line = classicLine(dirs.named(s), options)
	}
	if len(line) >= os.Getpagesize() {
		failed.Err = fmt.Errorf("%d layers are more than this kernel takes (Linux 6.8 takes 500): use an image with fewer layers",
			len(s.Lower)+len(s.Data))
		return failed
	}
	var flags uintptr
	if s.Upper == "" {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", target, "overlay", flags, line); err != nil {
		failed.Err, failed.Detail, failed.Log = err, line, []string{"the kernel's log may say more"}
		return failed
	}
	return nil
}

// classicLine spells an overlay in one line.
func classicLine(s *Spec, options []param) string {
	return strings.Join(classicOptions(s, options), ",")
}

// classicOptions spells an overlay for mount(2). Two colons mark the data-only layers.
func classicOptions(s *Spec, options []param) []string {
	lower := "lowerdir=" + strings.Join(s.Lower, ":")
	for _, dir := range s.Data {
		lower += "::" + dir
	}
	words := []string{lower}
	if s.Upper != "" {
		words = append(words, "upperdir="+s.Upper, "workdir="+s.Work)
	}
	for _, p := range options {
		words = append(words, p.key+"="+p.value)
	}
	if s.Label != "" {
		words = append(words, `context="`+s.Label+`"`) // quoted: a context has commas
	}
	return words
}

// ClassicOptions returns the options of mount(2) for an overlay that somebody else mounts, who may know few. So of what
// a kernel can be built to have on by default only what this one has on is switched off, and index, as one upper folder
// may be mounted by several programs at once. Folders whose names mean something in options are refused.
func (s *Spec) ClassicOptions() ([]string, error) {
	if s.anyFolder(func(dir string) bool { return strings.ContainsAny(dir, special) }) {
		return nil, fmt.Errorf("an overlay can't be told in options of mount(2) if a folder's name has one of %q", special)
	}
	var said []param
	for _, p := range s.options() {
		if p.key == "index" || onByDefault(p.key) {
			said = append(said, p)
		}
	}
	return classicOptions(s, said), nil
}
