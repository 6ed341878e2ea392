package layertar

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const maxFollowed = 40 // symbolic links on one path, as in Linux

// folder is a folder that was unpacked.
type folder struct {
	sub   map[string]*folder
	times times
	timed bool // times are known
}

// walk goes to the folders of a tree that is being unpacked, from its root. Folders it knows of are opened by their
// path, as nobody else makes links of them; what else a path leads through is looked at name by name.
type walk struct {
	root  *os.File
	top   *folder
	step  func() error                               // counts names that folders are looked for by
	imply func(dir int, f *folder, hides bool) error // sees to a new folder; f is nil for one that an entry describes

	at     int     // descriptor of the folder at hand, -1 for none
	asked  string  // the path by which it was asked for
	real   string  // the path to it without links
	folder *folder // it
}

// path is that of a name in the folder at hand.
func (w *walk) path(base string) string { return join(w.real, base) }

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// enter makes the folder of a path the one at hand; those that are missing are made.
func (w *walk) enter(dir string) error {
	if w.at >= 0 && dir == w.asked {
		return nil
	}
	real, f, err := w.resolve(dir, true)
	if err != nil {
		return err
	}
	fd, err := w.openDir(real)
	if err != nil {
		return err
	}
	if w.at >= 0 {
		err = unix.Close(w.at)
	}
	w.at, w.asked, w.real, w.folder = fd, dir, real, f
	return err
}

// aside calls fn with the folder of a path, all of which must be there. The one at hand stays.
func (w *walk) aside(dir string, fn func(dir int) error) error {
	real, _, err := w.resolve(dir, false)
	if err != nil {
		return err
	}
	return w.within(real, fn)
}

func (w *walk) within(real string, fn func(dir int) error) error {
	fd, err := w.openDir(real)
	if err != nil {
		return err
	}
	return errors.Join(fn(fd), unix.Close(fd))
}

// openDir opens a folder by its path without links.
func (w *walk) openDir(real string) (int, error) {
	if real == "" {
		real = "."
	}
	fd, err := openBelow(int(w.root.Fd()), real)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: real, Err: err}
	}
	return fd, nil
}

