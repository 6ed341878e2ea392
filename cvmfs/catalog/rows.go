package catalog

import (
	"cmp"
	"context"
	"database/sql/driver"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"cvmfs-graphdriver/cvmfs/hash"
)

// rowColumns is what is read of a row, in this order. The last few came with later schema revisions; where they are
// missing they read as NULL.
var rowColumns = []string{
	"md5path_1", "md5path_2", "parent_1", "parent_2", "hardlinks", "hash",
	"size", "mode", "mtime", "flags", "name", "symlink", "uid",
	"gid", "xattr", "mtimens",
}

// optionalColumns is how many of them.
const optionalColumns = 2

// chunkColumns is what is read of a chunk.
var chunkColumns = []string{"md5path_1", "md5path_2", "offset", "size", "hash"}

// The positions in rowColumns.
const (
	colPath1 = iota
	colPath2
	colParent1
	colParent2
	colHardlinks
	colHash
	colSize
	colMode
	colMtime
	colFlags
	colName
	colSymlink
	colUID
	colGID
	colXattr
	colMtimeN
)

const (
	maxName    = 255  // NAME_MAX
	maxSymlink = 4095 // PATH_MAX without its NUL
)

// Rows hands every row to fn, in no particular order, chunks joined. path and parent are the hashes of the row's path
// and of the folder it is in. The entry is only good during the call; its strings and slices may be kept. A row that
// contradicts itself ends the reading with an error that wraps ErrInvalid and names the row.
func (c *Catalog) Rows(ctx context.Context, fn func(path, parent hash.PathHash, e *Entry) error) error {
	chunks, err := c.readChunks(ctx)
	if err != nil {
		return fmt.Errorf("read chunks of catalog %s: %w", c.path, err)
	}
	var n int64
	var e Entry
	err = c.query("SELECT "+c.columns+" FROM catalog", nil, func(row []driver.Value) error {
		if err := c.mayGoOn(ctx, &n); err != nil {
			return err
		}
		path, parent, err := decodeRow(row, &e)
		if err == nil && e.Flags&Chunked != 0 {
			err = e.join(chunks.of(path))
		}
		if err != nil {
			return rowError(path, e.Name, err)
		}
		return fn(path, parent, &e)
	})
	if err != nil {
		return fmt.Errorf("read catalog %s: %w", c.path, err)
	}
	return nil
}

// mayGoOn counts rows and ends an endless table: pages of a hostile file may be linked into many trees.
func (c *Catalog) mayGoOn(ctx context.Context, n *int64) error {
	if *n++; *n > c.maxRows {
		return fmt.Errorf("%w: more rows than the file can hold", ErrInvalid)
	}
	if *n%1024 == 0 {
		return ctx.Err()
	}
	return nil
}

// search runs a statement whose condition is on two columns that hold the halves of key. An index must lead there: a
// scan of an endless table would bring no row to be counted.
func (c *Catalog) search(text, where string, key hash.PathHash, fn func(row []driver.Value) error) error {
	text += " WHERE " + where
	args := []driver.NamedValue{{Ordinal: 1, Value: key.P1}, {Ordinal: 2, Value: key.P2}}
	indexed := false
	err := c.query("EXPLAIN QUERY PLAN "+text, args, func(row []driver.Value) error {
		detail, _ := row[3].(string)
		indexed = strings.HasPrefix(detail, "SEARCH ") && strings.HasSuffix(detail,
			"("+strings.ReplaceAll(where, " = ?", "=?")+")")
		return nil
	})
	if err == nil && !indexed {
		err = fmt.Errorf("%w: no index on %s", ErrInvalid, where)
	}
	if err != nil {
		return err
	}
	return c.query(text, args, fn)
}

