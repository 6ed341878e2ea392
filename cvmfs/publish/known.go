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

// made is the object made of a content.
type made struct {
	sum  [hash.Size]byte
	size uint32 // stored bytes; no object has more than maxChunkSize and what compression may add
}

// known remembers which object was made of which content, so that content seen before is neither compressed nor stored
// again. What it says is a hint: whether the object is there is looked up in the storage.
//
// It is two files: a sorted one, searched in place, and the entries that came since, which are in memory too. The
// second is merged into the first as soon as it holds a good part of it. An entry that isn't whole, for it was being
// written when the power failed, is passed over.
type known struct {
	dir string

	mu     sync.RWMutex
	sorted *os.File // nil: none
	count  int64    // entries of it
	recent map[content]made
	log    *os.File
	out    *bufio.Writer // to log
}

const (
	knownSorted = "known"
	knownLog    = "known.log"

	knownEntry  = sha256.Size + 1 + hash.Size + 4 + 4 // content, object, size, check sum
	recentLimit = 1 << 16                             // entries in memory at least before they are merged
)

// openKnown opens the two files in a publisher's folder. The caller holds the lock.
func openKnown(dir string) (k *known, err error) {
	k = &known{dir: dir, recent: map[content]made{}}
	defer func() {
		if err != nil {
			k.release()
			err = fmt.Errorf("open list of known content in %s: %w", dir, err)
		}
	}()
	if err := k.openSorted(); err != nil {
		return nil, err
	}
	if k.log, err = os.OpenFile(filepath.Join(dir, knownLog), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, err
	}
	if err := k.readLog(); err != nil {
		return nil, err
	}
	k.out = bufio.NewWriterSize(k.log, 1<<16)
	return k, nil
}

func (k *known) openSorted() error {
	f, err := os.Open(filepath.Join(k.dir, knownSorted))
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
	k.sorted, k.count = f, info.Size()/knownEntry
	return nil
}

// readLog takes the entries of the log into memory and cuts off what is no whole entry at its end.
func (k *known) readLog() error {
	var entry [knownEntry]byte
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
		whole += knownEntry
		if c, m, ok := decodeKnown(entry[:]); ok {
			k.recent[c] = m
		}
	}
	if err := k.log.Truncate(whole); err != nil {
		return err
	}
	_, err := k.log.Seek(whole, io.SeekStart)
	return err
}

func encodeKnown(b []byte, c content, m made) []byte {
	start := len(b)
	b = append(b, c.sum[:]...)
	b = append(b, c.kind)
	b = append(b, m.sum[:]...)
	b = binary.LittleEndian.AppendUint32(b, m.size)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[start:]))
}

func decodeKnown(b []byte) (c content, m made, ok bool) {
	rest := b[copy(c.sum[:], b):]
	c.kind = rest[0]
	rest = rest[1:]
	rest = rest[copy(m.sum[:], rest):]
	m.size = binary.LittleEndian.Uint32(rest)
	ok = binary.LittleEndian.Uint32(rest[4:]) == crc32.ChecksumIEEE(b[:knownEntry-4])
	return c, m, ok
}

// find returns the object made of a content, if that is known.
func (k *known) find(c content) (made, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if m, ok := k.recent[c]; ok {
		return m, true
	}
	return k.search(c)
}

// search looks into the sorted file. Its keys are spread evenly, so a guess from the key's first bytes is close, and
// what is around the guess is read at once.
func (k *known) search(c content) (made, bool) {
	const around = 64
	key := encodeKnown(nil, c, made{})[:sha256.Size+1]
	lo, hi := int64(0), k.count
	guess := int64(float64(binary.BigEndian.Uint32(key)) / (1 << 32) * float64(k.count))
	var block [around * knownEntry]byte
	for lo < hi {
		from := max(lo, min(guess-around/2, hi-around))
		n := min(around, hi-from)
		b := block[:n*knownEntry]
		if _, err := k.sorted.ReadAt(b, from*knownEntry); err != nil {
			return made{}, false // a hint that can't be read is none
		}
		at := func(i int) []byte { return b[i*knownEntry : (i+1)*knownEntry] }
		i := sort.Search(int(n), func(i int) bool { return bytes.Compare(at(i)[:len(key)], key) >= 0 })
		switch {
		case i < int(n) && bytes.Equal(at(i)[:len(key)], key):
			_, m, ok := decodeKnown(at(i))
			return m, ok
		case i == 0:
			hi = from
		case i == int(n):
			lo = from + n
		default:
			return made{}, false
		}
		guess = (lo + hi) / 2
	}
	return made{}, false
}

// add remembers an object.
func (k *known) add(c content, m made) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.recent[c] == m {
		return nil
	}
	k.recent[c] = m
	var entry [knownEntry]byte
	_, err := k.out.Write(encodeKnown(entry[:0], c, m))
	return err
}

// close writes what was added, and merges if there is enough of it.
func (k *known) close() error {
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
func (k *known) merge() error {
	recent := make([][]byte, 0, len(k.recent))
	for c, m := range k.recent {
		recent = append(recent, encodeKnown(nil, c, m))
	}
	slices.SortFunc(recent, compareKnown)
	err := durable.ReplaceBy(filepath.Join(k.dir, knownSorted), 0o644, func(to io.Writer) error {
		return k.writeMerged(to, recent)
	})
	if err != nil {
		return err
	}
	return k.log.Truncate(0)
}

func compareKnown(a, b []byte) int { return bytes.Compare(a[:sha256.Size+1], b[:sha256.Size+1]) }

func (k *known) writeMerged(to io.Writer, recent [][]byte) error {
	out := bufio.NewWriterSize(to, 1<<18)
	if k.sorted != nil {
		in := bufio.NewReaderSize(io.NewSectionReader(k.sorted, 0, k.count*knownEntry), 1<<18)
		var entry [knownEntry]byte
		for range k.count {
			if _, err := io.ReadFull(in, entry[:]); err != nil {
				return err
			}
			for len(recent) > 0 && compareKnown(recent[0], entry[:]) < 0 {
				out.Write(recent[0]) // its error is kept until Flush
				recent = recent[1:]
			}
			if len(recent) == 0 || compareKnown(recent[0], entry[:]) != 0 {
				out.Write(entry[:])
			}
		}
	}
	for _, entry := range recent {
		out.Write(entry)
	}
	return out.Flush()
}

// release closes the files.
func (k *known) release() error {
	var err error
	for _, f := range []*os.File{k.sorted, k.log} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}
