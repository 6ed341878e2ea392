package overlayfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/erofs"
	"cvmfs-graphdriver/internal/hostfs"
)

// Support is what a kernel can do, found out by tiny mounts that were used.
type Support struct {
	Overlay Try `json:"overlay"`     // an overlay with an upper folder, and a deletion in it
	EROFS   Try `json:"erofs"`       // an EROFS image mounted from its file
	Direct  Try `json:"one_overlay"` // content in data-only layers, of an overlay with an upper folder
	// where that doesn't work: of a read-only overlay, on which one with an upper folder stands
	Stacked Try `json:"two_overlays"`
}

// Try is whether something worked. Its zero value says that it wasn't tried.
type Try struct {
	Tried bool   `json:"tried"`
	Err   string `json:"error,omitempty"` // what the kernel said; "" where it worked
}

// Works reports whether it was tried and worked.
func (t Try) Works() bool { return t.Tried && t.Err == "" }

// Tried returns the outcome of something that was tried: err is nil where it worked. Of a failed mount the reason
// counts, not where it was.
func Tried(err error) Try {
	var failed *MountError
	switch {
	case err == nil:
		return Try{Tried: true}
	case errors.As(err, &failed):
		return Try{Tried: true, Err: failed.Reason()}
	}
	return Try{Tried: true, Err: err.Error()}
}

// Way is how overlays show an EROFS image whose files' content lies in data-only layers.
type Way string

// The ways, best first.
const (
	ByOne Way = "one overlay"
	ByTwo Way = "two overlays"
	None  Way = ""
)

// Way returns the best way there is, and why there is no better one: "" where it is the best of all, or nothing was
// tried.
func (s Support) Way() (w Way, why string) {
	switch {
	case s.Direct.Works():
		return ByOne, ""
	case s.Stacked.Works():
		return ByTwo, s.Direct.Err
	case s.Direct.Tried:
		return None, s.Direct.Err
	}
	return None, s.EROFS.Err
}

// settle finds the way to mount overlays: questions may rule the mount API out, and the mount of a tiny overlay
// decides.
func (k *Kernel) settle() {
	k.api = !k.refusesLayers()
	err := k.apart(func(base string) {
		if k.api && tryOverlay(filepath.Join(base, "layers"), k.plain) == nil {
			return
		}
		was := k.api
		k.api = false
		if err := tryOverlay(filepath.Join(base, "line"), k.plain); err != nil {
			k.api = was // neither works; whoever mounts an overlay is told why
		}
	})
	if err != nil {
		return // the questions must do
	}
}

// plain mounts an overlay without options, for which the kernel's module need not be loaded yet.
func (k *Kernel) plain(target string, s *Spec) error { return k.mount(target, s, nil, k.refusesData) }

// tiny mounts an overlay that is made to try the kernel: there is no other reason why it should fail, and no other need
// be tried.
func (k *Kernel) tiny(target string, s *Spec) error {
	return k.mount(target, s, s.options(), func(*Spec) bool { return true })
}

// refusesData reports whether the kernel mounts no overlay of the kind of s, which has data-only layers, whatever the
// folders: it says "invalid argument" of much else, too.
func (k *Kernel) refusesData(s *Spec) bool {
	refuses := true
	err := k.apart(func(base string) {
		in := func(name string) string { return filepath.Join(base, "tiny", name) }
		tiny := &Spec{Lower: []string{in("lower")}, Data: []string{in("data")}, Metacopy: s.Metacopy}
		if s.Upper != "" {
			tiny.Upper, tiny.Work = in("upper"), in("work")
		}
		if mkdirs(in(""), "lower", "data", "upper", "work", "merged") == nil {
			refuses = k.pass(in("merged"), tiny, tiny.options()) != nil
		}
	})
	return err != nil || refuses
}

// apart does something in a mount namespace of its own with an empty folder, and waits for it.
func (k *Kernel) apart(do func(base string)) error {
	base := k.Scratch
	if base == "" {
		base = os.TempDir()
	}
	return hostfs.Apart(base, func() { do(base) })
}

// Probe finds out what the kernel can do. EROFS images are to lie on the file system of the folder dir, on which one is
// made that has no name; all else happens in memory, and nobody else sees it. An error says why nothing was tried.
func (k *Kernel) Probe(dir string) (s Support, err error) {
	image, imageErr := probeImage(dir)
	if imageErr == nil {
		defer image.Close() // unnamed
	}
	k.once.Do(k.settle)
	err = k.apart(func(base string) {
		s.Overlay = Tried(tryOverlay(filepath.Join(base, "overlay"), k.Mount))
		if imageErr != nil {
			s.EROFS = Tried(imageErr)
			return
		}
		target := filepath.Join(base, "image")
		s.EROFS = Tried(k.tryImage(image, target))
		if !s.EROFS.Works() || !s.Overlay.Works() {
			return
		}
		s.Direct = Tried(k.tryData(target, filepath.Join(base, "one"), false))
		if !s.Direct.Works() {
			s.Stacked = Tried(k.tryData(target, filepath.Join(base, "two"), true))
		}
	})
	return s, err
}

