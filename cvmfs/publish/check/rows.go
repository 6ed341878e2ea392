package check

import (
	"bytes"
	"cmp"
	"context"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// checkColumns are those of a row, as they are stored: package catalog gives them as a file system would see them,
// which hides faults. The last few came with later revisions of the schema.
var checkColumns = []string{
	"md5path_1", "md5path_2", "parent_1", "parent_2", "hardlinks", "hash", "size", "mode", "mtime", "flags", "name",
	"symlink", "uid",
	"gid", "xattr", "mtimens",
}

const optionalCheckColumns = 2

// maxName is the most bytes of a name (NAME_MAX).
const maxName = 255

// checkRow is a row of a catalog.
type checkRow struct {
	path, parent             hash.PathHash
	hardlinks                int64
	hash                     []byte
	size, mode, mtime, flags int64
	name, symlink            string
	uid, gid                 int64
	xattr                    []byte
	mtimens                  int64 // -1: NULL, which isn't 0
	null                     bool  // name or symlink is NULL
	chunks                   []chunkRow
}

// The bits of flags that say what the mode says, and others that package catalog keeps to itself.
const (
	typeFlags      = 0x1 | 0x4 | 0x8 | 0x10
	algorithmShift = 8
	compressShift  = 11
)

func (r *checkRow) typ() int64     { return r.mode & 0o170000 }
func (r *checkRow) isDir() bool    { return r.typ() == 0o040000 }
func (r *checkRow) regular() bool  { return r.typ() == 0o100000 }
func (r *checkRow) links() int64   { return r.hardlinks & (1<<32 - 1) }
func (r *checkRow) group() uint32  { return uint32(r.hardlinks >> 32) }
func (r *checkRow) chunked() bool  { return r.flags&int64(catalog.Chunked) != 0 }
func (r *checkRow) external() bool { return r.flags&int64(catalog.External) != 0 }

func (r *checkRow) algorithm() hash.Algorithm {
	return hash.SHA1 + hash.Algorithm(r.flags>>algorithmShift&7)
}

func (r *checkRow) compression() hash.Compression {
	return hash.Compression(r.flags >> compressShift & 7)
}

// differs names what two rows of one folder, a mount's and a root's, don't agree in.
func (r *checkRow) differs(o *checkRow) string {
	for _, field := range []struct {
		name string
		same bool
	}{
		{"name", r.name == o.name},
		{"link count or group", r.hardlinks == o.hardlinks},
		{"size", r.size == o.size},
		{"mode", r.mode == o.mode},
		{"mtime", r.mtime == o.mtime},
		{"mtimens", r.mtimens == o.mtimens},
		{"hash", bytes.Equal(r.hash, o.hash)},
		{"symlink", r.symlink == o.symlink},
		{"having extended attributes", (len(r.xattr) > 0) == (len(o.xattr) > 0)},
		{"the external flag", r.external() == o.external()},
	} {
		if !field.same {
			return field.name
		}
	}
	return ""
}

// inCommon is what all rows of a group of hard links must share.
func (r *checkRow) inCommon() string {
	var b strings.Builder
	fmt.Fprint(&b, r.hardlinks, r.hash, r.size, r.mode, r.mtime, r.mtimens, r.flags, r.uid, r.gid, r.xattr, r.symlink)
	for _, c := range r.chunks {
		fmt.Fprint(&b, c.offset, c.size, c.sum)
	}
	return hash.SHA1.Digest([]byte(b.String())).Hex()
}

// eachRow calls fn with each row, which is only good during the call.
func (s *catalogScan) eachRow(fn func(*checkRow) error) error {
	var r checkRow
	limit := s.file.Size() // a row takes more than a byte: a file's pages may be linked into endless trees
	return s.file.Query("SELECT "+s.columns+" FROM catalog", nil, func(row []driver.Value) error {
		if limit--; limit < 0 {
			return fmt.Errorf("%w: more rows than the file can hold", catalog.ErrInvalid)
		}
		if err := r.decode(row); err != nil {
			return err
		}
		return fn(&r)
	})
}

func (r *checkRow) decode(row []driver.Value) error {
	*r = checkRow{mtimens: -1}
	r.name, _ = row[10].(string)
	for i, to := range []*int64{
		&r.path.P1, &r.path.P2, &r.parent.P1, &r.parent.P2, &r.hardlinks, nil, &r.size, &r.mode, &r.mtime, &r.flags,
		nil, nil, &r.uid,
		&r.gid, nil, &r.mtimens,
	} {
		if to == nil || row[i] == nil && i == 15 {
			continue
		}
		v, ok := row[i].(int64)
		if !ok {
			return fmt.Errorf("%w: row %.80q: %s is %.40q", catalog.ErrInvalid, r.name, checkColumns[i],
				fmt.Sprint(row[i]))
		}
		*to = v
	}
	r.hash, r.xattr = raw(row[5]), raw(row[14])
	r.name, r.symlink = string(raw(row[10])), string(raw(row[11]))
	r.null = row[10] == nil || row[11] == nil
	return nil
}

// raw returns the bytes of a text or blob. The driver's are its own, so they may be kept.
func raw(v driver.Value) []byte {
	switch v := v.(type) {
	case []byte:
		return v
	case string:
		return []byte(v)
	}
	return nil
}

// chunkRow is a chunk as stored.
type chunkRow struct {
	path         hash.PathHash
	offset, size int64
	sum          []byte
	used         bool
}

func comparePaths(a, b hash.PathHash) int {
	return cmp.Or(cmp.Compare(a.P1, b.P1), cmp.Compare(a.P2, b.P2))
}

func (s *catalogScan) readChunks() error {
	limit := s.file.Size()
	const query = "SELECT md5path_1, md5path_2, offset, size, hash FROM chunks"
	err := s.file.Query(query, nil, func(row []driver.Value) error {
		if limit--; limit < 0 {
			return fmt.Errorf("%w: more chunks than the file can hold", catalog.ErrInvalid)
		}
		r := chunkRow{sum: raw(row[4])}
		for i, to := range []*int64{&r.path.P1, &r.path.P2, &r.offset, &r.size} {
			v, ok := row[i].(int64)
			if !ok {
				return fmt.Errorf("%w: a chunk's column %d is %.40q", catalog.ErrInvalid, i, fmt.Sprint(row[i]))
			}
			*to = v
		}
		s.chunks = append(s.chunks, r)
		return nil
	})
	slices.SortFunc(s.chunks, func(a, b chunkRow) int {
		return cmp.Or(comparePaths(a.path, b.path), cmp.Compare(a.offset, b.offset))
	})
	return err
}

func (s *catalogScan) chunksOf(path hash.PathHash) []chunkRow {
	from, _ := slices.BinarySearchFunc(s.chunks, path, func(r chunkRow,
		p hash.PathHash,
	) int {
		return comparePaths(r.path, p)
	})
	to := from
	for ; to < len(s.chunks) && s.chunks[to].path == path; to++ {
		s.chunks[to].used = true
	}
	return s.chunks[from:to]
}

// count adds a row to the catalog's own counters.
func (s *catalogScan) count(r *checkRow) {
	n := &s.counted
	switch r.typ() {
	case 0o040000:
		n.Dir++
	case 0o120000:
		n.Symlink++
	case 0o100000:
		n.Regular++
		n.FileSize += r.size
		if r.chunked() {
			n.Chunked++
			n.ChunkedSize += r.size
		}
		if r.external() {
			n.External++
			n.ExternalSize += r.size
		}
	default:
		n.Special++
	}
	if len(r.xattr) > 0 {
		n.Xattr++
	}
}

// checkRow holds a row to the rules that concern it alone, and its group.
func (s *catalogScan) checkRow(r *checkRow, at string) {
	root := r.path == hash.OfPath(s.checked.path)
	problem := func(format string, args ...any) { s.c.problem(RuleRow, at, format, args...) }
	switch {
	case r.null:
		problem("its name or its target is NULL")
	case r.name == "" && root && s.checked.path == "": // the repository's root
	case r.name == "", r.name == ".", r.name == "..", len(r.name) > maxName, strings.ContainsAny(r.name, "/\x00"):
		problem("%.80q is no name", r.name)
	}
	if r.links() < 1 {
		problem("a link count of 0")
	}
	if !r.algorithm().Valid() || !r.compression().Valid() {
		problem("flags %#x name an unknown digest or compression", r.flags)
	}
	want, known := map[int64]int64{0o040000: 0x1, 0o100000: 0x4, 0o120000: 0xc}[r.typ()]
	if !known {
		want = 0x14
	}
	if r.flags&typeFlags != want {
		problem("flags %#x don't fit the mode %o", r.flags, r.mode)
	}
	if len(r.xattr) > 0 {
		if _, err := catalog.ParseXattrs(r.xattr); err != nil {
			problem("%v", err)
		}
	}
	s.checkMarker(r, at)
	s.checkLinks(r, at)
	s.checkType(r, at)
}

// checkMarker sees that a marker is only in the root of a catalog that is no root catalog.
func (s *catalogScan) checkMarker(r *checkRow, at string) {
	if r.name != catalog.Marker {
		return
	}
	if s.checked.path == "" || r.parent != hash.OfPath(s.checked.path) {
		s.c.problem(RuleMarker, at, "%s elsewhere than in the root of a nested catalog", catalog.Marker)
		return
	}
	s.marker = true
}

func (s *catalogScan) checkLinks(r *checkRow, at string) {
	switch {
	case r.isDir() && r.group() != 0:
		s.c.problem(RuleFolder, at, "a folder in group %d of hard links", r.group())
		return
	case r.isDir():
		return
	case r.links() > 1 && r.group() == 0:
		s.c.problem(RuleLinks, at, "a link count of %d without a group", r.links())
	}
	if r.group() == 0 {
		return
	}
	g := s.groups[r.group()]
	if g == nil {
		g = &groupScan{first: r.inCommon(), name: at, parent: r.parent, links: r.links()}
		s.groups[r.group()] = g
	}
	g.rows++
	switch {
	case g.parent != r.parent:
		s.c.problem(RuleLinks, at, "it is a hard link to %.200q in another folder", g.name)
	case g.first != r.inCommon():
		s.c.problem(RuleLinks, at, "it is a hard link to %.200q, but not like it", g.name)
	}
}

// checkType holds a row to the rules of its type.
func (s *catalogScan) checkType(r *checkRow, at string) {
	problem := func(rule, format string, args ...any) { s.c.problem(rule, at, format, args...) }
	if r.flags&int64(catalog.DirectIO) != 0 && !r.regular() {
		problem(RuleFolder, "it is no regular file and flagged for direct access")
	}
	if !r.regular() && (r.external() || r.chunked()) {
		problem(RuleContent, "flags %#x, but no regular file", r.flags)
	}
	if !r.isDir() && r.flags&int64(catalog.Mountpoint|catalog.NestedRoot|catalog.BindMount) != 0 {
		problem(RuleMounts, "flags %#x, but no folder", r.flags)
	}
	if r.isDir() && r.flags&int64(catalog.NestedRoot) != 0 && r.path != hash.OfPath(s.checked.path) {
		problem(RuleMounts, "flags %#x, but not the catalog's root", r.flags)
	}
	switch r.typ() {
	case 0o100000:
	case 0o040000:
		if len(r.hash) > 0 {
			problem(RuleContent, "a folder with a digest, which replicas take for an object to fetch")
		}
	case 0o120000:
		if len(r.hash) > 0 {
			problem(RuleContent, "a symbolic link with a digest")
		}
		if r.symlink == "" || len(r.symlink) > 4095 || strings.IndexByte(r.symlink, 0) >= 0 {
			problem(RuleRow, "a symbolic link with a target of %d bytes", len(r.symlink))
		}
	case 0o020000, 0o060000:
		s.checkSpecial(r, at)
	case 0o010000, 0o140000:
		s.checkSpecial(r, at)
		if r.size != 0 {
			problem(RuleSpecial, "a pipe or socket with a size of %d", r.size)
		}
	default:
		problem(RuleRow, "mode %o is of no known type", r.mode)
	}
}

func (s *catalogScan) checkSpecial(r *checkRow, at string) {
	if len(r.hash) > 0 {
		s.c.problem(RuleContent, at, "a special file with a digest")
	}
	if r.symlink != "" {
		s.c.problem(RuleSpecial, at, "a special file with a target")
	}
}

// content has a file's objects looked at.
func (s *catalogScan) content(ctx context.Context, r *checkRow, at string, objects chan<- objectCheck) error {
	if !r.regular() || !r.algorithm().Valid() || !r.compression().Valid() {
		return nil
	}
	look := func(sum []byte, chunk bool, size int64) error {
		d, err := hash.FromRaw(r.algorithm(), sum)
		if err != nil {
			s.c.problem(RuleContent, at, "%v", err)
			return nil
		}
		if r.external() {
			return nil // not in the object store
		}
		return s.c.object(ctx, objects, objectCheck{objectName{d, chunk, r.compression()}, size, at})
	}
	if r.size < 0 {
		s.c.problem(RuleContent, at, "a size of %d", r.size)
		return nil
	}
	if !r.chunked() {
		return look(r.hash, false, r.size)
	}
	var end int64
	for i, c := range r.chunks {
		if c.offset != end || c.size < 0 {
			s.c.problem(RuleChunks, at, "chunk %d covers %d bytes at %d, expected at %d", i, c.size, c.offset, end)
			return nil
		}
		end += c.size
		if err := look(c.sum, true, c.size); err != nil {
			return err
		}
	}
	if end != r.size || len(r.chunks) == 0 {
		s.c.problem(RuleChunks, at, "%d chunks cover %d of %d bytes", len(r.chunks), end, r.size)
	}
	if len(r.hash) > 0 { // one more object, of the whole file
		return look(r.hash, false, r.size)
	}
	return nil
}
