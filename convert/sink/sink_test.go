package sink

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/convert/sink/sinktest"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

const testFQRN = "layers.example.org"

var day = time.Date(2021, 2, 3, 4, 5, 6, 123456789, time.UTC)

func entry(kind byte, name, link string, mode int64) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: mode, Uid: 1234, Gid: 56789, ModTime: day}
}

// nasty is a layer with everything that gets lost easily.
func nasty(t *testing.T) []byte {
	root := entry(tar.TypeDir, "./", "", 0o1777)
	capable := entry(tar.TypeReg, "bin/ping", "capable", 0o4755)
	capable.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability":      "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.user.big":                 strings.Repeat("b", 300),
		"SCHILY.xattr.trusted.overlay.opaque":   "y",
		"SCHILY.xattr.user.overlay.metacopy":    "",
		"SCHILY.xattr.user.small":               "s",
		"SCHILY.xattr.trusted.overlay.whiteout": "y",
	}
	device := entry(tar.TypeChar, "dev/null", "", 0o666)
	device.Devmajor, device.Devminor = 1, 3
	return testutil.Tar(t,
		root,
		entry(tar.TypeDir, "bin/", "", 0o750),
		capable,
		entry(tar.TypeReg, "./etc/missing parent", "x", 0o600),
		entry(tar.TypeLink, "usr/ping", "bin/ping", 0o4755),
		entry(tar.TypeReg, "lib/a", "same folder", 0o644),
		entry(tar.TypeLink, "lib/b", "/lib/a", 0o644),
		entry(tar.TypeSymlink, "abs", "/etc/shadow", 0o777),
		entry(tar.TypeSymlink, "dangling", "../../../x", 0o777),
		device,
		entry(tar.TypeFifo, "fifo", "", 0o640),
		entry(tar.TypeReg, ".wh.gone", "", 0o644),
		entry(tar.TypeReg, "lib/.wh..wh..opq", "", 0o644),
		entry(tar.TypeReg, "opt/.cvmfscatalog", "own", 0o644),
		entry(tar.TypeReg, "again", "first", 0o644),
		entry(tar.TypeReg, "again", "second", 0o755),
		entry(tar.TypeDir, "swap", "", 0o755),
		entry(tar.TypeReg, "swap/inner", "x", 0o755),
		entry(tar.TypeReg, "swap", "file now", 0o644),
		entry(tar.TypeReg, "name \xff\xfe", "not UTF-8", 0o644),
	)
}

// wantRecord is what catalogs have no place for in it.
var wantRecord = &thin.Record{
	Root:    &thin.Attributes{Mode: 0o1777, UID: 1234, GID: 56789, Mtime: day.Unix(), MtimeN: 123456789},
	Links:   [][]string{{"bin/ping", "usr/ping"}},
	Markers: []string{"opt/.cvmfscatalog"},
}

// checkNasty looks at the layer on disk.
func checkNasty(t *testing.T, dir string) {
	t.Helper()
	for name, want := range map[string]string{
		"bin/ping": "capable", "etc/missing parent": "x", "lib/b": "same folder", ".wh.gone": "",
		"lib/.wh..wh..opq": "",
		"again":            "second", "swap": "file now", "name \xff\xfe": "not UTF-8", "opt/.cvmfscatalog": "own",
		".cvmfscatalog": "",
	} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%q holds %q, %v; want %q", name, b, err, want)
		}
	}
	stat := func(name string) (st unix.Stat_t) {
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return st
	}
	for name, mode := range map[string]uint32{
		"bin": unix.S_IFDIR | 0o750, "bin/ping": unix.S_IFREG | 0o4755, "etc": unix.S_IFDIR | 0o755,
		"dev/null": unix.S_IFCHR | 0o666,
		"fifo":     unix.S_IFIFO | 0o640, "abs": unix.S_IFLNK | 0o777, "again": unix.S_IFREG | 0o755,
	} {
		st := stat(name)
		if st.Mode != mode {
			t.Errorf("%s has mode %o, want %o", name, st.Mode, mode)
		}
		if name != "etc" && (st.Uid != 1234 || st.Gid != 56789 || st.Mtim.Sec != day.Unix() ||
			st.Mtim.Nsec != 123456789) {
			t.Errorf("%s: owner %d:%d, time %v", name, st.Uid, st.Gid, st.Mtim)
		}
	}
	if a, b := stat("lib/a"), stat("lib/b"); a.Ino != b.Ino {
		t.Error("lib/a and lib/b are two files")
	}
	if a, b := stat("bin/ping"), stat("usr/ping"); a.Ino != b.Ino {
		t.Error("bin/ping and usr/ping are two files")
	}
	if st := stat("dev/null"); st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("device %x", st.Rdev)
	}
	if to, err := os.Readlink(filepath.Join(dir, "abs")); to != "/etc/shadow" {
		t.Errorf("abs leads to %q, %v", to, err)
	}
	b := make([]byte, 1024)
	n, err := unix.Llistxattr(filepath.Join(dir, "bin/ping"), b)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"security.capability", "user.big", "user.small"} {
		if !bytes.Contains(b[:n], []byte(name+"\x00")) {
			t.Errorf("attribute %s is lost", name)
		}
	}
	if bytes.Contains(b[:n], []byte("overlay")) {
		t.Errorf("attributes of an overlay were kept: %q", b[:n])
	}
}

