// Package history reads and writes what a repository remembers of its past: the database of tags and the reflog.
//
// The words used here:
//
//   - A tag is a name for a revision, given by people or by the publisher: trunk is the newest revision, trunk-previous
//     the one before it.
//   - The history is the database of tags, an object that the manifest names.
//   - A branch is a line of revisions; all tags written here are on the only one, whose name is empty.
//   - The reflog lists each root catalog, certificate, history and metainfo object a repository ever had, for the
//     garbage collection to find what it may remove. It isn't an object, but a file, whose digest is in the manifest.
//
// The formats are those of the CernVM-FS server, history_sqlite.cc and reflog_sql.cc: schema 1.0, of histories the
// revisions 0 to 3, of which 3 is written. Files are read with the care of package catalog.
package history

import (
	"cmp"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/sqlitefile"
)

// The tags a publisher moves itself, and what it says of them.
const (
	Trunk           = "trunk"
	TrunkPrevious   = "trunk-previous"
	TrunkText       = "current HEAD"
	PreviousText    = "default undo target"
	EmptyRepository = "empty repository" // of trunk, at revision 0
)

// MaxSize is the size of the largest file that is opened, in bytes.
const MaxSize = 256 << 20

// Limits of what is kept in memory of a file; a tag takes some hundred bytes.
const (
	maxTags = 1 << 20
	maxRefs = 8 << 20
	maxText = 64 << 10 // bytes of a description
	maxName = 255
)

// ErrInvalid is what every refusal of a file's content wraps, and of content that can't be written.
var ErrInvalid = errors.New("invalid history")

// Tag names a revision.
type Tag struct {
	Name        string
	Root        hash.Digest // the root catalog
	Revision    uint64
	Time        time.Time // of the tag's making, to the second, UTC
	Description string
	Size        int64  // plain bytes of the root catalog; 0: unknown
	Branch      string // "" is the only one this project writes
}

// Branch is a line of revisions.
type Branch struct {
	Name            string
	Parent          string // "" for branches off the main one and for the main one itself
	InitialRevision uint64
}

// History are a repository's tags.
type History struct {
	FQRN     string
	Previous hash.Digest // the history this one replaces; zero for the first
	Tags     []Tag       // Write sorts nothing: their order is the file's
	Branches []Branch    // nil: the main one alone
}

var tagName = regexp.MustCompile(`^[a-zA-Z0-9._/:-]+$`)

// CheckName refuses what can't be a tag's name.
func CheckName(name string) error {
	if !tagName.MatchString(name) || len(name) > maxName {
		return fmt.Errorf("%w: a tag's name consists of up to %d letters, digits and the characters - _ . / : and %.60q doesn't",
			ErrInvalid, maxName, name)
	}
	return nil
}

// Find returns the tag of a name.
func (h *History) Find(name string) (Tag, bool) {
	i := slices.IndexFunc(h.Tags, func(t Tag) bool { return t.Name == name })
	if i < 0 {
		return Tag{}, false
	}
	return h.Tags[i], true
}

// At returns the tag of the newest revision that was tagged on the main branch at t or before.
func (h *History) At(t time.Time) (Tag, bool) {
	var best Tag
	found := false
	for _, tag := range h.Tags {
		if tag.Branch == "" && !tag.Time.After(t) && (!found || tag.Revision > best.Revision) {
			best, found = tag, true
		}
	}
	return best, found
}

// Set puts a tag in the place of the one of its name, or adds it.
func (h *History) Set(tag Tag) {
	if i := slices.IndexFunc(h.Tags, func(t Tag) bool { return t.Name == tag.Name }); i >= 0 {
		h.Tags[i] = tag
		return
	}
	h.Tags = append(h.Tags, tag)
}

// Remove takes the tag of a name away and reports whether there was one.
func (h *History) Remove(name string) bool {
	n := len(h.Tags)
	h.Tags = slices.DeleteFunc(h.Tags, func(t Tag) bool { return t.Name == name })
	return len(h.Tags) < n
}

// Read reads the plain SQLite file at path. The error wraps ErrInvalid if it lies in the content.
func Read(path string) (*History, error) {
	h, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("read history %s: %w", path, err)
	}
	return h, nil
}

// The columns that are read. The last few came with later revisions of the schema.
var (
	tagColumns    = []string{"name", "hash", "revision", "timestamp", "channel", "description", "size", "branch"}
	branchColumns = []string{"branch", "parent", "initial_revision"}
)

func read(path string) (*History, error) {
	f, err := sqlitefile.Open(path, MaxSize, ErrInvalid)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	properties, revision, err := readProperties(f, 3)
	if err != nil {
		return nil, err
	}
	h := &History{FQRN: properties["fqrn"]}
	if text := properties["previous_revision"]; strings.Trim(text, "0") != "" {
		if h.Previous, err = hash.Parse(text); err != nil {
			return nil, fmt.Errorf("%w: previous_revision: %w", ErrInvalid, err)
		}
	}
	if revision >= 3 {
		if err := h.readBranches(f); err != nil {
			return nil, err
		}
	}
	return h, h.readTags(f)
}

