package graphdriver_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/layers/layerstest"
)

// pack returns a layer's archive.
func pack(t testing.TB, r *rig, id, parent string) []byte {
	t.Helper()
	rc, err := r.Diff(t.Context(), id, parent)
	must(t, err)
	defer rc.Close()
	b, err := io.ReadAll(rc)
	must(t, err)
	return b
}

// names lists an archive: name and owner.
func names(t testing.TB, r *rig, id, parent string) (lines []string) {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(pack(t, r, id, parent))); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return lines
		}
		must(t, err)
		lines = append(lines, fmt.Sprintf("%s %d:%d", h.Name, h.Uid, h.Gid))
	}
}

// work is what the container of the tests below does to its root.
func work(t testing.TB, dir string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(in("modified"), []byte("changed"), 0o644))
	must(t, os.Remove(in("deleted")))
	must(t, os.RemoveAll(in("gone")))
	must(t, os.RemoveAll(in("replaced")))
	must(t, os.MkdirAll(in("replaced/sub"), 0o755)) // opaque
	must(t, os.WriteFile(in("replaced/same"), []byte("same"), 0o644))
	must(t, os.Chmod(in("mode"), 0o600))
	must(t, os.WriteFile(in("dir/below/added"), []byte("added"), 0o644))
	must(t, os.Remove(in("file2dir")))
	must(t, os.MkdirAll(in("file2dir/x"), 0o755))
	must(t, os.RemoveAll(in("dir2file")))
	must(t, os.WriteFile(in("dir2file"), nil, 0o644))
	must(t, os.Rename(in("old name"), in("new name")))
	must(t, os.Link(in("modified"), in("hard")))
	must(t, os.Symlink("/x", in("soft")))
	must(t, unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Chtimes(in("touched"), time.Unix(5, 0), time.Unix(5, 0)))
	f, err := os.OpenFile(in("opened"), os.O_RDWR, 0) // copied up, not changed
	must(t, err)
	must(t, f.Close())
	must(t, os.WriteFile(in("comes and goes"), nil, 0o644))
	must(t, os.Remove(in("comes and goes")))
	must(t, unix.Setxattr(in("capable"), "security.capability",
		[]byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
}

// worked makes a container on a base layer and has it work.
func worked(t testing.TB) (r *rig, dir string) {
	t.Helper()
	r = newRig(t)
	d := func(name string) file { return file{Name: name + "/", Kind: tar.TypeDir} }
	f := func(name string) file { return file{Name: name, Body: name} }
	r.apply("below", "", tarOf(t, f("deleted below"), f("modified"), d("gone"), f("gone/deep"), d("whited"),
		f("whited/x")))
	r.apply("base", "below", tarOf(t,
		f("modified"), f("deleted"), file{Name: ".wh.deleted below"}, file{Name: ".wh.whited"}, d("replaced"),
		f("replaced/was"), d("replaced/sub"), f("replaced/sub/was"),
		file{Name: "replaced/same", Body: "same"}, f("mode"), d("dir"), d("dir/below"), f("dir/below/kept"),
		f("file2dir"), d("dir2file"), f("dir2file/x"), f("old name"),
		f("touched"), f("opened"), f("capable"), f("untouched")))
	dir = r.container("c1", "base")
	work(t, dir)
	return r, dir
}

func TestChangesAreThoseOfTheViews(t *testing.T) {
	r, dir := worked(t)
	got, err := r.Changes(t.Context(), "c1", "base")
	must(t, err)
	want := []string{
		"C /capable", "D /deleted", "C /dir", "C /dir/below", "A /dir/below/added", "C /dir2file", "C /file2dir",
		"A /file2dir/x",
		"D /gone", "A /hard", "C /mode", "C /modified", "A /new name", "A /null", "D /old name", "C /replaced",
		"C /replaced/same", "C /replaced/sub", "D /replaced/sub/was",
		"D /replaced/was", "A /soft", "C /touched",
	}
	if d := cmp.Diff(want, kinds(got)); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	// The engine's own drivers compare the two views name by name.
	must(t, r.Create(graphdriver.CreateArgs{ID: "plain", Parent: "base", Writable: true}))
	oracle, err := archive.ChangesDirs(dir, r.get("plain"))
	must(t, err)
	sort.Slice(oracle, func(i, j int) bool { return oracle[i].Path < oracle[j].Path })
	if d := cmp.Diff(kinds(oracle), kinds(got)); d != "" {
		t.Errorf("-as engines compare +got\n%s", d)
	}
	// Against nothing, and against another layer than the parent.
	all, err := r.Changes(t.Context(), "c1", "")
	must(t, err)
	if len(all) != len(list(t, dir)) {
		t.Errorf("%d changes against nothing, %d names", len(all), len(list(t, dir)))
	}
	two, err := r.Changes(t.Context(), "c1", "below")
	must(t, err)
	if !strings.Contains(strings.Join(kinds(two), "\n"), "A /untouched") {
		t.Errorf("against the grandparent: %v", kinds(two))
	}
	if left, err := os.ReadDir(filepath.Join(r.run, "views")); err != nil || len(left) > 0 {
		t.Errorf("views left: %v, %v", left, err)
	}
}

func kinds(changes []archive.Change) []string {
	lines := []string{}
	for _, c := range changes {
		lines = append(lines, c.String())
	}
	return lines
}

func TestDiffMakesTheSameLayerElsewhere(t *testing.T) {
	r, dir := worked(t)
	must(t, os.WriteFile(filepath.Join(dir, "big"), bytes.Repeat([]byte("0123456789"), 1<<17), 0o644))
	want := list(t, dir)
	one, two := pack(t, r, "c1", "base"), pack(t, r, "c1", "base")
	if !bytes.Equal(one, two) {
		t.Error("the same layer gave two archives")
	}
	size := r.apply("committed", "base", one)
	if got, err := r.DiffSize(t.Context(), "c1", "base"); err != nil || got != size {
		t.Errorf("DiffSize %d, %v; ApplyDiff said %d", got, err, size)
	}
	if d := cmp.Diff(want, list(t, r.container("c2", "committed"))); d != "" {
		t.Errorf("-container +committed\n%s", d)
	}
	for _, x := range layerstest.Xattrs(t, r.diff("committed")) {
		if strings.Contains(x, "overlay") && !strings.HasSuffix(x, "overlay.opaque") {
			t.Errorf("exported: %s", x)
		}
	}
	if _, err := r.Diff(t.Context(), "c1", "below"); err == nil ||
		!strings.Contains(err.Error(), `its parent is "base"`) {
		t.Errorf("a diff against another than the parent: %v", err)
	}
}

func TestDiffKeepsTheCapabilityOfAFileWithSeveralNames(t *testing.T) {
	r := newRig(t)
	const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	r.apply("base", "", tarOf(t, file{Name: "a"}))
	dir := r.container("c1", "base")
	must(t, os.WriteFile(filepath.Join(dir, "program"), []byte("x"), 0o755))
	must(t, unix.Setxattr(filepath.Join(dir, "program"), "security.capability", []byte(capability), 0))
	must(t, os.Link(filepath.Join(dir, "program"), filepath.Join(dir, "second name")))
	r.apply("committed", "base", pack(t, r, "c1", "base"))
	b := make([]byte, 64)
	for _, name := range []string{"program", "second name"} {
		n, err := unix.Getxattr(filepath.Join(r.diff("committed"), name), "security.capability", b)
		if err != nil || string(b[:n]) != capability {
			t.Errorf("%s: %q, %v", name, b[:max(n, 0)], err)
		}
	}
}

func TestDiffOfAnOpaqueRootAndOddNames(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	long := strings.Repeat("long/", 60) + "name"
	odd := "new\nline \xff\xfe"
	r.apply("top", "base", tarOf(t, file{Name: ".wh..wh..opq"}, file{Name: odd, Body: "odd"},
		file{Name: long, Body: "long"}))
	r.apply("copy", "base", pack(t, r, "top", "base"))
	if d := cmp.Diff(list(t, r.container("c1", "top")), list(t, r.container("c2", "copy"))); d != "" {
		t.Errorf("-layer +copy\n%s", d)
	}
}

func TestDiffThatFailsNeverEndsLikeAWholeArchive(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "big", Body: strings.Repeat("x", 4<<20)}))
	rc, err := r.Diff(t.Context(), "base", "")
	must(t, err)
	defer rc.Close()
	_, err = io.ReadFull(rc, make([]byte, 2048))
	must(t, err)
	must(t, os.Truncate(filepath.Join(r.diff("base"), "big"), 1<<20))
	if _, err = io.Copy(io.Discard, rc); err == nil || !strings.Contains(err.Error(), "big: shrank") {
		t.Errorf("error %v, want that the file shrank", err)
	}
}

