package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"

	"cvmfs-graphdriver/driver/lockorder"
	"cvmfs-graphdriver/internal/durable"
)

const (
	// recordXattr, an extended attribute of a layer's folder, holds its record. The kernel changes it at once and,
	// unlike a file's content, keeps its order with the making and renaming of folders also when power is lost: a layer
	// is made complete without a sync, as a container's start would have to wait for it.
	recordXattr = "trusted.cvmfs-graphdriver.layer"
	// maxDepth bounds a chain of layers; engines stop at 125 or so, and a damaged record must not send us round in
	// circles.
	maxDepth = 1024
)

// ErrNoLayer means that there is no layer of that id.
var ErrNoLayer = errors.New("no such layer")

// validID is what an id may look like: it becomes a folder's name and, twice, part of a mount option, whose value
// may have 255 bytes (fsconfig(2)). Engines use 64 hex digits, with "-init" for the layer below a container's.
var validID = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_.-]{0,99}$`)

// CheckID refuses what can't be the id of a layer.
func CheckID(id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("layer id %.110q: want 1 to 100 letters, digits, '_', '.', '-', the first a letter or digit",
			id)
	}
	return nil
}

// layer is a layer's record.
type layer struct {
	Parent   string `json:"parent,omitempty"`
	Writable bool   `json:"writable,omitempty"` // a container's or a build step's
	Thin     bool   `json:"thin,omitempty"`     // its content is a thin image descriptor
	Image    string `json:"image,omitempty"`    // thin: key of the composed image; "" until one could be made

	Committed bool `json:"committed,omitempty"` // read-only: content is complete
}

// Folder returns the folder of a layer, on which others may keep records of theirs.
func (s *Store) Folder(id string) string { return s.dir(id) }

func (s *Store) dir(id string, elem ...string) string {
	return filepath.Join(s.cfg.Dir, id, filepath.Join(elem...))
}

// diffDir is where a layer has its content, in its folder. The id comes twice, for the layer's folder is a data-only
// lower layer of mounts whose composed image has files of it, and these are found by a path that names the layer.
func diffDir(id string) string { return filepath.Join("graph", id, "diff") }

// Content returns the folder of what a layer adds to its parent.
func (s *Store) Content(id string) string { return s.diff(id) }

func (s *Store) diff(id string) string { return s.dir(id, diffDir(id)) }

// load reads a layer's record.
func (s *Store) load(id string) (*layer, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	s.records.Lock()
	defer s.records.Unlock()
	if l, ok := s.records.committed[id]; ok {
		return &l, nil
	}
	l := &layer{}
	err := durable.ReadRecord(s.dir(id), recordXattr, l)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("layer %s: %w", id, ErrNoLayer)
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", id, err)
	}
	if l.Committed {
		s.records.keep(id, *l)
	}
	return l, nil
}

// save replaces a layer's record, also for after a loss of power. One that doesn't reach the disk is taken back: who is
// told of an error goes on with the layer as it was.
func (s *Store) save(id string, l *layer) error {
	var former layer
	err := durable.ReadRecord(s.dir(id), recordXattr, &former)
	if err == nil {
		err = s.write(id, l)
	}
	if err == nil {
		if err = s.sync(s.dir(id)); err != nil {
			err = errors.Join(err, s.write(id, &former))
		}
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	return nil
}

// write writes a layer's record, and has it read anew.
func (s *Store) write(id string, l *layer) error {
	s.records.Lock()
	defer s.records.Unlock()
	delete(s.records.committed, id)
	return durable.WriteRecord(s.dir(id), recordXattr, l)
}

// layerRecords keeps the records of committed layers in memory, for every mount asks for those of a whole chain. It is
// locked while a record is read or changes.
type layerRecords struct {
	lockorder.Mutex
	committed map[string]layer
}

func (r *layerRecords) keep(id string, l layer) {
	if r.committed == nil {
		r.committed = map[string]layer{}
	}
	r.committed[id] = l
}

// CreateArgs describe a layer to be made.
type CreateArgs struct {
	ID, Parent string
	Writable   bool
	Size       uint64 // bytes that its content may take, where project quotas are on; 0 for any number
	Note       []byte // of the face's, kept with the layer; nil for none
}

// Create makes an empty layer. One that is there already, with the same parent, is left as it is: engines repeat
// requests.
func (s *Store) Create(args CreateArgs) error {
	if err := CheckID(args.ID); err != nil {
		return fmt.Errorf("create layer: %w", err)
	}
	if args.ID == args.Parent {
		return fmt.Errorf("create layer %s: it can't be its own parent", args.ID)
	}
	if args.Parent != "" {
		if err := s.adopt(args.Parent, args.ID); err != nil {
			return fmt.Errorf("create layer %s: parent: %w", args.ID, err)
		}
	}
	defer s.locks.Lock(args.ID)()
	l, err := s.load(args.ID)
	if err == nil {
		if l.Parent != args.Parent {
			return fmt.Errorf("create layer %s: it exists with the parent %q, not %q", args.ID, l.Parent, args.Parent)
		}
		if !l.Writable && !l.Committed {
			s.made.add(args.ID)
		}
		return nil
	}
	if !errors.Is(err, ErrNoLayer) {
		return fmt.Errorf("create layer: %w", err)
	}
	if err := s.create(args); err != nil {
		return fmt.Errorf("create layer %s: %w", args.ID, err)
	}
	if !args.Writable {
		s.made.add(args.ID)
	}
	return nil
}

// adopt makes a layer ready to have another one on top.
func (s *Store) adopt(parent, child string) error {
	if err := s.settle(parent); err != nil {
		return err
	}
	circle := false
	err := s.descend(parent, func(id string, l *layer) bool {
		circle = id == child || l.Parent == child
		return !circle
	})
	if circle {
		return fmt.Errorf("layer %s is below it", child)
	}
	if errors.Is(err, ErrNoLayer) {
		return nil
	}
	return err
}

// create makes the layer's folder under another name and renames it. After a loss of power it is whole or, if it was
// made in the last seconds and has no note, not there.
func (s *Store) create(args CreateArgs) error {
	temp, err := s.newFolder(args.ID)
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp) // gone already where all went well
	if args.Size > 0 {
		if err := s.restrict(temp, args.ID, args.Size); err != nil {
			return err
		}
	}
	if err := durable.WriteRecord(temp, recordXattr, &layer{Parent: args.Parent, Writable: args.Writable}); err != nil {
		return err
	}
	if args.Note == nil {
		return os.Rename(temp, s.dir(args.ID))
	}
	if err := writeNote(temp, args.Note); err != nil {
		return err
	}
	if err := os.Rename(temp, s.dir(args.ID)); err != nil {
		return err
	}
	return durable.SyncDir(s.cfg.Dir)
}

// newFolder makes an empty layer without a record, under a temporary name beside the layers.
func (s *Store) newFolder(id string) (string, error) {
	temp, err := os.MkdirTemp(s.cfg.Dir, ".new-")
	if err != nil {
		return "", err
	}
	uid, gid := s.owners().RootPair()
	err = errors.Join(
		mkdir(filepath.Join(temp, "graph"), 0o710, 0, gid),
		mkdir(filepath.Join(temp, "graph", id), 0o710, 0, gid),
		mkdir(filepath.Join(temp, diffDir(id)), 0o755, uid, gid),
		mkdir(filepath.Join(temp, "work"), 0o755, uid, gid),
		os.Chown(temp, 0, gid), os.Chmod(temp, 0o710))
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(temp))
	}
	return temp, nil
}

// mkdir makes a folder with exactly this mode and owner.
func mkdir(path string, mode fs.FileMode, uid, gid int) error {
	if err := os.Mkdir(path, mode); err != nil {
		return err
	}
	return errors.Join(os.Chown(path, uid, gid), os.Chmod(path, mode))
}

// settle decides what a layer is that has been made for an archive but is used without one: a step of a build,
// read-write.
func (s *Store) settle(id string) error {
	_, err := s.settled(id)
	return err
}

// settled is settle that returns the record.
func (s *Store) settled(id string) (*layer, error) {
	if l, err := s.load(id); err == nil && (l.Writable || l.Committed) {
		return l, nil // for good: no need to wait for the lock
	}
	if err := CheckID(id); err != nil {
		return nil, err
	}
	defer s.locks.Lock(id)()
	l, err := s.load(id)
	if err != nil || l.Writable || l.Committed {
		return l, err
	}
	l.Writable = true
	s.made.remove(id)
	return l, s.save(id, l)
}

// Exists reports whether there is a layer of that id.
func (s *Store) Exists(id string) bool {
	_, err := s.load(id)
	return err == nil
}

// NameImage records the image that a chain was composed to with its topmost layer, a thin one, also for after a loss of
// power. A layer of that id that was made since is refused.
func (s *Store) NameImage(id string, chain []Link, key string) error {
	defer s.locks.Lock(id)()
	now, _, err := s.Chain(id)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(now, chain) {
		return fmt.Errorf("layer %s: it was removed and made anew while it was composed", id)
	}
	l, err := s.load(id)
	if err != nil {
		return err
	}
	l.Image = key
	return s.save(id, l)
}

// Remove deletes a layer and returns the key of the composed image it named, or "". A layer that isn't there is no
// error.
func (s *Store) Remove(id string) (image string, err error) {
	if err := CheckID(id); err != nil {
		return "", fmt.Errorf("remove layer: %w", err)
	}
	defer s.locks.Lock(id)()
	l, err := s.load(id)
	if err != nil && !errors.Is(err, ErrNoLayer) {
		// The record is damaged: the folder goes all the same.
		s.cfg.Log.Warn("remove a layer without a readable record", "layer", id, "err", err)
	}
	if err := s.discard(id); err != nil {
		return "", fmt.Errorf("remove layer %s: %w", id, err)
	}
	if l == nil {
		return "", nil
	}
	return l.Image, nil
}

// discard deletes a layer's folder. Renamed first, so that a removal cut short leaves no half layer; beside the layers,
// as a full disk takes no new folder.
func (s *Store) discard(id string) error {
	dead := filepath.Join(s.cfg.Dir, ".dead-"+id)
	if err := os.RemoveAll(dead); err != nil { // what was left of a layer of that id
		return err
	}
	s.made.remove(id)
	s.records.Lock()
	delete(s.records.committed, id)
	err := os.Rename(s.dir(id), dead)
	s.records.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, os.RemoveAll(dead))
}
