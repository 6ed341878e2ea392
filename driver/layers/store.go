package layers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/moby/sys/user"

	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/internal/overlayfs"
)

// layout is the version of the on-disk layout this package reads and writes.
const layout = "2"

// ErrNotReady means that the engine has not initialised the driver yet.
var ErrNotReady = errors.New("the driver is not initialised: the engine sends Init when it starts")

// Composer makes the composed images of thin chains; *images.Composer is one.
type Composer interface {
	Compose(ctx context.Context, chain []images.Layer) (*images.Image, error)
	// Image returns an image, which is in use from then on: its objects can be fetched.
	Image(key string) (*images.Image, error)
	// Describe returns an image without taking it into use.
	Describe(key string) (*images.Image, error)
	Remove(key string) error
	// Sweep removes what is half-written, and gives the keys of the images there are. No Compose may be under way, of
	// whichever composer on the folder. One that has returned, also with an error, has left nothing running.
	Sweep() (keys []string, err error)
	// Close ends the use of a composer that another one has replaced. Its calls fail from then on.
	Close()
}

// Mounter carries out what the store specifies.
type Mounter interface {
	// Mount brings a mount about. The folder m.Target exists and nothing is mounted there.
	Mount(m Mount) error
	// Mounted reports whether something is mounted at a folder; a missing one is not.
	Mounted(dir string) (bool, error)
	// Unmount takes off whatever is mounted at a folder, also while it is in use.
	Unmount(dir string) error
	// Probe finds out what the kernel mounts, composed images from the file system of a folder. An error says why that
	// can't be told.
	Probe(dir string) (overlayfs.Support, error)
}

// Config is what a Store works with.
type Config struct {
	Root string // folder the engine sees: the plugin's propagated mount
	// private folder, gone at reboot: Run/fuse is the object file system, Run/images and Run/views are mounted on
	Run        string
	Generation string // names the object file system's mount: differs from that of any other boot or mount
	Mounter    Mounter
	// NewComposer makes the composer once the engine's arguments are known.
	NewComposer func(Settings) (Composer, error)
	Objects     Objects // nil: nothing is known of the files of composed images, and none are fetched
	Log         *slog.Logger

	watch lockWatcher // for tests
}

// InitArgs are the engine's arguments to Init.
type InitArgs struct {
	Home    string       `json:"home"` // not used: its last part is a name the administrator chose
	Opts    []string     `json:"opts"` // "name=value"
	UIDMaps []user.IDMap `json:"uidMaps"`
	GIDMaps []user.IDMap `json:"gidMaps"`
}

// Settings are what the engine's arguments mean.
type Settings struct {
	Repositories []string             // the only ones that may be used; nil for all that are configured
	IDs          user.IdentityMapping // the engine's userns-remap
	View         View                 // "" for the best that works
}

// Store is the layers on disk. It is safe for concurrent use.
type Store struct {
	cfg Config

	mu       mutex // guards the following
	settings Settings
	composer Composer // nil before Init
	showing  chosen   // the view in use

	images    mutex // held while an image comes to be named by a layer, or stops being so
	composing int   // how many calls of compose are under way; images guards it

	locks   locks
	records records
	made    made
	idle    idle

	stranded stranded
	host     host
	quota    quota
}

// Open opens the layers of a folder, or starts a new one. Where the engine has sent Init in a former life of this
// process its arguments hold again, as engines don't repeat it to a plugin that was restarted.
func Open(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, host: thisHost()}
	s.rankLocks(cfg.watch)
	projects := kernelProjects{root: s.path("layers"), node: s.path("state", "backing-device")}
	s.quota.projects = projects
	if err := s.checkLayout(); err != nil {
		return nil, err
	}
	for _, dir := range []string{
		s.path("store"), s.path("fresh"), s.path("layers"), s.path("mnt"), s.path("state"),
		s.run("images"), s.run("shared"), s.run("views"), s.run("empty"),
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open layer store: %w", err)
		}
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("open layer store: %w", err)
	}
	if err := projects.makeNode(); err != nil {
		s.cfg.Log.Warn("containers can't be limited in size", "err", err)
	}
	b, err := os.ReadFile(s.initFile())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open layer store: %w", err)
	}
	var args InitArgs
	if err := json.Unmarshal(b, &args); err != nil {
		return nil, fmt.Errorf("open layer store: %s: %w", s.initFile(), err)
	}
	if err := s.use(args); err != nil {
		// A repository's configuration may be broken for now; the next Init tells the engine.
		cfg.Log.Error("initialise again from the arguments on disk", "err", err)
		return s, nil
	}
	s.strand()
	return s, nil
}

// Init takes the engine's arguments. It may come any number of times. Layers that were cut short while being made are
// removed, mounts that hang on another FUSE mount are detached; open layers of this generation stay open, each for one
// Put. A host that layers can't be kept on is refused.
func (s *Store) Init(args InitArgs) error {
	if err := s.checkHost(); err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	if err := s.use(args); err != nil {
		return err
	}
	b, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("keep the arguments of Init: %w", err)
	}
	if err := writeFile(s.initFile(), b, true); err != nil {
		return fmt.Errorf("keep the arguments of Init: %w", err)
	}
	if err := s.removeUncommitted(); err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	if err := s.detach(func(o open) bool { return o.Generation != s.cfg.Generation }); err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	if err := s.recount(); err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	return nil
}

