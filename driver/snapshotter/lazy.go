package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/thin"
)

const (
	// lookUpWait is how long the unpacking of a layer waits for repositories to say whether they have it.
	lookUpWait = 2 * time.Second
	// lookUpTime bounds a look-up that nobody waits for any more: what it fetches of catalogs is there for the next.
	lookUpTime = time.Minute
	// pause is how long a repository is left alone that didn't answer in time, or with an error.
	pause = time.Minute
)

// lazily answers for a layer of an ordinary image that is about to be unpacked: true if a repository that may be asked
// has it, and it is a committed snapshot now. The caller is told that it exists, and doesn't download it.
//
// What the labels say is a claim of whoever made the image. Nobody else compares the chain ID with the layer: the
// repository's word for the diffID, on top of the parent's chain ID, must come to the chain ID that is asked for. All
// that goes wrong means that the layer is downloaded as usual. What goes wrong later, replaceGone mends.
func (s *Snapshotter) lazily(ctx context.Context, key, parent string, labels map[string]string) bool {
	chain := digest.Digest(labels[snapshots.LabelSnapshotRef])
	blob := digest.Digest(labels[snapshotters.TargetLayerDigestLabel])
	if s.finder == nil || !isSHA256(chain) || !isSHA256(blob) {
		return false
	}
	there := s.table.list(func(sn *snapshot) bool { return sn.isLazy(chain, blob, parent) })
	for _, sn := range there {
		if s.canBeShown(ctx, sn) {
			return true // another namespace, or a pull at the same time, has it
		}
	}
	if len(there) > 0 {
		return false // of two, containerd would take the one of the lesser name, which has left its repository
	}
	found, err := s.finder.find(ctx, blob.Encoded())
	if err != nil {
		return false
	}
	below := []digest.Digest{digest.Digest(own(parent)), digest.NewDigestFromEncoded(digest.SHA256, found.DiffID)}
	if parent == "" {
		below = below[1:]
	}
	log := s.cfg.Log.With("chain", chain, "layer", found.URL())
	if identity.ChainID(below) != chain {
		log.Warn("a layer isn't taken from the repository: its diffID doesn't make the chain ID that the image claims")
		return false
	}
	name := key[:strings.LastIndexByte(key, '/')+1] + chain.String()
	if err := s.take(name, parent, labels, found); err != nil {
		if !errdefs.IsAlreadyExists(err) {
			log.Error("a layer can't be taken from the repository and is downloaded", "err", err)
		}
		return false
	}
	log.Info("a layer is taken from the repository", "name", name)
	select {
	case s.taken <- struct{}{}:
	default:
	}
	return true
}

// isSHA256 reports whether a label is a digest that may become part of a path.
func isSHA256(d digest.Digest) bool { return d.Validate() == nil && d.Algorithm() == digest.SHA256 }

// isLazy reports whether a snapshot is one that lazily has made for a layer on top of a parent.
func (sn *snapshot) isLazy(chain, blob digest.Digest, parent string) bool {
	return sn.committed && !sn.hidden && sn.Lazy && sn.below == parent &&
		sn.Labels[snapshots.LabelSnapshotRef] == chain.String() && sn.blob() == blob
}

// take makes a committed snapshot of a layer in a repository. It is composed when something is to be shown of it: the
// layers above are likely to be in the repository, too.
func (s *Snapshotter) take(name, parent string, labels map[string]string, found thin.Layer) error {
	r := newRecord(name, labels)
	r.Lazy = true
	id, err := s.numbers.next()
	if err != nil {
		return err
	}
	sn, err := s.table.add(r, id, parent)
	if err != nil {
		return err
	}
	if err := s.makeLazy(sn, found); err != nil {
		return errors.Join(err, s.unmake(sn))
	}
	s.table.change(sn, sn.record, true)
	s.table.show(sn)
	return nil
}