// checkRecord compares a record's file with wantRecord.
func checkRecord(t *testing.T, b []byte, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
		return
	}
	r, err := thin.ParseRecord(b)
	if err != nil {
		t.Error(err)
		return
	}
	for _, path := range []string{"bin/ping", "usr/ping"} {
		if attrs := r.Xattrs[path]; len(attrs) != 3 || attrs[1].Name != "user.big" || len(attrs[1].Value) != 300 {
			t.Errorf("attributes of %s: %+v", path, attrs)
		}
	}
	r.Xattrs = nil
	if diff := cmp.Diff(wantRecord, r); diff != "" {
		t.Error(diff)
	}
}

// publishes puts the nasty layer into a target.
func publishes(t *testing.T, target Sink, path string) {
	t.Helper()
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stats, err := tx.Layer(t.Context(), path, bytes.NewReader(nasty(t)), nil)
	if err == nil {
		err = tx.WriteFile(t.Context(), "/.metadata/x/manifest.json", []byte("{}"))
	}
	if err != nil {
		t.Fatal(errors.Join(err, tx.Abort()))
	}
	if stats.Entries != 20 || stats.Files == 0 || stats.Bytes == 0 {
		t.Errorf("stats %+v", stats)
	}
	if err := tx.Commit(t.Context(), "a test"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Abort(); err != nil {
		t.Error(err)
	}
}

// readBack looks at what a fresh transaction sees.
func readBack(t *testing.T, target Sink, path string) {
	t.Helper()
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Abort()
	if found, err := tx.Has(t.Context(), path); !found || err != nil {
		t.Errorf("%s: %t, %v", path, found, err)
	}
	if found, err := tx.Has(t.Context(), path+"x"); found || err != nil {
		t.Errorf("%sx: %t, %v", path, found, err)
	}
	b, err := tx.ReadFile(t.Context(), path+thin.RecordSuffix)
	checkRecord(t, b, err)
	names, err := tx.List(t.Context(), "/layers")
	if want := []Entry{{filepath.Base(path), true}, {filepath.Base(path) + thin.RecordSuffix, false}}; err != nil ||
		!cmp.Equal(names, want) {
		t.Errorf("/layers holds %v, %v", names, err)
	}
	if b, err := tx.ReadFile(t.Context(), "/.metadata/x/manifest.json"); string(b) != "{}" || err != nil {
		t.Errorf("manifest %q, %v", b, err)
	}
	if _, err := tx.ReadFile(t.Context(), "/.metadata/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that isn't there: %v", err)
	}
	if names, err := tx.List(t.Context(), "/none"); len(names) != 0 || err != nil {
		t.Errorf("a folder that isn't there: %v, %v", names, err)
	}
}

// removes removes the layer again.
func removes(t *testing.T, target Sink, path string) {
	t.Helper()
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + thin.RecordSuffix, "/layers/none"} {
		if err := tx.Remove(t.Context(), p); err != nil {
			t.Fatal(errors.Join(err, tx.Abort()))
		}
	}
	if err := tx.Commit(t.Context(), "removed"); err != nil {
		t.Fatal(err)
	}
	tx, err = target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Abort()
	if names, err := tx.List(t.Context(), "/layers"); len(names) != 0 || err != nil {
		t.Errorf("left: %v, %v", names, err)
	}
}

