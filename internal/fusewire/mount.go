package fusewire

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MaxRead is the most a READ asks for, bytes.
const MaxRead = 1 << 20

// FlagHasResend of the handshake: the kernel sends once more what a dead server had read (FUSE_HAS_RESEND, Linux 6.9).
const FlagHasResend = 1 << 39

// The other flags we know (FUSE_ASYNC_READ and so on). Those from bit 32 on need flagInitExt.
const (
	flagAsyncRead         = 1 << 0
	flagDoReaddirplus     = 1 << 13
	flagNoOpen            = 1 << 17
	flagParallelDirops    = 1 << 18
	flagPosixACL          = 1 << 20
	flagMaxPages          = 1 << 22
	flagCacheSymlinks     = 1 << 23
	flagNoOpendir         = 1 << 24
	flagExplicitInvalData = 1 << 25
	flagInitExt           = 1 << 30
)

// wanted are the flags we ask for where the kernel offers them. PARALLEL_DIROPS lets several lookups in one folder wait
// side by side; MAX_PAGES lets reads be as long as MaxRead; EXPLICIT_INVAL_DATA keeps the page cache of files that
// never change; POSIX_ACL makes access control lists hold, and kept.
const wanted = flagAsyncRead | flagDoReaddirplus | flagNoOpen | flagParallelDirops | flagPosixACL | flagMaxPages |
	flagCacheSymlinks | flagNoOpendir | flagExplicitInvalData | flagInitExt | FlagHasResend

const (
	major    = 7
	minMinor = 23 // reply to INIT as long as today's
	maxMinor = 40
	// maxBackground is how many READs ahead of their readers the kernel keeps under way. Those of a repository that
	// stalls must not use up the room of the others.
	maxBackground = 256
	notifyResend  = 7
)

// Init is the outcome of the handshake: what a server process must know of it.
type Init struct {
	Minor uint32 `json:"minor"` // protocol version 7.Minor
	Flags uint64 `json:"flags"` // as granted
}

// Has reports whether all bits of flag were granted.
func (i Init) Has(flag uint64) bool { return i.Flags&flag == flag }

// device finds FUSE's device (character, 10:229) in a folder of devices. Its name is fuse unless an administrator gave
// a plugin the host's under another one.
func device(dir string) string {
	usual := filepath.Join(dir, "fuse")
	if _, err := os.Lstat(usual); err == nil {
		return usual
	}
	found := usual
	// What can't be looked at isn't it.
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && d.Type()&fs.ModeCharDevice != 0 && unix.Lstat(name, &st) == nil &&
			st.Rdev == unix.Mkdev(10, 229) {
			found = name
			return fs.SkipAll
		}
		return nil
	})
	return found
}

// Mount opens FUSE's device and mounts it read-only on the folder dir. The kernel's first request, INIT, waits on the
// device: Handshake comes next. Nothing in dir may be touched before a server runs.
func Mount(dir string) (*os.File, error) {
	name := device("/dev")
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w (is the fuse module loaded, and the device given to this container?)", name,
			err)
	}
	dev := os.NewFile(uintptr(fd), name)
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=%d", fd,
		MaxRead)
	if err := unix.Mount("cvmfs", dir, "fuse.cvmfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, data); err != nil {
		dev.Close() // the error that is told is the first one
		return nil, fmt.Errorf("mount fuse on %s: %w", dir, err)
	}
	return dev, nil
}

// Unmount detaches whatever is mounted on dir, layer by layer, without a request to any server. It is no error if
// nothing is. Requests that wait for a reply fail, even those of processes that use the mount by another way (an
// overlay on it).
func Unmount(dir string) error {
	for {
		err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}

// Handshake answers INIT on a device just mounted. Flags in without are refused even if the kernel offers them.
func Handshake(dev *os.File, without uint64) (Init, error) {
	fd, buf := int(dev.Fd()), make([]byte, requestSize)
	n, err := unix.Read(fd, buf)
	for errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		n, err = unix.Read(fd, buf)
	}
	if err != nil {
		return Init{}, fmt.Errorf("FUSE handshake: read: %w", err)
	}
	out := make([]byte, outHeaderSize+initOutSize)
	init, unique, err := answerInit(buf[:n], wanted&^without, out[outHeaderSize:])
	if err != nil {
		return Init{}, fmt.Errorf("FUSE handshake: %w", err)
	}
	if _, err := unix.Write(fd, out[:putReply(out, unique, len(out), 0)]); err != nil {
		return Init{}, fmt.Errorf("FUSE handshake: reply: %w", err)
	}
	return init, nil
}

