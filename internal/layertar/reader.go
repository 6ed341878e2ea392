package layertar

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
)

// ErrArchive is what every refusal of an archive's content wraps.
var ErrArchive = errors.New("archive of the layer")

// ErrTruncated is the ErrArchive of an archive that ends within an entry.
var ErrTruncated = fmt.Errorf("%w: it is cut short", ErrArchive)

// Limits bound what an archive may make of itself where it is converted; unpacking is bounded by the disk.
const (
	MaxEntries = 4_000_000
	MaxBytes   = 4 << 40 // of all files together, holes included
)

const (
	readAhead  = 64 << 10 // bytes
	freeSteps  = 2_000_000
	stepsEach  = 200 // of an entry; its path has some 20 names, and may lead through 40 links with 2,000 each
	copySize   = 256 << 10
	firstNotes = 8
)

// Reader reads the entries of an uncompressed archive. It is for one goroutine.
type Reader struct {
	MaxEntries int   // 0: any number
	MaxBytes   int64 // of all files together, holes included; 0: any number

	source  *source
	in      *bufio.Reader
	tar     *tar.Reader
	name    string // of the entry at hand
	empty   bool   // it has no content, or none that means anything
	entries int
	implied int // folders
	steps   int
	bytes   int64
	notes   []string
	noted   int
}

// NewReader returns a reader of what comes from r.
func NewReader(r io.Reader) *Reader {
	s := &source{r: r}
	in := bufio.NewReaderSize(s, readAhead)
	return &Reader{source: s, in: in, tar: tar.NewReader(in)}
}

// source is where an archive comes from. It keeps what went wrong there, which isn't the archive's fault.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		s.err = err
	}
	return n, err
}

// Next goes on to the next entry; what the last one has left unread is skipped. It is io.EOF when the archive has come
// to its end and all bytes behind it have been read, too.
func (r *Reader) Next() (*Entry, error) {
	for {
		h, err := r.tar.Next()
		if errors.Is(err, io.EOF) {
			return nil, r.finish()
		}
		if err != nil {
			return nil, r.fault(err)
		}
		r.name = h.Name
		r.entries++
		if err := r.bound(); err != nil {
			return nil, err
		}
		e, err := newEntry(h, r.note)
		if err != nil {
			return nil, r.refuse(err)
		}
		if e == nil {
			continue
		}
		r.empty = e.Size == 0
		if r.bytes += e.Size; r.MaxBytes > 0 && (r.bytes > r.MaxBytes || r.bytes < e.Size) {
			return nil, r.refuse(fmt.Errorf("more than %d bytes of files", r.MaxBytes))
		}
		return e, nil
	}
}

// Read reads the content of the entry at hand.
func (r *Reader) Read(p []byte) (int, error) {
	if r.empty {
		return 0, io.EOF
	}
	n, err := r.tar.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.fault(err)
	}
	return n, err
}

// Entries is the number of entries so far, those left out included.
func (r *Reader) Entries() int { return r.entries }

// Imply counts a folder that is made because the entry at hand lies in it, against MaxEntries: a path of 4 KiB may have
// 2,000.
func (r *Reader) Imply() error {
	r.implied++
	return r.bound()
}

func (r *Reader) bound() error {
	if r.MaxEntries > 0 && r.entries+r.implied > r.MaxEntries {
		return r.refuse(fmt.Errorf("more than %d entries, with the folders that they lie in", r.MaxEntries))
	}
	return nil
}

// Step counts a name that the entry at hand is looked for by, symbolic links followed. Some are any archive's.
func (r *Reader) Step() error {
	if r.steps++; r.steps > freeSteps+stepsEach*r.entries {
		return r.refuse(errors.New("paths and symbolic links so far lead through too many folders"))
	}
	return nil
}

// Notes returns what was left out of the archive's entries: the first few, and how many there are.
func (r *Reader) Notes() (first []string, all int) { return r.notes, r.noted }

// note notes something that the entry at hand says and that is left out.
func (r *Reader) note(what string) {
	if r.noted++; len(r.notes) < firstNotes {
		r.notes = append(r.notes, fmt.Sprintf("%.300q: %s", r.name, what))
	}
}

// finish reads what follows the entries.
func (r *Reader) finish() error {
	if _, err := io.Copy(io.Discard, r.in); err != nil {
		return fmt.Errorf("read the layer's archive: %w", err)
	}
	return io.EOF
}

// refuse names the entry that is at fault.
func (r *Reader) refuse(err error) error {
	return fmt.Errorf("%w: %.300q: %w", ErrArchive, r.name, err)
}

// fault says what an error of archive/tar means.
func (r *Reader) fault(err error) error {
	switch {
	case errors.Is(err, ErrArchive):
		return err
	case r.source.err != nil:
		return fmt.Errorf("read the layer's archive: %w", err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w at or after %.300q: %w", ErrTruncated, r.name, err)
	}
	// What archive/tar doesn't understand, and sparse files with too little or too much content, which it doesn't name.
	return fmt.Errorf("%w: damaged at or after %.300q: %w", ErrArchive, r.name, err)
}