func TestFoldersHoldLayersLosslessly(t *testing.T) {
	testutil.NeedRoot(t)
	dir := t.TempDir()
	target, err := Open("dir:"+dir, Options{FQRN: testFQRN})
	if err != nil {
		t.Fatal(err)
	}
	publishes(t, target, "/layers/abc")
	checkNasty(t, filepath.Join(dir, "abc"))
	readBack(t, target, "/layers/abc")
	removes(t, target, "/layers/abc")
	left, err := filepath.Glob(filepath.Join(dir, stagePattern+"*"))
	if len(left) != 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestPublishersHoldLayersLosslessly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "publisher")
	if err := publish.Create(t.Context(), dir, publish.Settings{FQRN: testFQRN}, publish.Options{}); err != nil {
		t.Fatal(err)
	}
	target, err := Open("native:"+dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	publishes(t, target, "/layers/abc")
	readBack(t, target, "/layers/abc")
	removes(t, target, "/layers/abc")
}

// fakeServer gives options for a stand-in of a release manager machine, and its folder.
func fakeServer(t *testing.T, settings string) (Options, string) {
	t.Helper()
	s := sinktest.NewServer(t, testFQRN, settings)
	return Options{Server: s.Program, Root: s.Root, Config: s.Config, Spool: s.Spool}, s.Dir
}

func TestReleaseManagerMachinesHoldLayersLosslessly(t *testing.T) {
	testutil.NeedRoot(t)
	o, dir := fakeServer(t, sinktest.GoodSettings)
	target, err := Open("cvmfs_server:"+testFQRN, o)
	if err != nil {
		t.Fatal(err)
	}
	publishes(t, target, "/layers/abc")
	checkNasty(t, filepath.Join(o.Root, testFQRN, "layers/abc"))
	readBack(t, target, "/layers/abc")
	removes(t, target, "/layers/abc")
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	if want := strings.Repeat("transaction "+testFQRN+"\npublish "+testFQRN+"\n", 2); err != nil || string(calls) != want {
		t.Errorf("calls %q, %v", calls, err)
	}
}

