package catalog

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/sqlitefile"
)

// schema is what a new catalog of schema 2.5, revision 7 has (CernVM-FS server, catalog_sql.cc: CreateEmptyDatabase).
// The index on catalog comes last: filling it at the end is faster.
const (
	schema = `
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, hardlinks INTEGER, hash BLOB,
 size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER, flags INTEGER, name TEXT, symlink TEXT, uid INTEGER, gid INTEGER,
 xattr BLOB, CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB,
 CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size),
 FOREIGN KEY (md5path_1, md5path_2) REFERENCES catalog (md5path_1, md5path_2));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path));
CREATE TABLE statistics (counter TEXT, value INTEGER, CONSTRAINT pk_statistics PRIMARY KEY (counter));
`
	parentIndex = "CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);"

	// name and symlink are bytes, which the driver would store as TEXT only where it gets a string.
	insertRow    = "INSERT INTO catalog VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	insertChunk  = "INSERT INTO chunks VALUES (?, ?, ?, ?, ?)"
	insertNested = "INSERT INTO nested_catalogs VALUES (?, ?, ?)"
)

// Properties are what a catalog says of itself.
type Properties struct {
	RootPrefix   string      // "" for the root catalog, else "/a/b"
	Revision     uint64      // publications of this catalog; the root catalog's is that of the repository
	LastModified time.Time   // seconds count
	Previous     hash.Digest // the catalog this one replaces; zero for the first
	TTL          time.Duration
}

// Writer writes a new catalog. The same calls in the same order give the same bytes.
type Writer struct {
	db     *sql.DB
	conn   *sql.Conn
	path   string
	prefix string
	self   Counters

	row, chunk, nested driver.Stmt
	values             [16]driver.NamedValue // of a row, used again
}

// Create begins a catalog in a file that must not be there yet. Until Finish it is no catalog, and it survives no
// crash.
func Create(path string, p Properties) (*Writer, error) {
	w, err := create(path, p)
	if err != nil {
		return nil, fmt.Errorf("write catalog %s: %w", path, err)
	}
	return w, nil
}

func create(path string, p Properties) (*Writer, error) {
	db, err := sqlitefile.Create(path, schema)
	if err != nil {
		return nil, err
	}
	w := &Writer{db: db, path: path, prefix: p.RootPrefix}
	for i := range w.values {
		w.values[i].Ordinal = i + 1
	}
	if err := w.start(p); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return w, nil
}

