package overlayfs

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Spec is an overlay: its layers, topmost first.
type Spec struct {
	Lower       []string
	Data        []string // data-only layers
	Upper, Work string   // "" for a read-only overlay
	Label       string   // SELinux context of all files; "" for none
	Metacopy    bool     // content may lie below its metadata; for overlays without an upper folder alone
}

// folders returns all folders of an overlay.
func (s *Spec) folders() []string {
	dirs := slices.Concat(s.Lower, s.Data)
	if s.Upper != "" {
		dirs = append(dirs, s.Upper, s.Work)
	}
	return dirs
}

// special are the characters of a path that mean something in mount options. Escapes are not the same in all kernels.
const special = `\:,`

// anyFolder reports whether a folder of the overlay fits.
func (s *Spec) anyFolder(fits func(dir string) bool) bool {
	return slices.ContainsFunc(s.folders(), fits)
}

// param is a mount parameter; without a value it is a flag.
type param struct{ key, value string }

// defaulted are the parameters of overlayfs that a kernel may be built to have on.
var defaulted = []string{"redirect_dir", "metacopy", "index"}

// parameters is the folder of the defaults of the kernel's overlayfs.
const parameters = "/sys/module/overlay/parameters/"

// onByDefault reports whether the kernel has a parameter on unless it is told otherwise, or that can't be told.
func onByDefault(name string) bool {
	b, err := os.ReadFile(parameters + name)
	return err != nil || strings.TrimSpace(string(b)) != "N"
}

// options returns those of the defaulted parameters that the kernel's overlayfs has, with values: files that are
// changed are to be copied up whole, and renamed folders with their files, for what an upper folder holds is a layer by
// itself. With metacopy redirects are followed as well: kernels want both or neither. The kernel's module must be
// loaded.
func (s *Spec) options() (params []param) {
	_, unsure := os.Stat(parameters) // without sysfs all are said
	for _, name := range defaulted {
		if _, err := os.Stat(parameters + name); unsure == nil && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		value := "off"
		if s.Metacopy && name != "index" {
			value = "on"
		}
		params = append(params, param{name, value})
	}
	return params
}

// openFolders are descriptors of folders, which give each a short name without any special characters.
type openFolders map[string]int

// open opens the folders of an overlay.
func (s *Spec) open() (openFolders, error) {
	dirs := openFolders{}
	for _, dir := range s.folders() {
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

// named returns the overlay with its folders named by their descriptors.
func (d openFolders) named(s *Spec) *Spec {
	name := func(dir string) string { return "/proc/self/fd/" + strconv.Itoa(d[dir]) }
	n := *s
	n.Lower, n.Data = slices.Clone(s.Lower), slices.Clone(s.Data)
	for _, list := range [][]string{n.Lower, n.Data} {
		for i := range list {
			list[i] = name(list[i])
		}
	}
	if s.Upper != "" {
		n.Upper, n.Work = name(s.Upper), name(s.Work)
	}
	return &n
}

func (d openFolders) close() {
	for _, fd := range d {
		unix.Close(fd) // nothing was written
	}
}

// A MountError tells which mount failed, and why.
type MountError struct {
	FSType string
	Target string
	Detail string // what was refused, or asked for; "" where the error says it
	Err    error
	Log    []string // what the kernel says besides
}

// Error reports all there is.
func (e *MountError) Error() string {
	text := "mount " + e.FSType + " on " + e.Target + ": "
	if e.Detail != "" {
		text += e.Detail + ": "
	}
	return text + e.Reason()
}

// Reason tells why, without the names of folders, as far as the kernel leaves them out.
func (e *MountError) Reason() string {
	if len(e.Log) == 0 {
		return e.Err.Error()
	}
	return e.Err.Error() + " (" + strings.Join(e.Log, "; ") + ")"
}

// Unwrap returns the cause.
func (e *MountError) Unwrap() error { return e.Err }
