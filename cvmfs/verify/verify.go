package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
)

// ErrUnreachable says that verifying ended because servers can't be reached any more.
var ErrUnreachable = errors.New("servers can't be reached, so what is left was not verified")

const (
	defaultReaders  = 32
	defaultPatience = 15 * time.Second // longer than a fetcher's longest cool-down
	mostUnreachable = 8                // objects in a row, each after the patience, before it ends
	mostWaiting     = 1024             // paths of an object that is being fetched
	mostRemembered  = 4 << 20          // objects, 60 bytes each; then they are forgotten and may be fetched again
)

// Options say how a revision is verified.
type Options struct {
	Readers  int           // objects at once; 0: 32
	Patience time.Duration // how long servers of an object may be unreachable; 0: 15 s

	Progress func(Summary) // nil: none; called every second, never at the same time as another function of Options
	Problem  func(Problem) // called for each problem as it is found
}

// Kind says what is bad.
type Kind string

// The kinds of problems.
const (
	Catalog Kind = "catalog" // nothing below its path was verified
	Object  Kind = "object"  // of a file
	Chunk   Kind = "chunk"   // of a file
	Entry   Kind = "entry"   // a row that contradicts itself
	History Kind = "history" // the tags
)

// Problem is something bad at a path. An object that is bad is one at each path whose file needs it.
type Problem struct {
	Kind Kind
	Path string // any bytes
	Hash string // "" if it isn't known
	Err  error  // names the servers that were asked, and what each did
}

// String names all of it, for people.
func (p Problem) String() string {
	text := fmt.Sprintf("%s %q", p.Kind, p.Path)
	if p.Hash != "" {
		text += ": " + p.Hash
	}
	return text + ": " + p.Err.Error()
}

// Summary counts what was verified.
type Summary struct {
	Catalogs int   `json:"catalogs"`
	Entries  int64 `json:"entries"`     // of all types
	Files    int64 `json:"files"`       // regular ones, external ones included if they are verified
	Objects  int64 `json:"objects"`     // files and chunks, each once
	Bytes    int64 `json:"bytes"`       // plain bytes of these objects
	External int64 `json:"external"`    // files outside of the object store; verified where their servers are configured
	Foreign  int64 `json:"bind_mounts"` // folders at which another revision is attached; not entered
	Bad      int64 `json:"bad"`         // catalogs, entries and objects; an object of several paths counts once
	Failures int64 `json:"failures"`    // attempts that failed, those included that another server made good
}

// Run verifies all below a path: catalogs, the objects of all files, and of the whole repository ("") the tags, too. An
// error means that it could not go on. That something is bad is in the summary.
func Run(ctx context.Context, r *client.Repository, v *client.Revision, path string, o Options) (Summary, error) {
	if o.Readers <= 0 {
		o.Readers = defaultReaders
	}
	if o.Patience <= 0 {
		o.Patience = defaultPatience
	}
	run := &run{
		o: o, fetcher: r.Fetcher(), revision: v, catalogs: map[hash.Digest]bool{}, known: map[object]bool{},
		fetching: map[object]*waiting{}, before: r.Fetcher().Stats().Failures,
	}
	stop := run.tick()
	defer stop()
	err := run.all(ctx, path)
	if err != nil {
		err = fmt.Errorf("verify %q in %s, revision %d: %w", path, v.FQRN, v.Number, err)
	}
	return run.counted(), err
}

// object is what is fetched once.
type object struct{ objects.Stored }

func (o object) kind() Kind {
	if o.Suffix == hash.Chunk {
		return Chunk
	}
	return Object
}

// waiting are the paths that wait for an object's verdict.
type waiting struct {
	paths []string
	done  chan struct{}
}

type run struct {
	o        Options
	fetcher  *fetch.Fetcher
	revision *client.Revision
	before   int64 // failures of the fetcher's

	mu          sync.Mutex // guards what follows, and is held while functions of Options run
	summary     Summary
	catalogs    map[hash.Digest]bool
	known       map[object]bool // whether it is bad
	fetching    map[object]*waiting
	unreachable int // objects in a row
}

// tick reports progress until it is stopped.
func (r *run) tick() (stop func()) {
	if r.o.Progress == nil {
		return func() {}
	}
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				r.mu.Lock()
				r.o.Progress(r.counts())
				r.mu.Unlock()
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended); <-done }
}

func (r *run) counted() Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts()
}

// counts is called with mu held.
func (r *run) counts() Summary {
	s := r.summary
	s.Failures = r.fetcher.Stats().Failures - r.before
	return s
}

