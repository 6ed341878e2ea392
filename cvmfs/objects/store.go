package objects

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/fetch"
)

// Sources returns the way to a repository's servers.
type Sources interface {
	Fetcher(repo string) (*fetch.Fetcher, error)
}

// Config says where a store lies and where its objects come from. The three folders are made if they are missing. Dir
// and Fresh must lie on one file system.
type Config struct {
	Dir     string // objects, in 256 folders
	Fresh   string // fresh links, likewise
	State   string // folder of the mark
	Sources Sources
	Log     *slog.Logger
	BootID  string // names the present life of the machine; "" is the kernel's /proc/sys/kernel/random/boot_id

	Limits    Limits
	Images    Images // nil: none is known, and none in use but those told by Used
	ScrubRate int64  // bytes a second that scrubbing reads; 0 is 8 MiB, less is no scrubbing
	// Idle is for how long nobody must have waited for the network before objects that are partly here are completed; 0
	// is ten seconds.
	Idle time.Duration
	// Block is the size of the aligned parts of large objects whose other pieces are fetched with one that is read: a
	// round trip is as long as the transfer of several. 0 is 512 KiB.
	Block int64
	// NothingAhead has only that fetched which is read: no neighbours, no chunks that follow, and nothing is completed.
	NothingAhead bool
	// InPart has objects of more bytes read from partial files that never become objects, so that recordings see every
	// read of them; 0: none.
	InPart int64
	// Hold is how long an image that was said to be used counts as mounted, so that it may be mounted meanwhile; 0 is a
	// minute.
	Hold time.Duration
}

// Store is the folder of objects. It is safe for concurrent use. While a process ends that used the folder before, it
// may still fetch into it.
type Store struct {
	cfg     Config
	log     *slog.Logger
	boot    string
	dir     *os.File
	unnamed bool   // the file system makes files without a name
	mode    uint32 // of such files

	life    context.Context // of flights; ends with Close
	end     context.CancelFunc
	tasks   tasks // goroutines that outlive a call
	flights flights
	slots   chan struct{} // fetches somebody waits for
	behind  chan struct{} // fetches of chunks that nobody waits for yet

	ahead    prefetcher
	followed followed

	followers   chan struct{} // objects that are being followed
	piecesAhead atomic.Int64  // chunks on their way that nobody waits for, but for those of profiles
	starts      starts
	holds       heldObjects
	fresh       freshLinks
	partials    partials
	changed     atomic.Bool // objects arrived or went since the mark
	marking     sync.Mutex

	token     string // names this process as the owner
	ledger    ledger
	admission admission
	eviction  eviction
	scrubbed  atomic.Pointer[Scrub] // nil before scrubbing has begun

	fetched, fetchedBytes, failed, prefetched, dropped, chunks, waiting atomic.Int64
	hits, misses, damaged                                               atomic.Int64
	aheadBytes, aheadUsed, startBytes                                   atomic.Int64
	recordings                                                          atomic.Pointer[[]*Recording]
	readers                                                             pace
	quiet                                                               quiet
}

// Stats count since the store was opened, except where said.
type Stats struct {
	Fetched      int64 // objects that arrived complete
	FetchedBytes int64 // their plain bytes
	Failed       int64 // flights that failed, those nobody waited for any more included
	Prefetched   int64 // of Fetched, those that arrived by Prefetch
	AheadBytes   int64 // plain bytes that arrived before anybody asked for them: neighbours, and chunks that follow
	AheadUsed    int64 // of AheadBytes, those that somebody has asked for since
	StartBytes   int64 // plain bytes that arrived as start profiles name them
	Dropped      int64 // objects Prefetch had no room for
	Chunks       int64 // chunks that arrived in partial files
	Queued       int64 // objects that wait for Prefetch now
	Waiting      int64 // waits for flights now
	Partials     int64 // partial files now
	PartialBytes int64 // plain bytes in them now: disk space no folder shows
	FreshLinks   int64 // fresh links now
}

const (
	foreground = 256 // fetches at once that somebody waits for, and of chunks as many that nobody does
	tmpFolder  = "tmp"
	attribute  = "user.cvmfs.sha256"
	// tmpAge is after which time without a write a temporary name is one that was left behind.
	tmpAge = 10 * time.Minute
)

