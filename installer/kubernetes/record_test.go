package kubernetes

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// disk is a folder with files and the record of what was changed in it.
type disk struct {
	t   *testing.T
	dir string
}

func (d disk) path(name string) string { return filepath.Join(d.dir, name) }

// record reads the record, as each program that runs does.
func (d disk) record() *record {
	d.t.Helper()
	r, err := readRecord(d.path("record"))
	must(d.t, err)
	return r
}

func (d disk) others(name, content string) {
	d.t.Helper()
	must(d.t, os.WriteFile(d.path(name), []byte(content), 0o640))
}

func (d disk) write(name, content string, want bool) {
	d.t.Helper()
	changed, err := d.record().write(d.path(name), []byte(content))
	must(d.t, err)
	if changed != want {
		d.t.Errorf("%s: changed %t, want %t", name, changed, want)
	}
}

func (d disk) restore(name string) {
	d.t.Helper()
	must(d.t, d.record().restore(slog.New(slog.NewTextHandler(io.Discard, nil)), d.path(name)))
}

func (d disk) holds(name, want string) {
	d.t.Helper()
	got, err := os.ReadFile(d.path(name))
	if err != nil {
		got = []byte(err.Error())
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		d.t.Errorf("%s: %s", name, diff)
	}
}

// absent checks that nothing is there.
func (d disk) absent(name string) {
	d.t.Helper()
	if _, err := os.Lstat(d.path(name)); !os.IsNotExist(err) {
		d.t.Errorf("%s is there: %v", name, err)
	}
}

func TestWhatStoodThereComesBack(t *testing.T) {
	d := disk{t, t.TempDir()}
	d.others("a", "theirs\n")
	d.write("a", "ours\n", true)
	d.write("a", "ours\n", false)
	d.write("a", "ours, newer\n", true)
	d.restore("a")
	d.holds("a", "theirs\n")
	info, err := os.Stat(d.path("a"))
	must(t, err)
	if info.Mode().Perm() != 0o640 {
		t.Errorf("its mode is %v", info.Mode())
	}
	d.restore("a") // a second time
	d.holds("a", "theirs\n")
}

func TestNewFilesGoWithTheirFolders(t *testing.T) {
	d := disk{t, t.TempDir()}
	d.write("x/y/a", "ours\n", true)
	d.write("x/b", "ours\n", true)
	d.restore("x/y/a")
	d.absent("x/y")
	d.restore("x/b")
	d.absent("x")
}

// What somebody writes into a file of ours stays when ours goes.
func TestChangesOfOthersStay(t *testing.T) {
	d := disk{t, t.TempDir()}
	d.others("a", "one\ntwo\nthree\n")
	d.write("a", "ours\none\ntwo\nthree\n", true)
	d.others("a", "ours\none\ntwo\nthree\nfour\n")
	d.write("a", "ours, newer\none\ntwo\nthree\nfour\n", true)
	d.restore("a")
	d.holds("a", "one\ntwo\nthree\nfour\n")
}

// A file that is written anew from end to end is its writer's.
func TestFilesOfOthersAreLeft(t *testing.T) {
	d := disk{t, t.TempDir()}
	d.others("a", "theirs\n")
	d.write("a", "ours\n", true)
	d.others("a", "something else\n")
	d.restore("a")
	d.holds("a", "something else\n")
}

// A program that is killed after the record is written, and before the file is, has changed nothing yet.
func TestAKillBeforeAFileIsWrittenLosesNothing(t *testing.T) {
	d := disk{t, t.TempDir()}
	d.others("a", "theirs\n")
	for _, next := range []string{"ours\n", "ours, newer\n"} {
		before, err := os.ReadFile(d.path("a"))
		must(t, err)
		d.write("a", next, true)
		r := d.record() // as it was before the file was written
		r.Files[d.path("a")].Ours = append([][]byte{before}, []byte(next))
		if string(before) == "theirs\n" {
			r.Files[d.path("a")].Ours = [][]byte{[]byte(next)}
		}
		must(t, r.save())
		must(t, os.WriteFile(d.path("a"), before, 0o640))
		d.write("a", next, true)
	}
	d.restore("a")
	d.holds("a", "theirs\n")
}
