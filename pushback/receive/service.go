package receive

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/cvmfs/publish/s3"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/pushback/api"
)

// Service takes layers and publishes them. Make one by [New], run it by Run, and close it.
type Service struct {
	c      *Config
	log    *slog.Logger
	fqrn   string
	open   func() (sink.Sink, error)
	bucket *s3.Bucket // nil: none
	tokens *tokens    // nil: none
	book   *book
	audit  *audit
	lock   *os.File
	step   func(name string) // told what was reached, where a kill might come; nil

	wake    chan struct{} // there may be something to publish
	look    chan struct{} // there may be something in the bucket
	uploads chan struct{} // one for each upload under way
	seeking chan struct{} // one while the bucket is looked into because somebody asks

	started time.Time

	admission sync.Mutex // held from the look for room for a layer until the layer is recorded
	sent      sent       // guarded by admission
	refused   sent       // uploads that weren't taken; guarded by admission

	noted sync.Map // the last audit line of a digest, without its time, until what follows of it is done

	mu       sync.Mutex // guards what follows
	present  map[string]bool
	seen     time.Time         // when present was found; zero: not yet
	holding  bool              // nobody else can change the repository, since that was found out
	blind    bool              // it can't be found out now
	ask      bool              // somebody wants to know whether what was published is still there
	trouble  string            // why nothing is published now
	pause    time.Duration     // before publishing is tried again
	resume   time.Time         // when
	deferred map[string]string // what lies in the bucket and isn't taken yet, by digest, and why
	hints    map[string]bool   // keys that events told of
	counts   counts
	stranger time.Time // when a token was sent last that isn't known, as the log has it
}

// checkWait is how long the store may take to answer.
const checkWait = 30 * time.Second

// Check finds out whether a service could run by a configuration: whether what it names can be read, its folders can be
// written to, and the bucket can be looked into. Nothing is changed. It returns all that is wrong.
func Check(ctx context.Context, c *Config) error {
	s, err := newService(c, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	target, err := s.open()
	if err != nil {
		return err
	}
	err = writable("state", c.State)
	if dir := filepath.Dir(c.Audit); dir != filepath.Clean(c.State) {
		if stat := unix.Access(dir, unix.W_OK|unix.X_OK); stat != nil {
			err = errors.Join(err, fmt.Errorf("audit: %s can't be written to by uid %d: %w", dir, os.Getuid(), stat))
		}
	}
	if p := sink.Publisher(target); p != nil {
		err = errors.Join(err, writable("target", p.Dir()))
	}
	if s.bucket == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkWait)
	defer cancel()
	enough := errors.New("there is an object")
	looked := s.bucket.List(ctx, func(s3.Object) error { return enough })
	if looked != nil && !errors.Is(looked, enough) {
		err = errors.Join(err, fmt.Errorf("bucket: %w", looked))
	}
	return err
}

// writable returns why a folder of a key can't be written to, or can't be made, by the user who asks.
func writable(key, dir string) error {
	for at := dir; ; at = filepath.Dir(at) {
		err := unix.Access(at, unix.W_OK|unix.X_OK)
		if errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %s can't be written to by uid %d: %w", key, at, os.Getuid(), err)
		}
		return nil
	}
}

