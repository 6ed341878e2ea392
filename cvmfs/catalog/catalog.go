// Package catalog reads and writes CernVM-FS catalogs: the signed directory tables of a repository, each one SQLite
// file.
//
// The words used here:
//
//   - A catalog describes one subtree. The repository's root catalog describes the root; a nested catalog continues the
//     tree at a folder of its parent. That folder has a row in both: in the parent flagged Mountpoint, in the child
//     flagged NestedRoot.
//   - The root prefix is the path of the subtree's root inside the repository, "" for the root catalog.
//   - A row stands for one name. It is found by the hash of its full path, and listed by the hash of its parent's path.
//     The path itself is not stored: a reader who walks down knows it and must check it against the hash.
//   - A hard-link group is a number shared by the rows of one catalog that are one file.
//   - A chunk is a piece of a file that is stored as an object of its own.
//   - The statistics count a catalog's own rows and, separately, those of all catalogs below.
//
// A catalog is taken for hostile even when its digest was verified, for a publisher's key may be in wrong hands: a file
// that is not a plain rollback-journal database of real tables is refused, and every row is checked before it is handed
// out. The formats are those of the CernVM-FS client, catalog_sql.cc and xattr.cc; schema 2.4 and 2.5 with all its
// revisions are read, 2.5 in its revision 7 is written.
package catalog

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/sqlitefile"
)

const (
	// MaxSize is the size of the largest catalog that is opened, in bytes. Publishers warn from 1 GiB on.
	MaxSize = 2 << 30
	// DefaultTTL is how long a root catalog is good for if it doesn't say so itself.
	DefaultTTL = 240 * time.Second

	minRowSize = 24       // bytes a row takes in the file at least: two halves of a hash and the record's head
	maxPath    = 16 << 10 // four times PATH_MAX: publishers work with absolute paths
)

// ErrInvalid is what every refusal of a file's content wraps, be it a damaged file or a hostile one.
var ErrInvalid = errors.New("invalid catalog")

// Catalog is an open catalog. Its methods may be called concurrently, but wait for each other; none may be called from
// within the function given to Rows.
type Catalog struct {
	file          *sqlitefile.File
	path          string
	maxRows       int64
	columns       string // of catalog, for SELECT
	chunkColumns  string // of chunks
	nestedColumns string // of nested_catalogs
	prefix        string
	revision      uint64
	ttl           time.Duration
	modified      time.Time
	nestedByPath  func() (map[string]Nested, error) // mapNested, called once
}

// Open opens the plain SQLite file at path for reading. The file must not change while it is open. The error wraps
// ErrInvalid if it lies in the content.
func Open(path string) (*Catalog, error) {
	c, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", path, err)
	}
	return c, nil
}

func open(path string) (*Catalog, error) {
	file, err := sqlitefile.Open(path, MaxSize, ErrInvalid)
	if err != nil {
		return nil, err
	}
	c := &Catalog{file: file, path: path, maxRows: file.Size()/minRowSize + 1, ttl: DefaultTTL}
	c.nestedByPath = sync.OnceValues(c.mapNested)
	if err := c.start(); err != nil {
		c.Close() // the error that is told is the first one
		return nil, err
	}
	return c, nil
}

// start reads what does not change: the tables' shape and the properties.
func (c *Catalog) start() error {
	if err := c.file.CheckTables("properties", "catalog", "chunks", "nested_catalogs"); err != nil {
		return err
	}
	if err := c.readColumns(); err != nil {
		return err
	}
	return c.readProperties()
}

// readColumns finds out which columns the file's schema revision has.
func (c *Catalog) readColumns() error {
	for _, table := range []struct {
		name     string
		columns  []string
		optional int // of them, at the end
		result   *string
	}{
		{"properties", []string{"key", "value"}, 0, new(string)},
		{"catalog", rowColumns, optionalColumns, &c.columns},
		{"chunks", chunkColumns, 0, &c.chunkColumns},
		{"nested_catalogs", []string{"path", "sha1", "size"}, 1, &c.nestedColumns},
	} {
		var err error
		if *table.result, err = c.file.Columns(table.name, table.columns, table.optional); err != nil {
			return err
		}
	}
	return nil
}

