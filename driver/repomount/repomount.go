// Package repomount mounts a folder of a repository for people, without an engine: composed as an image of one layer
// and shown by the views that containers have.
package repomount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/objectfs"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/options"
	"cvmfs-graphdriver/driver/view"
	"cvmfs-graphdriver/internal/fusewire"
	"cvmfs-graphdriver/internal/overlayfs"
)

// MountPoint makes the folder to mount on absolute, and refuses one that isn't free.
func MountPoint(name string) (string, error) {
	dir, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	if _, err := os.ReadDir(dir); err != nil {
		return "", fmt.Errorf("mount on %s: %w", name, err)
	}
	switch mounted, err := new(overlayfs.Kernel).Mounted(dir); {
	case err != nil:
		return "", fmt.Errorf("mount on %s: %w", name, err)
	case mounted:
		return "", fmt.Errorf("mount on %s: something is mounted there: unmount it first (umount %s)", name, name)
	}
	return dir, nil
}

// OpenCache opens the folder for what is fetched, for us alone; "" is a new one that leave removes.
func OpenCache(name string) (dir string, leave func() error, err error) {
	if name == "" {
		dir, err = os.MkdirTemp("", "cvmfs-graphdriver-")
		return dir, func() error { return os.RemoveAll(dir) }, err
	}
	if dir, err = filepath.Abs(name); err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("open cache: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, fmt.Errorf("open cache: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close() // the error that is told is the first one
		return "", nil, fmt.Errorf("open cache %s: another mount uses it: give another folder: %w", name, err)
	}
	return dir, lock.Close, nil
}

// Config says what is mounted, and where.
type Config struct {
	Repository *client.Repository
	Revision   *client.Revision
	FQRN, Path string
	Dir        string // the folder to mount on, as MountPoint gives it
	Cache      string // the folder for what is fetched, as OpenCache gives it
	View       string // a view, or "auto" for the best that works
	Log        *slog.Logger
}

// Folder is a folder of a repository that is mounted.
type Folder struct {
	Config
	by string // the view

	image   *images.Image
	objects *objects.Store
	stop    context.CancelFunc
	served  *fusewire.Session
	kernel  overlayfs.Kernel
}

// Mount mounts the folder, which must be closed.
func Mount(ctx context.Context, c Config) (*Folder, error) {
	m := &Folder{Config: c}
	err := m.serve(ctx)
	if err == nil {
		err = m.mount()
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// By returns the view by which the folder is mounted.
func (m *Folder) By() string { return m.by }

// Wait returns when the context ends, or, with the reason, when the mount of content has ended by itself.
func (m *Folder) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.served.Ended():
		return errors.New("the mount of content has ended: somebody has unmounted it, if no other error is told")
	}
}

// Fetcher makes the repository the source of all objects.
func (m *Folder) Fetcher(string) (*fetch.Fetcher, error) { return m.Repository.Fetcher(), nil }

// Images says that the objects of what is mounted stay.
func (m *Folder) Images() ([]objects.Image, error) {
	key := m.image.Key
	return []objects.Image{{Key: key, Table: m.path("images", key, "objects"), Mounted: true}}, nil
}

func (m *Folder) path(elem ...string) string {
	return filepath.Join(m.Cache, filepath.Join(elem...))
}

// serve composes the folder's image and serves it and its objects by FUSE, as the plugin does.
func (m *Folder) serve(ctx context.Context) (err error) {
	log := m.Log
	index := objects.NewIndex([16]byte{})
	composer, err := images.New(images.Config{Dir: m.path("images"), Index: index, Log: log})
	if err != nil {
		return err
	}
	if _, err := composer.Sweep(); err != nil { // the cache is ours alone
		return err
	}
	if m.image, err = composer.Published(ctx, m.Repository, m.Revision, m.FQRN, m.Path); err != nil {
		return err
	}
	m.objects, err = objects.Open(objects.Config{
		Dir: m.path("store", "objects"), Fresh: m.path("fresh", "objects"), State: m.path("state"), Sources: m,
		Images: m, Log: log,
	})
	if err != nil {
		return err
	}
	tree := view.New(view.Config{
		Objects: objectfs.New(objectfs.Config{Index: index, Store: m.objects, Log: log}), Index: index,
		Store: m.objects,
		Dir:   m.path("store", "objects"), Log: log,
	})
	if err := tree.Add(m.image.Key, m.image.Meta); err != nil {
		return err
	}
	if err := errors.Join(fusewire.Unmount(m.path("fuse")), m.kernel.Unmount(m.path("image")),
		os.MkdirAll(m.path("fuse"), 0o700)); err != nil {
		return err
	}
	if m.served, err = fusewire.Open(m.path("fuse"), tree, fusewire.Config{Log: log}); err != nil {
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // until all is unmounted
	m.stop = stop
	go m.objects.Run(running)
	return nil
}

// mount mounts the image by the view that is wanted.
func (m *Folder) mount() error {
	want := m.View
	if want != options.FUSE {
		err := m.mountImage()
		if err == nil || want == options.EROFS {
			m.by = options.EROFS
			return err
		}
	}
	m.by = options.FUSE
	if err := unix.Mount(m.path("fuse", view.Folder, m.image.Key), m.Dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount on %s: %w", m.Dir, err)
	}
	return nil
}

// mountImage has the kernel mount the image, and an overlay of it that finds content in data-only layers.
func (m *Folder) mountImage() error {
	image := m.path("image")
	if err := os.MkdirAll(image, 0o700); err != nil {
		return err
	}
	if err := m.kernel.MountImage(m.image.Meta, image); err != nil {
		return err
	}
	return m.kernel.Mount(m.Dir, &overlayfs.Spec{
		Lower: []string{image}, Metacopy: true,
		Data: []string{m.path("store"), m.path("fuse", objectfs.Gate), m.path("fresh"), m.path("fuse", objectfs.Data)},
	})
}

// Close unmounts whatever is mounted.
func (m *Folder) Close() error {
	var errs []error
	if m.by != "" {
		errs = append(errs, m.kernel.Unmount(m.Dir))
	}
	errs = append(errs, m.kernel.Unmount(m.path("image")))
	if m.stop != nil {
		m.stop()
	}
	if m.served != nil {
		errs = append(errs, m.served.Close())
	}
	if m.objects != nil {
		errs = append(errs, m.objects.Close())
	}
	return errors.Join(errs...)
}
