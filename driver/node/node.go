package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/user"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/objectfs"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/lockorder"
	"cvmfs-graphdriver/driver/metrics"
	"cvmfs-graphdriver/driver/options"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/driver/view"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/internal/fusewire"
	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/pushback"
)

// layout is the version of the on-disk layout that nodes read and write.
const layout = "2"

// ErrNotReady means that the engine's arguments are not known yet.
var ErrNotReady = errors.New("the driver is not initialised: the engine sends Init when it starts")

// Kernel mounts; *overlayfs.Kernel is one.
type Kernel interface {
	// Mount mounts an overlay on a folder.
	Mount(target string, s *overlayfs.Spec) error
	// MountImage mounts an EROFS image on a folder, from its file.
	MountImage(source, target string) error
	// Mounted reports whether something is mounted at a folder; at a missing one nothing is.
	Mounted(dir string) (bool, error)
	// Unmount takes off whatever is mounted at a folder, also while it is in use.
	Unmount(dir string) error
	// MountMapped mounts what a folder shows on another one, read-only, with mapped owners.
	MountMapped(source, target string, ids user.IdentityMapping) error
	// ProbeMapped finds out whether overlays show mapped owners: of layers on the file system of a folder, and if image
	// of composed images on it. The error says why not.
	ProbeMapped(dir string, image bool) error
	// Probe finds out what the kernel mounts, composed images from the file system of a folder. An error says why that
	// can't be told.
	Probe(dir string) (overlayfs.Support, error)
}

// Config is what a Node works with.
type Config struct {
	Root string // folder of all that is kept
	// private folder, gone at reboot: Run/fuse is the object file system
	Run        string
	Generation string // names the object file system's mount: differs from that of any other boot or mount
	Kernel     Kernel

	Configuration string                 // folder of the host's CernVM-FS configuration
	Defaults      func() ([]byte, error) // our own, which the host's changes
	PollEvery     time.Duration          // how often Configuration is looked at for changes; 0: 20 s
	Agent         string                 // who asks servers, for their logs
	Version       string                 // of the program, for Status
	Commit        string                 // likewise

	PushBack string // file of the settings of push-back, which need not be there; "" for never

	// Nested has composed images have their files below a folder, so that an overlay names nothing that is there where
	// an image isn't mounted: for overlays that others mount.
	Nested bool

	// Recorder has only that fetched which is read, and every read of files that may be cut seen.
	Recorder bool

	// RecordQuiet is after which time without a new read a start is over that is recorded; 0: 10 s.
	RecordQuiet time.Duration

	NewComposer func(Settings) (Composer, error) // for tests; nil composes images of repositories
	Log         *slog.Logger
	Watch       lockorder.Watcher // for tests
}

// Settings are what an engine's arguments mean for a node.
type Settings struct {
	Repositories []string             // the only ones that may be used; nil for all that are configured
	IDs          user.IdentityMapping // owners in layers and owners on the host
	View         View                 // "" for the best that works
	CacheLimit   int64                // bytes that objects may take; 0 for what the configuration says, or the default
	CacheFloor   int64                // bytes of the file system that stay free; 0 for the default
	Metrics      metrics.Listen       // where metrics are served; zero for nowhere
	Isolate      bool                 // images composed from now on share no object with those of other repositories
	Lazy         []string             // repositories whose layers are taken instead of those of ordinary images
}

// SettingsOf returns what storage options set.
func SettingsOf(o options.Options) Settings {
	return Settings{
		Repositories: o.Repositories, View: View(o.View), CacheLimit: o.CacheLimit, CacheFloor: o.CacheFloor,
		Isolate: o.Isolate, Lazy: o.Lazy, Metrics: metrics.Listen(o.Metrics),
	}
}

// Face is what an engine speaks to. It keeps account of mounts, and calls nothing of the node while it answers.
type Face interface {
	// Mounts returns the layers that are mounted and in use, in the order of their ids.
	Mounts() []status.Mount
	// Images returns the keys of the composed images that mounts read from, in use or not. Where that isn't known of a
	// mount it is an error.
	Images() (map[string]bool, error)
	// Names returns what the engine calls composed images, which the face asks it; the zero value if whoever wants to
	// know can ask the engine alike.
	Names(ctx context.Context) (status.Names, error)
	// Mapped returns what the same mounts show with mapped owners, besides the mapping of the settings.
	Mapped() ([]Mapped, error)
	// Kubernetes reports whether kubelet watches over the disk: it removes images and pods when that fills.
	Kubernetes() bool
	// ThinImage has the engine make a thin image of an image, of whose layers, bottom to top, publish has those
	// published that stand on a thin one. It is an error where whoever wants it can have the engine do so alike.
	ThinImage(ctx context.Context, q control.ImageToThin, publish func(layers []string) (control.ThinLayer, error)) (
		control.ThinImage, error)
}

