package publish

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/internal/durable"
)

// content names plain bytes and the kind of object made of them.
type content struct {
	sum  [sha256.Size]byte
	kind byte // see kindOf
}

// chunkKind is the bit of a chunk in content.kind.
const chunkKind = 1

// kindOf says how an object is made: the settings of a repository may change.
func kindOf(a hash.Algorithm, c hash.Compression) byte { return byte(a)<<3 | byte(c)<<1 }

func (c content) chunk() bool { return c.kind&chunkKind != 0 }

func (c content) suffix() hash.Suffix {
	if c.chunk() {
		return hash.Chunk
	}
	return hash.File
}

// storedObject is the object made of a content.
type storedObject struct {
	sum  [hash.Size]byte
	size uint32 // stored bytes; no object has more than maxChunkSize and what compression may add
}

// contentIndex remembers which object was made of which content, so that content seen before is neither compressed nor
// stored again. What it says is a hint: whether the object is there is looked up in the storage.
//
// It is two files: a sorted one, searched in place, and the entries that came since, which are in memory too. The
// second is merged into the first as soon as it holds a good part of it. An entry that isn't whole, for it was being
// written when the power failed, is passed over.
type contentIndex struct {
	dir string

	mu     sync.RWMutex
	sorted *os.File // nil: none
	count  int64    // entries of it
	recent map[content]storedObject
	log    *os.File
	out    *bufio.Writer // to log
}

const (
	indexSorted = "known"
	indexLog    = "known.log"

	indexEntry  = sha256.Size + 1 + hash.Size + 4 + 4 // content, object, size, check sum
	recentLimit = 1 << 16                             // entries in memory at least before they are merged
)

// openContentIndex opens the two files in a publisher's folder. The caller holds the lock.
func openContentIndex(dir string) (k *contentIndex, err error) {
	k = &contentIndex{dir: dir, recent: map[content]storedObject{}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open list of known content in %s: %w", dir, errors.Join(err, k.release()))
		}
	}()
	if err := k.openSorted(); err != nil {
		return nil, err
	}
	if k.log, err = os.OpenFile(filepath.Join(dir, indexLog), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, err
	}
	if err := k.readLog(); err != nil {
		return nil, err
	}
	k.out = bufio.NewWriterSize(k.log, 1<<16)
	return k, nil
}

func (k *contentIndex) openSorted() error {
	f, err := os.Open(filepath.Join(k.dir, indexSorted))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	k.sorted, k.count = f, info.Size()/indexEntry
	return nil
}

// readLog takes the entries of the log into memory and cuts off what is no whole entry at its end.
func (k *contentIndex) readLog() error {
	var entry [indexEntry]byte
	in := bufio.NewReaderSize(k.log, 1<<16)
	var whole int64
	for {
		_, err := io.ReadFull(in, entry[:])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
		whole += indexEntry
		if c, m, ok := decodeIndexEntry(entry[:]); ok {
			k.recent[c] = m
		}
	}
	if err := k.log.Truncate(whole); err != nil {
		return err
	}
	_, err := k.log.Seek(whole, io.SeekStart)
	return err
}

func encodeIndexEntry(b []byte, c content, m storedObject) []byte {
	start := len(b)
	b = append(b, c.sum[:]...)
	b = append(b, c.kind)
	b = append(b, m.sum[:]...)
	b = binary.LittleEndian.AppendUint32(b, m.size)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[start:]))
}

func decodeIndexEntry(b []byte) (c content, m storedObject, ok bool) {
	rest := b[copy(c.sum[:], b):]
	c.kind = rest[0]
	rest = rest[1:]
	rest = rest[copy(m.sum[:], rest):]
	m.size = binary.LittleEndian.Uint32(rest)
	ok = binary.LittleEndian.Uint32(rest[4:]) == crc32.ChecksumIEEE(b[:indexEntry-4])
	return c, m, ok
}