// readProperties reads all properties and checks the schema, of which revisions up to newest are known.
func readProperties(f *sqlitefile.File, newest int64) (map[string]string, int64, error) {
	columns, err := openTable(f, "properties", []string{"key", "value"}, 0)
	if err != nil {
		return nil, 0, err
	}
	values := map[string]string{}
	err = f.Query("SELECT "+columns+" FROM properties", nil, func(row []driver.Value) error {
		key, ok := row[0].(string)
		if _, twice := values[key]; !ok || twice || len(values) > 100 {
			return fmt.Errorf("%w: property %.20q is not one text", ErrInvalid, key)
		}
		values[key] = fmt.Sprint(row[1])
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	var revision int64
	if text := values["schema_revision"]; text != "" {
		if _, err := fmt.Sscanf(text, "%d", &revision); err != nil || revision < 0 {
			return nil, 0, fmt.Errorf("%w: schema revision %.20q is not a number", ErrInvalid, text)
		}
	}
	if schema := values["schema"]; schema != "1.0" && schema != "1" || revision > newest {
		return nil, 0, fmt.Errorf("%w: schema %.20q revision %d, readable is 1.0 up to %d", ErrInvalid, schema,
			revision, newest)
	}
	return values, revision, nil
}

func openTable(f *sqlitefile.File, table string, columns []string, optional int) (string, error) {
	if err := f.CheckTables(table); err != nil {
		return "", err
	}
	return f.Columns(table, columns, optional)
}

func (h *History) readBranches(f *sqlitefile.File) error {
	columns, err := openTable(f, "branches", branchColumns, 0)
	if err != nil {
		return err
	}
	return f.Query("SELECT "+columns+" FROM branches", nil, func(row []driver.Value) error {
		v := values{row: row, columns: branchColumns}
		b := Branch{Name: v.text(0, maxName), InitialRevision: v.revision(2)}
		if row[1] != nil {
			b.Parent = v.text(1, maxName)
		}
		if h.Branches = append(h.Branches, b); len(h.Branches) > maxTags {
			v.fail(0, errors.New("more branches than anybody has"))
		}
		return v.err
	})
}

func (h *History) readTags(f *sqlitefile.File) error {
	columns, err := openTable(f, "tags", tagColumns, 2)
	if err != nil {
		return err
	}
	seen := make(map[string]bool)
	return f.Query("SELECT "+columns+" FROM tags", nil, func(row []driver.Value) error {
		v := values{row: row, columns: tagColumns}
		t := Tag{
			Name: v.text(0, maxName), Root: v.digest(1), Revision: v.revision(2), Time: v.time(3),
			Description: v.text(5, maxText),
		}
		if row[6] != nil {
			t.Size = v.upTo(math.MaxInt64, 6)
		}
		if row[7] != nil {
			t.Branch = v.text(7, maxName)
		}
		if v.err == nil && (t.Name == "" || seen[t.Name]) {
			v.fail(0, fmt.Errorf("%.60q is empty or comes twice", t.Name))
		}
		seen[t.Name] = true
		if h.Tags = append(h.Tags, t); len(h.Tags) > maxTags {
			v.fail(0, errors.New("more tags than anybody has"))
		}
		return v.err
	})
}

// schema is what a new history has (CernVM-FS server, history_sqlite.cc).
const schema = `
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER, CONSTRAINT pk_branch PRIMARY KEY (branch),
 FOREIGN KEY (parent) REFERENCES branches (branch), CHECK ((branch <> '') OR (parent IS NULL)),
 CHECK ((branch = '') OR (parent IS NOT NULL)));
CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, channel INTEGER, description TEXT, size INTEGER,
 branch TEXT, CONSTRAINT pk_tags PRIMARY KEY (name), FOREIGN KEY (branch) REFERENCES branches (branch));
CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, CONSTRAINT pk_hash PRIMARY KEY (hash));
BEGIN;
`

// Write writes a new file, the same bytes for the same content. Nothing is synced.
func (h *History) Write(path string) error {
	err := h.check()
	if err == nil {
		err = create(path, schema, h.fill)
	}
	if err != nil {
		return fmt.Errorf("write history %s: %w", path, err)
	}
	return nil
}

// check refuses what a reader would, and what the reference's integrity check finds fault with.
func (h *History) check() error {
	if h.FQRN == "" {
		return fmt.Errorf("%w: no repository's name", ErrInvalid)
	}
	used := map[string]uint64{}
	for _, b := range h.branches() {
		used[b.Name] = b.InitialRevision
	}
	seen, tagged := map[string]bool{}, map[string]bool{}
	for _, t := range h.Tags {
		first, known := used[t.Branch]
		switch err := CheckName(t.Name); {
		case err != nil:
			return err
		case seen[t.Name]:
			return fmt.Errorf("%w: tag %s twice", ErrInvalid, t.Name)
		case t.Root.IsZero() || t.Revision > math.MaxInt64 || t.Size < 0 || t.Time.Unix() < 0:
			return fmt.Errorf("%w: tag %s of %v, revision %d, size %d, time %v",
				ErrInvalid, t.Name, t.Root, t.Revision, t.Size, t.Time)
		case len(t.Description) > maxText || strings.ContainsRune(t.Description, 0):
			return fmt.Errorf("%w: tag %s has a description of %d bytes, which are too many or not all text",
				ErrInvalid, t.Name, len(t.Description))
		case !known || t.Revision < first:
			return fmt.Errorf("%w: tag %s is on the branch %q, which doesn't reach back to revision %d",
				ErrInvalid, t.Name, t.Branch, t.Revision)
		}
		seen[t.Name], tagged[t.Branch] = true, true
	}
	if len(tagged) != len(used) {
		return fmt.Errorf("%w: %d branches, of which %d have a tag: the reference's check wants one on each",
			ErrInvalid, len(used), len(tagged))
	}
	return nil
}

func (h *History) branches() []Branch {
	if h.Branches == nil {
		return []Branch{{}}
	}
	return h.Branches
}

func (h *History) fill(db *sql.DB) error {
	properties := [][2]string{{"schema", "1.0"}, {"schema_revision", "3"}, {"fqrn", h.FQRN}}
	if !h.Previous.IsZero() {
		properties = append(properties, [2]string{"previous_revision", h.Previous.String()})
	}
	if err := insertProperties(db, properties); err != nil {
		return err
	}
	for _, b := range h.branches() {
		var parent any
		if b.Name != "" {
			parent = b.Parent
		}
		if _, err := db.Exec("INSERT INTO branches VALUES (?, ?, ?)", b.Name, parent,
			int64(b.InitialRevision)); err != nil {
			return err
		}
	}
	for _, t := range h.Tags {
		_, err := db.Exec("INSERT INTO tags VALUES (?, ?, ?, ?, 0, ?, ?, ?)",
			t.Name, t.Root.String(), int64(t.Revision), t.Time.Unix(), t.Description, t.Size, t.Branch)
		if err != nil {
			return err
		}
	}
	return nil
}

func insertProperties(db *sql.DB, properties [][2]string) error {
	for _, p := range properties {
		if _, err := db.Exec("INSERT INTO properties VALUES (?, ?)", p[0], p[1]); err != nil {
			return err
		}
	}
	return nil
}

// create makes a database in one transaction, which the script begins; a failed one leaves no file.
func create(path, script string, fill func(*sql.DB) error) error {
	db, err := sqlitefile.Create(path, script)
	if err != nil {
		return err
	}
	if err = fill(db); err == nil {
		_, err = db.Exec("COMMIT")
	}
	if err = errors.Join(err, db.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// values takes values out of a row and remembers the first that is not what it should be.
type values struct {
	row     []driver.Value
	columns []string
	err     error
}

func (v *values) fail(column int, err error) {
	if v.err == nil {
		v.err = fmt.Errorf("%w: %s: %w", ErrInvalid, v.columns[column], err)
	}
}

// upTo returns a number from 0 to most.
func (v *values) upTo(most int64, column int) int64 {
	i, ok := v.row[column].(int64)
	if !ok || i < 0 || i > most {
		v.fail(column, fmt.Errorf("%.60q is not a number from 0 to %d", fmt.Sprint(v.row[column]), most))
		return 0
	}
	return i
}

func (v *values) revision(column int) uint64 { return uint64(v.upTo(math.MaxInt64, column)) }

// latest is the last second whose year has four digits.
const latest = 253402300799

func (v *values) time(column int) time.Time { return time.Unix(v.upTo(latest, column), 0).UTC() }

func (v *values) text(column, most int) string {
	s, ok := v.row[column].(string)
	if !ok || len(s) > most {
		v.fail(column, fmt.Errorf("%.60q is not text of at most %d bytes", fmt.Sprint(v.row[column]), most))
		return ""
	}
	return s
}

func (v *values) digest(column int) hash.Digest {
	d, err := hash.Parse(v.text(column, maxName))
	if err != nil {
		v.fail(column, err)
	}
	return d
}

// compareRefs orders references by time, then by kind and digest.
func compareRefs(a, b Ref) int {
	return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Kind, b.Kind),
		strings.Compare(a.Digest.String(), b.Digest.String()))
}
