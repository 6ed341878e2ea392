package publish_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/pack"
	. "cvmfs-graphdriver/cvmfs/publish"
	. "cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
)

const recutAt = "/.metadata/image/files"

// bySize gives files of some sizes names and ends of chunks.
func bySize(wanted map[int64][]int64) Cut {
	return func(e *catalog.Entry) (string, []int64) {
		return fmt.Sprintf("size-%d", e.Size), wanted[e.Size]
	}
}

func recut(t *testing.T, r *Repository, cut Cut, layers ...string) (made map[string]catalog.Entry) {
	t.Helper()
	tx := Begin(t, r)
	err := tx.Recut(t.Context(), layers, cut, func(all map[string]catalog.Entry) (CutFolder, error) {
		made = all
		return CutFolder{Path: recutAt}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	Commit(t, tx)
	return made
}

func TestFilesAreCutWhereOneIsTold(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN})
	whole, chunked := testutil.Sample(200_000), testutil.Sample(3_000_001)
	tx := Begin(t, r)
	Ingest(t, tx, "/layers/a", Pack(t, Folder("d"), File("d/whole", string(whole)), HardLink("d/again", "d/whole"),
		File("small", "text")))
	Ingest(t, tx, "/layers/b", Pack(t, File("chunked", string(chunked)), File("whole", string(whole))))
	Commit(t, tx)
	before := Newest(t, r)
	edges := map[string][]int64{"size-200000": {10_000, 150_000, 200_000}, "size-3000001": {70_000, 1_500_000, 3_000_001}}
	made := recut(t, r, bySize(map[int64][]int64{200_000: edges["size-200000"], 3_000_001: edges["size-3000001"]}),
		"/layers/a", "/layers/none", "/layers/b")
	if names := slices.Sorted(maps.Keys(made)); !slices.Equal(names, []string{"size-200000", "size-3000001"}) {
		t.Fatalf("made %v", names)
	}
	now := Newest(t, r)
	files := ReadAll(t, now, recutAt)
	layer := ReadAll(t, before, "/layers")
	if files["size-200000"].Content != layer["a/d/whole"].Content || files["size-3000001"].Content != layer["b/chunked"].Content {
		t.Error("the files have other content than those of the layers")
	}
	for name, ends := range edges {
		var got []int64
		for _, c := range Chunks(t, now, recutAt+"/"+name) {
			got = append(got, c.Offset+c.Size)
		}
		// Chunks are no larger than those of the folder's settings, and than files that aren't cut.
		if !slices.IsSorted(got) || !slices.Equal(slices.DeleteFunc(slices.Clone(got), func(n int64) bool {
			return !slices.Contains(ends, n)
		}), ends) {
			t.Errorf("%s is cut at %v, want %v among them", name, got, ends)
		}
		if mode := made[name].Mode & 0o7777; mode != 0o644 {
			t.Errorf("%s has the mode %o, and not that of the layer's file", name, mode)
		}
		if !slices.Equal(made[name].Chunks, Chunks(t, now, recutAt+"/"+name)) {
			t.Errorf("%s: other chunks are told of than are published", name)
		}
	}
	if !maps.Equal(ReadAll(t, now, "/layers"), layer) {
		t.Error("a layer has changed")
	}
	MustBeSound(t, r)

	// What is there stays, and where nothing is to be cut nothing is made.
	holder, err := now.Holder(t.Context(), recutAt)
	if err != nil {
		t.Fatal(err)
	}
	if made := recut(t, r, bySize(map[int64][]int64{200_000: edges["size-200000"]}), "/layers/b"); len(made) != 1 {
		t.Errorf("made %v", made)
	}
	if again, err := Newest(t, r).Holder(t.Context(), recutAt); err != nil || again != holder {
		t.Errorf("the folder that was there has changed: %v", err)
	}
	if made := recut(t, r, bySize(nil), "/layers/b"); len(made) > 0 {
		t.Errorf("made %v of nothing", made)
	}
	MustBeSound(t, r)
}