func (w *Writer) start(p Properties) (err error) {
	if w.conn, err = w.db.Conn(context.Background()); err != nil {
		return err
	}
	if err := w.exec("BEGIN"); err != nil {
		return err
	}
	properties := [][2]string{
		{"schema", "2.5"},
		{"schema_revision", "7"},
		{"revision", strconv.FormatUint(p.Revision, 10)},
		{"last_modified", strconv.FormatInt(p.LastModified.Unix(), 10)},
	}
	if !p.Previous.IsZero() {
		properties = append(properties, [2]string{"previous_revision", p.Previous.String()})
	}
	if p.RootPrefix != "" {
		properties = append(properties, [2]string{"root_prefix", p.RootPrefix})
	}
	if p.TTL > 0 {
		properties = append(properties, [2]string{"TTL", strconv.FormatInt(int64(p.TTL/time.Second), 10)})
	}
	for _, kv := range properties {
		if err := w.exec("INSERT INTO properties VALUES (?, ?)", kv[0], kv[1]); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		text string
		stmt *driver.Stmt
	}{{insertRow, &w.row}, {insertChunk, &w.chunk}, {insertNested, &w.nested}} {
		err := w.conn.Raw(func(conn any) (err error) {
			*s.stmt, err = conn.(driver.ConnPrepareContext).PrepareContext(context.Background(), s.text)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) exec(text string, args ...any) error {
	_, err := w.conn.ExecContext(context.Background(), text, args...)
	return err
}

// Add writes the row of a path, chunks included. The flags and bits that follow from the entry's type and content are
// set here; of Entry.Flags those count that don't: Mountpoint, NestedRoot, Hidden. Rows should come folder by folder:
// readers find them close to each other then.
func (w *Writer) Add(path string, e *Entry) error {
	cut := max(len(path)-len(e.Name)-1, 0)
	if path != "" && path[cut:] != "/"+e.Name {
		return fmt.Errorf("write catalog %s: row %.200q has the name %.60q", w.path, path, e.Name)
	}
	parent := hash.PathHash{}
	if path != "" {
		parent = hash.OfPath(path[:cut])
	}
	return w.AddHashed(hash.OfPath(path), parent, e)
}

// AddHashed is Add for who has the hashes of the row's path and of its folder at hand.
func (w *Writer) AddHashed(path, parent hash.PathHash, e *Entry) error {
	err := w.encode(path, parent, e)
	if err == nil {
		err = w.insert(w.row, w.values[:])
	}
	for i := 0; i < len(e.Chunks) && err == nil; i++ {
		chunk := &e.Chunks[i]
		w.set(0, path.P1)
		w.set(1, path.P2)
		w.set(2, chunk.Offset)
		w.set(3, chunk.Size)
		w.set(4, chunk.Digest.Sum[:])
		err = w.insert(w.chunk, w.values[:5])
	}
	if err != nil {
		return fmt.Errorf("write catalog %s: %w", w.path, namedRow(path, e.Name, err))
	}
	w.self.Count(e)
	return nil
}

func (w *Writer) set(column int, v driver.Value) { w.values[column].Value = v }

func (w *Writer) insert(stmt driver.Stmt, args []driver.NamedValue) error {
	_, err := stmt.(driver.StmtExecContext).ExecContext(context.Background(), args)
	return err
}

// encode sets the values of a row, checked by the rules readers and the reference's integrity check hold it to.
func (w *Writer) encode(path, parent hash.PathHash, e *Entry) error {
	if err := checkRow(path, e); err != nil {
		return err
	}
	flags, digest := rowFlags(e)
	size := e.Size
	switch e.Type() {
	case 0o020000, 0o060000:
		size = int64(e.Rdev)
	case 0o010000, 0o140000:
		size = 0
	case 0o120000:
		size = int64(len(e.Target))
	}
	xattrs, err := FormatXattrs(e.Xattrs)
	if err != nil {
		return err
	}
	w.set(0, path.P1)
	w.set(1, path.P2)
	w.set(2, parent.P1)
	w.set(3, parent.P2)
	w.set(4, int64(e.Group)<<32|int64(e.Nlink))
	w.set(5, nilIfEmpty(digest))
	w.set(6, size)
	w.set(7, int64(e.Mode))
	w.set(8, e.Mtime)
	w.set(9, int64(e.MtimeN))
	w.set(10, int64(flags))
	w.set(11, e.Name)
	w.set(12, e.Target)
	w.set(13, int64(e.UID))
	w.set(14, int64(e.GID))
	w.set(15, nilIfEmpty(xattrs))
	return nil
}

func nilIfEmpty(b []byte) driver.Value {
	if len(b) == 0 {
		return nil
	}
	return b
}

// checkRow refuses what readers refuse, and what the reference's check finds fault with in a single row.
func checkRow(path hash.PathHash, e *Entry) error {
	if path != hash.OfPath("") {
		if err := checkName(e.Name); err != nil {
			return err
		}
	}
	switch {
	case e.Nlink < 1 || e.Group > math.MaxInt32:
		return fmt.Errorf("link count %d, group %d", e.Nlink, e.Group)
	case e.Size < 0 || e.Rdev > math.MaxInt64 || e.MtimeN < 0 || e.MtimeN > 999_999_999:
		return fmt.Errorf("size %d, device %d or nanoseconds %d out of range", e.Size, e.Rdev, e.MtimeN)
	case !e.IsDir() && e.Nlink > 1 && e.Group == 0:
		return fmt.Errorf("%d links without a group", e.Nlink)
	case e.IsDir() && e.Group != 0:
		return errors.New("a folder in a group of hard links")
	case e.IsRegular() && (e.Digest.IsZero() == (len(e.Chunks) == 0)):
		return errors.New("a file wants either an object or chunks")
	case !e.IsRegular() && (!e.Digest.IsZero() || len(e.Chunks) > 0):
		return errors.New("content, but no regular file")
	case (e.Target != "") != (e.Type() == 0o120000) || len(e.Target) > maxSymlink:
		return fmt.Errorf("mode %o with a target of %d bytes", e.Mode, len(e.Target))
	case !e.IsDir() && e.Flags&(Mountpoint|NestedRoot) != 0:
		return errors.New("a mount that is no folder")
	}
	var end int64
	for i, c := range e.Chunks {
		if c.Offset != end || c.Size <= 0 || c.Digest.Algorithm != e.Chunks[0].Digest.Algorithm {
			return fmt.Errorf("chunk %d: %d bytes at %d, expected at %d", i, c.Size, c.Offset, end)
		}
		end += c.Size
	}
	if len(e.Chunks) > 0 && end != e.Size {
		return fmt.Errorf("chunks cover %d of %d bytes", end, e.Size)
	}
	return nil
}

// The flags that say what the mode says too.
const (
	flagDir     Flags = 0x1
	flagFile    Flags = 0x4
	flagLink    Flags = 0x8
	flagSpecial Flags = 0x10
)

// rowFlags returns a row's flags and the bytes of its digest.
func rowFlags(e *Entry) (flags Flags, digest []byte) {
	flags = e.Flags & (Mountpoint | NestedRoot | Hidden)
	switch e.Type() {
	case 0o040000:
		return flags | flagDir, nil
	case 0o120000:
		return flags | flagFile | flagLink, nil
	case 0o100000:
	default:
		return flags | flagFile | flagSpecial, nil
	}
	flags |= flagFile | e.Flags&(External|DirectIO) | Flags(e.Compression)<<compressAt
	algorithm := e.Digest.Algorithm
	if len(e.Chunks) > 0 {
		flags |= Chunked
		algorithm = e.Chunks[0].Digest.Algorithm
	} else {
		digest = e.Digest.Sum[:]
	}
	return flags | Flags(algorithm-hash.SHA1)<<algorithmAt, digest
}

// AddNested names a catalog that hangs directly below this one. Its folder has a row flagged Mountpoint here.
func (w *Writer) AddNested(n Nested) error {
	w.set(0, n.Path)
	w.set(1, n.Digest.String())
	w.set(2, n.Size)
	if err := w.insert(w.nested, w.values[:3]); err != nil {
		return fmt.Errorf("write catalog %s: nested %.200q: %w", w.path, n.Path, err)
	}
	w.self.Nested++
	return nil
}

// Finish completes the catalog and closes the file. Subtree are the counters of all catalogs below. Nothing is synced.
func (w *Writer) Finish(subtree Counters) (Statistics, error) {
	s := Statistics{Self: w.self, Subtree: subtree}
	err := w.finish(s)
	err = errors.Join(err, w.close())
	if err != nil {
		os.Remove(w.path) // what is left is no catalog; the error tells
		return Statistics{}, fmt.Errorf("write catalog %s: %w", w.path, err)
	}
	return s, nil
}

func (w *Writer) finish(s Statistics) error {
	for _, part := range []struct {
		prefix   string
		counters Counters
	}{{"self_", s.Self}, {"subtree_", s.Subtree}} {
		for _, n := range counterNames {
			v := *n.field(&part.counters)
			if v < 0 {
				return fmt.Errorf("counter %s%s would be %d", part.prefix, n.name, v)
			}
			if err := w.exec("INSERT INTO statistics VALUES (?, ?)", part.prefix+n.name, v); err != nil {
				return err
			}
		}
	}
	return w.exec(parentIndex + "COMMIT;")
}

// Abort gives the catalog up and removes the file.
func (w *Writer) Abort() error { return errors.Join(w.close(), os.Remove(w.path)) }

func (w *Writer) close() error {
	var err error
	for _, s := range []driver.Stmt{w.row, w.chunk, w.nested} {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
	}
	if w.conn != nil {
		err = errors.Join(err, w.conn.Close())
	}
	return errors.Join(err, w.db.Close())
}
