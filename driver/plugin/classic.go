package plugin

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/store"
)

// mountOverlayClassic mounts an overlay by mount(2). Its options are one line of less than a page, in which a path must not
// have the characters that divide it; where one has, or the line is too long, folders are named by descriptors.
func mountOverlayClassic(target string, o *store.Overlay, options []param) error {
	line := classicLine(o, options, func(dir string) string { return dir })
	if special(o) || len(line) >= os.Getpagesize() {
		dirs, err := openDirs(o)
		if err != nil {
			return fmt.Errorf("mount overlay on %s: %w", target, err)
		}
		defer dirs.close()
		line = classicLine(o, options, dirs.name)
	}
	if len(line) >= os.Getpagesize() {
		return fmt.Errorf("mount overlay on %s: %d layers are more than this kernel takes (Linux 6.8 takes 500): use an image with fewer layers",
			target, len(o.Lower)+len(o.Data))
	}
	var flags uintptr
	if o.Upper == "" {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", target, "overlay", flags, line); err != nil {
		return fmt.Errorf("mount overlay on %s: %s: %w (the kernel's log may say more)", target, line, err)
	}
	return nil
}

// folders are those of an overlay.
func folders(o *store.Overlay) []string {
	dirs := append(append([]string(nil), o.Lower...), o.Data...)
	if o.Upper != "" {
		dirs = append(dirs, o.Upper, o.Work)
	}
	return dirs
}

// special tells whether a path has a character that means something in the line: escapes are not the same in all kernels.
func special(o *store.Overlay) bool {
	for _, dir := range folders(o) {
		if strings.ContainsAny(dir, `\:,`) {
			return true
		}
	}
	return false
}

// classicLine spells an overlay with its folders named by name. Two colons mark the data-only layers (Linux 6.5).
func classicLine(o *store.Overlay, options []param, name func(dir string) string) string {
	var b strings.Builder
	for i, dir := range o.Lower {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(name(dir))
	}
	for _, dir := range o.Data {
		b.WriteString("::" + name(dir))
	}
	line := "lowerdir=" + b.String()
	if o.Upper != "" {
		line += ",upperdir=" + name(o.Upper) + ",workdir=" + name(o.Work)
	}
	for _, p := range options {
		line += "," + p.key + "=" + p.value
	}
	if o.Label != "" {
		line += `,context="` + o.Label + `"` // quoted: a context has commas
	}
	return line
}

// openFolders are descriptors of folders, which give each a short name.
type openFolders map[string]int

func openDirs(o *store.Overlay) (openFolders, error) {
	dirs := openFolders{}
	for _, dir := range folders(o) {
		if _, ok := dirs[dir]; ok {
			continue
		}
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			dirs.close()
			return nil, &os.PathError{Op: "open", Path: dir, Err: err}
		}
		dirs[dir] = fd
	}
	return dirs, nil
}

func (d openFolders) name(dir string) string { return fmt.Sprintf("/proc/self/fd/%d", d[dir]) }

func (d openFolders) close() {
	for _, fd := range d {
		unix.Close(fd) //nolint:errcheck // nothing was written
	}
}