// Open opens a store, and makes its folders. If the machine went down without warning since the store was last used, it
// checks the objects that may not have reached the disk.
func Open(cfg Config) (*Store, error) {
	s := &Store{
		cfg: cfg, log: cfg.Log, boot: cfg.BootID, slots: make(chan struct{}, foreground),
		behind: make(chan struct{}, foreground), followers: make(chan struct{}, followers),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.eviction.keep = cmp.Or(cfg.Hold, holdFor)
	s.cfg.Idle = cmp.Or(cfg.Idle, idleFor)
	s.quiet.broken() // programs may start right after the node
	s.cfg.Block = cmp.Or(cfg.Block, blockSize)
	if s.boot == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("open object store: %w", err)
		}
		s.boot = string(b)
	}
	if err := s.makeFolders(); err != nil {
		return nil, fmt.Errorf("open object store %s: %w", cfg.Dir, err)
	}
	dir, err := os.Open(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open object store: %w", err)
	}
	s.dir = dir
	s.life, s.end = context.WithCancel(context.Background())
	s.partials.admission = &s.admission
	s.probe()
	err = s.takeOver()
	if err == nil {
		err = s.recover()
	}
	if err == nil {
		s.admission.wished = cfg.Limits
		err = s.applyLimits()
	}
	if err != nil {
		dir.Close() // the error that is told is the first one
		return nil, fmt.Errorf("open object store %s: %w", cfg.Dir, err)
	}
	return s, nil
}

