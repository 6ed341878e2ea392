package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moby/sys/user"
	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/internal/erofs"
	"cvmfs-graphdriver/thin"
)

const (
	// format counts up when the same chain would be composed differently: older images are then not found any more.
	format = 1
	// parallel bounds how many layers are read at once.
	parallel = 8
)

// Config is what a Composer works with.
type Config struct {
	Dir          string               // folder of the images, created if missing
	Repositories *client.Repositories // where thin layers are read
	Index        *objects.Index       // told about the objects of every image in use
	View         View                 // shows every image in use; nil for none
	IDs          user.IdentityMapping // the engine's userns-remap; empty for none
	Nested       bool                 // files lie below the folder [Folder] of an image, not in its root
	Isolate      bool                 // repositories share no objects with others in images composed from now on
	// Here reports whether an object of a size lies at a place of the store: such ones are used as they are, however a
	// start profile has them cut. nil: none does.
	Here func(place string, size int64) bool
	Log  *slog.Logger
}

// Folder is the folder of a nested image that its files are below. Where the image isn't mounted it isn't there either,
// so that an overlay that names it can't take an empty mount point for the image.
const Folder = "diff"

// View shows images in some other way than by mounting them; *view.FS is one.
type View interface {
	Add(key, path string) error
	Remove(key string)
}

// Composer composes chains and keeps the images. It is safe for concurrent use.
type Composer struct {
	cfg Config

	mu     sync.Mutex
	loaded map[string]*Image        // images in use in this life, by key
	turns  map[string]chan struct{} // by key of an image that is being composed; closed when that has ended
	closed bool
}

// Layer is one layer of a chain: a thin one, or an ordinary one of package layers.
type Layer struct {
	Thin *thin.Descriptor // nil for an ordinary layer

	ID   string // ordinary: its id in package layers, as redirects spell it
	Diff string // ordinary: its diff folder, absolute
}

// Image is a composed image on disk.
type Image struct {
	Key     string         `json:"key"`
	Meta    string         `json:"-"`       // path of the EROFS image
	Table   *objects.Table `json:"-"`       // its objects; nil of an image that isn't in use
	Layers  []Pin          `json:"layers"`  // the repositories' folders in it, bottom to top
	Objects int            `json:"objects"` // distinct objects named
	Size    int64          `json:"size"`    // plain bytes of all files
	Created string         `json:"created"` // RFC 3339, UTC

	Isolated bool `json:"isolated,omitempty"` // its objects are shared by images of the same repository alone

	Packs []objects.Pack `json:"-"` // of its start profile; nil of an image that wasn't composed just now
}

// Pin is the state of a repository an image was composed from.
type Pin struct {
	FQRN        string `json:"repository"`
	Path        string `json:"path"`
	Revision    uint64 `json:"revision"`
	Certificate string `json:"certificate"` // fingerprint
}

// uuid is the EROFS image's, of the key's first bytes.
func (i *Image) uuid() (id [16]byte) {
	hex.Decode(id[:], []byte(i.Key[:32])) // a key is hex: key makes it
	return id
}

// ErrNoImage means that an image isn't on disk (any more): compose its chain again.
var ErrNoImage = errors.New("no such composed image")

// ErrClosed means that another composer has taken over.
var ErrClosed = errors.New("the driver was initialised with other options meanwhile: repeat the call")

// GoneError means that a repository was asked for the folder of a layer, and hasn't got it.
type GoneError struct {
	Layer    thin.Layer
	Revision uint64 // the newest, which was asked
	Err      error
}

func (e *GoneError) Error() string {
	return fmt.Sprintf("not in revision %d, the newest: publish the layer, or convert the image again: %v", e.Revision, e.Err)
}

func (e *GoneError) Unwrap() error { return e.Err }

// New makes a composer on a folder of images. What a former life left half-written is for Sweep to remove.
func New(cfg Config) (*Composer, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open composed images: %w", err)
	}
	return &Composer{cfg: cfg, loaded: map[string]*Image{}, turns: map[string]chan struct{}{}}, nil
}

