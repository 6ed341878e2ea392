package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// Exit codes of the container where the program can't be run, as engines have them.
const (
	exitSetup    = 125
	exitNotRun   = 126
	exitNotFound = 127
)

const hostname = "record"

// capabilities are those that engines leave to containers, moby's default set, without that of making devices: engines
// keep containers from using others than their own by a control group, which isn't here.
var capabilities = map[uintptr]bool{
	unix.CAP_CHOWN: true, unix.CAP_DAC_OVERRIDE: true, unix.CAP_FSETID: true, unix.CAP_FOWNER: true,
	unix.CAP_NET_RAW: true, unix.CAP_SETGID: true, unix.CAP_SETUID: true, unix.CAP_SETFCAP: true,
	unix.CAP_SETPCAP: true, unix.CAP_NET_BIND_SERVICE: true, unix.CAP_SYS_CHROOT: true, unix.CAP_KILL: true,
	unix.CAP_AUDIT_WRITE: true,
}

// containerMain becomes the image's program: it reads a Command from its standard input.
func containerMain() int {
	runtime.LockOSThread() // capabilities are a thread's
	unix.Umask(0o022)      // as in engines' containers, whatever the caller's is
	var c Command
	err := json.NewDecoder(os.Stdin).Decode(&c)
	if err == nil {
		err = enter(os.Args[len(os.Args)-1])
	}
	var program string
	if err == nil {
		err = become(&c)
	}
	if err == nil {
		program, err = find(&c)
	}
	if err == nil {
		err = unix.Exec(program, c.Args, c.Env)
	}
	fmt.Fprintf(os.Stderr, "run %s: %v\n", strings.Join(c.Args, " "), err)
	switch {
	case errors.Is(err, os.ErrNotExist) && program == "":
		return exitNotFound
	case program != "":
		return exitNotRun
	}
	return exitSetup
}

// enter makes a folder the root, so that nothing outside can be reached any more, and mounts what programs expect.
func enter(root string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// The caller's keys stay the caller's. Kernels may be built without, and who may not do this may do nothing with
	// keys.
	_, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
	if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("have a keyring of its own: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the former root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// Devices of the image are the host's.
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("switch the devices of the image off: %w", err)
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		at, kind, data string
		flags          uintptr
	}{
		{"/proc", "proc", "", plain},
		{"/dev", "tmpfs", "mode=755,size=64k", unix.MS_NOSUID},
		{"/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=620", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"/dev/shm", "tmpfs", "mode=1777", plain},
		{"/sys", "sysfs", "", plain | unix.MS_RDONLY},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		info, err := os.Lstat(m.at)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s of the image is no folder: nothing can be mounted there", m.at)
		}
		if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := devices(); err != nil {
		return err
	}
	if err := errors.Join(unix.Sethostname([]byte(hostname)), loopback()); err != nil {
		return err
	}
	// As in engines' containers: every user may listen at every port.
	err = os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0o644)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := protect(); err != nil { // what follows can't be led there by links any more
		return err
	}
	return hosts()
}

// hosts has names resolved that every container resolves: images mostly leave the file to engines. Where an image has
// something else than a file there, it stays.
func hosts() error {
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return err
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err := os.OpenFile("/etc/hosts", flags, 0o644)
	for _, other := range []error{unix.ELOOP, unix.EISDIR, unix.ENXIO, unix.EACCES} { // a link, folder, pipe or device
		if errors.Is(err, other) {
			return nil
		}
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString("127.0.0.1\tlocalhost " + hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	return errors.Join(err, f.Close())
}

// What of the kernel's is the whole host's is read-only for containers, or hidden from them, as in engines: root may
// write there without any capability, and have the kernel run a program outside (core_pattern).
var (
	readOnly = []string{"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	hidden   = []string{
		"/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
)

// protect makes them so. Not every kernel has them all.
func protect() error {
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, at := range readOnly {
		err := unix.Mount(at, at, "", unix.MS_BIND|unix.MS_REC, "")
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err == nil {
			err = unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|plain, "")
		}
		if err != nil {
			return fmt.Errorf("make %s read-only: %w", at, err)
		}
	}
	for _, at := range hidden {
		err := unix.Mount("/dev/null", at, "", unix.MS_BIND, "")
		if errors.Is(err, unix.ENOTDIR) {
			err = unix.Mount("tmpfs", at, "tmpfs", plain|unix.MS_RDONLY, "")
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("hide %s: %w", at, err)
		}
	}
	return nil
}

// devices makes those that every container has.
func devices() error {
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		name := "/dev/" + d.name
		if err := unix.Mknod(name, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		if err := os.Chmod(name, 0o666); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	return nil
}

// loopback switches the one network interface on.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("switch the loopback interface on: %w", err)
	}
	return nil
}

// become takes the user, the folder and the rights of the command.
func become(c *Command) error {
	who, err := user.GetExecUserPath(c.User, &user.ExecUser{Home: "/"}, "/etc/passwd", "/etc/group")
	if err != nil {
		return fmt.Errorf("user %q of the image: %w", c.User, err)
	}
	if c.Dir != "" {
		if err := os.MkdirAll(c.Dir, 0o755); err != nil {
			return err
		}
		if err := os.Chdir(c.Dir); err != nil {
			return err
		}
	}
	if variable(c.Env, "HOME") == "" {
		c.Env = append(c.Env, "HOME="+who.Home)
	}
	for n := uintptr(0); n <= unix.CAP_LAST_CAP; n++ {
		if capabilities[n] {
			continue
		}
		// EINVAL: the kernel doesn't know it.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", n, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	// Programs open /dev/stdout, too. These are pipes of the recorder's.
	for fd := range 3 {
		if err := unix.Fchown(fd, who.Uid, -1); err != nil {
			return fmt.Errorf("give user %q its output: %w", c.User, err)
		}
	}
	if err := errors.Join(unix.Setgroups(who.Sgids), unix.Setresgid(who.Gid, who.Gid, who.Gid),
		unix.Setresuid(who.Uid, who.Uid, who.Uid)); err != nil {
		return fmt.Errorf("become user %q: %w", c.User, err)
	}
	if err := keepCapabilities(who.Uid == 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) // another user's process has lost it
}

// keepCapabilities leaves root with those of containers, and others with none.
func keepCapabilities(root bool) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if root {
		for n := range capabilities {
			sets[n/32].Effective |= 1 << (n % 32)
			sets[n/32].Permitted |= 1 << (n % 32)
		}
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// find looks for the program as engines do: in PATH, unless it is a path.
func find(c *Command) (string, error) {
	name := c.Args[0]
	if strings.Contains(name, "/") {
		if _, err := os.Stat(name); err != nil {
			return "", err
		}
		return name, nil
	}
	path := variable(c.Env, "PATH")
	if path == "" {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
		c.Env = append(c.Env, "PATH="+path)
	}
	for dir := range strings.SplitSeq(path, ":") {
		program := filepath.Join("/", dir, name)
		if info, err := os.Stat(program); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return program, nil
		}
	}
	return "", fmt.Errorf("%w in %s", os.ErrNotExist, path)
}

func variable(env []string, name string) string {
	for _, e := range env {
		if value, found := strings.CutPrefix(e, name+"="); found {
			return value
		}
	}
	return ""
}