// use makes the arguments those that hold, and their composer the one that is used.
func (s *Store) use(args InitArgs) error {
	settings, err := parseOptions(args.Opts)
	if err != nil {
		return err
	}
	settings.IDs = user.IdentityMapping{UIDMaps: args.UIDMaps, GIDMaps: args.GIDMaps}
	s.images.Lock() // no image comes or goes meanwhile
	defer s.images.Unlock()
	former, before, _ := s.ready()
	if former == nil || !reflect.DeepEqual(settings, before) {
		if err := s.prepare(settings); err != nil {
			return fmt.Errorf("initialise: %w", err)
		}
		view, err := s.choose(settings.View)
		if err != nil {
			return fmt.Errorf("initialise: %w", err)
		}
		composer, err := s.cfg.NewComposer(settings)
		if err != nil {
			return fmt.Errorf("initialise: %w", err)
		}
		s.mu.Lock()
		s.settings, s.composer, s.showing = settings, composer, view
		s.mu.Unlock()
		s.loadOpenImages() // before the former one lets go of them: containers may be reading
		if former != nil {
			former.Close()
		}
		s.sweepImages()
	}
	return nil
}

// prepare sets who may pass the folders above layers: as overlay2 has it, only the remapped root passes to what a
// container owns.
func (s *Store) prepare(settings Settings) error {
	_, gid := settings.IDs.RootPair()
	for _, dir := range []string{s.cfg.Root, s.path("layers"), s.path("mnt")} {
		if err := errors.Join(os.Chown(dir, 0, gid), os.Chmod(dir, 0o710)); err != nil {
			return err
		}
	}
	if !settings.IDs.Empty() {
		s.cfg.Log.Info("users are remapped", "owner", remapped(settings.IDs))
	}
	return nil
}

// ready returns what Init has set.
func (s *Store) ready() (Composer, Settings, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.composer == nil {
		return nil, Settings{}, ErrNotReady
	}
	return s.composer, s.settings, nil
}

// checkLayout refuses a folder that another version of this package has made.
func (s *Store) checkLayout() error {
	if err := os.MkdirAll(s.cfg.Root, 0o700); err != nil {
		return fmt.Errorf("open layer store: %w", err)
	}
	file := s.path("layout")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(s.path("layers")); err == nil {
			return fmt.Errorf("open layer store: %s has layers but no file %q: it is not of this driver's making",
				s.cfg.Root, "layout")
		}
		return writeFile(file, []byte(layout+"\n"), true)
	}
	if err != nil {
		return fmt.Errorf("open layer store: %w", err)
	}
	if got := strings.TrimSpace(string(b)); got != layout {
		return fmt.Errorf("open layer store: %s has layout %.20q, this version of the driver knows %q: run the version that made it", s.cfg.Root, got, layout)
	}
	return nil
}

// sweep removes what a former life left unfinished: temporary names begin with a dot, and mounts have a record.
func (s *Store) sweep() error {
	for dir, temporary := range map[string]string{s.path("layers"): ".", s.path("state"): ".", s.cfg.Root: tempPrefix} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), temporary) {
				if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return errors.Join(s.unmountAll(s.run("views")), s.detach(func(o open) bool { return o.Refs == 0 }))
}

// unmountAll detaches what is mounted on the folders in dir and removes them.
func (s *Store) unmountAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := s.unmount(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// unmount detaches what is mounted on a folder and removes the folder.
func (s *Store) unmount(dir string) error {
	if err := s.cfg.Mounter.Unmount(dir); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeUncommitted removes read-only layers whose content never arrived.
func (s *Store) removeUncommitted() error {
	ids, err := s.ids()
	if err != nil {
		return err
	}
	for _, id := range ids {
		l, err := s.load(id)
		if err != nil {
			s.cfg.Log.Warn("a layer can't be used", "layer", id, "err", err)
			continue
		}
		if l.Writable || l.Committed {
			continue
		}
		s.cfg.Log.Info("remove a layer that was cut short", "layer", id)
		if err := s.Remove(id); err != nil {
			return err
		}
	}
	return nil
}

// Cleanup detaches every mount: the engine is about to end.
func (s *Store) Cleanup() error {
	if err := s.detach(func(open) bool { return true }); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	if err := errors.Join(s.unmountAll(s.run("shared")), s.unmountAll(s.run("images"))); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

func (s *Store) path(elem ...string) string { return filepath.Join(s.cfg.Root, filepath.Join(elem...)) }

func (s *Store) run(elem ...string) string { return filepath.Join(s.cfg.Run, filepath.Join(elem...)) }
func (s *Store) initFile() string          { return s.path("state", "init.json") }

const tempPrefix = ".new-"

// writeFile puts a whole file in place: complete or as it was before. With durable it is so also after power loss.
func writeFile(path string, b []byte, durable bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already where all went well
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

// syncDir makes names in a folder durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