func TestReleaseManagerMachineDropsWhatFailed(t *testing.T) {
	testutil.NeedRoot(t)
	o, dir := fakeServer(t, sinktest.GoodSettings)
	target, err := Open("cvmfs_server:"+testFQRN, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	tx, err := target.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Layer(ctx, "/layers/abc", bytes.NewReader(nasty(t)[:3000]), nil); err == nil {
		t.Error("a cut archive was taken")
	}
	cancel()
	if err := tx.Abort(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "refuse"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tx, err = target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Layer(t.Context(), "/layers/abc", bytes.NewReader(nasty(t)), nil); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "no space left in the spool") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Lstat(filepath.Join(o.Root, testFQRN, "layers")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("layers are there: %v", err)
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	want := fmt.Sprintf("transaction %[1]s\nabort -f %[1]s\ntransaction %[1]s\npublish %[1]s\nabort -f %[1]s\n", testFQRN)
	if err != nil || string(calls) != want {
		t.Errorf("calls %q, %v", calls, err)
	}
}

func TestReleaseManagerMachineSaysWhichSettingsItLacks(t *testing.T) {
	o, _ := fakeServer(t, "CVMFS_INCLUDE_XATTRS=false\nCVMFS_UNION_FS_TYPE=aufs\n$(touch /tmp/never)\n")
	_, err := Open("cvmfs_server:"+testFQRN, o)
	if !errors.Is(err, ErrUnfit) {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{
		"CVMFS_INCLUDE_XATTRS=true", "CVMFS_ENABLE_MTIME_NS=true",
		"CVMFS_UNION_FS_TYPE=overlayfs", "server.conf",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %s: %v", want, err)
		}
	}
	o.Config = t.TempDir()
	if _, err := Open("cvmfs_server:"+testFQRN, o); !errors.Is(err, ErrUnfit) ||
		!strings.Contains(err.Error(), "release manager machine") {
		t.Errorf("error %v", err)
	}
}

func TestHostileArchivesStayInside(t *testing.T) {
	testutil.NeedRoot(t)
	outside := t.TempDir()
	for name, c := range map[string]struct {
		entries []tar.Header
		want    string
	}{
		"dots": {[]tar.Header{entry(tar.TypeReg, "a/../../up", "x", 0o644)}, ""},
		"below a symbolic link": {[]tar.Header{
			entry(tar.TypeSymlink, "l", outside, 0o777),
			entry(tar.TypeReg, "l/x", "x", 0o644),
		}, ""},
		"below a file": {[]tar.Header{
			entry(tar.TypeReg, "f", "x", 0o644),
			entry(tar.TypeReg, "f/x", "x", 0o644),
		}, "no folder"},
		"hard link outside": {[]tar.Header{entry(tar.TypeLink, "h", "../../etc/passwd", 0)}, "isn't there"},
		"hard link through a link": {[]tar.Header{
			entry(tar.TypeSymlink, "l", "/etc", 0o777),
			entry(tar.TypeLink, "h", "l/passwd", 0),
		}, "isn't there"},
		"hard link to nothing": {[]tar.Header{entry(tar.TypeLink, "h", "none", 0)}, "no such file"},
		"hard link to itself": {[]tar.Header{
			entry(tar.TypeReg, "h", "x", 0o644),
			entry(tar.TypeLink, "h", "h", 0),
		}, "hard link"},
		"long name": {
			[]tar.Header{entry(tar.TypeReg, strings.Repeat("n", 256), "x", 0o644)},
			"256 bytes",
		},
		"long path": {
			[]tar.Header{entry(tar.TypeReg, strings.Repeat("d/", 2050)+"x", "x", 0o644)},
			"4101 bytes",
		},
		"root is a file": {[]tar.Header{entry(tar.TypeReg, ".", "x", 0o644)}, ""},
		"long symbolic link": {
			[]tar.Header{entry(tar.TypeSymlink, "l", strings.Repeat("x", 5000), 0o777)},
			"5000 bytes",
		},
		"unknown type": {[]tar.Header{entry('Z', "z", "", 0o644)}, "type 'Z'"},
	} {
		dir := t.TempDir()
		target, err := Open("dir:"+dir, Options{FQRN: testFQRN})
		if err != nil {
			t.Fatal(err)
		}
		tx, err := target.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = tx.Layer(t.Context(), "/layers/abc", bytes.NewReader(testutil.Tar(t, c.entries...)), nil)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
		if err := tx.Abort(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 1 || left[0].Name() != lockName {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside: %v, %v", left, err)
	}
}

func TestFolderOfAnotherProcessIsRefused(t *testing.T) {
	target, err := Open("dir:"+t.TempDir(), Options{FQRN: testFQRN})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := target.Begin(t.Context()); !errors.Is(err, errBusy) {
		t.Errorf("error %v", err)
	}
	if err := tx.Abort(); err != nil {
		t.Error(err)
	}
}

func TestFullDiskLeavesNothing(t *testing.T) {
	dir := testutil.SmallDisk(t, "1m")
	target, err := Open("dir:"+dir, Options{FQRN: testFQRN})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	big := testutil.Tar(t, entry(tar.TypeReg, "big", strings.Repeat("x", 2<<20), 0o644))
	if _, err := tx.Layer(t.Context(), "/layers/abc", bytes.NewReader(big), nil); !errors.Is(err, unix.ENOSPC) ||
		!strings.Contains(err.Error(), "make room") {
		t.Errorf("error %v", err)
	}
	if err := tx.Abort(); err != nil {
		t.Error(err)
	}
	removes := testutil.Tar(t, entry(tar.TypeReg, "small", "x", 0o644))
	tx, err = target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Layer(t.Context(), "/layers/abc", bytes.NewReader(removes), nil); err != nil {
		t.Error(err)
	}
	if err := tx.Commit(t.Context(), ""); err != nil {
		t.Error(err)
	}
}

func TestTargetsAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "want native:",
		"dir:":                      "want native:",
		"ftp:x":                     "want native:",
		"native:" + t.TempDir():     "publish create",
		"dir:/no/such/folder":       "make the folder first",
		"dir:" + t.TempDir():        "--repository",
		"cvmfs_server:../../escape": "cvmfs_server",
	} {
		if _, err := Open(text, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
	}
}

func TestARepositoryIsTheTargetWhereNoneIsNamed(t *testing.T) {
	_, err := Open("", Options{FQRN: "layers.example.org", Server: "/no/such/cvmfs_server"})
	if err == nil || !strings.HasPrefix(err.Error(), `target "cvmfs_server:layers.example.org"`) {
		t.Errorf("got %v", err)
	}
}

func FuzzExtractionStaysInside(f *testing.F) {
	f.Add("a/b", "c", byte(tar.TypeReg), "a/../b", byte(tar.TypeLink))
	f.Add("l", "/tmp", byte(tar.TypeSymlink), "l/x", byte(tar.TypeReg))
	f.Add("../x", "", byte(tar.TypeDir), "/..//x", byte(tar.TypeFifo))
	f.Fuzz(func(t *testing.T, name, link string, kind byte, second string, other byte) {
		if os.Getuid() != 0 || kind == tar.TypeChar || kind == tar.TypeBlock || other == tar.TypeChar ||
			other == tar.TypeBlock {
			t.Skip("needs root, and devices of the machine's are left alone")
		}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range []*tar.Header{
			{Name: name, Linkname: link, Typeflag: kind, Mode: 0o777},
			{Name: second, Linkname: name, Typeflag: other, Mode: 0o777},
		} {
			if w.WriteHeader(h) != nil {
				return
			}
		}
		if w.Close() != nil {
			return
		}
		parent := t.TempDir()
		dir := filepath.Join(parent, "layer")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _, _ = extract(t.Context(), &b, dir, 0) // what it says doesn't matter here
		if around, err := os.ReadDir(parent); err != nil || len(around) != 1 {
			t.Errorf("outside: %v, %v", around, err)
		}
	})
}

func TestFolderWhoseNameIsAPatternSweepsItselfAlone(t *testing.T) {
	parent := t.TempDir()
	here, other := filepath.Join(parent, "[ab]"), filepath.Join(parent, "a")
	for _, dir := range []string{filepath.Join(here, stagePattern+"left"), filepath.Join(other, stagePattern+"alive")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	target, err := Open("dir:"+here, Options{FQRN: testFQRN})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Abort()
	if _, err := os.Lstat(filepath.Join(here, stagePattern+"left")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was cut off is left: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(other, stagePattern+"alive")); err != nil {
		t.Errorf("another folder's is gone: %v", err)
	}
}

func TestNotesOfManyLayersAreStillTheFirst(t *testing.T) {
	var all Stats
	for n := range int64(100) {
		all.Add(Stats{LeftOut: 5, Notes: []string{fmt.Sprint(n), "b", "c", "d", "e"}})
	}
	if want := []string{"0", "b", "c", "d", "e", "1", "b", "c"}; all.LeftOut != 500 || !slices.Equal(all.Notes, want) {
		t.Errorf("%d, %q", all.LeftOut, all.Notes)
	}
}

// Where a layer is, what stands beside it is, too: it comes to its place before the layer, whatever cuts a commit off.
func TestWhatStandsBesideALayerComesFirst(t *testing.T) {
	target, err := Open("dir:"+t.TempDir(), Options{FQRN: testFQRN})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Abort()
	read := func(Stats) (*File, error) { return &File{"/layers/abc.layer.json", []byte("x")}, nil }
	if _, err := tx.Layer(t.Context(), "/layers/abc", bytes.NewReader(testutil.Tar(t)), read); err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, m := range tx.(*folderTransaction).moves {
		order = append(order, filepath.Base(m.to))
	}
	if diff := cmp.Diff([]string{"abc.layer.json", "abc"}, order); diff != "" {
		t.Error(diff)
	}
}

// An archive that turns out to be the wrong one is no layer.
func TestLayersAreNotTakenWhoseArchiveIsRefused(t *testing.T) {
	wrong := errors.New("wrong")
	read := func(Stats) (*File, error) { return nil, wrong }
	dir := filepath.Join(t.TempDir(), "publisher")
	if err := publish.Create(t.Context(), dir, publish.Settings{FQRN: testFQRN}, publish.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"dir:" + t.TempDir(), "native:" + dir} {
		target, err := Open(text, Options{FQRN: testFQRN})
		if err != nil {
			t.Fatal(err)
		}
		tx, err := target.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = tx.Layer(t.Context(), "/layers/abc", bytes.NewReader(testutil.Tar(t)), read)
		if !errors.Is(err, wrong) {
			t.Errorf("%s: %v", text, err)
		}
		if err := tx.Abort(); err != nil {
			t.Error(err)
		}
	}
}
