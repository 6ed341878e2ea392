package overlayfs

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// MountMapped mounts what a folder shows on another one, read-only, with owners mapped: a file of the user 0 is that of
// the user whom the mapping makes of 0. Whoever isn't in the mapping owns nothing there. The kernel can't do that with
// every file system (EROFS, ext4, xfs; neither overlayfs nor, mostly, FUSE). Errors are [*MountError].
func (k *Kernel) MountMapped(source, target string, ids user.IdentityMapping) error {
	tree, err := k.openTree(source)
	if err == nil {
		defer unix.Close(tree)
		err = mountTree(tree, target, ids)
	}
	if err != nil {
		return &MountError{FSType: "mapped " + source, Target: target, Err: err}
	}
	return nil
}

// openTree opens what a folder shows as a mount of its own that is nowhere yet.
func (k *Kernel) openTree(dir string) (int, error) {
	if k.lacks(NoMapped | NoMountAPI) {
		return -1, unix.ENOSYS
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	return tree, os.NewSyscallError("open_tree", err)
}

// mountTree maps the owners of such a mount and puts it on a folder.
func mountTree(tree int, target string, ids user.IdentityMapping) error {
	space, err := userNamespace(ids)
	if err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	defer space.Close()
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE,
		Userns_fd: uint64(space.Fd()),
	})
	if err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	return os.NewSyscallError("move_mount",
		unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// userNamespace makes a user namespace of a mapping. It takes a process to be in it, which is stopped when it would
// begin to run and killed once the namespace is open.
func userNamespace(ids user.IdentityMapping) (*os.File, error) {
	runtime.LockOSThread() // whose child is traced, and dies with the thread
	defer runtime.UnlockOSThread()
	p, err := os.StartProcess("/proc/self/exe", []string{"user-namespace"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: ranges(ids.UIDMaps), GidMappings: ranges(ids.GIDMaps), GidMappingsEnableSetgroups: true,
		Ptrace: true, Pdeathsig: unix.SIGKILL,
	}})
	if err != nil {
		return nil, err
	}
	space, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid)) // the number is not another's before Wait
	err = errors.Join(err, p.Kill())
	_, waited := p.Wait()
	if err = errors.Join(err, waited); err != nil && space != nil {
		err = errors.Join(err, space.Close())
	}
	return space, err
}

func ranges(maps []user.IDMap) []syscall.SysProcIDMap {
	list := make([]syscall.SysProcIDMap, len(maps))
	for i, m := range maps {
		list[i] = syscall.SysProcIDMap{ContainerID: int(m.ID), HostID: int(m.ParentID), Size: int(m.Count)}
	}
	return list
}

// ProbeMapped finds out whether an overlay shows mapped owners: of a layer on the file system of a folder, and of an
// EROFS image on it where such are mounted. The error says why not.
func (k *Kernel) ProbeMapped(dir string, image bool) error {
	folder, err := k.openTree(dir) // which may not be seen from where mounts are tried
	if err != nil {
		return err
	}
	defer unix.Close(folder)
	var file *os.File
	if image {
		if file, err = probeImage(dir); err != nil {
			return err
		}
		defer file.Close() // unnamed
	}
	apart := k.apart(func(base string) {
		if err = k.tryMapped(folder, filepath.Join(base, "folder")); err == nil && image {
			err = k.tryMappedImage(file, base)
		}
	})
	return cmp.Or(apart, err)
}

// tryMappedImage tries an EROFS image, below a folder.
func (k *Kernel) tryMappedImage(file *os.File, base string) error {
	image := filepath.Join(base, "image")
	if err := k.tryImage(file, image); err != nil {
		return err
	}
	tree, err := k.openTree(image)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return k.tryMapped(tree, filepath.Join(base, "mapped-image"))
}

// tryMapped mounts a folder of root's with mapped owners, and an overlay upon it.
func (k *Kernel) tryMapped(tree int, dir string) error {
	const owner = 100000
	if err := mkdirs(dir, "mapped", "other", "merged"); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	all := []user.IDMap{{ID: 0, ParentID: owner, Count: 65536}}
	if err := mountTree(tree, in("mapped"), user.IdentityMapping{UIDMaps: all, GIDMaps: all}); err != nil {
		return err
	}
	if err := k.tiny(in("merged"), &Spec{Lower: []string{in("mapped"), in("other")}}); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(in("merged"), &st); err != nil || st.Uid != owner {
		return fmt.Errorf("overlayfs doesn't show mapped owners: user %d, %v", st.Uid, err) //nolint:errorlint // nil
	}
	return nil
}