// find reads the rows a condition on one path hash selects, chunks joined.
func (c *Catalog) find(where string, key hash.PathHash) ([]*Entry, error) {
	var entries []*Entry
	var chunked []hash.PathHash // parallel to entries
	var n int64
	err := c.search("SELECT "+c.columns+" FROM catalog", where, key, func(row []driver.Value) error {
		if err := c.mayGoOn(context.Background(), &n); err != nil {
			return err
		}
		e := new(Entry)
		path, _, err := decodeRow(row, e)
		if err != nil {
			return rowError(path, e.Name, err)
		}
		entries = append(entries, e)
		chunked = append(chunked, path)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, e := range entries {
		if e.Flags&Chunked == 0 {
			continue
		}
		list, err := c.chunksOf(chunked[i])
		if err == nil {
			err = e.join(list)
		}
		if err != nil {
			return nil, rowError(chunked[i], e.Name, err)
		}
	}
	return entries, nil
}

// rowError names a row by what it says of itself; what it is about isn't known, as rows don't hold their path.
func rowError(path hash.PathHash, name string, err error) error {
	if !errors.Is(err, ErrInvalid) {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return namedRow(path, name, err)
}

func namedRow(path hash.PathHash, name string, err error) error {
	var sum [16]byte
	binary.LittleEndian.PutUint64(sum[:8], uint64(path.P1))
	binary.LittleEndian.PutUint64(sum[8:], uint64(path.P2))
	return fmt.Errorf("row %s (%.40q): %w", hex.EncodeToString(sum[:]), name, err)
}

// decodeRow fills e with a row's values, chunks excepted, and checks them. The path hash is given with an error, too.
func decodeRow(row []driver.Value, e *Entry) (path, parent hash.PathHash, err error) {
	*e = Entry{}
	d := decoder{row: row, columns: rowColumns}
	path = hash.PathHash{P1: d.integer(colPath1), P2: d.integer(colPath2)}
	parent = hash.PathHash{P1: d.integer(colParent1), P2: d.integer(colParent2)}
	e.Name = d.text(colName)
	e.Mode = uint32(d.between(colMode, 0, math.MaxUint32))
	e.UID, e.GID = d.owner(colUID), d.owner(colGID)
	e.Size = d.between(colSize, 0, math.MaxInt64)
	e.Mtime = d.integer(colMtime)
	e.Flags = Flags(d.between(colFlags, 0, math.MaxUint32))
	e.Target = d.text(colSymlink)
	links := d.between(colHardlinks, 0, math.MaxInt64)
	e.Nlink, e.Group = uint32(links), uint32(links>>32)
	if row[colMtimeN] != nil {
		e.MtimeN = int32(d.between(colMtimeN, 0, 999_999_999))
	}
	if blob := d.blob(colXattr); len(blob) > 0 {
		// Like the reference client: attributes that can't be read are none.
		e.Xattrs, _ = ParseXattrs(blob)
	}
	digest := d.blob(colHash)
	if d.err != nil {
		return path, parent, d.err
	}
	return path, parent, e.settle(path, parent, digest)
}

// settle checks what the values say together and sets those that depend on the type.
func (e *Entry) settle(path, parent hash.PathHash, digest []byte) error {
	root := path == hash.OfPath("")
	switch {
	case root && (e.Name != "" || parent != hash.PathHash{}):
		return fmt.Errorf("the repository's root has a name or a parent")
	case root && !e.IsDir():
		return fmt.Errorf("the repository's root is not a folder")
	case e.Nlink < 1:
		return fmt.Errorf("link count is 0")
	}
	if !root {
		if err := checkName(e.Name); err != nil {
			return err
		}
	}
	switch e.Type() {
	case 0o100000:
		return e.settleContent(digest)
	case 0o040000:
		e.Group = 0
	case 0o120000:
		if e.Target == "" || len(e.Target) > maxSymlink || strings.IndexByte(e.Target, 0) >= 0 {
			return fmt.Errorf("symbolic link with the target %.60q", e.Target)
		}
	case 0o020000, 0o060000:
		e.Rdev, e.Size = uint64(e.Size), 0
	case 0o010000, 0o140000:
		e.Size = 0
	default:
		return fmt.Errorf("mode %o has no known file type", e.Mode)
	}
	if e.Type() != 0o120000 {
		e.Target = ""
	}
	e.Flags &^= Chunked | External | DirectIO
	return nil
}

// settleContent sets where a regular file's content lies.
func (e *Entry) settleContent(digest []byte) error {
	e.Target = ""
	algorithm := hash.SHA1 + hash.Algorithm(e.Flags>>algorithmAt&7)
	if !algorithm.Valid() {
		return fmt.Errorf("flags %#x name an unknown digest algorithm", uint32(e.Flags))
	}
	e.Compression = hash.Compression(e.Flags >> compressAt & 7)
	if !e.Compression.Valid() {
		return fmt.Errorf("flags %#x name an unknown compression", uint32(e.Flags))
	}
	if len(digest) == 0 || e.Flags&Chunked != 0 {
		return nil // the digest of a chunked file is that of one more object nobody needs
	}
	var err error
	e.Digest, err = hash.FromRaw(algorithm, digest)
	return err
}

// checkName refuses what no folder can hold.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%.60q is not a file name", name)
	}
	return nil
}

// chunkRow is a chunk as stored; its digest's algorithm is known only with the file's row.
type chunkRow struct {
	path   hash.PathHash
	offset int64
	size   int64
	sum    [hash.Size]byte
}

func (r chunkRow) compare(o chunkRow) int {
	return cmp.Or(comparePaths(r.path, o.path), cmp.Compare(r.offset, o.offset))
}

func comparePaths(a, b hash.PathHash) int {
	return cmp.Or(cmp.Compare(a.P1, b.P1), cmp.Compare(a.P2, b.P2))
}

// chunkRows are chunks sorted by path and offset.
type chunkRows []chunkRow

func (s chunkRows) of(path hash.PathHash) chunkRows {
	from, _ := slices.BinarySearchFunc(s, path, func(r chunkRow,
		p hash.PathHash,
	) int {
		return comparePaths(r.path, p)
	})
	to := from
	for to < len(s) && s[to].path == path {
		to++
	}
	return s[from:to]
}

// readChunks reads the whole table. It is sorted here and not by SQLite, which would trust the file's own index.
func (c *Catalog) readChunks(ctx context.Context) (chunkRows, error) {
	var all chunkRows
	err := c.query("SELECT "+c.chunkColumns+" FROM chunks", nil,
		func(row []driver.Value) error { return c.addChunk(ctx, &all, row) })
	slices.SortFunc(all, chunkRow.compare)
	return all, err
}

func (c *Catalog) chunksOf(path hash.PathHash) (chunkRows, error) {
	var all chunkRows
	err := c.search("SELECT "+c.chunkColumns+" FROM chunks", "md5path_1 = ? AND md5path_2 = ?", path,
		func(row []driver.Value) error {
			return c.addChunk(context.Background(), &all, row)
		})
	slices.SortFunc(all, chunkRow.compare)
	return all, err
}

func (c *Catalog) addChunk(ctx context.Context, all *chunkRows, row []driver.Value) error {
	n := int64(len(*all))
	if err := c.mayGoOn(ctx, &n); err != nil {
		return err
	}
	d := decoder{row: row, columns: chunkColumns}
	r := chunkRow{
		path:   hash.PathHash{P1: d.integer(0), P2: d.integer(1)},
		offset: d.between(2, 0, math.MaxInt64),
		size:   d.between(3, 0, math.MaxInt64),
	}
	sum := d.blob(4)
	if d.err == nil && len(sum) != hash.Size {
		d.fail(4, fmt.Errorf("%d bytes instead of %d", len(sum), hash.Size))
	}
	if d.err != nil {
		return rowError(r.path, "chunk", d.err)
	}
	r.sum = [hash.Size]byte(sum)
	*all = append(*all, r)
	return nil
}

// join gives a chunked file its chunks. They must be the file, without gap or overlap.
func (e *Entry) join(rows chunkRows) error {
	algorithm := hash.SHA1 + hash.Algorithm(e.Flags>>algorithmAt&7)
	e.Chunks = make([]Chunk, len(rows))
	var end int64
	for i, r := range rows {
		if r.offset != end || r.size > e.Size-end || r.size == 0 && e.Size > 0 {
			return fmt.Errorf("chunk %d covers %d bytes at %d, expected at %d of %d", i, r.size, r.offset, end, e.Size)
		}
		end += r.size
		e.Chunks[i] = Chunk{Offset: r.offset, Size: r.size, Digest: hash.Digest{Algorithm: algorithm, Sum: r.sum}}
	}
	if end != e.Size || len(rows) == 0 {
		return fmt.Errorf("%d chunks cover %d of %d bytes", len(rows), end, e.Size)
	}
	return nil
}

// decoder takes values out of a result row and remembers the first that is not what it should be.
type decoder struct {
	row     []driver.Value
	columns []string
	err     error
}

func (d *decoder) fail(column int, err error) {
	if d.err == nil {
		d.err = fmt.Errorf("%s: %w", d.columns[column], err)
	}
}

func (d *decoder) integer(column int) int64 { return d.between(column, math.MinInt64, math.MaxInt64) }

func (d *decoder) between(column int, low, high int64) int64 {
	v, err := integer(d.row[column], low, high)
	if err != nil {
		d.fail(column, err)
	}
	return v
}

// owner is a user or group id. Publishers write -1, which is nobody's, for folders that their archive didn't mention;
// the kernel shows those as the overflow id (/proc/sys/kernel/overflowuid).
func (d *decoder) owner(column int) uint32 {
	id := uint32(d.between(column, 0, math.MaxUint32))
	if id == math.MaxUint32 {
		return 65534
	}
	return id
}

func integer(v driver.Value, low, high int64) (int64, error) {
	i, ok := v.(int64)
	if !ok {
		return 0, fmt.Errorf("a %T is not an integer", v)
	}
	if i < low || i > high {
		return 0, fmt.Errorf("%d is not in %d…%d", i, low, high)
	}
	return i, nil
}

func (d *decoder) text(column int) string {
	switch v := d.row[column].(type) {
	case string:
		return v
	case []byte:
		return string(v)
	default:
		d.fail(column, fmt.Errorf("a %T is not text", v))
		return ""
	}
}

func (d *decoder) blob(column int) []byte {
	switch v := d.row[column].(type) {
	case nil:
		return nil
	case []byte:
		return v
	case string:
		return []byte(v)
	default:
		d.fail(column, fmt.Errorf("a %T is not a blob", v))
		return nil
	}
}
