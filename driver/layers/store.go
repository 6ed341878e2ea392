package layers

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/user"

	"cvmfs-graphdriver/driver/lockorder"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/internal/hostfs"
)

// Config is what a Store works with.
type Config struct {
	Dir    string // folder of the layers, made if missing
	Device string // where a node of the block device that Dir is on is made, for quotactl(2)
	Log    *slog.Logger
	Watch  lockorder.Watcher // for tests; nil for nobody
}

// Store is the layers on disk. It is safe for concurrent use.
type Store struct {
	cfg Config

	locks   lockorder.IDs // of layers
	records layerRecords
	made    madeLayers
	quota   quota
	sync    func(dir string) error // durable.SyncDir, for tests to fail

	mu  lockorder.Mutex // guards the following
	ids user.IdentityMapping
}

// Open opens the layers of a folder, or starts a new one, and removes what a former life left unfinished.
func Open(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, sync: durable.SyncDir}
	s.placeLocks()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open layer store: %w", err)
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("open layer store: %w", err)
	}
	projects := kernelProjects{root: cfg.Dir, node: cfg.Device}
	s.quota.projects = projects
	if err := projects.makeNode(); err != nil {
		s.cfg.Log.Warn("containers can't be limited in size", "err", err)
	}
	return s, nil
}

// placeLocks gives the locks their place in the order.
func (s *Store) placeLocks() {
	s.locks.Place(lockorder.Layers, s.cfg.Watch)
	for name, m := range map[string]*lockorder.Mutex{
		"owners": &s.mu, "records": &s.records.Mutex, "quota": &s.quota.mu, "made": &s.made.mu,
	} {
		m.Place(lockorder.Leaf, name, s.cfg.Watch)
	}
}

// sweep removes what is unfinished.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			if err := os.RemoveAll(filepath.Join(s.cfg.Dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// SetOwners sets whose the files of layers are: archives have the owners that containers see, and the disk those that
// the mapping turns them into. As overlay2 has it, only the remapped root passes to what a container owns.
func (s *Store) SetOwners(ids user.IdentityMapping) error {
	_, gid := ids.RootPair()
	if err := errors.Join(os.Chown(s.cfg.Dir, 0, gid), os.Chmod(s.cfg.Dir, 0o710)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids = ids
	return nil
}

// owners returns what SetOwners has set.
func (s *Store) owners() user.IdentityMapping {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids
}

// FileSystem names the file system of the layers as engines do.
func (s *Store) FileSystem() string { return hostfs.Name(s.cfg.Dir) }

// Count returns how many layers there are, how many of them are thin, and the keys of the composed images of these. A
// layer whose record can't be read is counted as an ordinary one.
func (s *Store) Count() (all, thin int, images map[string]bool, err error) {
	ids, err := s.list()
	if err != nil {
		return 0, 0, nil, err
	}
	images = map[string]bool{}
	for _, id := range ids {
		if l, err := s.load(id); err == nil && l.Thin {
			thin++
			if l.Image != "" {
				images[l.Image] = true
			}
		}
	}
	return len(ids), thin, images, nil
}

// maxOrigin is how much of an origin is told, in bytes: https://, a registry, a repository of 255, a tag and a digest.
const maxOrigin = 512

// Origins returns what the descriptors of thin layers name as the image they were made from, by the keys of the
// composed images of the layers. Of several that share one composed image it is the first in the order of the alphabet,
// and of those that can't be read, or name none, there is none. What is longer than a name can be is cut off.
func (s *Store) Origins() (map[string]string, error) {
	ids, err := s.list()
	if err != nil {
		return nil, err
	}
	origins := map[string]string{}
	for _, id := range ids {
		l, err := s.load(id)
		if err != nil || !l.Thin || l.Image == "" {
			continue
		}
		d, err := readDescriptor(s.diff(id))
		if err != nil || d.Origin == "" {
			continue
		}
		origin := strings.ToValidUTF8(d.Origin[:min(len(d.Origin), maxOrigin)], "")
		if first, ok := origins[l.Image]; !ok || origin < first {
			origins[l.Image] = origin
		}
	}
	return origins, nil
}

// Images returns the keys of the composed images that layers name. A record that can't be read may name any image: that
// is an error.
func (s *Store) Images() (map[string]bool, error) {
	keys := map[string]bool{}
	ids, err := s.list()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		l, err := s.load(id)
		if errors.Is(err, ErrNoLayer) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("an image may be named by a layer that can't be read, remove that: %w", err)
		}
		if l.Image != "" {
			keys[l.Image] = true
		}
	}
	return keys, nil
}

// Uncommitted returns the read-only layers whose content hasn't arrived.
func (s *Store) Uncommitted() (ids []string, err error) {
	all, err := s.list()
	if err != nil {
		return nil, err
	}
	for _, id := range all {
		l, err := s.load(id)
		if err != nil {
			s.cfg.Log.Warn("a layer can't be used", "layer", id, "err", err)
			continue
		}
		if !l.Writable && !l.Committed {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// list returns the ids of all layers.
func (s *Store) list() (ids []string, err error) {
	entries, err := os.ReadDir(s.cfg.Dir)
	for _, e := range entries {
		if validID.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, err
}