// makeFolders makes what is missing, and checks that links are possible from Dir to Fresh.
func (s *Store) makeFolders() error {
	for _, top := range []string{s.cfg.Dir, s.cfg.Fresh} {
		if err := os.MkdirAll(top, 0o755); err != nil {
			return err
		}
		for i := range folders {
			if err := os.Mkdir(filepath.Join(top, folderName(i)), 0o755); err != nil &&
				!errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	if err := s.makeTmp(); err != nil {
		return err
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(s.cfg.Dir, &a), unix.Stat(s.cfg.Fresh, &b)); err != nil {
		return err
	}
	if a.Dev != b.Dev {
		return fmt.Errorf("%s is on another file system: objects can't be linked to it", s.cfg.Fresh)
	}
	return os.MkdirAll(s.cfg.State, 0o700)
}

// makeTmp makes the folder of files without a name, and removes what a killed process left there under a temporary one.
// What is young may be a predecessor's that still answers its last requests.
func (s *Store) makeTmp() error {
	tmp := filepath.Join(s.cfg.Dir, tmpFolder)
	if err := os.Mkdir(tmp, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && time.Since(info.ModTime()) > tmpAge {
			err = os.Remove(filepath.Join(tmp, e.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Close ends all flights, makes what is here durable and says so. Calls that wait get an error.
func (s *Store) Close() error {
	s.ahead.close()
	s.end()
	s.tasks.wait()
	s.settle(time.Now())
	s.partials.dropIdle(time.Now())
	err := s.sync(true)
	return errors.Join(err, s.dir.Close())
}

// Has reports whether the object is here, complete.
func (s *Store) Has(r Ref) bool {
	return s.Holds(r.Path(), r.Size())
}

// Holds reports whether an object of a size is here, complete, at its place below the store's folder.
func (s *Store) Holds(path string, size int64) bool {
	var st unix.Stat_t
	return unix.Fstatat(int(s.dir.Fd()), path, &st, 0) == nil && st.Size == size
}

// Fetch makes an object be here, complete and verified. Calls for one object share a flight, whose failure all of them
// get; a call whose context ends leaves, and the last one to leave ends the flight.
//
// Errors are those of fetch.Fetcher.Get: fs.ErrNotExist only if all servers of all repositories that name the object
// lack it. A full disk is syscall.ENOSPC, by SpaceError where the floor is reached. ErrLimit means that ReadAt has to
// be asked.
func (s *Store) Fetch(ctx context.Context, r Ref) error {
	s.asked(r, 0, r.Size())
	return s.fetch(ctx, r)
}

// fetch is Fetch of what recordings are not told of.
func (s *Store) fetch(ctx context.Context, r Ref) error {
	n := r.named()
	ended, here, err := s.look(n)
	if here || err != nil {
		s.hits.Add(1)
		return err
	}
	s.misses.Add(1)
	s.quiet.broken()
	defer s.quiet.broken()
	for began := time.Now(); ; {
		here, err = s.bringMissing(ctx, n, ended, s.slots, false, nil)
		if err != nil {
			return err
		}
		if !here { // it may have been on its way, fetched ahead: then it is held, or its room was needed
			ended, here, err = s.look(n)
		}
		if here || err != nil {
			s.readers.waited(time.Since(began))
			return err
		}
	}
}

// look reports whether an object is here, and gives it its name if it is held. For bringMissing it also returns how
// many flights had ended before.
func (s *Store) look(r named) (ended int64, here bool, err error) {
	ended = s.flights.ended.Load() // first: what arrives after has has looked is by a flight that ends later
	if s.Holds(r.path, r.Size()) {
		return ended, true, nil
	}
	here, err = s.claim(r)
	return ended, here, err
}

// bring makes an object be here, or with hold be held. It also reports whether it was this call that made it arrive.
func (s *Store) bring(ctx context.Context, ref Ref, slots chan struct{}, hold bool) (bool, error) {
	r := ref.named()
	ended := s.flights.ended.Load()
	if s.Holds(r.path, r.Size()) || s.holds.has(r.Name()) {
		return false, nil
	}
	return s.bringMissing(ctx, r, ended, slots, hold, nil)
}

// getter gets the plain bytes of something stored, as download does.
type getter func(ctx context.Context, stored Stored, w *part) error

// bringMissing is bring for an object that was neither here nor held when so many flights had ended. get gets it; nil:
// download.
func (s *Store) bringMissing(
	ctx context.Context, r named, ended int64, slots chan struct{}, hold bool, get getter,
) (bool, error) {
	name := r.Name()
	arrived := false // of the flight's, and to be read only once it has ended
	err := s.join(ctx, &s.flights, name, func(ctx context.Context) error {
		if s.flights.ended.Load() != ended || r.Chunked() { // chunks arrive by other flights, too
			if s.Holds(r.path, r.Size()) || s.holds.has(name) {
				return nil
			}
		}
		if err := s.arrive(ctx, r, slots, hold, get); err != nil {
			return err
		}
		arrived = true
		s.fetched.Add(1)
		s.fetchedBytes.Add(r.Size())
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("fetch object %s: %w", name, err)
	}
	return arrived, nil
}

// join waits for a flight, which it starts if there is none.
func (s *Store) join(ctx context.Context, g *flights, key string, fly func(context.Context) error) error {
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	patient, trace := fetch.LetsPass(ctx), httptrace.ContextClientTrace(ctx)
	return g.join(ctx, s.life, &s.tasks, key, func(ctx context.Context) error {
		if patient { // who joins later finds it near its turn
			ctx = fetch.LetPass(ctx)
		}
		if trace != nil {
			ctx = httptrace.WithClientTrace(ctx, trace)
		}
		err := fly(ctx)
		if err != nil {
			s.failed.Add(1)
		}
		return err
	})
}

// arrive fetches an object in a flight. With hold it is held, unless it is in chunks.
func (s *Store) arrive(ctx context.Context, r named, slots chan struct{}, hold bool, get getter) error {
	o := r.Object()
	if len(o.Chunks) > 0 {
		return s.arriveInChunks(ctx, r.Ref)
	}
	if err := take(ctx, slots); err != nil {
		return err
	}
	defer give(slots)
	if err := s.reserve(ctx, o.Size); err != nil {
		return err
	}
	inPart := int64(0)
	defer func() { s.admission.landed(o.Size, inPart) }()
	t, err := s.newTemp()
	if err != nil {
		return err
	}
	w := &part{file: t.File, size: o.Size, sum: sums.Get().(sum)}
	defer sums.Put(w.sum)
	if get == nil {
		get = s.from(r)
	}
	err = get(ctx, o.Stored()[0], w)
	if err == nil && hold {
		s.hold(t, r, w.sum.Sum(nil))
		inPart = o.Size
		return nil
	}
	if err == nil {
		err = s.publish(t, r.Path(), r.Size(), w.sum.Sum(nil))
	}
	t.discard()
	return err
}

func take(ctx context.Context, slots chan struct{}) error {
	if slots == nil {
		return nil
	}
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func give(slots chan struct{}) {
	if slots != nil {
		<-slots
	}
}

// from is download of r.
func (s *Store) from(r named) getter {
	return func(ctx context.Context, stored Stored, w *part) error { return s.download(ctx, r, stored, w) }
}

// download gets what is stored of r from wherever those that name r say it is.
func (s *Store) download(ctx context.Context, r named, stored Stored, w *part) error {
	var kept error
	for _, o := range r.x.origins(r) {
		stored.External, stored.File = o.external, o.path
		f, err := s.cfg.Sources.Fetcher(o.repo)
		if err == nil {
			err = stored.Download(ctx, f, w)
		}
		if err == nil || ctx.Err() != nil || w.err != nil {
			return err
		}
		if kept == nil || errors.Is(kept, fs.ErrNotExist) {
			kept = fmt.Errorf("repository %s: %w", o.repo, err)
		}
	}
	return kept
}

// part is the place of a stored object's plain bytes in a file. A download never writes more than size bytes, and after
// a success they are all new: what a failed attempt left need not be erased.
type part struct {
	file *os.File
	at   int64 // position in the file
	size int64
	sum  sum // nil: not wanted
	n    int64
	err  error // of the file, as opposed to the network's
}

func (p *part) Write(b []byte) (int, error) {
	n, err := p.file.WriteAt(b, p.at+p.n)
	p.n += int64(n)
	if err != nil {
		p.err = err
		return n, err
	}
	if p.sum != nil {
		p.sum.Write(b) // a hash takes everything
	}
	return n, nil
}

func (p *part) Reset() error {
	p.n = 0
	if p.sum != nil {
		p.sum.Reset()
	}
	return nil
}

// ReadAt reads an object's plain bytes at off, as io.ReaderAt says. Of an object in chunks only those the range touches
// are fetched; once all are here they become the object. Other objects are fetched whole. At the limit of the cache
// they are not stored, but read.
func (s *Store) ReadAt(ctx context.Context, r Ref, p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read object %s: position %d", r.Name(), off)
	case off >= r.Size():
		return 0, io.EOF
	case r.Chunked() || s.inPart(r):
		if part, err := s.missing(r); err != nil {
			return 0, err
		} else if part != nil {
			defer s.partials.release(part)
			return s.readPartial(ctx, r, part, p, off)
		}
	}
	s.asked(r, off, min(off+int64(len(p)), r.Size()))
	err := s.fetch(ctx, r)
	if errors.Is(err, ErrLimit) {
		return s.readUnstored(ctx, r, p, off)
	}
	if err != nil {
		return 0, err
	}
	f, err := os.Open(filepath.Join(s.cfg.Dir, r.Path()))
	if errors.Is(err, fs.ErrNotExist) {
		return s.readUnstored(ctx, r, p, off) // removed meanwhile
	}
	if err != nil {
		return 0, fmt.Errorf("read object: %w", err)
	}
	defer f.Close()
	return f.ReadAt(p, off)
}

// Run does the work that comes round until ctx ends: it removes old fresh links, gives up partial files nobody reads,
// sets the mark, counts what is here if need be, evicts and scrubs.
func (s *Store) Run(ctx context.Context) {
	const round = 30 * time.Second
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	s.tasks.start(func() {
		if !s.ledger.exact.Load() {
			if err := s.count(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("object store: how much is used is not known well", slog.Any("err", err))
			}
		}
		s.scrub(ctx)
	})
	if !s.cfg.NothingAhead {
		s.tasks.start(func() { s.completeIdle(ctx) })
	}
	tick := time.NewTicker(round)
	defer tick.Stop()
	var mounted []string
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.fresh.sweep(now)
			s.settle(now.Add(-heldFor))
			s.partials.dropIdle(now.Add(-partialIdle))
			s.ahead.forgetOld(now)
			s.followed.forgetOld(now)
			mounted = s.lookAround(mounted)
			if err := s.sync(false); err != nil {
				s.log.Warn("object store: mark not set, more will be checked after a power cut", slog.Any("err", err))
			}
		}
	}
}

// lookAround sees what has changed without being told. It takes and gives the images that are mounted.
func (s *Store) lookAround(before []string) (mounted []string) {
	if err := s.fresh.adopt(time.Now()); err != nil {
		s.log.Warn("object store: fresh links of another process stay", slog.Any("err", err))
	}
	mounted, err := s.touchMounted()
	if err != nil {
		s.log.Warn("object store: which images are mounted is not known", slog.Any("err", err))
	}
	if err := s.applyLimits(); err != nil {
		s.log.Warn("object store: its file system doesn't tell its size", slog.Any("err", err))
	}
	if !slices.Equal(mounted, before) {
		s.admission.unstick()
	}
	s.keepAhead()
	return mounted
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	st := Stats{
		Fetched:      s.fetched.Load(),
		FetchedBytes: s.fetchedBytes.Load(),
		Failed:       s.failed.Load(),
		Prefetched:   s.prefetched.Load(),
		AheadBytes:   s.aheadBytes.Load(),
		AheadUsed:    s.aheadUsed.Load(),
		StartBytes:   s.startBytes.Load(),
		Dropped:      s.dropped.Load(),
		Chunks:       s.chunks.Load(),
		Waiting:      s.waiting.Load(),
		Queued:       s.ahead.queued(),
		FreshLinks:   s.fresh.count(),
	}
	st.Partials, st.PartialBytes = s.partials.count()
	return st
}
