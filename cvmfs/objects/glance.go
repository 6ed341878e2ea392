package objects

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

const (
	glanceSample = 256      // objects that Glance looks at: what it tells is off by 3 % at most, mostly
	glanceHead   = 64 << 10 // bytes that it reads to find the first record
)

// Glance reports about how much of the objects of a table's file is on disk, as Local does, but of a table that need
// not be in memory: it reads some records of the file and looks at their objects, which takes a millisecond, and
// trusts the file. Bytes and OfBytes are those of the sample if it is one.
func (s *Store) Glance(path string) (Share, error) {
	t, of, err := sampleTable(path)
	if err != nil {
		return Share{}, fmt.Errorf("object table %s: %w", path, err)
	}
	share := s.Local(t)
	if n := t.Len(); n < of {
		share.Objects, share.Of, share.Estimated = int(int64(share.Objects)*int64(of)/int64(n)), of, true
	}
	return share, nil
}

// sampleTable returns a table of some of a file's objects, spread evenly, and how many there are in all. Of those in
// chunks it has no chunks.
func sampleTable(path string) (t *Table, of int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	head := make([]byte, glanceHead)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	if head = head[:n]; n < headSize || !isTable(head) || n < headLength(head) {
		return nil, 0, errNoTable
	}
	t = &Table{path: path}
	rest, err := t.parseRepos(head, head[headLength(head):], min(binary.LittleEndian.Uint32(head[8:]), maxRepos))
	if err != nil {
		return nil, 0, err
	}
	of = int(binary.LittleEndian.Uint32(head[12:]))
	return t, of, t.sample(f, int64(n-len(rest)), of)
}

// sample reads some of the records that begin at a place of a file.
func (t *Table) sample(f io.ReaderAt, begin int64, of int) error {
	n := min(of, glanceSample)
	t.objects = slices.Grow(t.objects, n*recordSize)[:n*recordSize]
	for i := range n {
		if _, err := f.ReadAt(t.record(i), begin+int64(i*of/n)*recordSize); err != nil {
			return fmt.Errorf("object %d of %d: %w", i*of/n, of, err)
		}
		if !t.record(i).valid(len(t.repos)) {
			return fmt.Errorf("object %d of %d: bad record", i*of/n, of)
		}
	}
	return nil
}
