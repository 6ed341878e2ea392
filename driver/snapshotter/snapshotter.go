package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/lockorder"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/thin"
)

// Config is what a Snapshotter works with.
type Config struct {
	Node     *node.Node
	Settings node.Settings
	// connection to the containerd that is served, to be asked for the names of images; nil for none
	Containerd grpc.ClientConnInterface
	Log        *slog.Logger
	Watch      lockorder.Watcher // for tests

	// for tests: asks repositories for layers; nil: as the node does
	Find   func(ctx context.Context, fqrn, digest string) (thin.Layer, error)
	Settle time.Duration // for tests: how soon blobs of layers that were found so are downloaded; 0: 20 s
}

// Snapshotter is the snapshots that containerd sees. It is safe for concurrent use.
type Snapshotter struct {
	cfg    Config
	node   *node.Node
	layers *layers.Store

	locks   lockorder.IDs // of snapshots that change, by layer
	table   table
	numbers numbers
	finder  *finder       // nil: layers of ordinary images are never taken from repositories
	taken   chan struct{} // has one when some were, since Run has looked
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
	_ node.Face             = faceOf{}
)

// Open makes a snapshotter of a node, whose composed images must be nested, and has the node run by the settings.
func Open(cfg Config) (*Snapshotter, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Snapshotter{cfg: cfg, node: cfg.Node, layers: cfg.Node.Layers(), taken: make(chan struct{}, 1)}
	if cfg.Find == nil {
		cfg.Find = cfg.Node.Published
	}
	if lazy := cfg.Settings.Lazy; len(lazy) > 0 {
		s.finder = &finder{
			ask: cfg.Find, repositories: lazy, wait: lookUpWait, log: cfg.Log, paused: map[string]time.Time{},
		}
	}
	s.locks.Place(lockorder.Mounts, cfg.Watch)
	s.table.mu.Place(lockorder.Leaf, "snapshots", cfg.Watch)
	s.table.names, s.table.taken = map[string]*snapshot{}, map[string]bool{}
	for _, open := range []func() error{
		cfg.Node.CheckHost, s.load, s.openNumbers, s.leaveGeneration,
		func() error { return cfg.Node.Configure(cfg.Settings, faceOf{s}) }, s.leaveMounts,
	} {
		if err := open(); err != nil {
			return nil, fmt.Errorf("open snapshots: %w", err)
		}
	}
	return s, nil
}

// load reads the records of all snapshots. One whose record or parent can't be made out is shown to nobody, and keeps
// what it stands on: the others, and the containers that run on them, don't depend on it.
func (s *Snapshotter) load() error {
	noted, err := s.layers.Noted()
	if err != nil {
		return err
	}
	byID := map[string]*snapshot{}
	for _, n := range noted {
		sn := s.read(n)
		byID[n.ID], s.table.names[sn.Name] = sn, sn
	}
	for _, n := range noted {
		sn := byID[n.ID]
		below := cmp.Or(n.Parent, sn.Below)
		if below == "" {
			continue
		}
		parent := byID[below]
		if parent == nil {
			delete(s.table.names, sn.Name)
			s.hideDamaged(sn, fmt.Errorf("the layer of its parent, %s, is missing", below))
			s.table.names[sn.Name] = sn
			continue
		}
		sn.parent, sn.below = parent, parent.Name
		parent.children++
	}
	return nil
}

// read makes a snapshot of what is on disk.
func (s *Snapshotter) read(n layers.Noted) *snapshot {
	r, err := decode(n.Note, n.Committed)
	switch {
	case n.NoteErr != nil:
		err = n.NoteErr
	case err == nil && r.Name == "":
		err = errors.New("its note has no name")
	case err == nil && s.table.names[r.Name] != nil:
		err = fmt.Errorf("layer %s has the name %q, too", s.table.names[r.Name].id, r.Name)
	}
	sn := &snapshot{id: n.ID, record: r, committed: n.Committed}
	if err := errors.Join(err, n.RecordErr); err != nil {
		s.hideDamaged(sn, err)
	}
	if err != nil && n.RecordErr != nil {
		s.table.lost = s.layers.Folder(n.ID) // neither says what it stands on
	}
	return sn
}

