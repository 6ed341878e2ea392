package objects

import (
	"bytes"
	"crypto/sha256"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// from gives all objects the one repository.
func from(objs []Object, repo int) iter.Seq2[*Object, int] {
	return func(yield func(*Object, int) bool) {
		for i := range objs {
			if !yield(&objs[i], repo) {
				return
			}
		}
	}
}

// sample are objects of all kinds.
var sample = []Object{
	{Digest: digest("one"), Size: 3},
	{Digest: hash.SHAKE128.Digest([]byte("two")), Size: 1 << 50, Compression: hash.None},
	{Size: 9, Chunks: []catalog.Chunk{{Size: 4, Digest: digest("c1")}, {Offset: 4, Size: 5, Digest: digest("c2")}}},
	{Digest: hash.RIPEMD160.Digest([]byte("three"))},
	{Size: 1, Compression: hash.None, Chunks: []catalog.Chunk{{Size: 1, Digest: hash.RIPEMD160.Digest([]byte("c3"))}}},
}

// placed are objects of which tables say where they are.
var placed = append([]Object{
	{Digest: digest("four"), Size: 4, File: "/a/four"},
	{Digest: digest("five"), Size: 5, Compression: hash.None, External: true, File: "/\xff\n"},
	{
		Size: 6, Compression: hash.None, External: true, File: "/chunks",
		Chunks: []catalog.Chunk{{Size: 6, Digest: digest("c4")}},
	},
}, sample...)

func encode(t testing.TB, repos []string, objs iter.Seq2[*Object, int]) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteTable(&b, repos, false, objs); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTableGivesBackWhatWasWritten(t *testing.T) {
	for _, objs := range [][]Object{sample, placed} {
		testTable(t, objs)
	}
}

func testTable(t *testing.T, sample []Object) {
	path := filepath.Join(t.TempDir(), "objects")
	b := encode(t, []string{"a.example.org", "b.example.org"}, func(yield func(*Object, int) bool) {
		for i := range sample {
			yield(&sample[i], i%2)
		}
	})
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	table, err := OpenTable(path)
	if err != nil {
		t.Fatal(err)
	}
	if table.Len() != len(sample) {
		t.Fatalf("%d objects, want %d", table.Len(), len(sample))
	}
	for i, want := range sample {
		got, repo := table.At(i)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("object %d (-want +got):\n%s", i, diff)
		}
		if got, want := table.name(i).String(), want.Name(); got != want {
			t.Errorf("object %d is named %s, want %s", i, got, want)
		}
		if want := []string{"a.example.org", "b.example.org"}[i%2]; repo != want {
			t.Errorf("object %d is from %s, want %s", i, repo, want)
		}
	}
	if diff := cmp.Diff([]string{"a.example.org", "b.example.org"}, table.Repos()); diff != "" {
		t.Error(diff)
	}
}

func TestWriteTableRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		repos []string
		objs  iter.Seq2[*Object, int]
	}{
		{"an object without digest", []string{"r"}, from([]Object{{Size: 1}}, 0)},
		{"a repository that isn't there", []string{"r"}, from(sample, 1)},
		{"a negative repository", []string{"r"}, from(sample, -1)},
		{"an empty repository name", []string{""}, from(nil, 0)},
		{"a long repository name", []string{strings.Repeat("r", 256)}, from(nil, 0)},
	} {
		if err := WriteTable(&bytes.Buffer{}, c.repos, false, c.objs); err == nil {
			t.Errorf("%s: no error", c.name)
		}
	}
}

func TestTornOrChangedTableIsRefused(t *testing.T) {
	b := encode(t, []string{"r"}, from(sample, 0))
	if _, err := parseTable(b); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		if _, err := parseTable(b[:i]); err == nil {
			t.Errorf("cut at %d: no error", i)
		}
		c := bytes.Clone(b)
		c[i] ^= 0x40
		if _, err := parseTable(c); err == nil {
			t.Errorf("changed at %d: no error", i)
		}
	}
	if _, err := parseTable(append(bytes.Clone(b), 0)); err == nil {
		t.Error("a byte more: no error")
	}
}

// reseal makes the checksum right again: what a writer with other ideas would produce.
func reseal(b []byte) []byte {
	body := b[:len(b)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(body, sum[:]...)
}

func TestHostileTableIsRefusedOrHarmless(t *testing.T) {
	testHostile(t, encode(t, []string{"r"}, from(sample, 0)))
	testHostile(t, encode(t, []string{"r"}, from(placed, 0)))
}

func testHostile(t *testing.T, b []byte) {
	for i := range len(b) - sha256.Size {
		for _, v := range []byte{0, 1, 0x7f, 0xff} {
			c := bytes.Clone(b)
			c[i] = v
			if table, err := parseTable(reseal(c)); err == nil {
				useTable(t, table)
			}
		}
	}
}

// useTable touches everything.
func useTable(t *testing.T, table *Table) {
	x := NewIndex([16]byte{1})
	x.Add(table)
	for i := range table.Len() {
		o, _ := table.At(i)
		if err := o.check(); err != nil {
			t.Errorf("object %d: %v", i, err)
		}
		if got := o.Name(); got != table.name(i).String() {
			t.Errorf("object %d: two names", i)
		} else if _, ok := x.Lookup(got); !ok {
			t.Errorf("object %d is not found by its name", i)
		}
	}
	x.Remove(table)
	if f := x.found.Load(); len(f.runs) != 0 {
		t.Errorf("%d runs are left of a removed table", len(f.runs))
	}
}

func TestOpenTableNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "absent"), dir, "/dev/zero"} {
		if _, err := OpenTable(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("OpenTable(%s): %v", path, err)
		}
	}
}

func FuzzTable(f *testing.F) {
	f.Add(encode(f, nil, from(nil, 0)))
	f.Add(encode(f, []string{"r"}, from(sample, 0)))
	f.Add(encode(f, []string{"a", "bb"}, from(sample[2:3], 1)))
	f.Add(encode(f, []string{"r"}, from(placed, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headSize+sha256.Size {
			parseTable(b)
			return
		}
		table, err := parseTable(reseal(b))
		if err == nil && table.Len() < 1000 {
			useTable(t, table)
		}
	})
}
