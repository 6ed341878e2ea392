package objects

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// Table lists the objects a composed image names, in the order of its folders, each with the repository it comes from.
// It is safe for concurrent use; it doesn't change.
//
// The file, numbers little endian:
//
//	8   magic "CVMFSTB1"; "CVMFSTB2" of an image whose repositories share no objects with others: their names differ;
//	    "CVMFSTB3" and "CVMFSTB4" are the same with paths
//	4   number of repositories
//	4   number of objects
//	4   number of chunks
//	    with paths: 4 number of paths · 4 bytes of their text
//	    repositories: 1 byte length, name
//	    objects, 40 bytes each: 20 digest (chunked: of the recipe) · 8 size · 4 first chunk · 4 number of chunks, 0: whole ·
//	    2 repository · 1 algorithm (chunked: 0) · 1 compression
//	    chunks, 32 bytes each: 20 digest · 8 size · 1 algorithm · 3 zeros
//	    paths, 12 bytes each: 4 object · 4 where it begins in the text · 2 length · 1 external: 1, else 0 · 1 zero
//	    text of the paths
//	32  SHA-256 of all before
type Table struct {
	path    string
	repos   []string
	owners  []uint64 // of each repository, where it shares no objects; else nil
	objects []byte
	chunks  []byte
	paths   paths

	names tableNames // not in the file
}

const (
	magic       = "CVMFSTB1"
	isolated    = "CVMFSTB2"
	withPaths   = "CVMFSTB3"
	isolatedToo = "CVMFSTB4" // with paths
	headSize    = len(magic) + 3*4
	recordSize  = 40
	chunkSize   = 32
	maxTable    = 1 << 30 // bytes of a file: some 25 million objects
	maxRepos    = 1 << 16
	maxRepoName = 255
)

var errNoTable = errors.New("not a table, or of another version")

// WriteTable writes a table's file. Each object comes with its repository's position in repos, and is not kept. With
// isolate, repositories share none. The caller makes the file durable; a torn one is recognised when it is opened.
func WriteTable(w io.Writer, repos []string, isolate bool, objs iter.Seq2[*Object, int]) error {
	var objects, chunks []byte
	var paths paths
	for o, repo := range objs {
		if err := o.check(); err != nil {
			return fmt.Errorf("object table: object %d: %w", len(objects)/recordSize, err)
		}
		if repo < 0 || repo >= len(repos) {
			return fmt.Errorf("object table: object %d: repository %d of %d", len(objects)/recordSize, repo, len(repos))
		}
		paths.add(len(objects)/recordSize, o)
		objects = appendObject(objects, o, repo, len(chunks)/chunkSize)
		chunks = appendChunks(chunks, o.Chunks)
	}
	if len(repos) > maxRepos || len(objects)+len(chunks)+paths.size() > maxTable/2 {
		return fmt.Errorf("object table: too large: %d repositories, %d objects, %d chunks", len(repos),
			len(objects)/recordSize, len(chunks)/chunkSize)
	}
	head := []byte(magics[len(paths.records) > 0][isolate])
	head = binary.LittleEndian.AppendUint32(head, uint32(len(repos)))
	head = binary.LittleEndian.AppendUint32(head, uint32(len(objects)/recordSize))
	head = binary.LittleEndian.AppendUint32(head, uint32(len(chunks)/chunkSize))
	if len(paths.records) > 0 {
		head = binary.LittleEndian.AppendUint32(head, uint32(len(paths.records)/pathSize))
		head = binary.LittleEndian.AppendUint32(head, uint32(len(paths.text)))
	}
	for _, r := range repos {
		if r == "" || len(r) > maxRepoName {
			return fmt.Errorf("object table: repository name %.300q", r)
		}
		head = append(append(head, byte(len(r))), r...)
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	for _, b := range [][]byte{head, objects, chunks, paths.records, paths.text} {
		if _, err := out.Write(b); err != nil {
			return fmt.Errorf("object table: %w", err)
		}
	}
	if _, err := w.Write(sum.Sum(nil)); err != nil {
		return fmt.Errorf("object table: %w", err)
	}
	return nil
}

func appendObject(b []byte, o *Object, repo, firstChunk int) []byte {
	d := o.id().Digest
	b = append(b, d.Sum[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(o.Size))
	b = binary.LittleEndian.AppendUint32(b, uint32(firstChunk))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(o.Chunks)))
	b = binary.LittleEndian.AppendUint16(b, uint16(repo))
	return append(b, byte(d.Algorithm), byte(o.Compression))
}

