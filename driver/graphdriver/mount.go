package graphdriver

import (
	"errors"
	"io/fs"
	"os"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/internal/overlayfs"
)

// Mounter mounts what a store specifies. Composed images are mounted when an overlay first needs them, from their files
// (Linux ≥ 6.12), and stay mounted, as do the overlays that share them. The zero value is ready to be used.
type Mounter struct {
	overlayfs.Kernel

	mu sync.Mutex // one mount of an image at a time
}

var _ layers.Mounter = (*Mounter)(nil)

// Mount brings a mount about.
func (m *Mounter) Mount(s layers.Mount) error {
	if s.Image != nil {
		if err := m.image(*s.Image); err != nil {
			return err
		}
	}
	if s.Shared != nil {
		if err := m.shared(*s.Shared); err != nil {
			return err
		}
	}
	if s.Overlay == nil {
		return nil
	}
	return m.Kernel.Mount(s.Target, s.Overlay)
}

// image mounts a composed image unless it is.
func (m *Mounter) image(i layers.ImageMount) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unless(i.Target, func() error { return m.MountImage(i.Source, i.Target) })
}

// shared mounts the overlay of a composed image unless it is.
func (m *Mounter) shared(s layers.Shared) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unless(s.Target, func() error {
		return m.Kernel.Mount(s.Target, &overlayfs.Spec{Lower: s.Lower, Data: s.Data, Metacopy: len(s.Data) > 0})
	})
}

// unless makes a folder and mounts on it, unless something is mounted there.
func (m *Mounter) unless(target string, mount func() error) error {
	mounted, err := m.Mounted(target)
	if mounted || err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	return mount()
}

// Mounted reports whether something is mounted at a folder.
func (m *Mounter) Mounted(dir string) (bool, error) {
	mounted, err := mountinfo.Mounted(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return mounted, err
}

// Unmount detaches everything that is mounted at a folder. Who uses it keeps what is open.
func (m *Mounter) Unmount(dir string) error {
	for {
		switch err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist): // nothing is mounted there (any more)
			return nil
		case err != nil:
			return &fs.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
}
