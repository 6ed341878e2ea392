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

// Mounter mounts what a store specifies, by fsopen(2) and its kin: layers are given one by one, without escapes and without the
// page of text that mount(2) takes. Composed images are mounted when an overlay first needs them, from their files (Linux ≥ 6.12),
// and stay mounted; overlays of them need data-only lower layers without metacopy.
type Mounter struct {
	mu sync.Mutex // one mount of an image at a time
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
	if s.Overlay == nil {
		return nil
	}
	return mount("overlay", s.Target, overlayParams(s.Overlay))
}

// overlayParams spells an overlay. What kernels may be built to default to is said: copied-up files are to hold their content and
// renamed folders their files, for a layer is exported from its upper folder alone.
func overlayParams(o *store.Overlay) []param {
	params := []param{{"source", "overlay"}}
	for _, dir := range o.Lower {
		params = append(params, param{"lowerdir+", dir})
	}
	for _, dir := range o.Data {
		params = append(params, param{"datadir+", dir})
	}
	params = append(params, param{"redirect_dir", "off"}, param{"metacopy", "off"}, param{"index", "off"})
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

// image mounts a composed image unless it is.
func (m *Mounter) image(i store.ImageMount) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	mounted, err := m.Mounted(i.Target)
	if mounted || err != nil {
		return err
	}
	if err := os.MkdirAll(i.Target, 0o700); err != nil {
		return err
	}
	err = mount("erofs", i.Target, []param{{"source", i.Source}, {"ro", ""}})
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
		mounted, err := m.Mounted(dir)
		if !mounted || err != nil {
			return err
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
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
