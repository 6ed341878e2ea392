package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/testutil"
)

// fakeProjects is a file system with project quotas; the kernel may have none.
type fakeProjects struct {
	off    error
	ids    map[string]uint32 // by folder, relative to root
	limits map[uint32]uint64
	root   string
}

func (p *fakeProjects) enforced() error { return p.off }

func (p *fakeProjects) project(path string) (uint32, error) {
	rel, err := filepath.Rel(p.root, path)
	return p.ids[rel], err
}

func (p *fakeProjects) assign(dir string, id uint32) error {
	rel, err := filepath.Rel(p.root, dir)
	// The layer has another name yet: .new-NUMBER.
	_, below, _ := strings.Cut(rel, "/")
	p.ids[below] = id
	return err
}

func (p *fakeProjects) limit(id uint32, bytes uint64) error {
	p.limits[id] = bytes
	return nil
}

func newStore(t *testing.T) (*Store, *fakeProjects) {
	t.Helper()
	testutil.NeedRoot(t)
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir + "/layers", Device: dir + "/device"})
	if err != nil {
		t.Fatal(err)
	}
	p := &fakeProjects{ids: map[string]uint32{}, limits: map[uint32]uint64{}, root: dir + "/layers"}
	s.quota.projects = p
	return s, p
}

func TestContainerOfASizeGetsAProjectOfItsOwn(t *testing.T) {
	s, p := newStore(t)
	if err := s.Create(CreateArgs{ID: "old", Writable: true}); err != nil {
		t.Fatal(err)
	}
	p.ids["."], p.ids["old/work"] = 3, 17
	for n, size := range []uint64{10 << 30, 3 << 19, 0} {
		if err := s.Create(CreateArgs{ID: fmt.Sprint("c", n), Writable: true, Size: size}); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]uint32{
		".": 3, "old/work": 17,
		"graph": 19, "graph/c0": 18, "graph/c0/diff": 18, "graph/c1": 19, "graph/c1/diff": 19, "work": 19,
	}
	if d := cmp.Diff(want, p.ids); d != "" {
		t.Errorf("projects: -want +got\n%s", d)
	}
	if d := cmp.Diff(map[uint32]uint64{18: 10 << 30, 19: 3 << 19}, p.limits); d != "" {
		t.Errorf("limits: -want +got\n%s", d)
	}
}

func TestSizeThatCannotBeKeptIsRefused(t *testing.T) {
	s, p := newStore(t)
	if err := s.Create(CreateArgs{ID: "base"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		off  error
		last uint32
		want string
	}{
		{"no quotas", errNoQuotas, 0, "project quotas are not on"},
		{"numbers used up", nil, math.MaxUint32, "no project numbers are left"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.off, s.quota.last = c.off, c.last
			if err := s.Create(CreateArgs{ID: "c", Writable: true, Size: 1 << 30}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if ids, err := s.list(); err != nil || len(ids) != 1 {
				t.Errorf("layers left: %v, %v", ids, err)
			}
		})
	}
}

// What this machine says: limits of projects on the file system of the tests, which Linux distributions mount without.
func TestFileSystemWithoutQuotasRefusesSizesByName(t *testing.T) {
	s, _ := newStore(t)
	k := kernelProjects{root: s.cfg.Dir, node: s.cfg.Device}
	s.quota.projects = k
	if err := k.enforced(); err == nil {
		t.Skip("needs a file system without project quotas: that of the temporary folder has them")
	} else if !errors.Is(err, errNoQuotas) {
		t.Errorf("%v, want errNoQuotas", err)
	}
	err := s.Create(CreateArgs{ID: "c", Writable: true, Size: 1 << 30})
	t.Log(err)
	for _, w := range []string{"create layer c", "storage option size", "pquota", "prjquota", s.FileSystem()} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%v: want %q", err, w)
		}
	}
	if s.Exists("c") {
		t.Error("the layer was made all the same")
	}
	if err := k.limit(7, 1<<20); err == nil {
		t.Error("a limit was set")
	}
	if _, err := k.project(s.dir("nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("project of a missing folder: %v", err)
	}
}

func TestStructuresAreTheKernels(t *testing.T) {
	for name, got := range map[string][2]uintptr{
		"fsxattr":                     {unsafe.Sizeof(fileXattrs{}), 28},
		"fsxattr.fsx_xflags":          {unsafe.Offsetof(fileXattrs{}.flags), 0},
		"fsxattr.fsx_projid":          {unsafe.Offsetof(fileXattrs{}.project), 12},
		"FS_IOC_FSGETXATTR":           {getXattrs, 2<<30 | 28<<16 | 'X'<<8 | 31},
		"FS_IOC_FSSETXATTR":           {setXattrs, 1<<30 | 28<<16 | 'X'<<8 | 32},
		"fs_disk_quota":               {unsafe.Sizeof(diskQuota{}), 112},
		"fs_disk_quota.d_flags":       {unsafe.Offsetof(diskQuota{}.flags), 1},
		"fs_disk_quota.d_fieldmask":   {unsafe.Offsetof(diskQuota{}.fields), 2},
		"fs_disk_quota.d_id":          {unsafe.Offsetof(diskQuota{}.id), 4},
		"fs_disk_quota.d_blk_hard":    {unsafe.Offsetof(diskQuota{}.hard), 8},
		"fs_disk_quota.d_blk_soft":    {unsafe.Offsetof(diskQuota{}.soft), 16},
		"fs_quota_stat":               {unsafe.Sizeof(quotaState{}), 80},
		"fs_quota_stat.qs_flags":      {unsafe.Offsetof(quotaState{}.flags), 2},
		"Q_XSETQLIM: XQM_CMD(4)":      {setLimits, 'X'<<8 + 4},
		"Q_XGETQSTAT: XQM_CMD(5)":     {getState, 'X'<<8 + 5},
		"FS_DQ_BHARD and FS_DQ_BSOFT": {hardAndSoft, 8 | 4},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %d, want %d", name, got[0], got[1])
		}
	}
}
