// Package catalog reads CernVM-FS catalogs: the signed directory tables of a repository, each one SQLite file.
//
// The words used here:
//
//   - A catalog describes one subtree. The repository's root catalog describes the root; a nested catalog continues the tree at
//     a folder of its parent. That folder has a row in both: in the parent flagged Mountpoint, in the child flagged NestedRoot.
//   - The root prefix is the path of the subtree's root inside the repository, "" for the root catalog.
//   - A row stands for one name. It is found by the hash of its full path, and listed by the hash of its parent's path. The path
//     itself is not stored: a reader who walks down knows it and must check it against the hash.
//   - A hard-link group is a number shared by the rows of one catalog that are one file.
//   - A chunk is a piece of a file that is stored as an object of its own.
//
// A catalog is taken for hostile even when its digest was verified, for a publisher's key may be in wrong hands: a file that is
// not a plain rollback-journal database of real tables is refused, and every row is checked before it is handed out. The formats
// are those of the CernVM-FS client, catalog_sql.cc and xattr.cc; schema 2.4 and 2.5 with all its revisions are read.
package catalog

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"cvmfs-graphdriver/cvmfs/hash"
)

const (
	// MaxSize is the size of the largest catalog that is opened, in bytes. Publishers warn from 1 GiB on.
	MaxSize = 2 << 30
	// DefaultTTL is how long a root catalog is good for if it doesn't say so itself.
	DefaultTTL = 240 * time.Second

	maxValue   = 1 << 20  // bytes of one row; a row with the largest attributes has 130 KiB
	maxTables  = 64       // entries of the schema; the format has 11
	minRowSize = 24       // bytes a row takes in the file at least: two halves of a hash and the record's head
	maxPath    = 16 << 10 // four times PATH_MAX: publishers work with absolute paths
)

// ErrInvalid is what every refusal of a file's content wraps, be it a damaged file or a hostile one.
var ErrInvalid = errors.New("invalid catalog")

// Catalog is an open catalog. Its methods may be called concurrently, but wait for each other; none may be called from within
// the function given to Rows.
type Catalog struct {
	db            *sql.DB
	conn          *sql.Conn
	path          string
	maxRows       int64
	columns       string // of catalog, for SELECT
	chunkColumns  string // of chunks
	nestedColumns string // of nested_catalogs
	prefix        string
	revision      uint64
	ttl           time.Duration
}

// Open opens the plain SQLite file at path for reading. The file must not change while it is open. The error wraps ErrInvalid
// if it lies in the content.
func Open(path string) (*Catalog, error) {
	c, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", path, err)
	}
	return c, nil
}

func open(path string) (*Catalog, error) {
	size, err := checkHeader(path)
	if err != nil {
		return nil, err
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", address(path))
	if err != nil {
		return nil, err
	}
	c := &Catalog{db: db, path: path, maxRows: size/minRowSize + 1, ttl: DefaultTTL}
	if err := c.start(); err != nil {
		c.Close()
		if errors.As(err, new(*sqlite.Error)) && !errors.Is(err, ErrInvalid) {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return nil, err
	}
	return c, nil
}

// address is the SQLite URI that opens path without locks, journals or writing, and with the checks for untrusted files
// (https://www.sqlite.org/security.html).
func address(path string) string {
	query := url.Values{"mode": {"ro"}, "immutable": {"1"}, "_pragma": {
		"query_only(1)", "trusted_schema(0)", "cell_size_check(1)", "mmap_size(0)", "temp_store(2)", "automatic_index(0)",
	}}
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}
	return u.String()
}

// checkHeader looks at the head of the file (https://www.sqlite.org/fileformat2.html, section 1.3) and gives the file's size.
func checkHeader(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%w: not a regular file", ErrInvalid)
	}
	var head [100]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return 0, fmt.Errorf("%w: %d bytes are too short for a database", ErrInvalid, info.Size())
	}
	switch {
	case info.Size() > MaxSize:
		return 0, fmt.Errorf("%w: %d bytes, more than the limit of %d", ErrInvalid, info.Size(), int64(MaxSize))
	case string(head[:16]) != "SQLite format 3\x00":
		return 0, fmt.Errorf("%w: not an SQLite database", ErrInvalid)
	case head[18] != 1 || head[19] != 1:
		return 0, fmt.Errorf("%w: not in rollback-journal mode", ErrInvalid)
	case head[59] > 1:
		return 0, fmt.Errorf("%w: text is not UTF-8", ErrInvalid)
	}
	return info.Size(), nil
}

// start takes the one connection and reads what does not change: the tables' shape and the properties.
func (c *Catalog) start() (err error) {
	c.db.SetMaxOpenConns(1)
	if c.conn, err = c.db.Conn(context.Background()); err != nil {
		return err
	}
	if _, err := sqlite.Limit(c.conn, sqlite3.SQLITE_LIMIT_LENGTH, maxValue); err != nil {
		return err
	}
	if err := c.checkTables("properties", "catalog", "chunks", "nested_catalogs"); err != nil {
		return err
	}
	if err := c.readColumns(); err != nil {
		return err
	}
	return c.readProperties()
}

