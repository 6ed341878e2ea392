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

// classicLine spells an overlay in one line. Two colons mark the data-only layers.
func classicLine(s *Spec, options []param) string {
	line := "lowerdir=" + strings.Join(s.Lower, ":")
	for _, dir := range s.Data {
		line += "::" + dir
	}
	if s.Upper != "" {
		line += ",upperdir=" + s.Upper + ",workdir=" + s.Work
	}
	for _, p := range options {
		line += "," + p.key + "=" + p.value
	}
	if s.Label != "" {
		line += `,context="` + s.Label + `"` // quoted: a context has commas
	}
	return line
}
