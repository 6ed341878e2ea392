package conformance

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"
)

// worked makes an image of two layers and a container that has done of everything a little.
func (d *driver) worked() (dir string) {
	d.t.Helper()
	d.layer("below", "", regular("deleted below", "x"), regular("modified", "below"), folder("gone"),
		regular("gone/deep", "x"), folder("whited"), regular("whited/x", "x"))
	d.layer("base", "below",
		regular("modified", "base"), regular("deleted", "x"), whiteout("deleted below"), whiteout("whited"),
		folder("replaced"),
		regular("replaced/was", "x"), folder("replaced/sub"), regular("replaced/sub/was", "x"),
		regular("replaced/same", "same"), regular("mode", "x"),
		folder("dir"), folder("dir/below"), regular("dir/below/kept", "x"), regular("file to folder", "x"),
		folder("folder to file"),
		regular("folder to file/x", "x"), regular("old name", "x"), regular("touched", "x"), regular("opened", "x"),
		regular("capable", "x"),
		regular("linked", "x"), link('1', "linked too", "linked"), regular("untouched", "x"), link('2', "link", "x"),
		folder("empty"))
	dir = d.container("container", "base")
	in := func(name string) string { return filepath.Join(dir, name) }
	opened, err := os.OpenFile(in("opened"), os.O_RDWR, 0) // copied up, not changed
	must(d.t, err)
	for _, err := range []error{
		opened.Close(),
		write(in("modified"), "changed"), os.Remove(in("deleted")), os.RemoveAll(in("gone")),
		os.RemoveAll(in("replaced")), os.MkdirAll(in("replaced/sub"), 0o755), write(in("replaced/same"), "same"),
		os.Chmod(in("mode"), 0o600), write(in("dir/below/added"), "added"), os.Remove(in("file to folder")),
		os.MkdirAll(in("file to folder/x"), 0o755),
		os.RemoveAll(in("folder to file")), writeNew(in("folder to file")), os.Rename(in("old name"), in("new name")),
		os.Link(in("modified"), in("hard")), os.Symlink("/x", in("soft")),
		os.Chtimes(in("touched"), moment.Add(1e9), moment.Add(1e9)),
		unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mkfifo(in("pipe"), 0o600),
		writeNew(in("comes and goes")), os.Remove(in("comes and goes")),
		unix.Setxattr(in("capable"), "security.capability", []byte(capability), 0),
		write(in("linked"), "parted"), os.Remove(in("link")), os.Symlink("other", in("link")),
		os.Chown(in("empty"), 5, 5),
	} {
		must(d.t, err)
	}
	return dir
}

// ChangesDiffAndSizeAgree: Changes answers what comparing the views finds, Diff holds what Changes tells, and DiffSize
// is the size of what Diff holds.
func ChangesDiffAndSizeAgree(t *testing.T, target Target) {
	d := use(t, target)
	dir := d.worked()
	got := d.changes("container")
	// The engine's own drivers compare the two views name by name.
	oracle, err := archive.ChangesDirs(dir, d.container("untouched", "base"))
	must(t, err)
	want := []string{}
	for _, c := range oracle {
		want = append(want, c.String())
	}
	slices.Sort(want)
	equal(t, "changes", want, got)

	held, size := map[string]bool{}, int64(0)
	for _, i := range unpack(t, d.diff("container")) {
		held[path.Join("/", i.Name)] = true
		switch i.Typeflag {
		case tar.TypeReg:
			size += i.Size
		case tar.TypeSymlink:
			size += int64(len(i.Linkname))
		}
	}
	for _, c := range got {
		kind, name, _ := strings.Cut(c, " ")
		if kind == "D" && !hidden(held, name) || kind != "D" && !held[name] {
			t.Errorf("the archive doesn't say %q", c)
		}
	}
	equal(t, "size", size, d.diffSize("container"))
	equal(t, "changes of what wasn't touched", []string{}, d.changes("untouched"))
	same(t, "committed", dir, d.committed("container", "base"))
}

// hidden reports whether an archive deletes a name or empties a folder above it.
func hidden(held map[string]bool, name string) bool {
	if held[path.Join(path.Dir(name), archive.WhiteoutPrefix+path.Base(name))] {
		return true
	}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		if held[path.Join(dir, archive.WhiteoutOpaqueDir)] {
			return true
		}
		if dir == "/" {
			return false
		}
	}
}

// DiffIsDeterministic: the same content gives the same bytes again and again, and the same layer when it came in
// elsewhere.
func DiffIsDeterministic(t *testing.T, target Target) {
	d := use(t, target)
	d.worked()
	first := d.diff("container")
	for range 3 {
		if !bytes.Equal(first, d.diff("container")) {
			t.Error("the same container gave two archives")
		}
	}
	if target.skips(t, "DiffIsDeterministic/of the layer made of it") {
		return
	}
	d.commit("layer", "container", "base")
	equal(t, "archive of the layer made of it", contents(t, first),
		contents(t, d.export(object{"ID": d.id("layer"), "Parent": d.id("base")})))
}

// EqualLayersGiveEqualArchives, whenever they came in.
func EqualLayersGiveEqualArchives(t *testing.T, target Target) {
	d := use(t, target)
	d.worked()
	d.commit("one", "container", "base")
	time.Sleep(1100 * time.Millisecond) // times in archives are in seconds
	d.commit("two", "container", "base")
	one, two := d.export(object{"ID": d.id("one"), "Parent": d.id("base")}),
		d.export(object{"ID": d.id("two"), "Parent": d.id("base")})
	if !bytes.Equal(one, two) {
		t.Error("equal layers gave two archives")
	}
}

// CommitWhileDiffIsRead: nothing is locked while an archive is on its way out, for the engine pipes it into another
// call; and one that nobody reads to its end doesn't keep a layer from being used and removed.
func CommitWhileDiffIsRead(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", regular("a", "a"))
	dir := d.container("container", "base")
	must(t, write(filepath.Join(dir, "big"), strings.Repeat("x", 8<<20)))
	r, err := d.stream(d.over("container"))
	must(t, err)
	defer r.Close()
	_, err = io.ReadFull(r, make([]byte, 1024))
	must(t, err)
	same(t, "committed meanwhile", dir, d.committed("container", "base"))
	d.get("container")
	d.put("container")
	d.changes("container")
	d.put("container")
	d.remove("container")
}