// Sweep removes what is half-written and gives the keys of the images there are, in order. No image may be in the
// making, neither by this composer nor by another one on the same folder.
func (c *Composer) Sweep() (keys []string, err error) {
	entries, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list composed images: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(c.cfg.Dir, e.Name())
		_, missing := os.Lstat(filepath.Join(name, recordFile))
		if !durable.IsTemporary(e.Name()) && !errors.Is(missing, fs.ErrNotExist) {
			keys = append(keys, e.Name())
			continue
		}
		if err := os.RemoveAll(name); err != nil {
			return nil, fmt.Errorf("remove half-written image: %w", err)
		}
	}
	return keys, nil
}

// Compose returns the image of a chain (bottom to top, the topmost thin), composed now unless one with the same content
// is there. Repositories are read at their newest revision. Who asks for an image that is being composed waits for it;
// when a call returns, nothing goes on that it has begun.
func (c *Composer) Compose(ctx context.Context, chain []Layer) (*Image, error) {
	parts, err := c.resolve(ctx, chain)
	if err != nil {
		return nil, err
	}
	profile := ProfileOf(chain)
	image, err := c.composeOnce(ctx, parts, profile)
	if errors.Is(err, errStart) && ctx.Err() == nil {
		c.cfg.Log.Warn("start profile: an image is composed of its layers' files as they are", "err", err)
		image, err = c.composeOnce(ctx, parts, nil)
	}
	return image, err
}

// composeOnce is Compose of what was found. The error is errStart if only what belongs to the profile can't be had.
func (c *Composer) composeOnce(ctx context.Context, parts []part, profile *thin.Profile) (*Image, error) {
	key := c.key(parts, profile)
	if image, err := c.Image(key); err == nil || !errors.Is(err, ErrNoImage) {
		return image, err
	}
	end, err := c.turn(ctx, key)
	if err != nil {
		return nil, err
	}
	defer end()
	if image, err := c.Image(key); err == nil || !errors.Is(err, ErrNoImage) {
		return image, err // the one before has made it
	}
	return c.compose(ctx, key, parts, profile)
}

// turn waits until nobody composes an image and gives what ends our composing it.
func (c *Composer) turn(ctx context.Context, key string) (end func(), err error) {
	for {
		c.mu.Lock()
		other := c.turns[key]
		if other == nil {
			mine := make(chan struct{})
			c.turns[key] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				delete(c.turns, key)
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Describe reports what is known of an image without taking it into use; ErrNoImage if it isn't there.
func (c *Composer) Describe(key string) (*Image, error) {
	if image := c.inUse(key); image != nil {
		return image, nil
	}
	return c.read(key)
}

// Peek returns the objects of an image without taking it into use: of one that isn't, the table is read for the caller
// alone.
func (c *Composer) Peek(key string) (*objects.Table, error) {
	if image := c.inUse(key); image != nil {
		return image.Table, nil
	}
	return c.openTable(key)
}

func (c *Composer) inUse(key string) *Image {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.loaded[key]
}

// Close takes the objects of all images out of the index, for another composer that has taken over folder and index.
// What is under way fails with ErrClosed.
func (c *Composer) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, image := range c.loaded {
		c.cfg.Index.Remove(image.Table)
	}
	c.loaded, c.closed = nil, true
}

// Image returns an image composed before and takes it into use: its objects are in the index from then on. It is
// ErrNoImage if the image isn't there.
func (c *Composer) Image(key string) (*Image, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if image := c.loaded[key]; image != nil {
		return image, nil
	}
	image, err := c.read(key)
	if err != nil {
		return nil, err
	}
	if image.Table, err = c.openTable(key); err != nil {
		return nil, err
	}
	if c.cfg.View != nil {
		if err := c.cfg.View.Add(key, image.Meta); err != nil {
			return nil, err
		}
	}
	c.cfg.Index.Add(image.Table)
	c.loaded[key] = image
	return image, nil
}

// read reads an image's record.
func (c *Composer) read(key string) (*Image, error) {
	dir := filepath.Join(c.cfg.Dir, key)
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoImage, key)
	}
	image := &Image{Meta: filepath.Join(dir, metaFile)}
	if err == nil {
		err = json.Unmarshal(b, image)
	}
	if err != nil {
		return nil, fmt.Errorf("open composed image %s: its record, %s: %w: remove the image and pull it again", key,
			recordFile, err)
	}
	return image, nil
}