// hideDamaged hides a snapshot for good, under a name that none of containerd's has.
func (s *Snapshotter) hideDamaged(sn *snapshot, err error) {
	s.cfg.Log.Error("a snapshot can't be used, its layer is left as it is", "layer", sn.id, "name", sn.Name,
		"folder", s.layers.Folder(sn.id), "err", err)
	sn.Name, sn.hidden = "damaged layer "+sn.id, true
}

// Prepare makes an active snapshot on top of a committed one, or of nothing, and returns its mounts. It is
// ErrAlreadyExists also where that was to unpack a layer to, which was found in a repository instead.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	labels, err := labelsOf(opts)
	if err != nil {
		return nil, err
	}
	if s.lazily(ctx, key, parent, labels) {
		return nil, existing(key, labels[snapshots.LabelSnapshotRef])
	}
	return s.create(ctx, key, parent, false, opts)
}

// View makes a snapshot that shows a committed one, or nothing, and returns its mounts.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, key, parent, true, opts)
}

func (s *Snapshotter) create(
	ctx context.Context, key, parent string, view bool, opts []snapshots.Opt,
) ([]mount.Mount, error) {
	labels, err := labelsOf(opts)
	if err != nil {
		return nil, err
	}
	if key == "" {
		return nil, fmt.Errorf("a snapshot needs a key: %w", errdefs.ErrInvalidArgument)
	}
	r := newRecord(key, labels)
	r.View = view
	if err := r.mapOwners(); err != nil {
		return nil, err
	}
	if left := s.table.left(key); left != nil {
		if err := s.unmake(left); err != nil {
			return nil, fmt.Errorf("remove what is left of a snapshot %q that couldn't be made: %w", key, err)
		}
	}
	id, err := s.numbers.next()
	if err != nil {
		return nil, err
	}
	sn, err := s.table.add(r, id, parent)
	if err != nil {
		return nil, err
	}
	mounts, err := s.make(ctx, sn)
	if err != nil {
		return nil, fmt.Errorf("make snapshot %q: %w", key, errors.Join(err, s.unmake(sn)))
	}
	s.table.show(sn)
	return mounts, nil
}

// unmake removes what there is of a snapshot that couldn't be made. If that fails, too, its name isn't free until who
// wants it next has removed it: of two layers with one name the next life would have to guess.
func (s *Snapshotter) unmake(sn *snapshot) error {
	if err := s.node.Remove(sn.id); err != nil {
		s.table.leave(sn)
		return err
	}
	s.table.drop(sn)
	return nil
}

// make brings a new snapshot to disk and returns its mounts.
func (s *Snapshotter) make(ctx context.Context, sn *snapshot) ([]mount.Mount, error) {
	note, err := sn.encode()
	if err != nil {
		return nil, err
	}
	args := layers.CreateArgs{ID: sn.id, Writable: true, Note: note}
	if sn.parent != nil {
		args.Parent = sn.parent.id
	}
	if err := s.layers.Create(args); err != nil {
		return nil, err
	}
	shown, err := s.show(ctx, *sn)
	if err != nil {
		return nil, err
	}
	if !sn.View || sn.parent == nil {
		if err := ownRoot(shown, sn.ids()); err != nil {
			return nil, err
		}
	}
	return shown.mounts()
}

// Mounts returns the mounts of an active snapshot or a view. What they stand on is mounted if it isn't.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	_, now, err := s.table.find(key)
	if err != nil {
		return nil, err
	}
	if now.committed {
		return nil, fmt.Errorf("mounts of snapshot %q: it is committed: %w", key, errdefs.ErrFailedPrecondition)
	}
	shown, err := s.show(ctx, now)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	return shown.mounts()
}

// Commit makes an active snapshot a committed one of another name, on disk. Its files belong to whom they belonged on
// disk, as containerd's own snapshotters have it: where owners were mapped, to those they were mapped to. One that
// holds nothing but a thin image descriptor is composed, so that whoever pulls it is told what is wrong with it.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	labels, err := labelsOf(opts)
	if err != nil {
		return err
	}
	sn, now, unlock, err := s.lock(key)
	if err != nil {
		return err
	}
	defer unlock()
	if now.kind() != snapshots.KindActive {
		return fmt.Errorf("commit snapshot %q: it isn't active: %w", key, errdefs.ErrFailedPrecondition)
	}
	if err := s.table.take(name); err != nil {
		return fmt.Errorf("commit snapshot %q: %w", key, err)
	}
	defer s.table.give(name)
	to := newRecord(name, labels)
	to.Below = now.Below
	if err := s.commit(ctx, now, &to); err != nil {
		return fmt.Errorf("commit snapshot %q: %w", key, err)
	}
	s.table.change(sn, to, true)
	return nil
}

