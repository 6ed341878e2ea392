package graphdriver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"

	"github.com/moby/go-archive"
	"github.com/moby/sys/user"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/lockorder"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/internal/hostfs"
)

// Config is what a Driver works with.
type Config struct {
	Node    *node.Node
	Objects Objects // nil: the node
	Log     *slog.Logger
	Watch   lockorder.Watcher // for tests
}

// Objects is the files of composed images, as far as they are on disk.
type Objects interface {
	// Local reports how much of an image is on disk, whether it is in use or not.
	Local(image string) (objects.Share, error)
	// Complete fetches what isn't, as objects.Store.Complete does.
	Complete(ctx context.Context, image string) (objects.Completion, error)
}

// InitArgs are the engine's arguments to Init.
type InitArgs struct {
	Home    string       `json:"home"` // not used: its last part is a name the administrator chose
	Opts    []string     `json:"opts"` // "name=value"
	UIDMaps []user.IDMap `json:"uidMaps"`
	GIDMaps []user.IDMap `json:"gidMaps"`
}

// Driver is the storage driver that an engine sees. It is safe for concurrent use.
type Driver struct {
	cfg    Config
	node   *node.Node
	layers *layers.Store

	locks    lockorder.IDs // of mounts and their records, by layer
	idle     idleLayers
	stranded strandedImages
}

var _ node.Face = (*Driver)(nil)

// Open makes a driver of a node. What a former life has mounted and nobody answers for is taken off. Where the engine
// has sent Init in a former life its arguments hold again, as engines don't repeat it to a plugin that was restarted.
func Open(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Objects == nil {
		cfg.Objects = cfg.Node
	}
	d := &Driver{cfg: cfg, node: cfg.Node, layers: cfg.Node.Layers()}
	d.locks.Place(lockorder.Mounts, cfg.Watch)
	d.idle.mu.Place(lockorder.Leaf, "idle", cfg.Watch)
	d.stranded.mu.Place(lockorder.Leaf, "stranded", cfg.Watch)
	if err := os.MkdirAll(d.mountPoint(""), 0o700); err != nil {
		return nil, fmt.Errorf("open storage driver: %w", err)
	}
	if err := d.detach(func(o openLayer) bool { return o.Refs == 0 }); err != nil {
		return nil, fmt.Errorf("open storage driver: %w", err)
	}
	b, err := os.ReadFile(d.initFile())
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open storage driver: %w", err)
	}
	var args InitArgs
	if err := json.Unmarshal(b, &args); err != nil {
		return nil, fmt.Errorf("open storage driver: %s: %w", d.initFile(), err)
	}
	if err := d.configure(args); err != nil {
		// A repository's configuration may be broken for now; the next Init tells the engine.
		cfg.Log.Error("initialise again from the arguments on disk", "err", err)
		return d, nil
	}
	d.strand()
	return d, nil
}

func (d *Driver) initFile() string { return d.node.Path("state", "init.json") }

// mountPoint is the folder that shows a layer; of "", the folder of all these.
func (d *Driver) mountPoint(id string) string { return filepath.Join(d.node.Path("mnt"), id) }

// Init takes the engine's arguments. It may come any number of times. Layers that were cut short while being made are
// removed, mounts that hang on another FUSE mount are detached; open layers of this generation stay open, each for one
// Put. A host that layers can't be kept on is refused.
func (d *Driver) Init(args InitArgs) error {
	if err := d.node.CheckHost(); err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	if err := d.configure(args); err != nil {
		return err
	}
	if err := d.keepArguments(args); err != nil {
		return fmt.Errorf("keep the arguments of Init: %w", err)
	}
	if err := d.removeUncommitted(); err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	if err := d.detach(func(o openLayer) bool { return o.Generation != d.node.Generation() }); err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	if err := d.recount(); err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	if unseen, err := hostfs.Unseen(d.node.Path("")); err == nil && unseen {
		d.cfg.Log.Error("the engine doesn't see what is mounted here: the folder that it shares with the plugin was " +
			"unmounted; \"cvmfs-graphdriver doctor\" says how to mend it")
	}
	return nil
}

// keepArguments keeps the arguments for the next life. Those that are kept already need no room on the disk.
func (d *Driver) keepArguments(args InitArgs) error {
	b, err := json.Marshal(args)
	if err != nil {
		return err
	}
	if kept, err := os.ReadFile(d.initFile()); err == nil && bytes.Equal(kept, b) {
		return nil
	}
	return durable.Replace(d.initFile(), 0o600, b)
}