func (c *Composer) openTable(key string) (*objects.Table, error) {
	t, err := objects.OpenTable(filepath.Join(c.cfg.Dir, key, tableFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s has no object table", ErrNoImage, key)
	}
	if err != nil {
		return nil, fmt.Errorf("open composed image %s: %w: remove the image and pull it again", key, err)
	}
	names, err := readNames(filepath.Join(c.cfg.Dir, key, namesFile))
	if err != nil {
		c.cfg.Log.Warn("libraries of an image aren't fetched ahead", "image", key, "err", err)
	}
	t.SetNames(names)
	return t, nil
}

// Remove deletes an image that no layer needs any more. A mount of it must be gone before.
func (c *Composer) Remove(key string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	if c.cfg.View != nil {
		c.cfg.View.Remove(key)
	}
	if image := c.loaded[key]; image != nil {
		c.cfg.Index.Remove(image.Table)
		delete(c.loaded, key)
	}
	if err := durable.RemoveFolder(filepath.Join(c.cfg.Dir, key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove composed image: %w", err)
	}
	return nil
}

// part is a piece of a chain, ready to be read: a repository's folder or an ordinary layer.
type part struct {
	folder *folder
	layer  Layer
}

// resolve finds the folders the chain's descriptors name, each repository at one revision.
func (c *Composer) resolve(ctx context.Context, chain []Layer) ([]part, error) {
	var parts []part
	layers := map[string][]thin.Layer{} // by repository
	places := map[string][]int{}        // of these in parts
	var repositories []string           // in the order they are met
	for _, l := range chain {
		if l.Thin == nil {
			parts = append(parts, part{layer: l})
			continue
		}
		for _, t := range l.Thin.Layers {
			if layers[t.FQRN] == nil {
				repositories = append(repositories, t.FQRN)
			}
			layers[t.FQRN] = append(layers[t.FQRN], t)
			places[t.FQRN] = append(places[t.FQRN], len(parts))
			parts = append(parts, part{})
		}
	}
	for _, fqrn := range repositories {
		folders, err := c.folders(ctx, fqrn, layers[fqrn])
		if err != nil {
			return nil, err
		}
		for i, f := range folders {
			parts[places[fqrn][i]].folder = f
		}
	}
	return parts, nil
}

// folders finds the folders of layers of a repository. Those that are missing may have been published since the
// revision at hand was fetched.
func (c *Composer) folders(ctx context.Context, fqrn string, layers []thin.Layer) ([]*folder, error) {
	revision, places, err := c.places(ctx, fqrn, layers)
	var owners *config.Config
	if err == nil {
		owners, err = c.cfg.Repositories.Config(fqrn)
	}
	if err != nil {
		return nil, fmt.Errorf("layers at cvmfs://%s: %w", fqrn, err)
	}
	folders := make([]*folder, len(layers))
	for i, t := range layers {
		if places[i].Entry == nil {
			return nil, atLayer(t, &GoneError{t, revision.Number, fs.ErrNotExist})
		}
		record, err := recordAt(places[i].Beside, t.Path)
		if err != nil {
			return nil, atLayer(t, err)
		}
		folders[i] = &folder{
			revision: revision, holder: places[i].Holder, fqrn: fqrn, path: t.Path, record: record,
			isolate: c.cfg.Isolate, tells: owners.Network.SendInfoHeader,
			ids: idMaps{repository: owners, engine: c.cfg.IDs},
		}
	}
	return folders, nil
}

// places looks layers up in the revision at hand, or, where that lacks one, in the newest.
func (c *Composer) places(ctx context.Context, fqrn string, layers []thin.Layer) (
	*client.Revision, []client.Place, error,
) {
	repository, err := c.cfg.Repositories.Repository(fqrn)
	if err != nil {
		return nil, nil, err
	}
	revision, err := repository.Newest(ctx)
	if err != nil {
		return nil, nil, err
	}
	var paths []string
	for _, t := range layers {
		paths = append(paths, t.Path)
	}
	places, err := revision.Places(ctx, paths, thin.RecordSuffix)
	if err != nil {
		return nil, nil, err
	}
	missing := slices.IndexFunc(places, func(p client.Place) bool { return p.Entry == nil })
	if missing < 0 {
		return revision, places, nil
	}
	newer, err := repository.Refresh(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%s is not in revision %d, and whether there is a newer one can't be found out: %w",
			paths[missing], revision.Number, err)
	}
	if newer.Root == revision.Root {
		return revision, places, nil
	}
	places, err = newer.Places(ctx, paths, thin.RecordSuffix)
	return newer, places, err
}

// atLayer says which layer an error is about.
func atLayer(t thin.Layer, err error) error {
	return fmt.Errorf("layer %.12s at cvmfs://%s%s: %w", t.Digest, t.FQRN, t.Path, err)
}

// key digests what the image will be made of. The catalog that holds a folder's entry names, by hash, everything below
// it; a layer's record lies beside the folder.
func (c *Composer) key(parts []part, profile *thin.Profile) string {
	h := sha256.New()
	e := json.NewEncoder(h)
	write := func(v ...any) {
		if err := e.Encode(v); err != nil {
			panic("compose: key of plain values: " + err.Error())
		}
	}
	write("format", format, c.cfg.IDs.UIDMaps, c.cfg.IDs.GIDMaps)
	if c.cfg.Nested {
		write("nested", Folder)
	}
	if c.cfg.Isolate {
		write("isolated")
	}
	if profile != nil {
		write("start profile", profile.FQRN, profile.Path, profile.Digest)
	}
	for _, p := range parts {
		if f := p.folder; f != nil {
			write("folder", f.fqrn, f.path, f.holder.String(), f.ids.repository.UIDMap.String(),
				f.ids.repository.GIDMap.String())
			if f.record != nil {
				write("record", f.record.name)
			}
		} else {
			write("layer", p.layer.ID)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// compose reads all parts, merges them and writes the image.
func (c *Composer) compose(ctx context.Context, key string, parts []part, profile *thin.Profile) (*Image, error) {
	began := time.Now()
	trees := make([]*node, len(parts))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	var start start
	if profile != nil {
		group.Go(func() (err error) {
			start, err = c.start(ctx, profile)
			return err
		})
	}
	for n, p := range parts {
		group.Go(func() (err error) {
			if p.folder != nil {
				trees[n], err = p.folder.read(ctx)
			} else {
				trees[n], err = readDir(p.layer)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	f := flatten(mergeAll(c.root(), trees), start.cuts)
	f.profile = start.profile
	if c.cfg.Nested {
		f.nest()
	}
	image := &Image{
		Key: key, Meta: filepath.Join(c.cfg.Dir, key, metaFile), Objects: len(f.table), Size: f.size,
		Created: began.UTC().Format(time.RFC3339), Isolated: c.cfg.Isolate,
	}
	for _, p := range parts {
		if f := p.folder; f != nil {
			image.Layers = append(image.Layers, Pin{f.fqrn, f.path, f.revision.Number, f.revision.Certificate})
		}
	}
	if err := f.write(c.cfg.Dir, image); err != nil {
		return nil, fmt.Errorf("compose image %.12s: %w", key, err)
	}
	c.cfg.Log.Info("composed image", "image", key, "layers", len(parts), "objects", image.Objects, "bytes", image.Size,
		"took", time.Since(began).Round(time.Millisecond))
	made, err := c.Image(key)
	if err != nil || len(start.packs) == 0 {
		return made, err
	}
	withPacks := *made
	withPacks.Packs = start.packs
	return &withPacks, nil
}

// mergeAll lays the layers' trees, bottom to top, over each other. The root folder has the attributes of the topmost
// layer whose record tells some; else those given, and the time of the topmost layer.
func mergeAll(root *inode, trees []*node) *node {
	merged := newDir(root)
	recorded := false
	for n, t := range trees {
		merged.merge(t)
		if t.recorded {
			root, recorded = t.inode, true
		}
		trees[n] = nil
	}
	if !recorded {
		root.Mtime, root.MtimeN = merged.Mtime, merged.MtimeN
	}
	merged.inode = root
	return merged
}

// root is the attributes of an image's root folder: a layer's folder in a repository belongs to whoever published it.
func (c *Composer) root() *inode {
	i := &inode{Node: erofs.Node{Mode: typeDir | 0o755}}
	if !c.cfg.IDs.Empty() {
		u, g := c.cfg.IDs.RootPair()
		i.UID, i.GID = uint32(u), uint32(g)
	}
	return i
}
