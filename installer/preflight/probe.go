package preflight

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/erofs"
)

// try finds out by tiny mounts what the kernel can do. They are made by a thread in a mount namespace of its own, with which they go,
// whatever happens. The EROFS image is an unnamed file in dir, for not every file system's files can be mounted.
func try(dir string) Kernel {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Kernel{Err: err.Error()}
	}
	known := Kernel{Release: unix.ByteSliceToString(uts.Release[:]), Device: lookAtFUSE("/dev/fuse")}
	k, ok := within(lookWait, func() Kernel {
		done := make(chan Kernel)
		go apart(func() { done <- tryAll(known, dir) })
		return <-done
	})
	if !ok {
		known.Err = "the kernel doesn't answer"
		return known
	}
	return k
}

// apart does something on a thread that ends with it, and is not the process's first, whose namespaces /proc/self shows.
func apart(do func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		do()
		return // locked: the thread ends with the goroutine
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		do()
	}()
	<-done
}

// lookAtFUSE tells what is wrong with the device, or "".
func lookAtFUSE(path string) string {
	const major, minor = 10, 229
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return (&fs.PathError{Op: "stat", Path: path, Err: err}).Error()
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) != major || unix.Minor(st.Rdev) != minor {
		return fmt.Sprintf("%s is not the character device %d:%d", path, major, minor)
	}
	return ""
}

const probed = "content from a data-only layer\n"

// tryAll makes the mounts, on a thread whose namespace may be changed.
func tryAll(k Kernel, dir string) Kernel {
	image, imageErr := probeImage(dir)
	if imageErr == nil {
		defer image.Close() // unnamed
	}
	device, deviceErr := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if deviceErr == nil {
		defer device.Close() // ends the mount's connection
	}
	base := os.TempDir()
	if err := separate(base); err != nil {
		k.Err = err.Error()
		return k
	}
	k.Overlay = tried(tryOverlay(base))
	k.FUSE = tried(deviceErr)
	if deviceErr == nil {
		k.FUSE = tried(tryFUSE(device, filepath.Join(base, "fuse")))
	}
	if imageErr != nil {
		k.EROFS = tried(imageErr)
		return k
	}
	target := filepath.Join(base, "image")
	k.EROFS = tried(tryEROFS(image, target))
	if k.EROFS.Works() && k.Overlay.Works() {
		k.One = tried(tryData(target, filepath.Join(base, "one"), true))
		k.Two = tried(tryData(target, filepath.Join(base, "two"), false))
	}
	return k
}

func tried(err error) Try {
	if err != nil {
		return Try{true, err.Error()}
	}
	return Try{Tried: true}
}

// probeImage writes an EROFS image of one file whose content lies in a data-only layer.
func probeImage(dir string) (*os.File, error) {
	file := &erofs.Node{Mode: unix.S_IFREG | 0o644, Size: int64(len(probed)), Xattrs: []erofs.Xattr{
		{Name: "trusted.overlay.metacopy"}, {Name: "trusted.overlay.redirect", Value: []byte("/file")},
	}}
	root := &erofs.Node{Mode: unix.S_IFDIR | 0o755, Children: []erofs.Child{{Name: "file", Node: file}}}
	var b bytes.Buffer
	if _, err := erofs.Write(&b, root, erofs.Options{}); err != nil {
		return nil, err
	}
	if dir == "" {
		dir = os.TempDir()
	}
	f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make an image to be mounted: %w", err)
	}
	if _, err := f.Write(b.Bytes()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// separate puts the thread into a mount namespace of its own, in which base is an empty file system in memory.
func separate(base string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, "mode=0700,size=1m"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", base, err)
	}
	return nil
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
func tryOverlay(base string) error {
	dir := filepath.Join(base, "overlay")
	if err := mkdirs(dir, "lower", "upper", "work", "merged"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "lower", "file"), nil, 0o600); err != nil {
		return err
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay: %w", err)
	}
	if err := os.Remove(filepath.Join(merged, "file")); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "upper", "file"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return fmt.Errorf("a deleted file left no whiteout: mode %o, %v", st.Mode, err)
	}
	return nil
}

// tryFUSE mounts a FUSE file system that nobody serves; nothing may be looked up in it.
func tryFUSE(device *os.File, dir string) error {
	if err := mkdirs(dir); err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", device.Fd())
	if err := unix.Mount("probe", dir, "fuse", 0, options); err != nil {
		return fmt.Errorf("mount FUSE: %w", err)
	}
	return unix.Unmount(dir, unix.MNT_DETACH)
}

func tryEROFS(image *os.File, dir string) error {
	if err := mkdirs(dir); err != nil {
		return err
	}
	err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", image.Fd()), dir, "erofs", unix.MS_RDONLY, "")
	if errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("this kernel can't mount EROFS images from files, which takes Linux 6.12 with CONFIG_EROFS_FS: %w", err)
	}
	return err
}

// tryData mounts an overlay of the image in which content lies in a data-only layer, and reads it; one that is to be written to,
// or one that isn't.
func tryData(image, dir string, written bool) error {
	if err := mkdirs(dir, "data", "upper", "work", "merged"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "data", "file"), []byte(probed), 0o600); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s::%s/data", image, dir) + overlayOptions(!written)
	if written {
		options += fmt.Sprintf(",upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	}
	merged := filepath.Join(dir, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay with a data-only layer: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(merged, "file"))
	if err != nil || string(b) != probed {
		return fmt.Errorf("overlayfs doesn't find content in data-only layers: read %q, %v", b, err)
	}
	return nil
}

// overlayOptions says what the driver says, of what the kernel knows: with metacopy, redirects are followed, too.
func overlayOptions(metacopy bool) string {
	value := map[bool]string{false: "=off", true: "=on"}[metacopy]
	var b strings.Builder
	for _, name := range []string{"redirect_dir", "metacopy"} {
		if _, err := os.Stat("/sys/module/overlay/parameters/" + name); err == nil {
			b.WriteString("," + name + value)
		}
	}
	return b.String()
}