// probed is the content of the file that is read.
const probed = "content from a data-only layer\n"

// probeImage writes an EROFS image of one file whose content lies in a data-only layer, to a file without a name in a
// folder.
func probeImage(dir string) (*os.File, error) {
	file := &erofs.Node{Mode: unix.S_IFREG | 0o644, Size: int64(len(probed)), Xattrs: []erofs.Xattr{
		{Name: XattrMetacopy}, {Name: XattrRedirect, Value: "/file"},
	}}
	root := &erofs.Node{Mode: unix.S_IFDIR | 0o755, Children: []erofs.Child{{Name: "file", Node: file}}}
	var b bytes.Buffer
	if _, err := erofs.Write(&b, root, erofs.Options{}); err != nil {
		return nil, err
	}
	f, err := unnamed(dir)
	if err != nil {
		return nil, fmt.Errorf("make an image to be mounted: %w", err)
	}
	if _, err := f.Write(b.Bytes()); err != nil {
		return nil, errors.Join(fmt.Errorf("make an image to be mounted: %w", err), f.Close())
	}
	return f, nil
}

// unnamed makes a file without a name in a folder.
func unnamed(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return f, err
	}
	if f, err = os.CreateTemp(dir, ".probe-"); err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// mkdirs makes folders below one that is made, too.
func mkdirs(dir string, names ...string) error {
	for _, name := range append([]string{""}, names...) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// tryOverlay mounts an overlay and deletes a file of its lower layer.
func tryOverlay(dir string, mount func(target string, s *Spec) error) error {
	if err := mkdirs(dir, "lower", "upper", "work", "merged"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "lower", "file"), nil, 0o600); err != nil {
		return err
	}
	merged, upper := filepath.Join(dir, "merged"), filepath.Join(dir, "upper")
	if err := mount(merged, &Spec{
		Lower: []string{filepath.Join(dir, "lower")}, Upper: upper,
		Work: filepath.Join(dir, "work"),
	}); err != nil {
		return err
	}
	return deleteLower(merged, upper, "file")
}

// deleteLower deletes a file that an overlay shows of a lower layer, and looks for what is to tell of that in its upper
// folder.
func deleteLower(merged, upper, name string) error {
	if err := os.Remove(filepath.Join(merged, name)); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(upper, name), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return fmt.Errorf("a deleted file left no whiteout: mode %o, %v", st.Mode, err) //nolint:errorlint // it may be nil
	}
	return nil
}

// tryImage mounts an image from its file.
func (k *Kernel) tryImage(image *os.File, target string) error {
	if err := mkdirs(target); err != nil {
		return err
	}
	return k.MountImage(fmt.Sprintf("/proc/self/fd/%d", image.Fd()), target)
}

// tryData mounts an overlay of the image in which content lies in a data-only layer, reads it, and changes the file's
// mode, which copies the content. If stacked, the image and the layer are joined by a read-only overlay first.
func (k *Kernel) tryData(image, dir string, stacked bool) error {
	if err := mkdirs(dir, "data", "upper", "work", "shared", "merged"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "data", "file"), []byte(probed), 0o600); err != nil {
		return err
	}
	upper, merged := filepath.Join(dir, "upper"), filepath.Join(dir, "merged")
	spec := &Spec{Lower: []string{image}, Data: []string{filepath.Join(dir, "data")}}
	if stacked {
		shared := filepath.Join(dir, "shared")
		spec.Metacopy = true
		if err := k.tiny(shared, spec); err != nil {
			return err
		}
		spec = &Spec{Lower: []string{shared}}
	}
	spec.Upper, spec.Work = upper, filepath.Join(dir, "work")
	if err := k.tiny(merged, spec); err != nil {
		return err
	}
	if b, err := os.ReadFile(filepath.Join(merged, "file")); err != nil || string(b) != probed {
		return fmt.Errorf("overlayfs doesn't find content in data-only layers: read %q, %v", b, err) //nolint:errorlint // nil
	}
	if err := os.Chmod(filepath.Join(merged, "file"), 0o600); err != nil {
		return err
	}
	if b, err := os.ReadFile(filepath.Join(upper, "file")); err != nil || string(b) != probed {
		return fmt.Errorf("overlayfs doesn't copy up content of data-only layers: read %q, %v", b, err) //nolint:errorlint // nil
	}
	return nil
}