func (r *run) all(ctx context.Context, path string) error {
	if path == "" {
		if err := r.history(ctx); err != nil {
			return err
		}
	}
	work, ctx := errgroup.WithContext(ctx)
	queue := make(chan object, r.o.Readers)
	work.Go(func() error {
		defer close(queue)
		return r.revision.WalkOn(ctx, path,
			func(n *client.Node) error { return r.node(ctx, n, queue) },
			func(path string, err error) error { return r.lost(path, err) })
	})
	for range r.o.Readers {
		work.Go(func() error {
			for o := range queue {
				if err := r.fetch(ctx, o); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return work.Wait()
}

// history verifies the tags.
func (r *run) history(ctx context.Context) error {
	_, err := r.revision.Tags(ctx)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		r.bad(Problem{Kind: History, Hash: r.revision.History.String(), Err: err})
	}
	return nil
}

// lost notes a catalog that can't be read.
func (r *run) lost(path string, err error) error {
	r.bad(Problem{Kind: Catalog, Path: path, Err: err})
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reached(err)
}

// reached ends the run if nobody can be reached any more. It is called with mu held, for each fetch.
func (r *run) reached(err error) error {
	if !unreachable(err) {
		r.unreachable = 0
		return nil
	}
	if r.unreachable++; r.unreachable < mostUnreachable {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// bad counts and tells a problem.
func (r *run) bad(p Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.summary.Bad++
	r.tell(p)
}

// tell is called with mu held.
func (r *run) tell(p Problem) {
	if p.Path == "" {
		p.Path = "/"
	}
	r.o.Problem(p)
}

// node counts an entry and queues its objects.
func (r *run) node(ctx context.Context, n *client.Node, queue chan<- object) error {
	if !r.count(n) {
		return nil
	}
	for _, o := range r.objects(n) {
		if err := r.want(ctx, o, n.Path, queue); err != nil {
			return err
		}
	}
	return nil
}

// objects are what a file consists of; none if its entry contradicts itself.
func (r *run) objects(n *client.Node) (all []object) {
	content, err := objects.FromEntry(n.Entry, n.Path)
	if err != nil {
		r.bad(Problem{Kind: Entry, Path: n.Path, Err: err})
		return nil
	}
	for _, s := range content.Stored() {
		if !s.External {
			s.Offset = 0 // equal chunks are one object
		}
		all = append(all, object{s})
	}
	return all
}

// count counts an entry and reports whether it has objects to be verified.
func (r *run) count(n *client.Node) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.summary.Entries++
	if !r.catalogs[n.Catalog] {
		r.catalogs[n.Catalog] = true
		r.summary.Catalogs++
	}
	switch {
	case n.Flags&catalog.BindMount != 0:
		r.summary.Foreign++
	case n.IsRegular():
		if n.Flags&catalog.External != 0 {
			r.summary.External++
			if _, err := r.fetcher.External(); err != nil {
				return false
			}
		}
		r.summary.Files++
		return true
	}
	return false
}

// want sees to it that an object is fetched, and that a path is told if it is bad.
func (r *run) want(ctx context.Context, o object, path string, queue chan<- object) error {
	for {
		w, first := r.enlist(o, path)
		switch {
		case first:
			select {
			case queue <- o:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case w == nil:
			return nil
		}
		select {
		case <-w.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// enlist puts a path to those that wait for an object. It reports whether the object is still to be fetched, and
// returns what has to end before the path can be put anywhere, if that is so.
func (r *run) enlist(o object, path string) (full *waiting, first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if bad, known := r.known[o]; known {
		if bad {
			r.tell(Problem{Kind: o.kind(), Path: path, Hash: o.Digest.String(), Err: errToldBefore})
		}
		return nil, false
	}
	w := r.fetching[o]
	if w == nil {
		r.fetching[o] = &waiting{paths: []string{path}, done: make(chan struct{})}
		return nil, true
	}
	if len(w.paths) >= mostWaiting {
		return w, false
	}
	w.paths = append(w.paths, path)
	return nil, false
}

// errToldBefore is why an object is bad whose first path was told with the cause.
var errToldBefore = errors.New("bad, as told before")

// fetch verifies an object.
func (r *run) fetch(ctx context.Context, o object) error {
	err := r.download(ctx, o)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return r.judge(o, err)
}

// judge notes how the fetch of an object ended, and tells all paths that wait for it.
func (r *run) judge(o object, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) >= mostRemembered {
		clear(r.known)
	}
	w := r.fetching[o]
	delete(r.fetching, o)
	close(w.done)
	r.known[o] = err != nil
	r.summary.Objects++
	if err == nil {
		r.summary.Bytes += o.Size
		return r.reached(nil)
	}
	r.summary.Bad++
	for _, path := range w.paths {
		r.tell(Problem{Kind: o.kind(), Path: path, Hash: o.Digest.String(), Err: err})
	}
	return r.reached(err)
}

// unreachable reports whether an error says nothing of an object.
func unreachable(err error) bool {
	return errors.Is(err, fetch.ErrUnavailable) && !errors.Is(err, fetch.ErrBadData) && !errors.Is(err, fs.ErrNotExist)
}

// download fetches an object. A server that was found dead by another request is waited for: the object isn't bad for
// that.
func (r *run) download(ctx context.Context, o object) error {
	deadline := time.Now().Add(r.o.Patience)
	for {
		err := o.Download(ctx, r.fetcher, nowhere{io.Discard})
		switch {
		case err == nil || !unreachable(err) || time.Now().After(deadline):
			return err
		}
		select {
		case <-time.After(min(time.Second, r.o.Patience/4)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// nowhere is where bytes go that are only verified.
type nowhere struct{ io.Writer }

// Reset implements objects.Resetter.
func (nowhere) Reset() error { return nil }