// answerInit reads struct fuse_init_in and writes struct fuse_init_out to out.
func answerInit(request []byte, want uint64, out []byte) (Init, uint64, error) {
	h, arg, err := parseRequest(request)
	if err != nil {
		return Init{}, 0, err
	}
	if h.op != OpInit || len(arg) < initInSize {
		return Init{}, 0, fmt.Errorf("the first request is number %d of %d bytes, not INIT", h.op, len(arg))
	}
	if v := native.Uint32(arg); v != major {
		return Init{}, 0, fmt.Errorf("the kernel speaks version %d, we speak %d", v, major)
	}
	offered := uint64(native.Uint32(arg[12:]))
	if offered&flagInitExt != 0 && len(arg) >= initInSize+4 {
		offered |= uint64(native.Uint32(arg[16:])) << 32
	}
	init := Init{Minor: min(native.Uint32(arg[4:]), maxMinor), Flags: offered & want}
	if init.Minor < minMinor {
		return Init{}, 0, fmt.Errorf("the kernel speaks version 7.%d, 7.%d (Linux 3.16) is needed", init.Minor,
			minMinor)
	}
	native.PutUint32(out, major)
	native.PutUint32(out[4:], init.Minor)
	copy(out[8:12], arg[8:12]) // max_readahead: what the kernel proposes
	native.PutUint32(out[12:], uint32(init.Flags))
	native.PutUint16(out[16:], maxBackground)
	native.PutUint16(out[18:], maxBackground*3/4)
	native.PutUint32(out[20:], 4096) // max_write: the least there is
	native.PutUint32(out[24:], 1)    // time_gran, ns
	native.PutUint16(out[28:], uint16(MaxRead/os.Getpagesize()))
	native.PutUint32(out[32:], uint32(init.Flags>>32))
	return init, h.unique, nil
}

// Resend tells the kernel that the server died: requests it had read and not answered are queued once more. The kernel
// must have granted FlagHasResend, and the dead server be reaped. On Linux before 6.9 it is an error.
func Resend(dev *os.File) error {
	var b [outHeaderSize]byte
	native.PutUint32(b[:], outHeaderSize)
	native.PutUint32(b[4:], notifyResend)
	if _, err := unix.Write(int(dev.Fd()), b[:]); err != nil {
		return fmt.Errorf("ask the kernel to resend FUSE requests: %w", err)
	}
	return nil
}

// SetReadAhead sets how many KiB the kernel reads ahead on the mount at dir: around a page that is missing, and before
// whoever reads in small pieces. It holds for files that are opened later. It sends no request to the server.
func SetReadAhead(dir string, kib int) error {
	if err := setReadAhead(dir, kib); err != nil {
		return fmt.Errorf("set read-ahead of %s: %w", dir, err)
	}
	return nil
}

func setReadAhead(dir string, kib int) error {
	at, err := deviceOf(dir)
	if err != nil {
		return err
	}
	above, err := deviceOf(filepath.Dir(dir))
	if err != nil {
		return err
	}
	if at == above {
		return errors.New("nothing is mounted there")
	}
	name := fmt.Sprintf("class/bdi/%s/read_ahead_kb", at)
	f, err := os.OpenFile("/sys/"+name, os.O_WRONLY, 0)
	if err != nil { // in containers /sys is often read-only, or not there
		if f, err = openInSys(name); err != nil {
			return err
		}
	}
	_, err = fmt.Fprint(f, kib)
	return errors.Join(err, f.Close())
}

// deviceOf returns major and minor number of the file system that a folder is in.
func deviceOf(dir string) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC|unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return "", &fs.PathError{Op: "statx", Path: dir, Err: err}
	}
	return fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor), nil
}

// openInSys opens a file of sysfs for writing, by a mount of it that is nowhere.
func openInSys(name string) (*os.File, error) {
	fsfd, err := unix.Fsopen("sysfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen sysfs", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, os.NewSyscallError("fsconfig sysfs", err)
	}
	root, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount sysfs", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/sys/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