// openBelow opens a folder below another one, name by name, following no link on the way. name is clean. On the layers
// of distributions openat2(2), which Linux has had since 5.6, is no faster.
func openBelow(root int, name string) (int, error) {
	at := root
	for part := range strings.SplitSeq(name, "/") {
		fd, err := unix.Openat(at, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if at != root {
			_ = unix.Close(at) // was only gone through
		}
		if err != nil {
			return -1, err
		}
		at = fd
	}
	return at, nil
}

// place is a folder on a path that is being resolved.
type place struct {
	real   string
	folder *folder
}

// resolve finds a folder as the kernel does in the layer's root: it follows symbolic links and goes no higher than the
// root. Missing folders are made, or else are an error.
func (w *walk) resolve(dir string, mk bool) (string, *folder, error) {
	chain := []place{{"", w.top}}
	steps := strings.Split(dir, "/")
	for followed := 0; len(steps) > 0; {
		if err := w.step(); err != nil {
			return "", nil, err
		}
		name := steps[0]
		steps = steps[1:]
		at := chain[len(chain)-1]
		next := at.folder.sub[name]
		switch {
		case name == "" || name == ".":
			continue
		case name == "..":
			chain = chain[:max(len(chain)-1, 1)]
			continue
		case next == nil:
			var target string
			var err error
			if next, target, err = w.lookAt(at, name, mk); err != nil {
				return "", nil, err
			}
			if next == nil {
				if followed++; followed > maxFollowed {
					return "", nil, fmt.Errorf("leads through more than %d symbolic links: %w", maxFollowed, unix.ELOOP)
				}
				if strings.HasPrefix(target, "/") {
					chain = chain[:1]
				}
				steps = append(strings.Split(target, "/"), steps...)
				continue
			}
		}
		chain = append(chain, place{join(at.real, name), next})
	}
	at := chain[len(chain)-1]
	return at.real, at.folder, nil
}

// lookAt finds out about a name that is none of a known folder: it gives the target of a symbolic link, or the folder
// it has made.
func (w *walk) lookAt(at place, name string, mk bool) (made *folder, target string, err error) {
	err = w.within(at.real, func(dir int) error {
		b := make([]byte, maxPath+1)
		n, err := unix.Readlinkat(dir, name, b)
		switch {
		case err == nil:
			target = string(b[:n])
			return nil
		case errors.Is(err, unix.ENOENT) && mk:
		case errors.Is(err, unix.EINVAL) && mk && w.givesWay(dir, name):
		case errors.Is(err, unix.EINVAL):
			return fmt.Errorf("leads through %.100q, which is no folder: %w", name, unix.ENOTDIR)
		case errors.Is(err, unix.ENOENT):
			return fmt.Errorf("leads through %.100q, which isn't there: %w", name, err)
		default:
			return fmt.Errorf("leads through %.100q: %w", name, err)
		}
		if len(at.real)+1+len(name) > maxPath {
			return errTooLong
		}
		if made, err = w.mkdirIn(dir, at.folder, name); err != nil {
			return err
		}
		return w.within(join(at.real, name), func(dir int) error { return w.imply(dir, made, false) })
	})
	return made, target, err
}

// givesWay reports whether a folder may replace what is there without an entry that says so: whiteouts only, in either
// form.
func (w *walk) givesWay(dir int, name string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && (isWhiteout(&st) || IsWhiteoutName(name))
}

func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// mkdir makes a folder in the one at hand in the place of what has its name, which is no folder.
func (w *walk) mkdir(base string) (*folder, error) { return w.mkdirIn(w.at, w.folder, base) }

func (w *walk) mkdirIn(dir int, parent *folder, base string) (*folder, error) {
	hides := false
	err := unix.Mkdirat(dir, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		if hides, err = w.clearIn(dir, parent, base); err == nil {
			err = unix.Mkdirat(dir, base, 0o700)
		}
	}
	if err != nil {
		return nil, call("create", err)
	}
	f := &folder{}
	if parent.sub == nil {
		parent.sub = map[string]*folder{}
	}
	parent.sub[strings.Clone(base)] = f
	if !hides {
		return f, nil
	}
	// What a whiteout was to hide stays hidden.
	fd, err := openBelow(dir, base)
	if err != nil {
		return nil, call("open", err)
	}
	return f, errors.Join(w.imply(fd, nil, true), unix.Close(fd))
}

// clear removes what has a name in the folder at hand.
func (w *walk) clear(base string) error {
	_, err := w.clearIn(w.at, w.folder, base)
	return err
}

// clearIn removes what has a name, and reports whether it was overlayfs' form of a whiteout.
func (w *walk) clearIn(dir int, parent *folder, base string) (hides bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, call("stat", err)
	}
	w.asked = "\x00" // the folder at hand may have been found by way of it
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return isWhiteout(&st), call("remove", unix.Unlinkat(dir, base, 0))
	}
	delete(parent.sub, base)
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir))
	if err != nil {
		return false, err
	}
	return false, errors.Join(root.RemoveAll(base), root.Close())
}

// setTimes sets the times of all folders: nothing is put into them any more.
func (w *walk) setTimes() error {
	if err := w.setTimesBelow("", w.top); err != nil || !w.top.timed {
		return err
	}
	return setTimes(int(w.root.Fd()), ".", w.top.times)
}

func (w *walk) setTimesBelow(real string, f *folder) error {
	for name, sub := range f.sub {
		below := join(real, name)
		if sub.timed {
			if err := setTimes(int(w.root.Fd()), below, sub.times); err != nil {
				return fmt.Errorf("unpack %.300q: %w", below, err)
			}
		}
		if err := w.setTimesBelow(below, sub); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) close() error {
	var err error
	if w.at >= 0 {
		err = unix.Close(w.at)
	}
	return errors.Join(err, w.root.Close())
}