// Node is the state of a host. It is safe for concurrent use.
type Node struct {
	cfg     Config
	layers  *layers.Store
	objects *objects.Store
	index   *objects.Index
	view    *view.FS
	starts  *starts
	machine machine

	exporter *metrics.Exporter

	mu      lockorder.Mutex // guards the following
	current *configuration  // nil before Configure
	limitBy string          // what says the cache's limit, for people

	limiting  sync.Mutex     // while the cache's limits are set, and current with them
	limits    objects.Limits // as they were set; limiting guards it, and the next
	quotaSeen *config.Seen   // what the host's limit was read from

	pushing sync.Mutex       // while pushes is made
	pushes  *pushback.Pusher // nil until a layer is pushed back

	composingThin lockorder.IDs // thin layers that are being composed

	naming    lockorder.Mutex // held while an image comes to be named by a layer, or stops being so
	composing int             // how many calls of compose are under way; naming guards it
	sweepDue  bool            // images nobody names may be on disk; naming guards it

	mounting sync.Mutex // one mount of an image, or a shared overlay, at a time

	composed, mounted work

	finding     sync.Mutex // while a file is looked for
	nextFinding time.Time  // when one may be; finding guards it
}

// configuration is what Configure has set.
type configuration struct {
	settings     Settings
	face         Face
	view         chosenView
	around       int64        // bytes around a page that the kernel asks for with it, more than a start profile has
	mapped       func() error // reports why owners can't be mapped for single mounts
	composer     Composer
	repositories *client.Repositories // nil with Config.NewComposer
}

// Open opens a node's folder, or starts a new one, and takes off what a former life has mounted for itself alone.
func Open(cfg Config) (*Node, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	n := &Node{cfg: cfg, machine: thisMachine(), starts: newStarts()}
	n.exporter = metrics.New(metrics.Config{Status: n.Status, Log: cfg.Log})
	n.mu.Place(lockorder.Leaf, "node", cfg.Watch)
	n.naming.Place(lockorder.Naming, "naming", cfg.Watch)
	n.composingThin.Place(lockorder.Composing, cfg.Watch)
	if err := n.checkLayout(); err != nil {
		return nil, err
	}
	for _, dir := range []string{
		n.Path("store"), n.Path("fresh"), n.Path("state"),
		n.run("images"), n.run("shared"), n.run("mapped"), n.run("views"), n.run("empty"),
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open node: %w", err)
		}
	}
	if err := n.sweep(); err != nil {
		return nil, fmt.Errorf("open node: %w", err)
	}
	var err error
	n.layers, err = layers.Open(layers.Config{
		Dir: n.Path("layers"), Device: n.Path("state", "backing-device"), Log: cfg.Log, Watch: cfg.Watch,
	})
	if err != nil {
		return nil, err
	}
	if err := n.openObjects(); err != nil {
		return nil, err
	}
	return n, nil
}

// openObjects opens the object store and the FUSE tree above it.
func (n *Node) openObjects() (err error) {
	// Node ids must be the same in every server of one FUSE mount, so the key is made from what names the mount.
	key := sha256.Sum256([]byte(n.cfg.Generation))
	n.index = objects.NewIndex([16]byte(key[:16]))
	inPart := int64(0)
	if n.cfg.Recorder {
		inPart = objects.LeastCut
	}
	n.objects, err = objects.Open(objects.Config{
		Dir: n.Path("store", "objects"), Fresh: n.Path("fresh", "objects"), State: n.Path("state", "objects"),
		Sources: n, Images: cachedImages{n}, NothingAhead: n.cfg.Recorder, InPart: inPart, Log: n.cfg.Log,
	})
	if err != nil {
		return err
	}
	n.view = view.New(view.Config{
		Objects: objectfs.New(objectfs.Config{
			Index: n.index, Store: n.objects, InPart: inPart, Users: n.objectUsers, Log: n.cfg.Log,
		}),
		Index: n.index, Store: n.objects, Dir: n.Path("store", "objects"), Layers: n.Path("layers"), Log: n.cfg.Log,
		Users: func(key string) []any { return []any{"layers", some(n.users(key))} },
	})
	return nil
}

// Tree is what the FUSE mount at Run/fuse is to serve.
func (n *Node) Tree() fusewire.Tree { return n.view }

// Run does what is to be done in the background, until ctx ends.
func (n *Node) Run(ctx context.Context) {
	var work sync.WaitGroup
	work.Go(func() { n.poll(ctx) })
	n.objects.Run(ctx)
	work.Wait()
}

// Close ends the use of the object store.
func (n *Node) Close() error {
	n.starts.close()
	n.exporter.Close()
	return n.objects.Close()
}

// Layers returns the layers on disk.
func (n *Node) Layers() *layers.Store { return n.layers }

// Generation names the FUSE mount.
func (n *Node) Generation() string { return n.cfg.Generation }

// Path returns a path below the folder of all that is kept.
func (n *Node) Path(elem ...string) string { return filepath.Join(n.cfg.Root, filepath.Join(elem...)) }

func (n *Node) run(elem ...string) string { return filepath.Join(n.cfg.Run, filepath.Join(elem...)) }

