package catalog

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/cvmfs/hash"
)

// schema7 is what today's publishers create (CernVM-FS client, catalog_sql.cc: CreateEmptyDatabase), less the
// statistics.
const schema7 = `
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, hardlinks INTEGER, hash BLOB,
  size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER, flags INTEGER, name TEXT, symlink TEXT, uid INTEGER, gid INTEGER,
  xattr BLOB, CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);
CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB,
  CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
INSERT INTO properties VALUES ('schema', '2.5'), ('schema_revision', '7'), ('revision', '42'), ('TTL', '600');
`

// schema0 is the first form of schema 2.5: no sizes of nested catalogs, no attributes, no nanoseconds.
const schema0 = `
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, hardlinks INTEGER, hash BLOB,
  size INTEGER, mode INTEGER, mtime INTEGER, flags INTEGER, name TEXT, symlink TEXT, uid INTEGER, gid INTEGER,
  CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);
CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB,
  CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
INSERT INTO properties VALUES ('schema', '2.4'), ('revision', '7');
`

var digestBytes = make([]byte, hash.Size)

// script writes a catalog in one transaction.
type script struct {
	t  testing.TB
	tx *sql.Tx
}

// row is a catalog row with the path it claims; zero values stand for an ordinary file's.
type row struct {
	path      string
	hardlinks any
	hash      any
	size      any
	mode      any
	mtime     any
	flags     any
	name      any
	symlink   any
	uid       any
}

func or(v, standard any) any {
	if v == nil {
		return standard
	}
	return v
}

func (s *script) exec(q string, args ...any) {
	s.t.Helper()
	if _, err := s.tx.Exec(q, args...); err != nil {
		s.t.Fatalf("%s: %v", q, err)
	}
}

func (s *script) row(r row) {
	s.t.Helper()
	cut := strings.LastIndexByte(r.path, '/')
	path, parent := hash.OfPath(r.path), hash.PathHash{}
	if cut >= 0 {
		parent = hash.OfPath(r.path[:cut])
	}
	s.exec(`INSERT INTO catalog (md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime, flags, name, symlink,
		uid, gid) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		path.P1, path.P2, parent.P1, parent.P2, or(r.hardlinks, 1), r.hash, or(r.size, 10), or(r.mode, 0o100644),
		or(r.mtime, 1_700_000_000), or(r.flags, 4), or(r.name, r.path[cut+1:]), or(r.symlink, ""), or(r.uid, 0), 0)
}

func (s *script) chunk(path string, offset, size int64) {
	s.t.Helper()
	h := hash.OfPath(path)
	s.exec("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", h.P1, h.P2, offset, size, digestBytes)
}

// build writes a catalog and gives its path.
func build(t testing.TB, schema string, fill func(*script)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "catalog")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(schema); err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	fill(&script{t: t, tx: tx})
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return path
}