// newService makes a service without state.
func newService(c *Config, log *slog.Logger) (*Service, error) {
	s := &Service{
		c: c, log: log, wake: make(chan struct{}, 1), look: make(chan struct{}, 1),
		uploads: make(chan struct{}, c.Limits.Uploads), seeking: make(chan struct{}, 1),
		present: map[string]bool{}, deferred: map[string]string{}, hints: map[string]bool{},
	}
	s.open = func() (sink.Sink, error) {
		o := c.place
		o.FQRN, o.Prefix, o.Note = c.Repository, c.Layout.FolderPrefix(), filepath.Join(c.State, noteFile)
		o.MaxEntries = c.Limits.Entries
		return sink.Open(c.Target, o)
	}
	target, err := s.open()
	if err != nil {
		return nil, err
	}
	s.fqrn = target.FQRN()
	if c.Bucket.Address != "" {
		if s.bucket, err = s3.OpenBucket(c.Bucket.Address, s3.Options{File: c.Bucket.Credentials}); err != nil {
			return nil, err
		}
	}
	if c.Tokens != "" {
		s.tokens = &tokens{file: c.Tokens}
		if _, err := s.tokens.read(); err != nil {
			return nil, err
		}
	}
	if c.Certificate != "" {
		if err := guarded(c.Key); err != nil {
			return nil, err
		}
		if _, err := s.certificate(nil); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// guarded refuses a key of TLS that everybody may use, when the service starts: later ones are taken as they come.
func guarded(key string) error {
	info, err := os.Stat(key)
	if err != nil {
		return fmt.Errorf("certificate and key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return fmt.Errorf("key %s: everybody may use it (mode %04o): chmod 0600 it", key, mode)
	}
	return nil
}

func (s *Service) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(s.c.Certificate, s.c.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	return &pair, nil
}

// New makes a service, whose state is its own from then on.
func New(c *Config, log *slog.Logger) (*Service, error) {
	s, err := newService(c, log)
	if err != nil {
		return nil, err
	}
	if err := prepare(c.State); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if s.lock, err = lock(c.State); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if s.book, err = openBook(c.State, time.Now); err != nil {
		return nil, fmt.Errorf("state: %w", errors.Join(err, s.lock.Close()))
	}
	s.sent, s.refused, s.started = sentBefore(s.book.all()), sent{}, time.Now()
	s.audit = &audit{file: c.Audit, counts: map[Decision]int64{}}
	if err := errors.Join(s.audit.try(), s.reconsider(), s.survived()); err != nil {
		return nil, errors.Join(err, s.lock.Close())
	}
	return s, nil
}

// reconsider holds what waits against the configuration, which may be another one than when it came.
func (s *Service) reconsider() (err error) {
	for _, r := range s.book.all() {
		if r.State != Sending && !r.State.Pending() {
			continue
		}
		var why error
		if r.Key != "" {
			r.Node, why = s.c.sender(folderOf(r.Key), r.Node)
		}
		if why == nil {
			why = s.c.admit(&r)
		}
		switch {
		case why != nil: // the object isn't at fault, and may be taken once the configuration is another one
			r.State, r.Reason, r.Next = Failed, why.Error(), time.Time{}
			err = errors.Join(err, s.enter(DecidedRefused, &r, ""))
		case r.State == Ready && r.By == "" && s.c.approval(&r):
			r.State = Asking
			err = errors.Join(err, s.book.put(r))
		}
	}
	return err
}

// Close gives the state back.
func (s *Service) Close() error { return s.lock.Close() }

// Run does all that the service does until ctx ends, which is how it should end, and no error. ready is called with
// where it listens, nil if nowhere, once requests are answered.
func (s *Service) Run(ctx context.Context, ready func(net.Addr)) error {
	g, ctx := errgroup.WithContext(ctx)
	var address net.Addr
	if s.c.Listen != "" {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.c.Listen)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		address = listener.Addr()
		g.Go(func() error { return s.serve(ctx, listener) })
	}
	if s.bucket != nil {
		g.Go(func() error { s.watch(ctx); return nil })
	}
	g.Go(func() error { s.work(ctx); return nil })
	if ready != nil {
		ready(address)
	}
	return g.Wait()
}

// mostEnds is how often the service may end while it publishes a layer before it does without it. People end it, too.
const mostEnds = 50

// survived notes which layers were being published when the service ended without having said how that went: each gets
// a transaction of its own, as one of them may be why.
func (s *Service) survived() error {
	file := filepath.Join(s.c.State, workingFile)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for digest := range strings.Lines(string(b)) {
		r, ok := s.book.get(strings.TrimSpace(digest))
		if !ok || r.State != Ready {
			continue
		}
		r.Ends++
		r.Attempts = max(r.Attempts, 1)
		if r.Ends >= mostEnds {
			why := fmt.Errorf("the service ended %d times while it published the layer: its log says why", r.Ends)
			err = errors.Join(err, s.fail(DecidedFailed, r, why))
		} else {
			err = errors.Join(err, s.book.put(r))
		}
	}
	if err != nil {
		return err
	}
	return durable.Remove(file)
}

// FQRN is the repository that layers are published in.
func (s *Service) FQRN() string { return s.fqrn }

// reached tells that a step is done that a kill may part from the next one.
func (s *Service) reached(step string) {
	if s.step != nil {
		s.step(step)
	}
}

// signal tells whoever waits at a channel, without waiting for it.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// URL is where a layer is, or will be.
func (s *Service) url(digest string) string { return "cvmfs://" + s.fqrn + s.c.Layout.Path(digest) }

// answer tells the status of a layer.
func (s *Service) answer(digest string) *api.Answer {
	a := &api.Answer{Status: api.Unknown, Digest: digest}
	r, ok := s.book.get(digest)
	if !ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.present[digest] {
			s.done(a, 0)
		} else if why := s.deferred[digest]; why != "" {
			a.Status, a.Reason = api.Publishing, why
		}
		return a
	}
	a.DiffID, a.Size, a.Reason, a.Since = r.DiffID, r.Size, r.Reason, r.Since
	switch r.State {
	case Sending:
		a.Reason = "the upload isn't complete"
	case Arrived, Asking, Ready:
		a.Status = api.Publishing
		a.Reason = s.waitsFor(&r)
	case Published:
		s.mu.Lock()
		s.done(a, r.Revision)
		s.mu.Unlock()
	case Failed, Rejected:
		a.Status = api.Failed
		s.mu.Lock()
		if why := s.deferred[digest]; why != "" && r.State == Failed { // another object, which may be better
			a.Status, a.Reason = api.Publishing, why
		}
		s.mu.Unlock()
	}
	return a
}

// done says of a layer that the repository has it: at once while that is known for now, as somebody may have removed
// it; else once it has been looked for. Where nobody can look, as somebody else works in the repository, what was known
// last counts. The caller holds mu.
func (s *Service) done(a *api.Answer, revision uint64) {
	s.ask = true
	known := s.holding || time.Since(s.seen) < lookAge
	switch {
	case known && !s.present[a.Digest]: // it was removed
	case known || s.blind:
		a.Status, a.URL, a.Revision = api.Done, s.url(a.Digest), revision
	default:
		a.Status, a.Reason = api.Publishing, lookedInto
		signal(s.wake)
	}
}

const lookedInto = "the repository is looked into"

// current is the answer once the repository has been looked into, or when ctx ends.
func (s *Service) current(ctx context.Context, digest string) *api.Answer {
	for {
		a := s.answer(digest)
		if a.Reason != lookedInto || ctx.Err() != nil {
			return a
		}
		select {
		case <-time.After(askedAgain):
		case <-ctx.Done():
		}
	}
}

// waitsFor says what a layer waits for that will be published.
func (s *Service) waitsFor(r *Record) string {
	if r.State == Asking {
		return "it waits for a person's approval"
	}
	if r.Reason != "" {
		return r.Reason
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trouble
}

// enter notes a decision, and then records what it makes of a layer.
func (s *Service) enter(d Decision, r *Record, remote string) error {
	return s.follows(d, r, remote, func() error { return s.book.put(*r) })
}

// follows notes a decision, and then does what follows of it. Where that can't be done, the decision is noted once,
// however often it is tried.
func (s *Service) follows(d Decision, r *Record, remote string, then func() error) error {
	l := s.line(d, r, remote)
	timeless := l
	timeless.Time, timeless.Remote = time.Time{}, ""
	if last, _ := s.noted.Load(r.Digest); last != timeless {
		if err := s.decide(l); err != nil {
			return err
		}
		s.noted.Store(r.Digest, timeless)
	}
	switch d {
	case DecidedReceived:
		s.reached("received")
	case DecidedPublished, DecidedPresent:
		s.reached("audited")
	}
	if err := then(); err != nil {
		return err
	}
	s.noted.Delete(r.Digest)
	return nil
}

// line is what is noted of a decision.
func (s *Service) line(d Decision, r *Record, remote string) auditLine {
	l := auditLine{
		Time: time.Now().UTC(), Decision: d, Digest: r.Digest, DiffID: r.DiffID, Node: r.Node, Image: r.Image,
		Size: r.Size, Key: r.Key, Remote: remote, By: r.By, Reason: r.Reason, Revision: r.Revision,
	}
	if d == DecidedPublished || d == DecidedPresent {
		l.URL = s.url(r.Digest)
	}
	return l
}

// decide notes a decision.
func (s *Service) decide(l auditLine) error {
	if err := s.audit.write(l); err != nil {
		return err
	}
	s.log.Info("layer "+string(l.Decision), "layer", l.Digest, "node", l.Node, "image", l.Image, "bytes", l.Size,
		"reason", l.Reason, "by", l.By)
	return nil
}

// mostObjects bounds the objects of one digest that are judged: what has failed so often isn't looked at until its
// record is forgotten.
const mostObjects = 1000

// fail ends a layer's way.
func (s *Service) fail(d Decision, r Record, reason error) error {
	r.State, r.Reason, r.Next = Failed, reason.Error(), time.Time{}
	if r.Key != "" {
		r.Failed = append(slices.Clone(r.Failed), failedObject(r.Key, r.Object))
	}
	return s.enter(d, &r, "")
}

// failedObject is what a record keeps of an object that has failed.
func failedObject(key, version string) string {
	sum := sha256.Sum256([]byte(key + "\x00" + version))
	return hex.EncodeToString(sum[:8])
}

// The records of layers that have failed, of which somebody may make any number: of one origin, whose layers wait then,
// and of all, of which the oldest is forgotten.
const (
	mostFaults = 1000
	mostFailed = 20_000
)

// busy is when to try again what there is no place for.
const busy = 30 * time.Second

// room refuses a layer for which there is no place now, or that its node has to wait with; 0 and "" if there is. The
// caller holds admission.
func (s *Service) room(r *Record) (time.Duration, string) {
	if u := s.book.usage(r, s.c.origin); u.faults >= mostFaults {
		return busy, fmt.Sprintf("%d layers of %s have failed: an administrator has to look why", u.faults,
			cmp.Or(s.c.origin(r), "nobody in particular"))
	}
	if wait, why := s.c.wait(r, s.sent.of(r.Node), time.Now()); wait > 0 {
		return wait, why
	}
	return s.place(r)
}

// place is room but for what a layer's node has done. It forgets the layer that failed first of too many.
func (s *Service) place(r *Record) (time.Duration, string) {
	u := s.book.usage(r, s.c.origin)
	if u.failed >= mostFailed {
		s.complain("forgetting a layer that failed", "", s.book.dropFailed())
	}
	switch n, err := s.c.rights(r.Node); {
	case u.layers >= s.c.Limits.Queue:
		return busy, fmt.Sprintf("%d layers wait already", u.layers)
	case err == nil && n.Queue > 0 && u.own >= n.Queue:
		return busy, fmt.Sprintf("%d layers of %s wait already", u.own, r.Node)
	case u.bytes+r.Size > s.c.Limits.Spool && r.Size <= s.c.Limits.Archive: // a larger one is refused
		return busy, fmt.Sprintf("the layers that wait have %d bytes already", u.bytes)
	}
	return 0, ""
}

// counts are what happened since the start.
type counts struct {
	transactions, failures int64 // ended well, and not
	published              int64 // bytes of archives
	last                   time.Time
	polls, pollFailures    int64
}

func (s *Service) count(f func(*counts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.counts)
}
