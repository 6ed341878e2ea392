package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/store"
)

// Mounter mounts what a store specifies. Composed images are mounted when an overlay first needs them, from their files
// (Linux ≥ 6.12), and stay mounted, as do the overlays that share them. Where the kernel takes an
// overlay's layers one by one (fsconfig(2), Linux ≥ 6.8) they are given so, in any number; elsewhere mount(2) gets them in one
// line, which must fit in a page.
type Mounter struct {
	// For tests, to do as older kernels have it:
	Classic  bool // use mount(2)
	Metacopy bool // refuse data-only layers in an overlay without metacopy

	mu   sync.Mutex // one mount of an image at a time
	once sync.Once
	old  bool // mount(2) must be used
}

var _ store.Mounter = (*Mounter)(nil)

// maxOption is the most bytes fsconfig(2) takes as the value of a parameter.
const maxOption = 255

// param is a mount parameter; without a value it is a flag.
type param struct{ key, value string }

// Mount brings a mount about.
func (m *Mounter) Mount(s store.Mount) error {
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
	return m.overlay(s.Target, s.Overlay, false)
}

// overlay mounts an overlay.
func (m *Mounter) overlay(target string, o *store.Overlay, metacopy bool) error {
	if len(o.Data) > 0 && m.Metacopy && !metacopy {
		return fmt.Errorf("mount overlay on %s: %w", target, errMetacopy)
	}
	var err error
	if m.classic() {
		err = mountOverlayClassic(target, o, overlayOptions(metacopy))
	} else {
		err = mount("overlay", target, overlayParams(o, overlayOptions(metacopy)))
	}
	if errors.Is(err, unix.EINVAL) && len(o.Data) > 0 {
		err = fmt.Errorf("%w: %w", errMetacopy, err)
	}
	return err
}

// errMetacopy: what such mounts take that others don't, if they fail.
var errMetacopy = errors.New("this kernel's overlayfs takes no data-only lower layers, or none without metacopy")

// classic tells whether overlays are mounted by mount(2): where there is no fsopen(2) (before Linux 5.2), or overlayfs takes no
// single layers.
func (m *Mounter) classic() bool {
	m.once.Do(func() {
		fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
		if err != nil {
			m.old = errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) // EPERM: a filter of system calls that doesn't know it
			return
		}
		defer unix.Close(fd)
		m.old = unix.FsconfigSetString(fd, "datadir+", "/") == unix.EINVAL && unix.FsconfigSetString(fd, "lowerdir+", "/") != nil
	})
	return m.Classic || m.old
}

// overlayParams spells an overlay, layers one by one.
func overlayParams(o *store.Overlay, options []param) []param {
	params := []param{{"source", "overlay"}}
	for _, dir := range o.Lower {
		params = append(params, param{"lowerdir+", dir})
	}
	for _, dir := range o.Data {
		params = append(params, param{"datadir+", dir})
	}
	params = append(params, options...)
	if o.Upper != "" {
		params = append(params, param{"upperdir", o.Upper}, param{"workdir", o.Work})
	} else {
		params = append(params, param{"ro", ""})
	}
	if o.Label != "" {
		params = append(params, param{"context", o.Label})
	}
	return params
}

// overlayOptions says what kernels may be built to default to otherwise: copied-up files are to hold their content and renamed
// folders their files, for a layer is exported from its upper folder alone. What the kernel doesn't know is left out. With
// metacopy, which is for overlays without an upper folder, redirects are followed as well: kernels want both or neither.
func overlayOptions(metacopy bool) (params []param) {
	for _, name := range overlayParameters() {
		value := "off"
		if metacopy && name != "index" {
			value = "on"
		}
		params = append(params, param{name, value})
	}
	return params
}

// overlayParameters are those of the parameters with defaults that the kernel's overlayfs has.
var overlayParameters = sync.OnceValue(func() (names []string) {
	const known = "/sys/module/overlay/parameters/"
	_, unsure := os.Stat(known) // without sysfs all are said
	for _, name := range []string{"redirect_dir", "metacopy", "index"} {
		if _, err := os.Stat(known + name); unsure != nil || !errors.Is(err, fs.ErrNotExist) {
			names = append(names, name)
		}
	}
	return names
})

// image mounts a composed image unless it is.
func (m *Mounter) image(i store.ImageMount) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unless(i.Target, func() error { return m.erofs(i) })
}

// shared mounts the overlay of a composed image unless it is.
func (m *Mounter) shared(s store.Shared) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unless(s.Target, func() error {
		return m.overlay(s.Target, &store.Overlay{Lower: s.Lower, Data: s.Data}, len(s.Data) > 0)
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

// erofs mounts an image.
func (m *Mounter) erofs(i store.ImageMount) (err error) {
	if m.classic() {
		if err = unix.Mount(i.Source, i.Target, "erofs", unix.MS_RDONLY, ""); err != nil {
			err = fmt.Errorf("mount erofs %s on %s: %w", i.Source, i.Target, err)
		}
	} else {
		err = mount("erofs", i.Target, []param{{"source", i.Source}, {"ro", ""}})
	}
	if errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: this kernel can't mount EROFS images from files, which takes Linux 6.12 with CONFIG_EROFS_FS", err)
	}
	return err
}

// Mounted tells whether something is mounted at a folder.
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

// mount makes a file system and mounts it on a folder.
func mount(fstype, target string, params []param) error {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("mount %s: fsopen: %w", fstype, err)
	}
	defer unix.Close(fd)
	for _, p := range params {
		if err := configure(fd, p); err != nil {
			return fmt.Errorf("mount %s on %s: %s=%s: %w%s", fstype, target, p.key, p.value, err, kernelLog(fd))
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("mount %s on %s: %w%s", fstype, target, err, kernelLog(fd))
	}
	mfd, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount %s on %s: fsmount: %w%s", fstype, target, err, kernelLog(fd))
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: move_mount: %w", fstype, target, err)
	}
	return nil
}

func configure(fd int, p param) error {
	switch {
	case p.value == "":
		return unix.FsconfigSetFlag(fd, p.key)
	case len(p.value) > maxOption:
		return fmt.Errorf("%d bytes, the kernel takes %d: use shorter paths", len(p.value), maxOption)
	}
	return unix.FsconfigSetString(fd, p.key, p.value)
}

// kernelLog gives what the kernel has to say about a mount that failed: lines read from the fsopen descriptor, each led by its
// level.
func kernelLog(fd int) string {
	var lines []string
	buf := make([]byte, 4096)
	for range 16 {
		n, err := unix.Read(fd, buf)
		if err != nil || n <= 0 {
			break
		}
		line := strings.TrimSpace(string(buf[:n]))
		if len(line) > 2 && line[1] == ' ' {
			line = line[2:]
		}
		lines = append(lines, line)
	}
	if lines == nil {
		return ""
	}
	return " (" + strings.Join(lines, "; ") + ")"
}