// find returns the object made of a content, if that is known.
func (k *contentIndex) find(c content) (storedObject, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if m, ok := k.recent[c]; ok {
		return m, true
	}
	return k.search(c)
}

// search looks into the sorted file. Its keys are spread evenly, so a guess from the key's first bytes is close, and
// what is around the guess is read at once.
func (k *contentIndex) search(c content) (storedObject, bool) {
	const around = 64
	key := encodeIndexEntry(nil, c, storedObject{})[:sha256.Size+1]
	lo, hi := int64(0), k.count
	guess := int64(float64(binary.BigEndian.Uint32(key)) / (1 << 32) * float64(k.count))
	var block [around * indexEntry]byte
	for lo < hi {
		from := max(lo, min(guess-around/2, hi-around))
		n := min(around, hi-from)
		b := block[:n*indexEntry]
		if _, err := k.sorted.ReadAt(b, from*indexEntry); err != nil {
			return storedObject{}, false // a hint that can't be read is none
		}
		at := func(i int) []byte { return b[i*indexEntry : (i+1)*indexEntry] }
		i := sort.Search(int(n), func(i int) bool { return bytes.Compare(at(i)[:len(key)], key) >= 0 })
		switch {
		case i < int(n) && bytes.Equal(at(i)[:len(key)], key):
			_, m, ok := decodeIndexEntry(at(i))
			return m, ok
		case i == 0:
			hi = from
		case i == int(n):
			lo = from + n
		default:
			return storedObject{}, false
		}
		guess = (lo + hi) / 2
	}
	return storedObject{}, false
}

// add remembers an object.
func (k *contentIndex) add(c content, m storedObject) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.recent[c] == m {
		return nil
	}
	k.recent[c] = m
	var entry [indexEntry]byte
	_, err := k.out.Write(encodeIndexEntry(entry[:0], c, m))
	return err
}

// close writes what was added, and merges if there is enough of it.
func (k *contentIndex) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.out.Flush()
	if err == nil && int64(len(k.recent)) > max(recentLimit, k.count/8) {
		err = k.merge()
	}
	if err = errors.Join(err, k.release()); err != nil {
		return fmt.Errorf("write list of known content in %s: %w", k.dir, err)
	}
	return nil
}

// merge writes both as one sorted file. Killed in between, the log is merged again.
func (k *contentIndex) merge() error {
	recent := make([][]byte, 0, len(k.recent))
	for c, m := range k.recent {
		recent = append(recent, encodeIndexEntry(nil, c, m))
	}
	slices.SortFunc(recent, compareIndexEntries)
	err := durable.ReplaceBy(filepath.Join(k.dir, indexSorted), 0o644, func(to io.Writer) error {
		return k.writeMerged(to, recent)
	})
	if err != nil {
		return err
	}
	return k.log.Truncate(0)
}

func compareIndexEntries(a, b []byte) int { return bytes.Compare(a[:sha256.Size+1], b[:sha256.Size+1]) }

func (k *contentIndex) writeMerged(to io.Writer, recent [][]byte) error {
	out := bufio.NewWriterSize(to, 1<<18)
	if k.sorted != nil {
		in := bufio.NewReaderSize(io.NewSectionReader(k.sorted, 0, k.count*indexEntry), 1<<18)
		var entry [indexEntry]byte
		for range k.count {
			if _, err := io.ReadFull(in, entry[:]); err != nil {
				return err
			}
			for len(recent) > 0 && compareIndexEntries(recent[0], entry[:]) < 0 {
				_, _ = out.Write(recent[0]) // its error is kept until Flush
				recent = recent[1:]
			}
			if len(recent) == 0 || compareIndexEntries(recent[0], entry[:]) != 0 {
				_, _ = out.Write(entry[:])
			}
		}
	}
	for _, entry := range recent {
		_, _ = out.Write(entry)
	}
	return out.Flush()
}

// release closes the files.
func (k *contentIndex) release() error {
	var err error
	for _, f := range []*os.File{k.sorted, k.log} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}
