package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/internal/layertar"
	"cvmfs-graphdriver/thin"
)

// ErrUnfit refuses a sink that isn't set up as it should be.
var ErrUnfit = errors.New("the target doesn't qualify")

// Sink is a place for layers.
type Sink interface {
	// Begin starts a transaction. Nobody else can change the sink until it ends, as far as the sink can tell.
	Begin(ctx context.Context) (Transaction, error)
	// FQRN is the repository the sink belongs to; "" where that isn't known.
	FQRN() string
	// String says where it is, for people.
	String() string
}

// Transaction is a change of a sink. Paths are those of the repository, "/layers/…". Layer and Has may be called
// concurrently.
type Transaction interface {
	// Has reports whether there is something at a path.
	Has(ctx context.Context, path string) (bool, error)
	// Layer puts an uncompressed layer archive at a path, and its record beside it. Once the archive was read, it asks
	// read, which may be nil, whether that was the right one, and puts what it gives beside the layer, too: where the
	// layer is, all is. A failure makes the transaction useless.
	Layer(ctx context.Context, path string, archive io.Reader, read func(Stats) (*File, error)) (Stats, error)
	// ReadFile returns a small file; the error is fs.ErrNotExist if there is none.
	ReadFile(ctx context.Context, path string) ([]byte, error)
	// WriteFile makes or replaces a small file, and makes the folders above it. Empty files named .cvmfscatalog make
	// catalogs.
	WriteFile(ctx context.Context, path string, content []byte) error
	// List returns what is in a folder, sorted by name, without what marks catalogs; nothing if there is no such
	// folder.
	List(ctx context.Context, path string) ([]Entry, error)
	// Recut makes a folder of files that have the content of others, in other chunks, and of packs, as
	// publish.Transaction says.
	// Sinks that leave cutting files to somebody else make none.
	Recut(ctx context.Context, layers []string, cut publish.Cut,
		at func(made map[string]catalog.Entry) (CutFolder, error)) error
	// Remove removes a path with all below it; one that isn't there is no error.
	Remove(ctx context.Context, path string) error
	// Commit publishes the changes. description is for people.
	Commit(ctx context.Context, description string) error
	// Revision is the repository's that has what was committed; 0 before, and where a sink doesn't know it.
	Revision() uint64
	// Abort drops the changes. After Commit it does nothing.
	Abort() error
}

// CutFolder is what Recut makes.
type CutFolder = publish.CutFolder

// uncut is a sink that leaves it to somebody else how files are cut.
type uncut struct{}

func (uncut) Recut(context.Context, []string, publish.Cut, func(map[string]catalog.Entry) (CutFolder, error)) error {
	return nil
}

// File is a small file at a path.
type File struct {
	Path    string
	Content []byte
}

// Entry is a name in a folder. Names are chosen by whoever names images: what something is, is told by Folder, never by
// its name.
type Entry struct {
	Name   string
	Folder bool
}

// Stats say what putting a layer came to. Where a sink doesn't know what it had already, all is new.
type Stats struct {
	Entries     int64 `json:"entries"`
	Files       int64 `json:"files"`        // regular files
	Bytes       int64 `json:"bytes"`        // of their content
	ReusedFiles int64 `json:"reused_files"` // files whose content was there already
	ReusedBytes int64 `json:"reused_bytes"` // their content
	Stored      int64 `json:"stored"`       // bytes that were added to the storage
	LeftOut     int64 `json:"left_out"`     // what entries say and no file can have, as engines leave it out

	Notes []string `json:"notes,omitempty"` // the first of these
}

// mostNotes bounds the notes of all layers together, which are for people.
const mostNotes = 8

// Add adds up.
func (s *Stats) Add(t Stats) {
	s.Entries += t.Entries
	s.Files += t.Files
	s.Bytes += t.Bytes
	s.ReusedFiles += t.ReusedFiles
	s.ReusedBytes += t.ReusedBytes
	s.Stored += t.Stored
	s.LeftOut += t.LeftOut
	s.Notes = append(s.Notes, t.Notes[:min(len(t.Notes), max(0, mostNotes-len(s.Notes)))]...)
}

// Options say how a target is used.
type Options struct {
	FQRN   string // the repository, for a sink that doesn't know it
	Prefix string // of a folder: layers whose path begins with it lie in the folder itself; "/layers"
	Server string // of a release manager machine: its program; "": cvmfs_server
	Root   string // of a release manager machine: where repositories are mounted; "": /cvmfs
	Config string // of a release manager machine: where its settings are; "": /etc/cvmfs/repositories.d
	// of a release manager machine: where repositories are worked on, unless settings say it; "": /var/spool/cvmfs
	Spool string
	// of a release manager machine: file where this program notes that a transaction is its own, so that one which a
	// killed process left is ended by the next one that has the same file; "": a person ends it
	Note string
	// Chunk is the average of the chunks that a publisher's folder cuts files into, in bytes; 0: its settings say.
	// Other sinks refuse it: what they write to decides.
	Chunk int
	// MaxEntries bounds the entries of a layer, folders that they only lie in included; 0: layertar.MaxEntries.
	MaxEntries int
}

// Open finds the sink "native:DIR", "cvmfs_server:FQRN" or "dir:DIR".
func Open(text string, o Options) (Sink, error) {
	if text == "" && o.FQRN != "" {
		text = "cvmfs_server:" + o.FQRN
	}
	kind, rest, _ := strings.Cut(text, ":")
	var t Sink
	var err error
	switch {
	case rest == "" || kind != "native" && kind != "cvmfs_server" && kind != "dir":
		err = errors.New("want native:DIR, cvmfs_server:FQRN or dir:DIR")
	case kind == "native":
		t, err = openNative(rest, o)
	case o.Chunk != 0:
		err = errors.New("a size of chunks is for native:DIR only: leave it out")
	case kind == "cvmfs_server":
		t, err = openServer(rest, o)
	default:
		t, err = openFolder(rest, o)
	}
	if err == nil && o.FQRN != "" && t.FQRN() != o.FQRN {
		err = fmt.Errorf("it holds the repository %s, not %s", t.FQRN(), o.FQRN)
	}
	if err != nil {
		return nil, fmt.Errorf("target %.300q: %w", text, err)
	}
	return t, nil
}

// checkPath refuses paths a sink must not touch.
func checkPath(path string) error {
	if !strings.HasPrefix(path, "/") {
		return fmt.Errorf("path %.200q doesn't begin with a slash", path)
	}
	for name := range strings.SplitSeq(path[1:], "/") {
		if name == "" || name == "." || name == ".." || len(name) > 255 || strings.IndexByte(name, 0) >= 0 {
			return fmt.Errorf("path %.200q can't be in a repository", path)
		}
	}
	return nil
}

// writeFile writes the file that read gives, if it gives one.
func writeFile(ctx context.Context, tx Transaction, s Stats, read func(Stats) (*File, error)) error {
	if read == nil {
		return nil
	}
	f, err := read(s)
	if f == nil || err != nil {
		return err
	}
	return tx.WriteFile(ctx, f.Path, f.Content)
}

// encodeRecord returns a record's file, nil for one that says nothing.
func encodeRecord(r *thin.Record) ([]byte, error) {
	if r.Empty() {
		return nil, nil
	}
	b, err := r.Encode()
	if err != nil { // it has too many links and attributes
		return nil, fmt.Errorf("%w: %w", layertar.ErrArchive, err)
	}
	return b, nil
}
