package publish

import (
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

func nth(i int) (content, storedObject) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(i))
	c := content{sum: sha256.Sum256(b[:]), kind: byte(i % 2)}
	return c, storedObject{sum: [20]byte(c.sum[:20]), size: uint32(i)}
}

func fillIndex(t *testing.T, dir string, from, to int, merge bool) {
	t.Helper()
	k, err := openContentIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := from; i < to; i++ {
		c, m := nth(i)
		if err := k.add(c, m); err != nil {
			t.Fatal(err)
		}
	}
	if merge {
		if err := k.out.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := k.merge(); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.close(); err != nil {
		t.Fatal(err)
	}
}

func checkIndex(t *testing.T, dir string, want int) {
	t.Helper()
	k, err := openContentIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	for i := range want {
		c, m := nth(i)
		if got, ok := k.find(c); !ok || got != m {
			t.Fatalf("entry %d: %v, %v, want %v", i, got, ok, m)
		}
	}
	for i := want; i < want+1000; i++ {
		c, _ := nth(i)
		if got, ok := k.find(c); ok {
			t.Fatalf("entry %d, which was never added: %v", i, got)
		}
	}
}

func TestKnownContentIsFoundAgain(t *testing.T) {
	dir := t.TempDir()
	fillIndex(t, dir, 0, 1, true)
	checkIndex(t, dir, 1)
	fillIndex(t, dir, 1, 50, false)
	checkIndex(t, dir, 50)
	fillIndex(t, dir, 40, 5000, true)
	checkIndex(t, dir, 5000)
	fillIndex(t, dir, 5000, 5500, false)
	checkIndex(t, dir, 5500)
	fillIndex(t, dir, 0, 20_000, true)
	checkIndex(t, dir, 20_000)
	info, err := os.Stat(filepath.Join(dir, indexSorted))
	if err != nil || info.Size() != 20_000*indexEntry {
		t.Errorf("%d bytes of 20,000 entries, %v", info.Size(), err)
	}
}

func TestWhatALossOfPowerLeftOfKnownContentIsPassedOver(t *testing.T) {
	dir := t.TempDir()
	fillIndex(t, dir, 0, 100, false)
	path := filepath.Join(dir, indexLog)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[50*indexEntry:51*indexEntry], make([]byte, indexEntry)) // a hole
	b = b[:len(b)-indexEntry/2]                                    // the last is cut
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	k, err := openContentIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		c, m := nth(i)
		got, ok := k.find(c)
		if want := i != 50 && i != 99; ok != want || ok && got != m {
			t.Errorf("entry %d: %v, %v, want %v, %v", i, got, ok, m, want)
		}
	}
	if err := k.close(); err != nil {
		t.Fatal(err)
	}
	fillIndex(t, dir, 50, 51, false)
	fillIndex(t, dir, 99, 100, false)
	checkIndex(t, dir, 100)
}

func FuzzKnownFilesOfAnyContentAreSearched(f *testing.F) {
	c, m := nth(1)
	f.Add(encodeIndexEntry(nil, c, m), encodeIndexEntry(nil, c, m))
	f.Add([]byte("sorted?"), make([]byte, 3*indexEntry))
	f.Fuzz(func(t *testing.T, sorted, log []byte) {
		dir := t.TempDir()
		for name, content := range map[string][]byte{indexSorted: sorted, indexLog: log} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		k, err := openContentIndex(dir)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			k.find(func() content { c, _ := nth(i); return c }())
		}
		c, m := nth(11)
		if err := k.add(c, m); err != nil {
			t.Fatal(err)
		}
		if got, ok := k.find(c); !ok || got != m {
			t.Errorf("what was added: %v, %v", got, ok)
		}
		if err := k.close(); err != nil {
			t.Fatal(err)
		}
	})
}