// readProperties reads the properties a reader acts on and checks the schema.
func (c *Catalog) readProperties() error {
	values := map[string]string{}
	const q = "SELECT key, value FROM properties WHERE key IN ('schema', 'revision', 'root_prefix', 'TTL', 'last_modified')"
	err := c.query(q, nil, func(row []driver.Value) error {
		key, ok := row[0].(string)
		if _, twice := values[key]; !ok || twice {
			return fmt.Errorf("%w: property %.20q is not one text", ErrInvalid, key)
		}
		values[key] = fmt.Sprint(row[1])
		return nil
	})
	if err != nil {
		return err
	}
	schema, err := strconv.ParseFloat(values["schema"], 64)
	if err != nil || math.Abs(schema-2.5) > 0.0005 && math.Abs(schema-2.4) > 0.0005 {
		return fmt.Errorf("%w: schema %.20q, readable are 2.4 and 2.5", ErrInvalid, values["schema"])
	}
	if text := values["revision"]; text != "" {
		if c.revision, err = strconv.ParseUint(text, 10, 64); err != nil {
			return fmt.Errorf("%w: revision %.30q is not a number", ErrInvalid, text)
		}
	}
	if seconds, err := strconv.ParseInt(values["last_modified"], 10, 64); err == nil { // nothing depends on it
		c.modified = time.Unix(seconds, 0).UTC()
	}
	if text := values["TTL"]; text != "" {
		seconds, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return fmt.Errorf("%w: TTL %.30q is not a number of seconds", ErrInvalid, text)
		}
		c.ttl = time.Duration(seconds) * time.Second
	}
	c.prefix = values["root_prefix"]
	if c.prefix != "" && !validPath(c.prefix) {
		return fmt.Errorf("%w: root_prefix %.60q is not a path", ErrInvalid, c.prefix)
	}
	return nil
}

// Close releases the file.
func (c *Catalog) Close() error { return c.file.Close() }

// RootPrefix is the path of the catalog's root inside the repository: "" or "/a/b".
func (c *Catalog) RootPrefix() string { return c.prefix }

// Revision counts the publications of this catalog; the root catalog's is that of the repository.
func (c *Catalog) Revision() uint64 { return c.revision }

// Modified is when the catalog was written; zero where that isn't known.
func (c *Catalog) Modified() time.Time { return c.modified }

// TTL is how long the publisher wants a root catalog to be used before asking for a newer one.
func (c *Catalog) TTL() time.Duration { return c.ttl }

// Nested is a place where another catalog continues the tree.
type Nested struct {
	Path   string      // absolute in the repository
	Digest hash.Digest // of the stored catalog; zero while the publisher hasn't finished it
	Size   int64       // plain bytes; 0: unknown
}

