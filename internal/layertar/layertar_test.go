package layertar

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/layertar/layertartest"
	"cvmfs-graphdriver/test/testutil"
)

// unpackIn unpacks an archive into a new folder.
func unpackIn(t testing.TB, b []byte, o Options) (dir string, r *Reader, err error) {
	t.Helper()
	testutil.NeedRoot(t)
	dir, r = t.TempDir(), NewReader(bytes.NewReader(b))
	return dir, r, Unpack(t.Context(), dir, r, o)
}

func TestUnpackTakesWhatEnginesTake(t *testing.T) {
	for name, o := range map[string]Options{"overlay": {Overlay: true}, "files": {Seen: (*Entry).Showable}} {
		t.Run(name, func(t *testing.T) {
			layertartest.Run(t, !o.Overlay, func(t *testing.T, b []byte) ([]string, error) {
				dir, _, err := unpackIn(t, b, o)
				return layertartest.List(t, dir, o.Overlay), err
			})
		})
	}
}

// The cases are the engines' behaviour and not our wishes: their own package does the same where a case doesn't say
// otherwise.
func TestCasesAreWhatEnginesDo(t *testing.T) {
	testutil.NeedRoot(t)
	for _, c := range layertartest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			dir := t.TempDir()
			err := archive.Unpack(bytes.NewReader(c.Archive), dir,
				&archive.TarOptions{WhiteoutFormat: archive.OverlayWhiteoutFormat})
			same := err != nil && c.Tree == nil
			if err == nil && c.Tree != nil {
				want, got := map[string]bool{}, map[string]bool{}
				for _, line := range c.Tree {
					want[line] = true
				}
				for _, line := range layertartest.List(t, dir, true) {
					got[line] = true
				}
				same = cmp.Equal(want, got)
			}
			if same != (c.Differs == "") {
				t.Errorf("the same: %t, said to differ: %q; error %v, tree %q", same, c.Differs, err,
					layertartest.List(t, dir, true))
			}
		})
	}
}

// No archive reaches what is outside of the folder, whatever links it holds.
func TestUnpackStaysInside(t *testing.T) {
	testutil.NeedRoot(t)
	outside := t.TempDir()
	up := strings.Repeat("../", 20)
	file := func(name string) layertartest.Item { return layertartest.Item{Name: name, Body: "owned"} }
	typed := func(kind byte, name, link string) layertartest.Item {
		return layertartest.Item{
			Name: name, Type: kind, Link: link, UID: 7, Mode: 0o777,
			PAX: map[string]string{"SCHILY.xattr.trusted.evil": "1"},
		}
	}
	hard := func(name, to string) layertartest.Item { return typed('1', name, to) }
	link := func(name, to string) layertartest.Item { return typed('2', name, to) }
	attacks := map[string][]layertartest.Item{
		"dots": {
			file("../.." + outside + "/f"), file(up + outside[1:] + "/f"),
			file("a/" + up + outside[1:] + "/keep"),
		},
		"absolute": {file(outside + "/keep")},
		"link": {
			link("l", outside), file("l/f"), file("l/keep"), typed('5', "l/d", ""),
			typed('3', "l/n", ""),
		},
		"relative link":  {link("l", up+outside[1:]), file("l/f"), file("l/keep")},
		"links on links": {link("a", outside), link("b", "a"), link("c", "b/sub"), file("b/f"), file("c/f")},
		"link in its own place": {
			link("l", outside+"/keep"), file("l"), link("d", outside), typed('5', "d", ""),
			file("d/f"),
		},
		"link made of a folder": {typed('5', "d", ""), file("d/x"), link("d", outside), file("d/keep"), file("d/x")},
		"link made beside": {
			typed('5', "d", ""), file("d/x"), link("e", "d"), file("e/y"), link("d", outside),
			file("e/keep"), file("e/y"),
		},
		"link to itself's folder": {
			typed('5', "d", ""), link("d/up", ".."), file("d/up/d/up/d/x"), link("d", outside),
			file("d/up/keep"),
		},
		"hard link":                {hard("h", outside+"/keep"), file("h")},
		"hard link by dots":        {hard("h", up+outside[1:]+"/keep"), file("h")},
		"hard link through a link": {link("l", outside), hard("h", "l/keep")},
		"hard link of a link": {
			link("l", outside+"/keep"), hard("h", "l"), file("h"), link("m", outside),
			hard("n", "m"), file("n/f"),
		},
		"attributes of a link": {link("l", outside+"/keep"), hard("h", "l"), link("d", outside), hard("e", "d")},
		"attributes by dots":   {typed('5', "..", ""), typed('5', "/", ""), typed('5', "a/../..", "")},
		"whiteout":             {link("l", outside), file("l/.wh.keep"), file("l/.wh..wh..opq"), file("l/.wh.sub")},
		"whiteout by its name": {file(".wh..."), file("a/.wh../x")},
		"proc": {
			link("l", "/proc/self/root"), file("l" + outside + "/f"),
			link("m", "/proc/self/cwd/.."), file("m/f"), link("n", "/proc/1/root"), file("n" + outside + "/keep"),
		},
		"device": {link("l", outside), typed('3', "l/n", ""), typed('6', "l/p", "")},
	}
	for name, items := range attacks {
		for way, overlay := range map[string]bool{"overlay": true, "files": false} {
			t.Run(name+" "+way, func(t *testing.T) {
				must := func(err error) {
					if err != nil {
						t.Fatal(err)
					}
				}
				must(os.WriteFile(filepath.Join(outside, "keep"), []byte("kept"), 0o600))
				must(os.MkdirAll(filepath.Join(outside, "sub"), 0o700))
				before := layertartest.List(t, outside, false)
				for n := range items { // an attack may be refused half-way, so each end of it is tried
					_, _, err := unpackIn(t, layertartest.Tar(items[n:]...), Options{Overlay: overlay})
					t.Logf("from entry %d: %v", n, err)
				}
				if diff := cmp.Diff(before, layertartest.List(t, outside, false)); diff != "" {
					t.Errorf("outside: -before +after\n%s", diff)
				}
				if b, err := os.ReadFile(filepath.Join(outside, "keep")); string(b) != "kept" {
					t.Errorf("keep: %q, %v", b, err)
				}
			})
		}
	}
}