// What is cut may be in a layer of the same transaction, whose catalogs aren't stored yet.
func TestFilesOfALayerInTheMakingAreCut(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN})
	tx := Begin(t, r)
	Ingest(t, tx, "/layers/a", Pack(t, File("f", string(testutil.Sample(200_000)))))
	err := tx.Recut(t.Context(), []string{"/layers/a"}, bySize(map[int64][]int64{200_000: {1, 200_000}}),
		func(made map[string]catalog.Entry) (CutFolder, error) {
			return CutFolder{Path: fmt.Sprintf("/%d", len(made))}, nil
		})
	if found, looked := tx.Has(t.Context(), "/1"); err != nil || looked != nil || !found {
		t.Fatalf("%v, %v, %v", found, err, looked)
	}
	Commit(t, tx)
	MustBeSound(t, r)
}

// Packs have stored objects byte by byte. What isn't there is left out, and a pack of nothing isn't made.
func TestPacksHaveWhatIsStored(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN})
	tx := Begin(t, r)
	Ingest(t, tx, "/layers/a", Pack(t, File("f", "one"), File("g", "two")))
	Commit(t, tx)
	var paths []string
	for _, name := range []string{"f", "g"} {
		e, err := Newest(t, r).Lookup(t.Context(), "/layers/a/"+name)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, e.Digest.Path(hash.File))
	}
	missing := hash.SHA1.Digest([]byte("missing")).Path(hash.File)
	tx = Begin(t, r)
	err := tx.Recut(t.Context(), []string{"/layers/a"}, bySize(nil), func(map[string]catalog.Entry) (CutFolder, error) {
		return CutFolder{recutAt, map[int][]string{0: {paths[1], missing, paths[0]}, 7: {missing}}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	Commit(t, tx)
	files := ReadAll(t, Newest(t, r), recutAt)
	if _, made := files[pack.Name(7)]; made {
		t.Error("there is a pack of nothing")
	}
	v, at := Newest(t, r), recutAt+"/"+pack.Name(0)
	e, err := v.Lookup(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	file, err := v.Open(t.Context(), at, e)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	in := pack.NewReader(bufio.NewReader(file))
	for _, want := range []string{paths[1], paths[0]} {
		path, _, err := in.Next()
		got, failed := io.ReadAll(in)
		stored, unknown := os.ReadFile(filepath.Join(r.Dir(), WWWFolder, FQRN, path))
		if path != want || err != nil || failed != nil || unknown != nil || !bytes.Equal(got, stored) {
			t.Errorf("%s, want %s: %d bytes, %v, %v, %v", path, want, len(got), err, failed, unknown)
		}
	}
	if path, _, err := in.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("there is %q, %v", path, err)
	}
	MustBeSound(t, r)

	tx = Begin(t, r)
	defer tx.Abort()
	err = tx.Recut(t.Context(), nil, bySize(nil), func(map[string]catalog.Entry) (CutFolder, error) {
		return CutFolder{"/none", map[int][]string{0: {missing}}}, nil
	})
	if found, looked := tx.Has(t.Context(), "/none"); err != nil || looked != nil || found {
		t.Errorf("%v, %v, %v", found, err, looked)
	}
}

var errNowhere = errors.New("nowhere")

func TestCuttingFilesFails(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN})
	content := testutil.Sample(200_000)
	tx := Begin(t, r)
	Ingest(t, tx, "/layers/a", Pack(t, File("f", string(content)), File("g", string(testutil.Sample(300_000)))))
	Commit(t, tx)
	try := func(ctx context.Context, cut Cut) error {
		tx := Begin(t, r)
		defer tx.Abort()
		err := tx.Recut(ctx, []string{"/layers/a"}, cut, func(map[string]catalog.Entry) (CutFolder, error) {
			return CutFolder{Path: recutAt}, errNowhere
		})
		if found, looked := tx.Has(t.Context(), recutAt); looked != nil || found {
			t.Errorf("after a failure: %v, %v", found, looked)
		}
		return err
	}
	good := bySize(map[int64][]int64{200_000: {100_000, 200_000}, 300_000: {1000, 300_000}})
	if err := try(t.Context(), good); !errors.Is(err, errNowhere) {
		t.Errorf("nobody knows where to: %v", err)
	}
	if err := try(t.Context(), bySize(map[int64][]int64{200_000: {1, 199_999}})); err == nil ||
		!strings.Contains(err.Error(), "is cut at 199999") {
		t.Errorf("a file without its last byte: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := try(ctx, good); err == nil {
		t.Error("a canceled one succeeds")
	}
	name := Object(t, r, "", content).Path("")
	Put(t, r.Storage(), name, string(Stored([]byte("something else"))))
	if err := try(t.Context(), good); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("of a damaged object: %v", err)
	}
}