// checkTables makes sure that each of the names is one ordinary table: not a view, which would run the file's own SQL.
func (c *Catalog) checkTables(names ...string) error {
	seen := map[string]int{}
	n := 0
	err := c.query("SELECT type, name, rootpage, sql FROM sqlite_master", nil, func(row []driver.Value) error {
		if n++; n > maxTables {
			return fmt.Errorf("%w: more than %d tables and indexes", ErrInvalid, maxTables)
		}
		name, _ := row[1].(string)
		if name = strings.ToLower(name); !slices.Contains(names, name) {
			return nil
		}
		page, _ := row[2].(int64)
		text, _ := row[3].(string)
		if row[0] != "table" || page < 1 || !strings.HasPrefix(strings.ToUpper(text), "CREATE TABLE") {
			return fmt.Errorf("%w: %s is not an ordinary table", ErrInvalid, name)
		}
		seen[name]++
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if seen[name] != 1 {
			return fmt.Errorf("%w: %d tables %s instead of 1", ErrInvalid, seen[name], name)
		}
	}
	return nil
}

// readColumns finds out which columns the file's schema revision has and refuses computed ones.
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
		has, err := c.columnsOf(table.name)
		if err != nil {
			return err
		}
		columns := slices.Clone(table.columns)
		for i, column := range columns {
			switch {
			case has[column]:
			case i < len(columns)-table.optional:
				return fmt.Errorf("%w: no column %s.%s", ErrInvalid, table.name, column)
			default:
				columns[i] = "NULL"
			}
		}
		*table.result = strings.Join(columns, ", ")
	}
	return nil
}

func (c *Catalog) columnsOf(table string) (map[string]bool, error) {
	has := map[string]bool{}
	err := c.query("PRAGMA table_xinfo("+table+")", nil, func(row []driver.Value) error {
		name, _ := row[1].(string)
		if hidden, _ := row[6].(int64); hidden != 0 {
			return fmt.Errorf("%w: column %s.%s is computed", ErrInvalid, table, name)
		}
		has[strings.ToLower(name)] = true
		return nil
	})
	return has, err
}

// readProperties reads the properties a reader acts on and checks the schema.
func (c *Catalog) readProperties() error {
	values := map[string]string{}
	const q = "SELECT key, value FROM properties WHERE key IN ('schema', 'revision', 'root_prefix', 'TTL')"
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
func (c *Catalog) Close() error {
	var err error
	if c.conn != nil {
		err = c.conn.Close()
	}
	return errors.Join(err, c.db.Close())
}

// RootPrefix is the path of the catalog's root inside the repository: "" or "/a/b".
func (c *Catalog) RootPrefix() string { return c.prefix }

// Revision counts the publications of this catalog; the root catalog's is that of the repository.
func (c *Catalog) Revision() uint64 { return c.revision }

// TTL is how long the publisher wants a root catalog to be used before asking for a newer one.
func (c *Catalog) TTL() time.Duration { return c.ttl }

// Nested is a place where another catalog continues the tree.
type Nested struct {
	Path   string      // absolute in the repository
	Digest hash.Digest // of the stored catalog; zero while the publisher hasn't finished it
	Size   int64       // plain bytes; 0: unknown
}

// Nested gives the catalogs hanging directly below this one, sorted by path. All lie strictly below the root prefix.
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

// validPath tells whether path is "/a/b": absolute, each component a name a folder may hold.
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

// query runs one statement and hands each row to fn, which must not keep the slice. It goes past database/sql's Scan, whose
// conversions take longer than reading does. The statements are our own, so what SQLite has against one is the file's fault.
func (c *Catalog) query(text string, args []driver.NamedValue, fn func(row []driver.Value) error) error {
	return c.conn.Raw(func(conn any) error {
		rows, err := conn.(driver.QueryerContext).QueryContext(context.Background(), text, args)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		defer rows.Close() // resets the statement; its error is that of the last Next
		row := make([]driver.Value, len(rows.Columns()))
		for {
			switch err := rows.Next(row); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return fmt.Errorf("%w: %w", ErrInvalid, err)
			}
			if err := fn(row); err != nil {
				return err
			}
		}
	})
}

// Lookup finds the row of a path ("" is the root, else "/a/b"). It is fs.ErrNotExist if this catalog has none, which says
// nothing about the catalogs nested in it.
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

// List gives the rows in the folder path, sorted by name, hidden ones included. Whether the folder exists and whether its
// content is in a nested catalog is not looked at.
func (c *Catalog) List(path string) ([]*Entry, error) {
	rows, err := c.find("parent_1 = ? AND parent_2 = ?", hash.OfPath(path))
	if err != nil {
		return nil, fmt.Errorf("list %q in catalog %s: %w", path, c.path, err)
	}
	slices.SortFunc(rows, func(a, b *Entry) int { return strings.Compare(a.Name, b.Name) })
	return rows, nil
}