func TestWhiteoutsAndTheLayersOwnNames(t *testing.T) {
	item := func(kind byte, name string) layertartest.Item { return layertartest.Item{Name: name, Type: kind} }
	dir, _, err := unpackIn(t, layertartest.Tar(
		item('0', "file"), item('0', ".wh.file"), item('5', "dir"), item('0', "dir/x"), item('0', ".wh.dir"),
		item('0', ".wh.later"), item('0', "later"), item('0', ".wh.laterdir"), item('5', "laterdir"),
		item('0', ".wh.implied"), item('0', "implied/x"),
		item('0', ".wh.twice"), item('0', ".wh.twice"), item('5', "outer"), item('0', "outer/.wh.in"),
		item('0', "outer/in/x"),
	), Options{Overlay: true})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range layertartest.List(t, dir, true) {
		if strings.HasSuffix(line, "opaque") || strings.HasSuffix(line, "whiteout") {
			got = append(got, line)
		}
	}
	want := []string{"dir/ opaque", "implied/ opaque", "laterdir/ opaque", "outer/in/ opaque", "twice whiteout"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestWhatTheFileSystemHasNotIsLeftOutWithANote(t *testing.T) {
	b := layertartest.Tar(layertartest.Item{
		Name: "a", Body: "1",
		PAX: map[string]string{"SCHILY.xattr.btrfs.x": "1", "SCHILY.xattr.nospace": "1", "SCHILY.xattr.user.a": "1"},
	},
		layertartest.Item{Name: "l", Type: '2', Link: "a", PAX: map[string]string{"SCHILY.xattr.user.a": "1"}})
	dir, r, err := unpackIn(t, b, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := layertartest.List(t, dir, false)[0]; !strings.HasSuffix(got, "bytes user.a=1") {
		t.Errorf("the file is %s", got)
	}
	if notes, n := r.Notes(); n != 3 || !strings.Contains(fmt.Sprint(notes), `"a": extended attribute "btrfs.x"`) {
		t.Errorf("%d notes: %q", n, notes)
	}
}

func TestOwnersAreMapped(t *testing.T) {
	shift := func(uid, gid int) (int, int, error) {
		if uid > 65535 || gid > 65535 {
			return 0, 0, errors.New("can't be mapped")
		}
		return uid + 100000, gid + 200000, nil
	}
	item := func(kind byte, name, link string) layertartest.Item {
		return layertartest.Item{Name: name, Type: kind, Link: link, UID: 1, GID: 2}
	}
	all := []layertartest.Item{
		item('0', "i/f", ""), item('5', "d", ""), item('2', "l", "x"), item('6', "p", ""),
		item('1', "h", "i/f"), item('0', "w", ""),
	}
	all[5].Name = ".wh.w"
	dir, _, err := unpackIn(t, layertartest.Tar(all...), Options{Overlay: true, Owner: shift})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]uint32{
		"i": {100000, 200000}, "i/f": {100001, 200002}, "d": {100001, 200002}, "l": {100001, 200002},
		"p": {100001, 200002}, "h": {100001, 200002}, "w": {100001, 200002},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil || st.Uid != want[0] || st.Gid != want[1] {
			t.Errorf("%s: %d:%d, %v; want %v", name, st.Uid, st.Gid, err, want)
		}
	}
	all[0].UID = 70000
	if _, _, err := unpackIn(t, layertartest.Tar(all...), Options{Overlay: true, Owner: shift}); err == nil ||
		!strings.Contains(err.Error(), "can't be mapped") {
		t.Errorf("an owner of no map: %v", err)
	}
}

func TestCapabilitiesOutliveHardLinks(t *testing.T) {
	const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	ping := layertartest.Item{
		Name: "ping", Mode: 0o4755,
		PAX: map[string]string{"SCHILY.xattr.security.capability": capability},
	}
	dir, _, err := unpackIn(t, layertartest.Tar(ping, layertartest.Item{
		Name: "again", Type: '1', Link: "ping",
		Mode: 0o4755,
	}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range layertartest.List(t, dir, false) {
		if !strings.Contains(line, "4755") || !strings.HasSuffix(line, "security.capability="+capability) {
			t.Error(line)
		}
	}
}

func TestSparseFilesReadAsTheyDid(t *testing.T) {
	// "a" of 3 bytes, "xy" at 100_000: format 1.0 of GNU tar, as in its manual, appendix "Sparse Formats".
	const body = "1\n100000\n3\n"
	b := layertartest.Tar(layertartest.Item{
		Name: "GNUSparseFile.1/a", Body: body + strings.Repeat("\x00", 512-len(body)) + "xyz",
		PAX: map[string]string{
			"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a",
			"GNU.sparse.realsize": "100003",
		},
	})
	dir, _, err := unpackIn(t, b, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a")); string(got) != strings.Repeat("\x00", 100_000)+"xyz" {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestFullDiskIsSaid(t *testing.T) {
	dir := testutil.SmallDisk(t, "1m")
	b := layertartest.Tar(layertartest.Item{Name: "d/f", Body: strings.Repeat("x", 2<<20)})
	err := Unpack(t.Context(), dir, NewReader(bytes.NewReader(b)), Options{})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), `"d/f"`) {
		t.Errorf("error %v", err)
	}
}

func TestLimitsOfTheReader(t *testing.T) {
	b := layertartest.Tar(layertartest.Item{Name: "a", Body: "123"}, layertartest.Item{Name: "b", Body: "456"})
	for want, r := range map[string]*Reader{
		"2": {MaxEntries: 2, MaxBytes: 6}, "more than 1 entries": {MaxEntries: 1},
		"more than 5 bytes": {MaxBytes: 5},
	} {
		all := NewReader(bytes.NewReader(b))
		all.MaxEntries, all.MaxBytes = r.MaxEntries, r.MaxBytes
		err := drain(all)
		if want == "2" {
			if err != nil || all.Entries() != 2 {
				t.Errorf("%d entries, %v", all.Entries(), err)
			}
		} else if !errors.Is(err, ErrArchive) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

// drain reads an archive to its end.
func drain(r *Reader) error {
	for {
		if _, err := r.Next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// FuzzReader holds the reader to its promises: names lead nowhere, and what is handed on can be made.
func FuzzReader(f *testing.F) {
	for _, c := range layertartest.Cases() {
		if len(c.Archive) < 8<<10 {
			f.Add(c.Archive)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		for {
			e, err := r.Next()
			if err != nil {
				return
			}
			for _, name := range []string{e.Name, strings.Trim(e.Target, "/")} {
				if name == e.Name || e.Type == tar.TypeLink {
					checkName(t, name)
				}
			}
			if e.Type != tar.TypeReg && e.Size != 0 || e.Size < 0 || e.Mode&^0o7777 != 0 || e.Mtime.Unix() < 0 ||
				e.Atime.Before(e.Mtime) {
				t.Errorf("%+v", e)
			}
			for _, x := range e.Xattrs {
				if strings.HasPrefix(x.Name, "trusted.overlay.") || strings.HasPrefix(x.Name, "user.overlay.") ||
					x.Name == "" || len(x.Name) > 255 {
					t.Errorf("attribute %q", x.Name)
				}
			}
			if n, err := io.CopyN(io.Discard, r, 1<<20); err == nil && n > e.Size || n > e.Size {
				t.Errorf("%d bytes of %d", n, e.Size)
			}
		}
	})
}

func checkName(t *testing.T, name string) {
	if name == "" {
		return
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || len(part) > 255 && !strings.HasPrefix(part, ".wh.") ||
			strings.Contains(part, "\x00") {
			t.Errorf("name %q", name)
		}
	}
}

// What a reader says of an archive is the archive's fault only if it is.
func TestFaultsOfTheSourceAreNoneOfTheArchive(t *testing.T) {
	sparse := func(data string) []byte {
		m := "1\n100000\n3\n"
		return layertartest.Tar(layertartest.Item{
			Name: "GNUSparseFile.1/a", Body: m + strings.Repeat("\x00", 512-len(m)) + data,
			PAX: map[string]string{
				"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a", "GNU.sparse.realsize": "100003",
			},
		})
	}
	broken := errors.New("the disk is broken")
	for name, c := range map[string]struct {
		from io.Reader
		want error
	}{
		"sparse":                  {bytes.NewReader(sparse("xyz")), nil},
		"sparse without its data": {bytes.NewReader(sparse("")), ErrArchive},
		"sparse with more":        {bytes.NewReader(sparse("xyzabcdef")), ErrArchive},
		"a broken disk":           {io.MultiReader(bytes.NewReader(sparse("xyz")[:700]), iotest.ErrReader(broken)), broken},
	} {
		r := NewReader(c.from)
		var err error
		for err == nil {
			if _, err = r.Next(); err == nil {
				_, err = io.Copy(io.Discard, r)
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		if !errors.Is(err, c.want) || errors.Is(c.want, broken) && errors.Is(err, ErrArchive) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// Unpacked, too, a short archive makes no millions of folders, and walks no millions of names.
func TestWhatEntriesImplyIsBounded(t *testing.T) {
	long := func(name string) layertartest.Item {
		return layertartest.Item{Name: "x", PAX: map[string]string{"path": name}}
	}
	links := []layertartest.Item{
		{Name: "d", Type: '5'},
		{Name: "l", Type: '2', Link: "y", PAX: map[string]string{"linkpath": strings.Repeat("d/../", 818) + "."}},
	}
	for n := range 100 {
		links = append(links, long(strings.Repeat("l/", 37+n%2)+fmt.Sprint("f", n))) // another folder each time
	}
	testutil.NeedRoot(t)
	for name, c := range map[string]struct {
		items []layertartest.Item
		want  string
	}{
		"folders": {[]layertartest.Item{long(strings.Repeat("a/", 1500) + "f")}, "with the folders that they lie in"},
		"links":   {links, "too many folders"},
	} {
		r := NewReader(bytes.NewReader(layertartest.Tar(c.items...)))
		r.MaxEntries = 500
		err := Unpack(t.Context(), t.TempDir(), r, Options{})
		if !errors.Is(err, ErrArchive) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Somebody may remove the folder that is unpacked into.
func TestAFolderThatIsGoneIsNoFaultOfTheArchive(t *testing.T) {
	testutil.NeedRoot(t)
	dir := t.TempDir()
	r := NewReader(bytes.NewReader(layertartest.Tar(layertartest.Item{Name: "a"}, layertartest.Item{Name: "b"})))
	err := Unpack(t.Context(), dir, r, Options{Done: func(*Entry, Place) error { return os.RemoveAll(dir) }})
	if err == nil || errors.Is(err, ErrArchive) {
		t.Error(err)
	}
}

// What the kernel says of an entry that leads nowhere is the archive's fault.
func TestEntriesThatLeadNowhereAreTheArchivesFault(t *testing.T) {
	testutil.NeedRoot(t)
	loop := []layertartest.Item{{Name: "a", Type: '2', Link: "b"}, {Name: "b", Type: '2', Link: "a"}}
	for name, items := range map[string][]layertartest.Item{
		"a link to nothing":   {{Name: "h", Type: '1', Link: "gone"}},
		"a link to a folder":  {{Name: "d", Type: '5'}, {Name: "h", Type: '1', Link: "d"}},
		"below a file":        {{Name: "f"}, {Name: "f/x"}},
		"a loop":              append(loop, layertartest.Item{Name: "a/x"}),
		"an impossible value": {{Name: "f", PAX: map[string]string{"SCHILY.xattr.security.capability": strings.Repeat("v", 300)}}},
	} {
		r := NewReader(bytes.NewReader(layertartest.Tar(items...)))
		if err := Unpack(t.Context(), t.TempDir(), r, Options{}); !errors.Is(err, ErrArchive) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