func appendChunks(b []byte, chunks []catalog.Chunk) []byte {
	for _, c := range chunks {
		b = append(b, c.Digest.Sum[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(c.Size))
		b = append(b, byte(c.Digest.Algorithm), 0, 0, 0)
	}
	return b
}

// OpenTable reads a table's file into memory and checks it from end to end.
func OpenTable(path string) (*Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("object table: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("object table: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxTable {
		return nil, fmt.Errorf("object table %s: %v of %d bytes", path, info.Mode().Type(), info.Size())
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("object table %s: %w", path, err)
	}
	t, err := parseTable(b)
	if err != nil {
		return nil, fmt.Errorf("object table %s: %w", path, err)
	}
	t.path = path
	return t, nil
}

func parseTable(b []byte) (*Table, error) {
	if len(b) < headSize+sha256.Size || !isTable(b) {
		return nil, errNoTable
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, errors.New("torn or changed: its checksum is wrong")
	}
	le := binary.LittleEndian
	repos := le.Uint32(body[8:])
	objects, chunks := uint64(le.Uint32(body[12:]))*recordSize, uint64(le.Uint32(body[16:]))*chunkSize
	if repos > maxRepos {
		return nil, fmt.Errorf("%d repositories", repos)
	}
	head := headLength(body)
	if len(body) < head {
		return nil, errNoTable
	}
	paths, text := uint64(0), uint64(0)
	if head > headSize {
		paths, text = uint64(le.Uint32(body[headSize:]))*pathSize, uint64(le.Uint32(body[headSize+4:]))
	}
	t := &Table{}
	rest, err := t.parseRepos(b, body[head:], repos)
	if err != nil {
		return nil, err
	}
	if uint64(len(rest)) != objects+chunks+paths+text {
		return nil, fmt.Errorf("%d bytes of records instead of %d", len(rest), objects+chunks+paths+text)
	}
	t.objects, rest = rest[:objects:objects], rest[objects:]
	t.chunks, rest = rest[:chunks:chunks], rest[chunks:]
	t.paths.records, t.paths.text = rest[:paths:paths], rest[paths:]
	return t, t.check()
}

// magics are what a table begins with, by whether it has paths and whether repositories share no objects.
var magics = map[bool]map[bool]string{
	false: {false: magic, true: isolated}, true: {false: withPaths, true: isolatedToo},
}

// kindOf returns what kind a table is that begins with b; ok is false where it is none.
func kindOf(b []byte) (hasPaths, isolate, ok bool) {
	for hasPaths, kinds := range magics {
		for isolate, m := range kinds {
			if string(b[:len(magic)]) == m {
				return hasPaths, isolate, true
			}
		}
	}
	return false, false, false
}

// isTable reports whether a file begins as a table's does.
func isTable(b []byte) bool {
	_, _, ok := kindOf(b)
	return ok
}

// headLength is how many bytes there are before the names of repositories, in a table that begins with b.
func headLength(b []byte) int {
	if hasPaths, _, _ := kindOf(b); hasPaths {
		return headSize + 2*4
	}
	return headSize
}

// parseRepos reads the names of the n repositories of a table that begins with head, and returns what follows them.
func (t *Table) parseRepos(head, b []byte, n uint32) (rest []byte, err error) {
	for range n {
		if len(b) == 0 || b[0] == 0 || len(b) < 1+int(b[0]) {
			return nil, errors.New("repository names end early")
		}
		end := 1 + int(b[0])
		name := string(b[1:end])
		t.repos, b = append(t.repos, name), b[end:]
		if _, isolate, _ := kindOf(head); isolate {
			t.owners = append(t.owners, ownerOf(name))
		}
	}
	return b, nil
}

// check looks at every record, so that nothing need be looked at again.
func (t *Table) check() error {
	if err := t.paths.check(t.Len()); err != nil {
		return err
	}
	le := binary.LittleEndian
	next := uint64(0) // chunk
	for i := range t.Len() {
		r := t.record(i)
		n := uint64(r.chunks())
		if !r.valid(len(t.repos)) {
			return fmt.Errorf("object %d: bad record", i)
		}
		if n == 0 {
			continue
		}
		if uint64(le.Uint32(r[28:])) != next || n > uint64(len(t.chunks)/chunkSize)-next {
			return fmt.Errorf("object %d: bad chunks", i)
		}
		next += n
		o := t.object(i)
		if err := o.check(); err != nil {
			return fmt.Errorf("object %d: %w", i, err)
		}
		if o.recipe().Sum != [hash.Size]byte(r[:hash.Size]) {
			return fmt.Errorf("object %d: its name is not that of its chunks", i)
		}
	}
	if next != uint64(len(t.chunks)/chunkSize) {
		return errors.New("chunks without an object")
	}
	return t.checkNamed()
}

// Path is the file it was read from.
func (t *Table) Path() string { return t.path }

// Len is the number of objects.
func (t *Table) Len() int { return len(t.objects) / recordSize }

// Repos are the repositories the objects come from.
func (t *Table) Repos() []string { return append([]string(nil), t.repos...) }

// At returns the object at position i, and its repository.
func (t *Table) At(i int) (Object, string) { return t.object(i), t.repo(i) }

// record is an object's 40 bytes.
type record []byte

func (t *Table) record(i int) record { return record(t.objects[i*recordSize:][:recordSize]) }

func (r record) size() int64    { return int64(binary.LittleEndian.Uint64(r[20:])) }
func (r record) chunks() uint32 { return binary.LittleEndian.Uint32(r[32:]) }

// valid reports whether the record by itself is one, of a table with so many repositories.
func (r record) valid(repos int) bool {
	if int(binary.LittleEndian.Uint16(r[36:])) >= repos || !hash.Compression(r[39]).Valid() || r.size() < 0 {
		return false
	}
	return r.chunks() > 0 && r[38] == 0 || r.chunks() == 0 && hash.Algorithm(r[38]).Valid()
}

func (r record) name() Name {
	return Name{
		Digest:      hash.Digest{Algorithm: hash.Algorithm(r[38]), Sum: [hash.Size]byte(r[:hash.Size])},
		Compression: hash.Compression(r[39]),
		Chunked:     r.chunks() > 0,
		Size:        r.size(),
	}
}

// name returns the name of the object at position i.
func (t *Table) name(i int) Name {
	r := t.record(i)
	n := r.name()
	if t.owners != nil {
		n.Owner = t.owners[r.repo()]
	}
	return n
}

func (r record) repo() int { return int(binary.LittleEndian.Uint16(r[36:])) }

func (t *Table) repo(i int) string { return t.repos[t.record(i).repo()] }

func (t *Table) object(i int) Object {
	r := t.record(i)
	n := r.name()
	o := Object{Compression: n.Compression, Size: n.Size}
	o.File, o.External = t.paths.of(i)
	if !n.Chunked {
		o.Digest = n.Digest
		return o
	}
	first, count := int(binary.LittleEndian.Uint32(r[28:])), int(r.chunks())
	o.Chunks = make([]catalog.Chunk, count)
	end := int64(0)
	for i := range o.Chunks {
		c := t.chunks[(first+i)*chunkSize:][:chunkSize]
		o.Chunks[i] = catalog.Chunk{
			Offset: end,
			Size:   int64(binary.LittleEndian.Uint64(c[20:])),
			Digest: hash.Digest{Algorithm: hash.Algorithm(c[28]), Sum: [hash.Size]byte(c[:hash.Size])},
		}
		end += o.Chunks[i].Size
	}
	return o
}
