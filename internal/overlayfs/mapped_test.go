package overlayfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

func TestOwnersAreMappedByRanges(t *testing.T) {
	testutil.NeedRoot(t)
	dir := t.TempDir()
	source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	must(t, errors.Join(os.Mkdir(source, 0o755), os.Mkdir(target, 0o755)))
	owners := map[string]int{"root": 0, "daemon": 1, "user": 1000, "last": 1999, "none": 2000}
	for name, owner := range owners {
		must(t, os.WriteFile(filepath.Join(source, name), nil, 0o644))
		must(t, os.Chown(filepath.Join(source, name), owner, owner))
	}
	k := &Kernel{Scratch: t.TempDir()}
	users := []user.IDMap{{ID: 0, ParentID: 300000, Count: 1}, {ID: 1, ParentID: 200001, Count: 1999}}
	groups := []user.IDMap{{ID: 0, ParentID: 400000, Count: 2000}}
	if err := k.MountMapped(source, target, user.IdentityMapping{UIDMaps: users, GIDMaps: groups}); err != nil {
		if k.ProbeMapped(dir, false) == nil {
			t.Fatal(err)
		}
		testutil.KernelLacks(t, "mapped owners")
	}
	t.Cleanup(func() { must(t, k.Unmount(target)) })
	got := map[string][2]uint32{}
	for name := range owners {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(target, name), &st))
		got[name] = [2]uint32{st.Uid, st.Gid}
	}
	const nobody = 65534
	want := map[string][2]uint32{
		"root": {300000, 400000}, "daemon": {200001, 400001}, "user": {201000, 401000}, "last": {201999, 401999},
		"none": {nobody, nobody},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("it can be written to: %v", err)
	}
}

func TestMappedOwnersAreTried(t *testing.T) {
	testutil.NeedRoot(t)
	for _, lack := range []Lack{NoMapped, NoMountAPI} {
		k := &Kernel{Lack: lack, Scratch: t.TempDir()}
		if err := k.ProbeMapped(t.TempDir(), false); !errors.Is(err, unix.ENOSYS) {
			t.Errorf("without %b: %v", lack, err)
		}
	}
	k := &Kernel{Scratch: t.TempDir()}
	if err := k.ProbeMapped(t.TempDir(), testutil.KnownView() == "erofs"); err != nil {
		testutil.KernelLacks(t, "mapped owners")
	}
}
