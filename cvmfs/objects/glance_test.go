package objects

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/hash"
)

// tableFile writes a table of n objects, of which those that here says are in the store.
func tableFile(t testing.TB, s *Store, n int, here func(i int) bool) string {
	t.Helper()
	objs := make([]Object, n)
	for i := range objs {
		objs[i] = Object{
			Digest: hash.SHA1.Digest([]byte{byte(i), byte(i >> 8), byte(i >> 16)}), Compression: hash.None, Size: 100,
		}
		if here(i) {
			if err := os.WriteFile(filepath.Join(s.cfg.Dir, objs[i].Path()), make([]byte, 100), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	path := filepath.Join(t.TempDir(), "objects")
	b := encode(t, []string{"a.example.org", "b.example.org"}, from(objs, 1))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestGlanceTellsWhatIsHere(t *testing.T) {
	t.Parallel()
	s := newStore(t, newRepository(t))
	got, err := s.Glance(tableFile(t, s, 40, func(i int) bool { return i < 30 }))
	if d := cmp.Diff(Share{Objects: 30, Of: 40, Bytes: 3000, OfBytes: 4000}, got); d != "" || err != nil {
		t.Errorf("%v, -want +got\n%s", err, d)
	}
	got, err = s.Glance(tableFile(t, s, 5000, func(i int) bool { return i < 2500 }))
	if err != nil || !got.Estimated || got.Of != 5000 || got.Objects < 2300 || got.Objects > 2700 ||
		got.OfBytes != 100*glanceSample {
		t.Errorf("of many: %+v, %v", got, err)
	}
	got, err = s.Glance(tableFile(t, s, 0, nil))
	if got != (Share{}) || err != nil {
		t.Errorf("of nothing: %+v, %v", got, err)
	}
}

// A file that is no table, or is torn, is an error and nothing worse.
func TestGlanceRefusesWhatIsNoTable(t *testing.T) {
	t.Parallel()
	s := newStore(t, newRepository(t))
	path := tableFile(t, s, 3, func(int) bool { return false })
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) - 32 { // the sum at the end is not looked at
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Glance(path); err == nil {
			t.Errorf("of %d bytes: %+v", n, got)
		}
	}
	wrong := bytes.Repeat([]byte{255}, len(whole))
	copy(wrong, whole[:headSize+28])
	if err := os.WriteFile(path, wrong, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Glance(path); err == nil {
		t.Errorf("of bad records: %+v", got)
	}
	if got, err := s.Glance(path + "x"); err == nil {
		t.Errorf("of nothing: %+v", got)
	}
}
