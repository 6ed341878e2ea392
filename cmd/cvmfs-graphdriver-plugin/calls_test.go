package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

// outcome spells what a system call gave, so that two can be compared.
func outcome(v any, err error) string {
	if err != nil {
		if errno, ok := errors.AsType[unix.Errno](err); ok {
			return unix.ErrnoName(errno)
		}
		return err.Error()
	}
	return fmt.Sprint(v)
}

// calls are system calls on the root of a container of the reference image: what they do must not depend on what shows
// the image. They are made in this order.
var calls = []struct {
	name string
	call func(dir string) string
}{
	{"O_TMPFILE, linked", func(dir string) string {
		fd, err := unix.Open(dir+"/data", unix.O_TMPFILE|unix.O_RDWR, 0o600)
		if err != nil {
			return outcome(0, err)
		}
		defer unix.Close(fd)
		n, err := unix.Write(fd, []byte("new"))
		if err == nil {
			err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, dir+"/data/linked",
				unix.AT_SYMLINK_FOLLOW)
		}
		return outcome(n, err)
	}},
	{"renameat2 NOREPLACE", func(dir string) string {
		return outcome(0, unix.Renameat2(unix.AT_FDCWD, dir+"/data/a.txt", unix.AT_FDCWD, dir+"/data/b.txt",
			unix.RENAME_NOREPLACE))
	}},
	{"renameat2 EXCHANGE of lower files", func(dir string) string {
		return outcome(0, unix.Renameat2(unix.AT_FDCWD, dir+"/data/a.txt", unix.AT_FDCWD, dir+"/data/b.txt",
			unix.RENAME_EXCHANGE))
	}},
	{"renameat2 WHITEOUT", func(dir string) string {
		return outcome(0, unix.Renameat2(unix.AT_FDCWD, dir+"/data/a.txt", unix.AT_FDCWD, dir+"/data/moved",
			unix.RENAME_WHITEOUT))
	}},
	{
		"rename of a lower folder",
		func(dir string) string { return outcome(0, unix.Rename(dir+"/opt/old", dir+"/opt/new")) },
	},
	{"rename of a lower folder, by hand", func(dir string) string {
		return outcome(0, errors.Join(os.Mkdir(dir+"/opt/copy", 0o755), os.Rename(dir+"/opt/old/z", dir+"/opt/copy/z")))
	}},
	{"user attribute", func(dir string) string {
		return outcome(0,
			unix.Setxattr(dir+"/bin/hello", "user.x", []byte("v"), 0))
	}},
	{"trusted attribute", func(dir string) string {
		return outcome(0, unix.Setxattr(dir+"/bin/hello", "trusted.x", []byte("v"), 0))
	}},
	{"attribute of overlayfs", func(dir string) string {
		return outcome(0, unix.Setxattr(dir+"/bin/hello", "trusted.overlay.x", []byte("v"), 0))
	}},
	{"attributes listed", func(dir string) string {
		b := make([]byte, 4096)
		n, err := unix.Llistxattr(dir+"/bin/hello", b)
		if err != nil {
			return outcome(0, err)
		}
		return fmt.Sprintf("%q", b[:n])
	}},
	{"attribute of a lower file that has none", func(dir string) string {
		n, err := unix.Getxattr(dir+"/etc/passwd", "user.none", make([]byte, 10))
		return outcome(n, err)
	}},
	{"access control list", func(dir string) string {
		// version 2; user::rw-, user:7:r--, group::r--, mask::r--, other::r--
		acl := []byte{
			2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 7, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255,
			255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
		}
		return outcome(0, unix.Setxattr(dir+"/etc/passwd", "system.posix_acl_access", acl, 0))
	}},
	{"capability", func(dir string) string {
		return outcome(0, unix.Setxattr(dir+"/bin/hello", "security.capability",
			[]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	}},
	{"fallocate", func(dir string) string {
		return onFile(dir+"/data/blob", unix.O_RDWR, func(fd int) error { return unix.Fallocate(fd, 0, 0, 1<<20) })
	}},
	{"punched hole", func(dir string) string {
		return onFile(dir+"/data/blob", unix.O_RDWR, func(fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 4096)
		})
	}},
	{"copy_file_range of a lower file", func(dir string) string {
		from, err := os.Open(dir + "/data/b.txt")
		if err != nil {
			return outcome(0, err)
		}
		defer from.Close()
		var n int
		text := onFile(dir+"/data/copied", unix.O_RDWR|unix.O_CREAT, func(fd int) (err error) {
			n, err = unix.CopyFileRange(int(from.Fd()), nil, fd, nil, 16, 0)
			return err
		})
		return fmt.Sprint(n, text)
	}},
	{"handle of a lower file", func(dir string) string {
		_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir+"/etc/os-release", 0)
		return outcome(0, err)
	}},
	{"flags of a lower file", func(dir string) string {
		return onFile(dir+"/etc/os-release", unix.O_RDONLY, func(fd int) error {
			_, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
			return err
		})
	}},
	{"O_DIRECT", func(dir string) string {
		return onFile(dir+"/etc/os-release", unix.O_RDONLY|unix.O_DIRECT, func(int) error { return nil })
	}},
	{"lease", func(dir string) string {
		return onFile(dir+"/etc/os-release", unix.O_RDONLY, func(fd int) error {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
			return err
		})
	}},
	{"lock", func(dir string) string {
		return onFile(dir+"/etc/os-release", unix.O_RDONLY,
			func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	}},
	{"shared mapping", func(dir string) string {
		return onFile(dir+"/data/moved", unix.O_RDWR|unix.O_CREAT, func(fd int) error {
			if err := unix.Ftruncate(fd, 4096); err != nil {
				return err
			}
			b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			b[0] = 'x'
			return unix.Munmap(b)
		})
	}},
	{"time of birth", func(dir string) string {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, dir+"/data", 0, unix.STATX_BASIC_STATS, &st)
		return outcome(st.Mode, err)
	}},
	{"watch", func(dir string) string {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return outcome(0, err)
		}
		defer unix.Close(fd)
		_, err = unix.InotifyAddWatch(fd, dir+"/etc/os-release", unix.IN_ALL_EVENTS)
		return outcome(0, err)
	}},
	{"link of a lower file", func(dir string) string {
		return outcome(0,
			os.Link(dir+"/etc/os-release", dir+"/etc/linked"))
	}},
	{
		"link over a name that is there",
		func(dir string) string { return outcome(0, os.Link(dir+"/etc/passwd", dir+"/etc/linked")) },
	},
	{"special files", func(dir string) string {
		return outcome(0, errors.Join(unix.Mkfifo(dir+"/fifo", 0o600),
			unix.Mknod(dir+"/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))))
	}},
	{"a whiteout made by hand", func(dir string) string { return outcome(0, unix.Mknod(dir+"/wh", unix.S_IFCHR, 0)) }},
	{"times", func(dir string) string {
		return outcome(0, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/bin/hi", []unix.Timespec{{Sec: 1}, {Sec: 2, Nsec: 3}},
			unix.AT_SYMLINK_NOFOLLOW))
	}},
	{"owner of a link", func(dir string) string { return outcome(0, os.Lchown(dir+"/bin/hi", 7, 8)) }},
	{
		"removal of a folder that isn't empty",
		func(dir string) string { return outcome(0, unix.Rmdir(dir+"/srv/file-becomes-dir")) },
	},
	{"removal of a folder with a lower file", func(dir string) string {
		return outcome(0, errors.Join(os.Remove(dir+"/srv/file-becomes-dir/inside"),
			os.Remove(dir+"/srv/file-becomes-dir"), os.Mkdir(dir+"/srv/file-becomes-dir", 0o700)))
	}},
	{"names of an opaque folder", func(dir string) string {
		names, err := filepath.Glob(dir + "/srv/file-becomes-dir/*")
		return outcome(len(names), err)
	}},
	{"a long name", func(dir string) string {
		return outcome(0,
			os.WriteFile(dir+"/"+strings.Repeat("n", 255), nil, 0o600))
	}},
	{"too long a name", func(dir string) string {
		return outcome(0, os.WriteFile(dir+"/"+strings.Repeat("n", 255)+"n", nil, 0o600))
	}},
}

// onFile does something with a descriptor and spells the error.
func onFile(name string, flags int, do func(fd int) error) string {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return "open: " + outcome(0, err)
	}
	defer unix.Close(fd)
	return outcome(0, do(fd))
}

// known are answers in a thin container that differ from those in an ordinary one, on some kernels or in some views: of
// a file that is as the image has it, and was not changed yet. docs/compatibility.md tells of them.
var known = map[string][]string{
	// overlayfs asks the lower file's file system whether it could, and EROFS can't change any
	"access control list": {"ENOTSUP"},
	// neither EROFS nor the plugin has these flags (lsattr), which old kernels say in their own way
	"flags of a lower file": {"ENOTTY", "ENOSYS"},
}

// Whatever the kernel, programs in a container of a thin image get the answers that they get in one of the ordinary
// image.
func TestSystemCallsAnswerAsInAnOrdinaryContainer(t *testing.T) {
	forRungs(t, func(t *testing.T, r rung) {
		p := r.start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
		p.init(r, object{})
		ordinary, thin := p.container("a", p.applyTwins()), p.container("b", "thin")
		for _, c := range calls {
			want, got := c.call(ordinary), c.call(thin)
			t.Logf("%s: %s", c.name, got)
			if got != want && !slices.Contains(known[c.name], got) {
				t.Errorf("%s: %s, in an ordinary container %s", c.name, got, want)
			}
		}
	})
}
