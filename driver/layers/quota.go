package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/lockorder"
)

// A container's size is limited by a project quota: its folders belong to a project of their own, and what is made in
// them does too. A project's number stands on the folders and nowhere else; new ones are above all that are in use.

// errNoQuotas means that a file system doesn't enforce limits of projects.
var errNoQuotas = errors.New("project quotas are not on: mount it with the option pquota (xfs) or prjquota (ext4 with the features project and quota), or leave size out")

// projects are the calls for project quotas of the file system the layers are on.
type projects interface {
	// enforced returns errNoQuotas unless limits are enforced.
	enforced() error
	// project returns the number a folder or file has; 0 is nobody's.
	project(path string) (uint32, error)
	// assign returns a folder a number, which what is made in it from now on inherits.
	assign(dir string, id uint32) error
	// limit sets how many bytes a project may use.
	limit(id uint32, bytes uint64) error
}

// quota hands out projects.
type quota struct {
	projects projects

	mu   lockorder.Mutex
	last uint32 // highest number in use; 0 until it was looked up
}

// Quotas reports whether the file system limits what projects may use.
func (s *Store) Quotas() bool { return s.quota.projects.enforced() == nil }

// restrict limits what the folders of a new, empty layer may hold together.
func (s *Store) restrict(dir, id string, size uint64) error {
	if err := s.quota.projects.enforced(); err != nil {
		return fmt.Errorf("storage option size: the file system of the engine's data-root, %s: %w",
			s.FileSystem(), err)
	}
	project, err := s.newProject()
	if err == nil {
		err = s.quota.projects.limit(project, size)
	}
	// Not the layer's folder itself: one of another project than the folder it is in can't be renamed if that hands its
	// own down.
	for _, sub := range []string{"graph", filepath.Join("graph", id), diffDir(id), "work"} {
		if err == nil {
			err = s.quota.projects.assign(filepath.Join(dir, sub), project)
		}
	}
	if err != nil {
		return fmt.Errorf("storage option size: %w", err)
	}
	s.cfg.Log.Info("limited a container", "layer", id, "bytes", size, "project", project)
	return nil
}

// newProject returns a number that no layer has.
func (s *Store) newProject() (uint32, error) {
	q := &s.quota
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.last == 0 {
		ids, err := s.list()
		if err != nil {
			return 0, err
		}
		// The folder's own number is the administrator's, if it has one.
		if q.last, err = q.projects.project(s.cfg.Dir); err != nil {
			return 0, err
		}
		for _, id := range ids {
			n, err := q.projects.project(s.dir(id, "work"))
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed meanwhile
			}
			if err != nil {
				return 0, err
			}
			q.last = max(q.last, n)
		}
	}
	if q.last == math.MaxUint32 {
		return 0, errors.New("no project numbers are left")
	}
	q.last++
	return q.last, nil
}

// kernelProjects makes the calls. quotactl(2) takes a file system by its block device, for which the plugin has no
// name: makeNode makes a node of our own.
type kernelProjects struct {
	root string // folder on the file system
	node string // where the device's node is made
}

// Numbers of <linux/fs.h>, <linux/dqblk_xfs.h> and <linux/quota.h>; the same on amd64 and arm64.
const (
	getXattrs      = 0x801c581f // FS_IOC_FSGETXATTR
	setXattrs      = 0x401c5820 // FS_IOC_FSSETXATTR
	inheritProject = 0x200      // FS_XFLAG_PROJINHERIT
	setLimits      = 0x5804     // Q_XSETQLIM
	getState       = 0x5805     // Q_XGETQSTAT
	projectQuota   = 2          // PRJQUOTA
	enforcesLimits = 1 << 5     // FS_QUOTA_PDQ_ENFD
	limitsVersion  = 1          // FS_DQUOT_VERSION
	ofProject      = 1 << 1     // FS_PROJ_QUOTA
	hardAndSoft    = 1<<2 | 1<<3
	basicBlock     = 512
)

// fileXattrs is struct fsxattr.
type fileXattrs struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// diskQuota is struct fs_disk_quota; blocks are of 512 bytes.
type diskQuota struct {
	version, flags int8
	fields         uint16
	id             uint32
	hard, soft     uint64
	_              [88]byte // inodes, counts, timers and real-time blocks
}

// quotaState is struct fs_quota_stat.
type quotaState struct {
	_     int8
	flags uint16
	_     [76]byte
}

func (k kernelProjects) enforced() error {
	state := quotaState{}
	err := k.quotactl(getState, 0, unsafe.Pointer(&state))
	if err != nil {
		return fmt.Errorf("%w (quotactl: %w)", errNoQuotas, err)
	}
	if state.flags&enforcesLimits == 0 {
		return errNoQuotas
	}
	return nil
}

func (k kernelProjects) project(path string) (uint32, error) {
	var x fileXattrs
	err := xattrsOf(path, getXattrs, &x)
	return x.project, err
}

func (k kernelProjects) assign(dir string, id uint32) error {
	var x fileXattrs
	if err := xattrsOf(dir, getXattrs, &x); err != nil {
		return err
	}
	x.project = id
	x.flags |= inheritProject
	return xattrsOf(dir, setXattrs, &x)
}

func (k kernelProjects) limit(id uint32, bytes uint64) error {
	blocks := (bytes + basicBlock - 1) / basicBlock
	q := diskQuota{version: limitsVersion, flags: ofProject, fields: hardAndSoft, id: id, hard: blocks, soft: blocks}
	if err := k.quotactl(setLimits, id, unsafe.Pointer(&q)); err != nil {
		return fmt.Errorf("limit project %d to %d bytes: %w", id, bytes, err)
	}
	return nil
}

func (k kernelProjects) quotactl(call, id uint32, arg unsafe.Pointer) error {
	node, err := unix.BytePtrFromString(k.node)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL, uintptr(call)<<8|projectQuota, uintptr(unsafe.Pointer(node)),
		uintptr(id), uintptr(arg), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// makeNode makes the device's node anew where it isn't the right one: devices get other numbers at each boot.
func (k kernelProjects) makeNode() error {
	var root, node unix.Stat_t
	if err := unix.Stat(k.root, &root); err != nil {
		return &fs.PathError{Op: "stat", Path: k.root, Err: err}
	}
	if unix.Lstat(k.node, &node) == nil && node.Mode&unix.S_IFMT == unix.S_IFBLK && node.Rdev == root.Dev {
		return nil
	}
	if err := os.Remove(k.node); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := unix.Mknod(k.node, unix.S_IFBLK|0o600, int(root.Dev)); err != nil && !errors.Is(err, fs.ErrExist) {
		return &fs.PathError{Op: "mknod", Path: k.node, Err: err}
	}
	return nil
}

// xattrsOf asks for or sets what ioctl_xfs_fsgetxattr(2) describes.
func xattrsOf(path string, call uintptr, x *fileXattrs) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), call, uintptr(unsafe.Pointer(x))); errno != 0 {
		return &fs.PathError{Op: "ioctl on project of", Path: path, Err: errno}
	}
	return nil
}