// makeLazy brings the snapshot to disk: until its layer is sealed it is an active one that containerd doesn't know, and
// removes.
func (s *Snapshotter) makeLazy(sn *snapshot, found thin.Layer) error {
	note, err := sn.encode()
	if err != nil {
		return err
	}
	args := layers.CreateArgs{ID: sn.id, Writable: true, Note: note}
	if sn.parent != nil {
		args.Parent = sn.parent.id
	}
	if err := s.layers.Create(args); err != nil {
		return err
	}
	d := &thin.Descriptor{Origin: sn.Labels[snapshotters.TargetRefLabel], Layers: []thin.Layer{found}}
	if err := s.layers.FillThin(sn.id, d); err != nil {
		return err
	}
	return s.layers.Seal(sn.id, true, "")
}

// finder asks repositories for layers.
type finder struct {
	// ask returns the layer of a blob (SHA-256, hex) in a repository; fs.ErrNotExist if it hasn't got it
	ask          func(ctx context.Context, fqrn, digest string) (thin.Layer, error)
	repositories []string // in the order in which their layers are preferred
	wait         time.Duration
	log          *slog.Logger

	mu     sync.Mutex
	paused map[string]time.Time // repositories that are left alone until then
}

// answer is what a repository says.
type answer struct {
	layer thin.Layer
	err   error
}

// errSlow means that no repository has said in time that it has a layer.
var errSlow = errors.New("no answer in time")

// findIn asks one repository for a layer. The error is errSlow if it doesn't answer in time, or is left alone.
func (f *finder) findIn(ctx context.Context, fqrn, digest string) (thin.Layer, error) {
	if f.isPaused(fqrn) {
		return thin.Layer{}, errSlow
	}
	ctx, cancel := context.WithTimeoutCause(ctx, f.wait, errSlow)
	defer cancel()
	select {
	case a := <-f.begin(ctx, fqrn, digest):
		return a.layer, a.err
	case <-ctx.Done():
		return thin.Layer{}, context.Cause(ctx)
	}
}

// find returns a layer in the first of the repositories that has it, of those that answer in time.
func (f *finder) find(ctx context.Context, digest string) (thin.Layer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.wait, errSlow)
	defer cancel()
	var asked []chan answer
	var names []string
	for _, fqrn := range f.repositories {
		if f.isPaused(fqrn) {
			continue
		}
		names, asked = append(names, fqrn), append(asked, f.begin(ctx, fqrn, digest))
	}
	for i, ch := range asked {
		select {
		case a := <-ch:
			if a.err == nil {
				return a.layer, nil
			}
			continue
		case <-ctx.Done():
		}
		select {
		case a := <-ch: // it was in time, and a former one wasn't
			if a.err == nil {
				return a.layer, nil
			}
		default:
			if errors.Is(context.Cause(ctx), errSlow) {
				f.leave(names[i], errSlow)
			}
		}
	}
	return thin.Layer{}, fs.ErrNotExist
}

// begin asks a repository. It goes on for a while when nobody waits any more, so that what was fetched is there for the
// next layer; a repository that has answered is asked again.
func (f *finder) begin(ctx context.Context, fqrn, digest string) chan answer {
	ch := make(chan answer, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookUpTime)
		defer cancel()
		layer, err := f.ask(ctx, fqrn, digest)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.leave(fqrn, err)
		} else {
			f.resume(fqrn)
		}
		ch <- answer{layer, err}
	}()
	return ch
}

func (f *finder) isPaused(fqrn string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Before(f.paused[fqrn])
}

// leave leaves a repository alone for a while.
func (f *finder) leave(fqrn string, because error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Now().Before(f.paused[fqrn]) {
		return
	}
	f.paused[fqrn] = time.Now().Add(pause)
	f.log.Warn("layers aren't looked for in a repository for a while: images are downloaded as usual", "repository",
		fqrn, "for", pause, "err", because)
}

func (f *finder) resume(fqrn string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.paused, fqrn)
}

// existing is the answer to who prepares a snapshot that is there already.
func existing(key, chain string) error {
	return fmt.Errorf("snapshot %q: its layer is there as %s: %w", key, chain, errdefs.ErrAlreadyExists)
}