// commit brings to disk that a snapshot is committed, and what it takes of the disk to its record.
func (s *Snapshotter) commit(ctx context.Context, now snapshot, to *record) error {
	taken, err := usageOf(ctx, s.layers.Content(now.id))
	if err != nil {
		return err
	}
	to.Usage = &taken
	now.Commit = to
	note, err := now.encode()
	if err != nil {
		return err
	}
	if err := s.layers.SetNote(now.id, note); err != nil {
		return err
	}
	parent := ""
	if now.parent != nil {
		parent = now.parent.id
	}
	for {
		err := s.node.Commit(ctx, now.id, parent, ofImage(now.Name, to.Name))
		if err == nil {
			return nil
		}
		if err := s.replaceGone(ctx, now, err); err != nil {
			return err
		}
	}
}

// Remove deletes a snapshot that none stands on.
func (s *Snapshotter) Remove(_ context.Context, key string) error {
	sn, now, unlock, err := s.lock(key)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.table.hide(sn); err != nil {
		return err
	}
	if err := s.node.Remove(now.id); err != nil {
		s.table.show(sn)
		return fmt.Errorf("remove snapshot %q: %w", key, err)
	}
	s.table.drop(sn)
	return nil
}

// lock waits for the lock of a snapshot, and returns what it is then.
func (s *Snapshotter) lock(name string) (sn *snapshot, now snapshot, unlock func(), err error) {
	if sn, _, err = s.table.find(name); err != nil {
		return nil, snapshot{}, nil, err
	}
	unlock = s.locks.Lock(sn.id)
	again, now, err := s.table.find(name)
	if err == nil && again != sn {
		err = notFound(name) // another one got the name meanwhile
	}
	if err != nil {
		unlock()
		return nil, snapshot{}, nil, err
	}
	return sn, now, unlock, nil
}

// Stat tells what a snapshot is.
func (s *Snapshotter) Stat(_ context.Context, key string) (snapshots.Info, error) {
	_, now, err := s.table.find(key)
	if err != nil {
		return snapshots.Info{}, err
	}
	return now.info(), nil
}

// Update changes labels: all, or those that the fields name.
func (s *Snapshotter) Update(_ context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	sn, now, unlock, err := s.lock(info.Name)
	if err != nil {
		return snapshots.Info{}, err
	}
	defer unlock()
	if now.record, err = now.update(info, fields); err != nil {
		return snapshots.Info{}, err
	}
	note, err := now.encode()
	if err == nil {
		err = s.layers.SetNote(now.id, note)
	}
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("update snapshot %q: %w", info.Name, err)
	}
	s.table.change(sn, now.record, now.committed)
	return now.info(), nil
}

// Usage says what the content of a snapshot takes of the disk (of a thin one that is the descriptor).
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	_, now, err := s.table.find(key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if now.committed && now.Usage != nil {
		return snapshots.Usage(*now.Usage), nil
	}
	taken, err := usageOf(ctx, s.layers.Content(now.id))
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of snapshot %q: %w", key, err)
	}
	return snapshots.Usage(taken), nil
}

// usageOf is what the content of a layer takes.
func usageOf(ctx context.Context, folder string) (usage, error) {
	u, err := fs.DiskUsage(ctx, folder)
	return usage{Size: u.Size, Inodes: u.Inodes}, err
}

// Walk calls fn for each snapshot that passes the filters, in the order of their names.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, list ...string) error {
	filter, err := filters.ParseAll(list...)
	if err != nil {
		return err
	}
	for _, info := range s.table.infos(filter) {
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// Cleanup takes off what is mounted for images that no snapshot shows any more.
func (s *Snapshotter) Cleanup(context.Context) error { return s.node.UnmountUnused() }

// Close does nothing: the node isn't the snapshotter's.
func (s *Snapshotter) Close() error { return nil }
