package history

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/sqlitefile"
)

// ReflogFile is the reflog's name in the repository's root folder.
const ReflogFile = ".cvmfsreflog"

// Kind says what a reference is to.
type Kind uint8

// The kinds of references; of catalogs only the root ones are listed.
const (
	Catalog Kind = iota
	Certificate
	Tags // a history
	Metainfo
)

// Suffix is what the names of such objects end with.
func (k Kind) Suffix() hash.Suffix {
	return [...]hash.Suffix{hash.Catalog, hash.Certificate, hash.History, hash.Metainfo}[k]
}

// String names the kind, for people.
func (k Kind) String() string {
	if k > Metainfo {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return [...]string{"root catalog", "certificate", "history", "metainfo"}[k]
}

// Ref is one object of the reflog.
type Ref struct {
	Digest hash.Digest
	Kind   Kind
	Time   time.Time // when it was entered, or entered again; to the second, UTC
}

// Named returns references to the objects that a manifest names.
func Named(m *manifest.Manifest) (refs []Ref) {
	for _, ref := range []Ref{
		{m.Root, Catalog, m.Published},
		{m.Certificate, Certificate, m.Published},
		{m.History, Tags, m.Published},
		{m.Metainfo, Metainfo, m.Published},
	} {
		if !ref.Digest.IsZero() {
			refs = append(refs, ref)
		}
	}
	return refs
}

// Reflog lists what a repository ever referred to.
type Reflog struct {
	FQRN string
	Refs []Ref
}

// Set enters a reference, in the place of an earlier one to the same object.
func (r *Reflog) Set(ref Ref) {
	if i := r.index(ref.Digest); i >= 0 {
		r.Refs[i] = ref
		return
	}
	r.Refs = append(r.Refs, ref)
}

// Has reports whether the object is listed as of that kind.
func (r *Reflog) Has(d hash.Digest, k Kind) bool {
	i := r.index(d)
	return i >= 0 && r.Refs[i].Kind == k
}

func (r *Reflog) index(d hash.Digest) int {
	return slices.IndexFunc(r.Refs, func(have Ref) bool { return have.Digest == d })
}

var refColumns = []string{"hash", "type", "timestamp"}

// ReadReflog reads the file at path. The error wraps ErrInvalid if it lies in the content.
func ReadReflog(path string) (*Reflog, error) {
	r, err := readReflog(path)
	if err != nil {
		return nil, fmt.Errorf("read reflog %s: %w", path, err)
	}
	return r, nil
}

func readReflog(path string) (*Reflog, error) {
	f, err := sqlitefile.Open(path, MaxSize, ErrInvalid)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	properties, _, err := readProperties(f, 0)
	if err != nil {
		return nil, err
	}
	columns, err := openTable(f, "refs", refColumns, 0)
	if err != nil {
		return nil, err
	}
	r := &Reflog{FQRN: properties["fqrn"]}
	seen := make(map[hash.Digest]bool)
	err = f.Query("SELECT "+columns+" FROM refs", nil, func(row []driver.Value) error {
		v := values{row: row, columns: refColumns}
		ref := Ref{Digest: v.digest(0), Kind: Kind(v.upTo(int64(Metainfo), 1)), Time: v.time(2)}
		if v.err == nil && seen[ref.Digest] {
			v.fail(0, fmt.Errorf("%v twice", ref.Digest))
		}
		seen[ref.Digest] = true
		if r.Refs = append(r.Refs, ref); len(r.Refs) > maxRefs {
			v.fail(0, errors.New("more references than anybody has"))
		}
		return v.err
	})
	return r, err
}

const reflogSchema = `
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE refs (hash TEXT, type INTEGER, timestamp INTEGER, CONSTRAINT pk_refs PRIMARY KEY (hash));
BEGIN;
`

// Write writes a new file, the same bytes for the same content in any order. Nothing is synced.
func (r *Reflog) Write(path string) error {
	if r.FQRN == "" {
		return fmt.Errorf("write reflog %s: %w: no repository's name", path, ErrInvalid)
	}
	if err := create(path, reflogSchema, r.fill); err != nil {
		return fmt.Errorf("write reflog %s: %w", path, err)
	}
	return nil
}

func (r *Reflog) fill(db *sql.DB) error {
	if err := insertProperties(db, [][2]string{
		{"schema", "1.0"},
		{"schema_revision", "0"},
		{"fqrn", r.FQRN},
	}); err != nil {
		return err
	}
	statement, err := db.Prepare("INSERT INTO refs VALUES (?, ?, ?)")
	if err != nil {
		return err
	}
	defer statement.Close() // the database is closed with it
	for _, ref := range slices.SortedFunc(slices.Values(r.Refs), compareRefs) {
		if ref.Digest.IsZero() || ref.Kind > Metainfo || ref.Time.Unix() < 0 {
			return fmt.Errorf("%w: %v %v of %v", ErrInvalid, ref.Kind, ref.Digest, ref.Time)
		}
		if _, err := statement.Exec(ref.Digest.String(), int64(ref.Kind), ref.Time.Unix()); err != nil {
			return err
		}
	}
	return nil
}
