package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/internal/layertar"
	"cvmfs-graphdriver/thin"
)

// noteFile is in the folder of a layer that has a note.
const noteFile = "note"

// Noted is a layer that has a note.
type Noted struct {
	ID, Parent string
	Committed  bool
	Note       []byte
	// what is wrong with its note, or with its record, of which nothing is known then
	NoteErr, RecordErr error
}

// Noted returns the layers that have a note, in no order, and removes what a former life left unfinished beside the
// notes. It is for who opens the store: no note may change meanwhile.
func (s *Store) Noted() (list []Noted, err error) {
	ids, err := s.list()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if err := durable.Sweep(s.dir(id)); err != nil {
			return nil, err
		}
		note, err := os.ReadFile(s.dir(id, noteFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		noted := Noted{ID: id, Note: note, NoteErr: err}
		l, err := s.load(id)
		if noted.RecordErr = err; err == nil {
			noted.Parent, noted.Committed = l.Parent, l.Committed
		}
		list = append(list, noted)
	}
	return list, nil
}

// SetNote replaces the note of a layer, also for after a loss of power.
func (s *Store) SetNote(id string, note []byte) error {
	defer s.locks.Lock(id)()
	if _, err := s.load(id); err != nil {
		return err
	}
	return durable.Replace(s.dir(id, noteFile), noteMode, note)
}

const noteMode = 0o600

// writeNote writes the note of a layer that is being made, as file content needs to be synced to be there after a loss
// of power when the folder is.
func writeNote(folder string, note []byte) error {
	return durable.New(filepath.Join(folder, noteFile), noteMode, note)
}

// ErrNotEmpty means that a layer holds something already.
var ErrNotEmpty = errors.New("the layer holds something already")

// Fill writes an uncompressed tar archive to a read-write layer that is empty, with the attributes that the archive has
// for the root. No other call may be made for the layer meanwhile. After an error the layer holds what came before it:
// it is to be removed.
func (s *Store) Fill(ctx context.Context, id string, r io.Reader) error {
	l, err := s.load(id)
	if err != nil {
		return err
	}
	if !l.Writable {
		return fmt.Errorf("layer %s: it is read-only", id)
	}
	names, err := os.ReadDir(s.diff(id))
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("layer %s: %w", id, ErrNotEmpty)
	}
	_, err = s.unpack(ctx, r, id, s.diff(id), layertar.Options{Root: true, Bottom: l.Parent == ""})
	return err
}

// FillThin writes a thin image descriptor to a read-write layer that is empty, and brings it to disk.
func (s *Store) FillThin(id string, d *thin.Descriptor) error {
	content, err := d.Encode()
	if err != nil {
		return err
	}
	return durable.New(filepath.Join(s.diff(id), thin.FileName), descriptorMode, content)
}

// Refill gives a thin layer the content of an uncompressed tar archive, so that it is an ordinary one. The layer's
// folder changes at one moment: what is composed of it and of others stays as it is. note is called with the folder of
// the content once that is there, and returns the layer's new note; its error leaves the layer as it was, as any other
// does. A layer that isn't thin is left as it is, and nothing of the archive is read.
func (s *Store) Refill(
	ctx context.Context, id string, archive io.Reader, note func(content string) ([]byte, error),
) error {
	if err := s.refill(ctx, id, archive, note); err != nil {
		return fmt.Errorf("unpack layer %s in the place of a thin one: %w", id, err)
	}
	return nil
}

func (s *Store) refill(
	ctx context.Context, id string, archive io.Reader, note func(content string) ([]byte, error),
) error {
	l, err := s.load(id)
	if err != nil || !l.Thin {
		return err
	}
	temp, err := s.newFolder(id)
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp) // the thin layer where all went well; the next Open removes what stays
	content := filepath.Join(temp, diffDir(id))
	o := layertar.Options{Root: true, Bottom: l.Parent == ""}
	if _, err := s.unpack(ctx, archive, id, content, o); err != nil {
		return err
	}
	text, err := note(content)
	if err == nil {
		err = writeNote(temp, text)
	}
	if err == nil {
		err = durable.WriteRecord(temp, recordXattr, &layer{Parent: l.Parent, Committed: true})
	}
	if err == nil {
		err = durable.SyncFS(temp)
	}
	if err != nil {
		return err
	}
	defer s.locks.Lock(id)()
	if now, err := s.load(id); err != nil || *now != *l {
		return errors.Join(err, errors.New("it was removed, composed or replaced meanwhile"))
	}
	_, err = s.exchange(id, temp)
	return err
}

// exchange puts a layer's folder in the place of the present one, and that in its place. It is done also where a loss
// of power may undo it, which is an error.
func (s *Store) exchange(id, folder string) (done bool, err error) {
	s.records.Lock()
	delete(s.records.committed, id)
	err = unix.Renameat2(unix.AT_FDCWD, folder, unix.AT_FDCWD, s.dir(id), unix.RENAME_EXCHANGE)
	s.records.Unlock()
	if err != nil {
		return false, fmt.Errorf("put the layer in place: %w", err)
	}
	return true, durable.SyncDir(s.cfg.Dir)
}

// descriptorMode is that of the file as docker2cvmfs makes it.
const descriptorMode = 0o644

// Descriptor returns the thin image descriptor that is all there is in a read-write layer; nil if there is anything
// else.
func (s *Store) Descriptor(id string) (*thin.Descriptor, error) {
	entries, err := os.ReadDir(s.diff(id))
	if err != nil {
		return nil, err
	}
	c := contents{entries: len(entries)}
	for _, e := range entries {
		c.descriptor = e.Name() == thin.FileName && e.Type().IsRegular()
	}
	return descriptor(c, s.diff(id))
}

// Seal makes a read-write layer a read-only one of the content it has, which must be on disk. A thin one names its
// composed image; "" is for one that is to be composed when it is needed. Once Seal has returned that holds also after
// a loss of power.
func (s *Store) Seal(id string, isThin bool, image string) error {
	defer s.locks.Lock(id)()
	l, err := s.load(id)
	if err != nil {
		return err
	}
	if !l.Writable {
		return fmt.Errorf("layer %s: it is read-only already", id)
	}
	l.Writable, l.Committed, l.Thin, l.Image = false, true, isThin, image
	return s.save(id, l)
}