// Configure makes settings those that hold, and their composer the one that is used. It may be called any number of
// times, by the same face. The images that mounts are in use of are taken into use.
func (n *Node) Configure(settings Settings, face Face) error {
	n.naming.Lock() // no image comes or goes meanwhile
	defer n.naming.Unlock()
	former, _ := n.configured()
	if former != nil && reflect.DeepEqual(settings, former.settings) {
		return nil
	}
	if err := n.setOwners(settings.IDs); err != nil {
		return err
	}
	next := &configuration{settings: settings, face: face}
	var err error
	if next.view, err = n.choose(settings.View); err != nil {
		return err
	}
	next.around = n.readAhead(next.view.view)
	next.mapped = sync.OnceValue(func() error { return n.tryMapped(next.view) })
	if err := n.newComposer(next); err != nil {
		return err
	}
	if err := n.hold(next); err != nil {
		next.close()
		return err
	}
	n.useMounted(next) // before the former one lets go of them: containers may be reading
	if former != nil {
		former.close()
	}
	n.sweepImages()
	n.exporter.Listen(settings.Metrics)
	return nil
}

// hold makes a configuration the one that holds, and bounds the object store as it says.
func (n *Node) hold(next *configuration) error {
	n.limiting.Lock() // until both are done
	defer n.limiting.Unlock()
	if err := n.limitCache(next); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.current = next
	return nil
}

// setOwners sets who may pass the folders above layers: as overlay2 has it, only the remapped root passes to what a
// container owns.
func (n *Node) setOwners(ids user.IdentityMapping) error {
	_, gid := ids.RootPair()
	if err := errors.Join(os.Chown(n.cfg.Root, 0, gid), os.Chmod(n.cfg.Root, 0o710)); err != nil {
		return err
	}
	return n.layers.SetOwners(ids)
}

// newComposer makes the composer for some settings.
func (n *Node) newComposer(c *configuration) (err error) {
	if n.cfg.NewComposer != nil {
		c.composer, err = n.cfg.NewComposer(c.settings)
		return err
	}
	folder, err := n.configurationFolder()
	if err != nil {
		return err
	}
	c.repositories = client.NewRepositories(folder, c.settings.Repositories,
		client.Options{Dir: n.Path("state", "repositories"), UserAgent: n.cfg.Agent, Log: n.cfg.Log})
	c.composer, err = images.New(images.Config{
		Dir: n.Path("images"), Repositories: c.repositories, Index: n.index, View: n.view, IDs: c.settings.IDs,
		Nested: n.cfg.Nested, Isolate: c.settings.Isolate, Here: n.objects.Holds, Log: n.cfg.Log,
	})
	return err
}

// configurationFolder is the host's configuration, with our defaults.
func (n *Node) configurationFolder() (config.Folder, error) {
	defaults, err := n.cfg.Defaults()
	if err != nil {
		return config.Folder{}, fmt.Errorf("read the default configuration: %w", err)
	}
	return config.Folder{Dir: n.cfg.Configuration, Defaults: defaults}, nil
}

// close ends the use of former settings.
func (c *configuration) close() {
	if c.repositories != nil {
		c.repositories.Close()
	}
	c.composer.Close()
}

// configured returns what Configure has set.
func (n *Node) configured() (*configuration, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.current == nil {
		return nil, ErrNotReady
	}
	return n.current, nil
}

// Settings returns those that hold.
func (n *Node) Settings() (Settings, error) {
	c, err := n.configured()
	if err != nil {
		return Settings{}, err
	}
	return c.settings, nil
}

// checkLayout refuses a folder that another version has made.
func (n *Node) checkLayout() error {
	if err := os.MkdirAll(n.cfg.Root, 0o700); err != nil {
		return fmt.Errorf("open node: %w", err)
	}
	file := n.Path("layout")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(n.Path("layers")); err == nil {
			return fmt.Errorf("open node: %s has layers but no file %q: it is not of this driver's making",
				n.cfg.Root, "layout")
		}
		return durable.Replace(file, 0o600, []byte(layout+"\n"))
	}
	if err != nil {
		return fmt.Errorf("open node: %w", err)
	}
	if got := strings.TrimSpace(string(b)); got != layout {
		return fmt.Errorf("open node: %s has layout %.20q, this version of the driver knows %q: run the version that made it", n.cfg.Root, got, layout)
	}
	return nil
}

// sweep removes what a former life left unfinished: temporary names begin with a dot, and views were mounted for it
// alone. On a temporary folder something may be mounted, which was to tell who sees it (hostfs.Unseen).
func (n *Node) sweep() error {
	entries, err := os.ReadDir(n.cfg.Root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if durable.IsTemporary(e.Name()) {
			err = errors.Join(err, n.cfg.Kernel.Unmount(n.Path(e.Name())))
		}
	}
	if err := errors.Join(err, durable.Sweep(n.cfg.Root)); err != nil {
		return err
	}
	if entries, err = os.ReadDir(n.Path("state")); err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			if err := os.RemoveAll(n.Path("state", e.Name())); err != nil {
				return err
			}
		}
	}
	return n.unmountAll(n.run("views"))
}