// configure makes the arguments those that hold.
func (d *Driver) configure(args InitArgs) error {
	settings, err := parseOptions(args.Opts)
	if err != nil {
		return err
	}
	settings.IDs = user.IdentityMapping{UIDMaps: args.UIDMaps, GIDMaps: args.GIDMaps}
	_, gid := settings.IDs.RootPair()
	if err := errors.Join(os.Chown(d.mountPoint(""), 0, gid), os.Chmod(d.mountPoint(""), 0o710)); err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	former, _ := d.node.Settings() // none before Init
	if err := d.node.Configure(settings, d); err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	if !settings.IDs.Empty() && !reflect.DeepEqual(settings, former) {
		d.cfg.Log.Info("users are remapped", "owner", remapped(settings.IDs))
	}
	return nil
}

// removeUncommitted removes read-only layers whose content never arrived.
func (d *Driver) removeUncommitted() error {
	ids, err := d.layers.Uncommitted()
	if err != nil {
		return err
	}
	for _, id := range ids {
		d.cfg.Log.Info("remove a layer that was cut short", "layer", id)
		if err := d.Remove(id); err != nil {
			return err
		}
	}
	return nil
}

// ready returns an error before Init.
func (d *Driver) ready() error {
	_, err := d.node.Settings()
	return err
}

// CreateArgs describe a layer to be made.
type CreateArgs struct {
	ID, Parent string
	Writable   bool
	StorageOpt map[string]string // options of one container: size, where project quotas are on
}

// Create makes an empty layer. One that is there already, with the same parent, is left as it is: engines repeat
// requests.
func (d *Driver) Create(args CreateArgs) error {
	if err := d.ready(); err != nil {
		return err
	}
	if err := layers.CheckID(args.ID); err != nil {
		return fmt.Errorf("create layer: %w", err)
	}
	size, err := sizeOf(args)
	if err != nil {
		return fmt.Errorf("create layer %s: %w", args.ID, err)
	}
	err = d.layers.Create(layers.CreateArgs{ID: args.ID, Parent: args.Parent, Writable: args.Writable, Size: size})
	if err == nil && d.idle.has(args.Parent) {
		go d.retire(args.Parent) // it is a lower layer from now on
	}
	return err
}

// ApplyDiff gives an empty layer its content and returns its size in bytes, as node.Apply does.
func (d *Driver) ApplyDiff(ctx context.Context, id, parent string, r io.Reader) (int64, error) {
	if err := d.ready(); err != nil {
		return 0, err
	}
	if layers.CheckID(id) == nil && d.opened(id).Refs > 0 {
		return 0, fmt.Errorf("apply layer %s: it is mounted", id)
	}
	return d.node.Apply(ctx, id, parent, r)
}

// Diff returns what a layer adds to its parent as an image layer, as layers.Diff does. Of a container on a thin image
// that may be the descriptor of a thin layer, as node.PushBack has it: an engine asks for a container's own layer when
// it is committed, and at no other time.
func (d *Driver) Diff(ctx context.Context, id, parent string) (io.ReadCloser, error) {
	if err := d.ready(); err != nil {
		return nil, err
	}
	archive := func() (io.ReadCloser, error) { return d.layers.Diff(ctx, id, parent) }
	if parent == id+node.InitSuffix {
		pushed, err := d.node.PushBack(ctx, parent, archive)
		if err != nil {
			return nil, fmt.Errorf("diff layer %s: %w", id, err)
		}
		if pushed != nil {
			return io.NopCloser(bytes.NewReader(pushed)), nil
		}
	}
	return archive()
}

// Changes lists what a layer changes against another one, as node.Changes does.
func (d *Driver) Changes(ctx context.Context, id, other string) ([]archive.Change, error) {
	d.retireChains(id, other)
	return d.node.Changes(ctx, id, other)
}

// DiffSize returns the bytes of the files a layer changes against another one, as node.DiffSize does.
func (d *Driver) DiffSize(ctx context.Context, id, other string) (int64, error) {
	d.retireChains(id, other)
	return d.node.DiffSize(ctx, id, other)
}

// Exists reports whether there is a layer of that id.
func (d *Driver) Exists(id string) bool { return d.layers.Exists(id) }

// Remove deletes a layer, mounted or not, and the composed image that no other layer names. A layer that isn't there is
// no error.
func (d *Driver) Remove(id string) error {
	if err := layers.CheckID(id); err != nil {
		return fmt.Errorf("remove layer: %w", err)
	}
	defer d.locks.Lock(id)()
	if err := d.close(id); err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	return d.node.Remove(id)
}

// Cleanup detaches every mount: the engine is about to end.
func (d *Driver) Cleanup() error {
	if err := d.detach(func(openLayer) bool { return true }); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	if err := d.node.UnmountImages(); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}
