package layers_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/thin"
)

func TestNotesStayWithTheirLayers(t *testing.T) {
	r := newRig(t)
	must(t, r.Create(layers.CreateArgs{ID: "1", Writable: true, Note: []byte("one")}))
	must(t, r.Create(layers.CreateArgs{ID: "2", Parent: "1", Writable: true, Note: []byte("two")}))
	must(t, r.Create(layers.CreateArgs{ID: "plain", Writable: true}))
	must(t, r.Seal("1", false, ""))
	must(t, r.SetNote("2", []byte("changed")))
	if r.SetNote("none", nil) == nil {
		t.Error("a layer that isn't there has a note")
	}
	must(t, os.WriteFile(filepath.Join(r.dir, "2", ".new-left"), nil, 0o600))
	r.reopen()
	noted, err := r.Noted()
	must(t, err)
	want := []layers.Noted{
		{ID: "1", Committed: true, Note: []byte("one")}, {ID: "2", Parent: "1", Note: []byte("changed")},
	}
	if diff := cmp.Diff(want, noted); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Lstat(filepath.Join(r.dir, "2", ".new-left")); err == nil {
		t.Error("what was left unfinished is there")
	}
}

func TestSealedLayersAreReadOnly(t *testing.T) {
	r := newRig(t)
	must(t, r.Create(layers.CreateArgs{ID: "1", Writable: true}))
	must(t, os.WriteFile(filepath.Join(r.diff("1"), "f"), []byte("x"), 0o600))
	must(t, r.Seal("1", false, ""))
	if r.Seal("1", false, "") == nil {
		t.Error("sealed twice")
	}
	r.reopen()
	stack, err := r.Use("1")
	must(t, err)
	if stack.Upper != "" || stack.Content != r.Content("1") {
		t.Errorf("%+v", stack)
	}
}

// What isn't on disk for sure isn't so in memory either: who was told of an error tries again.
func TestASealThatFailsLeavesTheLayerAsItWas(t *testing.T) {
	r := newRig(t)
	must(t, r.Create(layers.CreateArgs{ID: "0", Writable: true}))
	must(t, r.Create(layers.CreateArgs{ID: "1", Parent: "0", Writable: true, Note: []byte("note")}))
	r.FailSync(unix.EIO)
	if err := r.Seal("1", false, ""); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	if stack, err := r.Use("1"); err != nil || stack.Upper == "" {
		t.Errorf("it can't be written to: %+v, %v", stack, err)
	}
	r.reopen()
	if noted, err := r.Noted(); err != nil || len(noted) != 1 || noted[0].Committed {
		t.Errorf("on disk: %+v, %v", noted, err)
	}
	must(t, r.Seal("1", false, ""))
}

func TestWrittenLayersAreThinWithADescriptorAlone(t *testing.T) {
	const valid = `{"version":"1.0","min_version":"1.0","origin":"x","layers":[]}`
	write := func(dir, name, body string) { must(t, os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600)) }
	for name, c := range map[string]struct {
		fill       func(dir string)
		thin, fail bool
	}{
		"nothing":          {fill: func(string) {}},
		"a descriptor":     {fill: func(dir string) { write(dir, "thin.json", valid) }, thin: true},
		"and another file": {fill: func(dir string) { write(dir, "thin.json", valid); write(dir, "f", "") }},
		"another file":     {fill: func(dir string) { write(dir, "other.json", valid) }},
		"no descriptor":    {fill: func(dir string) { write(dir, "thin.json", "{}") }},
		"a folder":         {fill: func(dir string) { must(t, os.Mkdir(filepath.Join(dir, "thin.json"), 0o700)) }},
		"a link": {fill: func(dir string) {
			elsewhere := t.TempDir()
			write(elsewhere, "f", valid)
			must(t, os.Symlink(filepath.Join(elsewhere, "f"), filepath.Join(dir, "thin.json")))
		}},
		"one of the future": {
			fill: func(dir string) {
				write(dir, "thin.json", `{"version":"9.0","min_version":"9.0","layers":[]}`)
			},
			fail: true,
		},
	} {
		r := newRig(t)
		must(t, r.Create(layers.CreateArgs{ID: "1", Writable: true}))
		c.fill(r.diff("1"))
		d, err := r.Descriptor("1")
		if (d != nil) != c.thin || (err != nil) != c.fail {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
}

func TestADiffOfALayerThatGoesIsNoWholeArchive(t *testing.T) {
	r := newRig(t)
	must(t, r.Create(layers.CreateArgs{ID: "1", Writable: true}))
	for _, name := range []string{"a", "b", "c"} {
		must(t, os.WriteFile(filepath.Join(r.diff("1"), name), []byte("x"), 0o600))
	}
	archive, err := r.Diff(t.Context(), "1", "")
	must(t, err)
	defer archive.Close()
	_, err = archive.Read(make([]byte, 1)) // the first entry is on its way
	must(t, err)
	must(t, r.remove("1"))
	if _, err := io.Copy(io.Discard, archive); !errors.Is(err, layers.ErrNoLayer) {
		t.Errorf("got %v", err)
	}
}

// A thin layer becomes an ordinary one at one moment, or stays what it is.
func TestThinLayersAreRefilled(t *testing.T) {
	r := newRig(t)
	archive := tarOf(t, file{Name: "f", Body: "content"})
	failure := errors.New("of the caller's")
	state := func() string {
		t.Helper()
		noted, err := r.Noted()
		must(t, err)
		stack, err := r.Describe("2")
		must(t, err)
		return fmt.Sprintf("%s: %s, thin %q, image %q, on %s", noted[0].Note, strings.Join(list(t, r.diff("2")), " "), stack.Thin,
			stack.Image, noted[0].Parent)
	}
	must(t, r.Create(layers.CreateArgs{ID: "1", Writable: true}))
	must(t, r.Create(layers.CreateArgs{ID: "2", Parent: "1", Writable: true, Note: []byte("former")}))
	must(t, r.FillThin("2", &thin.Descriptor{}))
	must(t, r.Seal("2", true, ""))
	before := state()
	to := func(note string, err error) func(string) ([]byte, error) {
		return func(dir string) ([]byte, error) {
			if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
				t.Error(err)
			}
			return []byte(note), err
		}
	}
	refill := func(b []byte, note func(string) ([]byte, error)) error {
		return r.Refill(t.Context(), "2", bytes.NewReader(b), note)
	}
	if err := refill(archive, to("", failure)); !errors.Is(err, failure) {
		t.Error(err)
	}
	if err := refill(archive[:515], to("", nil)); !errors.Is(err, layers.ErrTruncated) {
		t.Error(err)
	}
	chain, _, err := r.Chain("2")
	must(t, err)
	named := func(dir string) ([]byte, error) { return nil, r.NameImage("2", chain, "key") }
	if err := refill(archive, named); err == nil {
		t.Error("one that was composed meanwhile was refilled")
	}
	must(t, r.NameImage("2", chain, ""))
	r.reopen()
	if got := state(); got != before {
		t.Errorf("after failures it is %s, it was %s", got, before)
	}
	must(t, refill(archive, to("later", nil)))
	must(t, refill(nil, nil)) // it isn't thin
	want := `later: f -rw-r--r-- 0:0 content, thin "", image "", on 1`
	if got := state(); got != want {
		t.Errorf("it is %s, want %s", got, want)
	}
	r.reopen()
	if got := state(); got != want {
		t.Errorf("after a restart it is %s, want %s", got, want)
	}
	if entries, err := os.ReadDir(r.dir); err != nil || len(entries) != 2 {
		t.Errorf("%v is left, %v", entries, err)
	}
}