func TestDiffDoesNotFollowLinksOutOfTheLayer(t *testing.T) {
	r := newRig(t)
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("from outside"), 0o600))
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.container("c1", "base")
	// A container swaps a folder for a link while its diff is read: as fast as it can.
	upper := r.diff("c1")
	must(t, os.MkdirAll(filepath.Join(upper, "real"), 0o755))
	must(t, os.WriteFile(filepath.Join(upper, "real", "secret"), []byte("public"), 0o644))
	must(t, os.Symlink(outside, filepath.Join(upper, "link")))
	stop, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, upper+"/real", unix.AT_FDCWD, upper+"/link", unix.RENAME_EXCHANGE)
			}
		}
	}()
	for range 200 {
		rc, err := r.Diff(t.Context(), "c1", "base")
		must(t, err)
		b, _ := io.ReadAll(rc) // an error is as good as leaving it out
		must(t, rc.Close())
		if bytes.Contains(b, []byte("from outside")) {
			t.Fatal("a file from outside the layer was exported")
		}
	}
	close(stop)
	<-stopped
}

// BuildKit makes such files under userns-remap: the host's root's, who is nobody in a container.
func TestDiffGivesFilesOfNobodysToRoot(t *testing.T) {
	r := newRig(t)
	ids := []user.IDMap{{ID: 0, ParentID: 100000, Count: 65536}}
	must(t, r.Init(graphdriver.InitArgs{UIDMaps: ids, GIDMaps: ids}))
	must(t, r.Create(graphdriver.CreateArgs{ID: "c", Writable: true}))
	for name, owner := range map[string]int{"mine": 100007, "nobody's": 0} {
		file := filepath.Join(r.diff("c"), name)
		must(t, os.WriteFile(file, nil, 0o755))
		must(t, os.Chown(file, owner, owner))
		must(t, unix.Chmod(file, 0o6755))
	}
	modes := map[string]string{}
	for tr := tar.NewReader(bytes.NewReader(pack(t, r, "c", ""))); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		modes[h.Name] = fmt.Sprintf("%d:%d %o", h.Uid, h.Gid, h.Mode)
	}
	if d := cmp.Diff(map[string]string{"mine": "7:7 6755", "nobody's": "0:0 755"}, modes); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}
