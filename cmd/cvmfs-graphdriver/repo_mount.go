package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
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
	"cvmfs-graphdriver/internal/program"
)

// repoMountCommand mounts a folder of a repository.
func repoMountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "mount a repository's newest revision, or a folder of it, read-only",
		ArgsUsage: "FQRN[/PATH] DIR",
		Description: `Stays in the foreground and unmounts on Ctrl-C or SIGTERM. Shows the revision that is the newest at the time of the call.
Reads all names before the mount appears. Fetches and verifies content when it is read.

The folder is shown as published, not as a layer of an image: whiteouts (.wh.…) and .cvmfscatalog are files, and owners are those in
the repository. Extended attributes for overlayfs are left out. The view erofs does not show devices 0:0.`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{
				Name:  "view",
				Usage: "`VIEW`: erofs (mounted by the kernel), fuse (served by this program) or auto", Value: "auto",
			},
			&cli.StringFlag{Name: "cache", Usage: "`FOLDER` that keeps fetched files (default: none, nothing is kept)"},
		}, repoFlags()...),
		Action: repoMount,
	}
}

func repoMount(c *cli.Context) (err error) {
	if c.NArg() != 2 {
		return program.Usagef(c, "want two arguments, FQRN[/PATH] and DIR")
	}
	fqrn, path := folderArg(c.Args().Get(0))
	want := c.String("view")
	if want != options.Auto && want != options.EROFS && want != options.FUSE {
		return program.Usagef(c, "--view: there is auto, erofs and fuse")
	}
	dir, err := mountPoint(c.Args().Get(1))
	if err != nil {
		return err
	}
	cache, leave, err := openCache(c.String("cache"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave()) }()
	r, err := openRepository(c, fqrn, filepath.Join(cache, "repository"))
	if err != nil {
		return err
	}
	v, err := r.Newest(c.Context)
	if err != nil {
		return err
	}
	m := &repoFolder{c: c, cache: cache, dir: dir, repository: r}
	defer func() { err = errors.Join(err, m.close()) }()
	if err := m.serve(v, fqrn, path); err != nil {
		return err
	}
	if err := m.mount(want); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "cvmfs://%s%s, revision %d, is mounted on %s by %s\n", fqrn, path, v.Number, dir, m.by)
	select {
	case <-c.Context.Done():
		return nil
	case err := <-m.ended:
		m.ended <- nil
		return fmt.Errorf("the mount of content has ended: %w", err)
	}
}

// mountPoint makes the folder to mount on absolute, and refuses one that isn't free.
func mountPoint(name string) (string, error) {
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

// openCache opens the folder for what is fetched, for us alone; "" is a new one that leave removes.
func openCache(name string) (dir string, leave func() error, err error) {
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

// repoFolder is a folder of a repository being mounted.
type repoFolder struct {
	c          *cli.Context
	cache, dir string
	repository *client.Repository
	by         string // the view

	image   *images.Image
	objects *objects.Store
	stop    context.CancelFunc
	device  *os.File
	ended   chan error // gives the end of the FUSE server
	kernel  overlayfs.Kernel
}

// Fetcher makes the repository the source of all objects.
func (m *repoFolder) Fetcher(string) (*fetch.Fetcher, error) { return m.repository.Fetcher(), nil }

// Images tells that the objects of what is mounted stay.
func (m *repoFolder) Images() ([]objects.Image, error) {
	key := m.image.Key
	return []objects.Image{{Key: key, Table: m.path("images", key, "objects"), Mounted: true}}, nil
}

func (m *repoFolder) path(elem ...string) string {
	return filepath.Join(m.cache, filepath.Join(elem...))
}

// serve composes the folder's image and serves it and its objects by FUSE, as the plugin does.
func (m *repoFolder) serve(v *client.Revision, fqrn, path string) (err error) {
	log := logger(m.c)
	index := objects.NewIndex([16]byte{})
	composer, err := images.New(images.Config{Dir: m.path("images"), Index: index, Log: log})
	if err != nil {
		return err
	}
	if _, err := composer.Sweep(); err != nil { // the cache is ours alone
		return err
	}
	if m.image, err = composer.Published(m.c.Context, m.repository, v, fqrn, path); err != nil {
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
	if m.device, err = fusewire.Mount(m.path("fuse")); err != nil {
		return err
	}
	init, err := fusewire.Handshake(m.device, 0)
	if err != nil {
		return err
	}
	m.ended = make(chan error, 1)
	go func() { m.ended <- fusewire.Serve(m.device, tree, fusewire.Config{Init: init, Log: log}) }()
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	go m.objects.Run(ctx)
	return nil
}

// mount mounts the image by the view that is wanted.
func (m *repoFolder) mount(want string) error {
	if want != options.FUSE {
		err := m.mountImage()
		if err == nil || want == options.EROFS {
			m.by = options.EROFS
			return err
		}
	}
	m.by = options.FUSE
	if err := unix.Mount(m.path("fuse", view.Folder, m.image.Key), m.dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount on %s: %w", m.dir, err)
	}
	return nil
}

// mountImage has the kernel mount the image, and an overlay of it that finds content in data-only layers.
func (m *repoFolder) mountImage() error {
	image := m.path("image")
	if err := os.MkdirAll(image, 0o700); err != nil {
		return err
	}
	if err := m.kernel.MountImage(m.image.Meta, image); err != nil {
		return err
	}
	return m.kernel.Mount(m.dir, &overlayfs.Spec{
		Lower: []string{image}, Metacopy: true,
		Data: []string{m.path("store"), m.path("fuse", objectfs.Gate), m.path("fresh"), m.path("fuse", objectfs.Data)},
	})
}

// close unmounts whatever is mounted.
func (m *repoFolder) close() error {
	var errs []error
	if m.by != "" {
		errs = append(errs, m.kernel.Unmount(m.dir))
	}
	errs = append(errs, m.kernel.Unmount(m.path("image")))
	if m.stop != nil {
		m.stop()
	}
	if m.device != nil {
		errs = append(errs, fusewire.Unmount(m.path("fuse")))
		if m.ended != nil {
			errs = append(errs, <-m.ended)
		}
		errs = append(errs, m.device.Close())
	}
	if m.objects != nil {
		errs = append(errs, m.objects.Close())
	}
	return errors.Join(errs...)
}