// Nested returns the catalogs hanging directly below this one, sorted by path. All lie strictly below the root prefix.
func (c *Catalog) Nested() ([]Nested, error) {
	var all []Nested
	err := c.query("SELECT "+c.nestedColumns+" FROM nested_catalogs", nil, func(row []driver.Value) error {
		n, err := c.nested(row)
		if err != nil {
			return err
		}
		if all = append(all, n); int64(len(all)) > c.maxRows {
			return fmt.Errorf("%w: more nested catalogs than the file can hold", ErrInvalid)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("nested catalogs of %s: %w", c.path, err)
	}
	slices.SortFunc(all, func(a, b Nested) int { return strings.Compare(a.Path, b.Path) })
	for i := 1; i < len(all); i++ {
		if all[i].Path == all[i-1].Path {
			return nil, fmt.Errorf("nested catalogs of %s: %w: %q twice", c.path, ErrInvalid, all[i].Path)
		}
	}
	return all, nil
}

// NestedFor returns the catalog hanging directly below this one that has a path ("/a/b"): the one that begins there or
// at a folder above it. ok is false if there is none, so that the path is this catalog's own. The first call reads the
// whole table, as Nested does: by what index or order a hostile file finds a single row isn't known.
func (c *Catalog) NestedFor(path string) (n Nested, ok bool, err error) {
	all, err := c.nestedByPath()
	if err != nil {
		return n, false, err
	}
	for end := len(path); end > len(c.prefix) && !ok; end = strings.LastIndexByte(path[:end], '/') {
		n, ok = all[path[:end]]
	}
	return n, ok, nil
}

// mapNested returns what Nested does, by path.
func (c *Catalog) mapNested() (map[string]Nested, error) {
	list, err := c.Nested()
	all := make(map[string]Nested, len(list))
	for _, n := range list {
		all[n.Path] = n
	}
	return all, err
}

func (c *Catalog) nested(row []driver.Value) (Nested, error) {
	path, _ := row[0].(string)
	if !validPath(path) || !strings.HasPrefix(path, c.prefix+"/") {
		return Nested{}, fmt.Errorf("%w: %.60q is not a path below %q", ErrInvalid, path, c.prefix)
	}
	n := Nested{Path: path}
	var err error
	if text, _ := row[1].(string); text != "" {
		if n.Digest, err = hash.Parse(text); err != nil {
			return Nested{}, fmt.Errorf("%w: %q: %w", ErrInvalid, path, err)
		}
	}
	if row[2] != nil {
		if n.Size, err = integer(row[2], 0, math.MaxInt64); err != nil {
			return Nested{}, fmt.Errorf("%w: %q: size: %w", ErrInvalid, path, err)
		}
	}
	return n, nil
}

// validPath reports whether path is "/a/b": absolute, each component a name a folder may hold.
func validPath(path string) bool {
	if len(path) > maxPath || !strings.HasPrefix(path, "/") {
		return false
	}
	for name := range strings.SplitSeq(path[1:], "/") {
		if checkName(name) != nil {
			return false
		}
	}
	return true
}

// query runs one statement and hands each row to fn, which must not keep the slice.
func (c *Catalog) query(text string, args []driver.NamedValue, fn func(row []driver.Value) error) error {
	return c.file.Query(text, args, fn)
}

// Lookup finds the row of a path ("" is the root, else "/a/b"). It is fs.ErrNotExist if this catalog has none, which
// says nothing about the catalogs nested in it.
func (c *Catalog) Lookup(path string) (*Entry, error) {
	rows, err := c.find("md5path_1 = ? AND md5path_2 = ?", hash.OfPath(path))
	if err != nil {
		return nil, fmt.Errorf("look up %q in catalog %s: %w", path, c.path, err)
	}
	switch {
	case len(rows) == 0:
		return nil, fmt.Errorf("look up %q in catalog %s: %w", path, c.path, fs.ErrNotExist)
	case len(rows) > 1 || rows[0].Name != path[strings.LastIndexByte(path, '/')+1:]:
		return nil, fmt.Errorf("look up %q in catalog %s: %w: the row has another name", path, c.path, ErrInvalid)
	}
	return rows[0], nil
}

// List returns the rows in the folder path, sorted by name, hidden ones included. Whether the folder exists and whether
// its content is in a nested catalog is not looked at.
func (c *Catalog) List(path string) ([]*Entry, error) {
	rows, err := c.find("parent_1 = ? AND parent_2 = ?", hash.OfPath(path))
	if err != nil {
		return nil, fmt.Errorf("list %q in catalog %s: %w", path, c.path, err)
	}
	slices.SortFunc(rows, func(a, b *Entry) int { return strings.Compare(a.Name, b.Name) })
	return rows, nil
}
