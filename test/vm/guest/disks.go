package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/vm"
)

const (
	newRoot  = "/newroot"
	diskWait = 30 * time.Second // until the kernel has found a disk
)

// loadModules loads the modules of a folder in the order of their names.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		f, err := os.Open(filepath.Join(dir, entry.Name()))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		// What is for other processors says so; a part of the kernel may come as a module, too.
		if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load the module %s: %w", entry.Name(), err)
		}
	}
	return nil
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	return nil
}

// mountDisks mounts the disks and makes the first one the root.
func mountDisks(mounts []vm.Mount) error {
	for _, m := range mounts {
		device, err := find(m.Disk)
		if err != nil {
			return err
		}
		var flags uintptr
		if m.ReadOnly {
			flags = unix.MS_RDONLY
		}
		if err := mount(device, newRoot+m.Dir, m.FSType, flags, ""); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return err
		}
	}
	// As switch_root(8): the initial file system can't be left by pivot_root(2).
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(newRoot, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("make the disk the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

// find returns the device of a disk. The order in which disks are found is not that of the command line.
func find(name string) (string, error) {
	for deadline := time.Now().Add(diskWait); ; time.Sleep(20 * time.Millisecond) {
		serials, err := filepath.Glob("/sys/block/vd*/serial")
		if err != nil {
			return "", err
		}
		for _, file := range serials {
			serial, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(serial)) == name {
				return "/dev/" + filepath.Base(filepath.Dir(file)), nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("find the disk %q: the kernel knows %d disks, and none of this name", name,
				len(serials))
		}
	}
}

func writeFiles(files map[string]string) error {
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// settle does what an init system does for the programs of a job.
func settle() error {
	for _, m := range []struct{ fstype, dir, data string }{
		{"devpts", "/dev/pts", "mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", ""},
	} {
		if err := mount(m.fstype, m.dir, m.fstype, unix.MS_NOSUID, m.data); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1",
		"/dev/stderr": "fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	limit := unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}
	return errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""), // as systemd has it
		unix.Sethostname([]byte("guest")),
		unix.Setrlimit(unix.RLIMIT_NOFILE, &limit),
		loopbackUp(),
	)
}

// loopbackUp brings the network of the machine itself up.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bring the loopback network up: %w", err)
	}
	return nil
}
