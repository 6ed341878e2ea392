package receive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/internal/durable"
)

// The pauses of what is done again.
const (
	tick       = time.Second // between two looks for decisions of people
	firstPause = 2 * time.Second
	lastPause  = time.Minute
	lookAge    = time.Minute // of what is known of the repository, when somebody asks
	forgetting = time.Minute // between two looks for what can be forgotten
)

// atOnce bounds the layers that are judged at one time, those that have to be fetched for it and others apart: a store
// may be slow to give one.
const atOnce = 4

// work judges and publishes what comes, until ctx ends.
func (s *Service) work(ctx context.Context) {
	var fetched, sent errgroup.Group
	for _, group := range []*errgroup.Group{&fetched, &sent} {
		group.SetLimit(atOnce)
		defer group.Wait() // none fails
	}
	var forgot time.Time
	for ctx.Err() == nil {
		s.arrivals(ctx, func(r Record) {
			group := &sent
			if r.Key != "" {
				group = &fetched
			}
			group.TryGo(func() error {
				s.judge(ctx, r.Digest)
				if now, _ := s.book.get(r.Digest); now.State != Arrived { // else it is tried again in its time
					signal(s.wake)
				}
				return nil
			})
		})
		s.publish(ctx)
		if time.Since(forgot) >= forgetting {
			s.forget()
			forgot = time.Now()
		}
		select {
		case <-s.wake:
		case <-time.After(tick):
		case <-ctx.Done():
		}
	}
}

// arrivals heeds what people have decided, and has each layer judged that has arrived and that nobody works on.
func (s *Service) arrivals(ctx context.Context, judge func(r Record)) {
	s.heed()
	for _, r := range s.book.in(Sending) {
		s.complete(r.Digest)
	}
	for _, r := range s.book.in(Arrived) {
		if ctx.Err() == nil && due(&r) && !s.book.isBusy(r.Digest) {
			judge(r)
		}
	}
}

// due reports whether a layer may be tried now. A clock that was ahead doesn't have it wait longer than it would.
func due(r *Record) bool {
	wait := time.Until(r.Next)
	return wait <= 0 || wait > lastPause
}

// complain logs what can't be done and is tried again.
func (s *Service) complain(what, digest string, err error) {
	if err != nil {
		s.log.Error(what+" failed, which is tried again", "layer", digest, "err", err)
	}
}

// judge fetches and judges a layer that has arrived.
func (s *Service) judge(ctx context.Context, digest string) {
	release, ok := s.book.claim(digest)
	if !ok {
		return
	}
	defer release()
	r, ok := s.book.get(digest)
	if !ok || r.State != Arrived {
		return
	}
	var err error
	if r.Key != "" {
		err = s.fetch(ctx, &r)
		s.reached("fetched")
	}
	if err == nil {
		err = judge(ctx, s.book.archive(digest), &r, s.c.Limits)
	}
	switch {
	case ctx.Err() != nil:
	case err == nil:
		r.State, r.Reason, r.Attempts, r.Tried, r.Next = Ready, "", 0, time.Time{}, time.Time{}
		if s.c.approval(&r) {
			r.State = Asking
		}
		s.complain("recording a layer", digest, s.book.put(r))
		s.reached("judged")
	case permanent(err):
		s.complain("refusing a layer", digest, s.fail(DecidedRefused, r, err))
	default:
		s.again(r, err)
	}
}

// again has a layer tried again later, unless it was tried for too long.
func (s *Service) again(r Record, err error) {
	if r.Tried.IsZero() {
		r.Tried = time.Now().UTC()
	} else if since := latest(r.Tried, s.started); time.Since(since) >= s.c.GiveUp {
		s.complain("giving up a layer", r.Digest, s.fail(DecidedFailed, r, err))
		return
	}
	r.Reason, r.Next = err.Error(), time.Now().Add(backoff(r.Attempts)).UTC()
	r.Attempts++
	s.log.Warn("a layer has to wait", "layer", r.Digest, "attempts", r.Attempts, "next", r.Next, "err", err)
	s.complain("recording a layer", r.Digest, s.book.put(r))
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// backoff is the pause after so many failures.
func backoff(failures int) time.Duration { return min(firstPause<<min(failures, 20), lastPause) }

// layerError is the error of one layer of a transaction.
type layerError struct {
	digest string
	err    error
}

func (e *layerError) Error() string { return e.err.Error() }
func (e *layerError) Unwrap() error { return e.err }

// publish puts all that is ready into the repository, in one transaction; what has failed before gets one of its own,
// so that it holds up nothing else.
func (s *Service) publish(ctx context.Context) {
	if !s.due() {
		return
	}
	var all [][]Record
	var fresh []Record
	for _, r := range s.book.in(Ready) {
		switch {
		case !due(&r):
		case r.Attempts > 0:
			all = append(all, []Record{r})
		default:
			fresh = append(fresh, r)
		}
	}
	// What the service has ended with goes last.
	slices.SortStableFunc(all, func(a, b []Record) int { return cmp.Compare(a[0].Ends, b[0].Ends) })
	if len(fresh) > 0 {
		all = append([][]Record{fresh}, all...)
	}
	if len(all) == 0 && s.outdated() {
		all = [][]Record{nil}
	}
	for _, batch := range all {
		if ctx.Err() != nil || !s.publishBatch(ctx, batch) {
			return
		}
	}
}

// due reports whether publishing may be tried.
func (s *Service) due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !time.Now().Before(s.resume)
}

// outdated reports whether what is known of the repository has to be found out anew.
func (s *Service) outdated() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.IsZero() || s.ask && time.Since(s.seen) >= lookAge
}

// publishBatch publishes layers, and does without those that can't be. It reports whether the repository could be
// worked with.
func (s *Service) publishBatch(ctx context.Context, batch []Record) bool {
	for {
		err := s.transact(ctx, batch)
		one, ok := errors.AsType[*layerError](err)
		if !ok {
			s.note(ctx, batch, err)
			return err == nil
		}
		if ctx.Err() != nil {
			return false
		}
		var rest []Record
		for _, r := range batch {
			switch {
			case r.Digest != one.digest:
				rest = append(rest, r)
			case permanent(err):
				s.complain("refusing a layer", r.Digest, s.fail(DecidedRefused, r, one.err))
			default:
				s.again(r, one.err)
			}
		}
		if batch = rest; len(batch) == 0 {
			return true
		}
	}
}

// note takes note of how a transaction ended.
func (s *Service) note(ctx context.Context, batch []Record, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.trouble, s.pause, s.resume = "", 0, time.Time{}
		if len(batch) > 0 {
			s.counts.transactions++
			s.counts.last = time.Now()
		}
		return
	}
	if ctx.Err() != nil {
		return
	}
	s.pause = min(max(2*s.pause, firstPause), lastPause)
	s.resume = time.Now().Add(s.pause)
	s.blind = true
	if len(batch) == 0 { // what is known of the repository is old, and counts for now
		s.log.Debug("the repository can't be looked into, which is tried again", "in", s.pause, "err", err)
		return
	}
	s.counts.failures++
	s.trouble = err.Error()
	s.log.Error("layers can't be published, which is tried again", "layers", len(batch), "in", s.pause, "err", err)
}

// transact publishes layers in one transaction. An error that is one layer's is a [layerError].
func (s *Service) transact(ctx context.Context, batch []Record) (err error) {
	target, err := s.open()
	if err != nil {
		return err
	}
	tx, err := target.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		s.mu.Lock()
		s.holding = false
		s.mu.Unlock()
		err = errors.Join(err, tx.Abort())
	}()
	if err := s.learn(ctx, tx); err != nil {
		return err
	}
	if len(batch) > 0 {
		if err := s.working(batch); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.worked()) }()
	}
	added := make([]bool, len(batch))
	for i := range batch {
		if added[i], err = s.add(ctx, tx, &batch[i]); err != nil {
			return &layerError{batch[i].Digest, err}
		}
		s.reached("added")
	}
	if len(batch) == 0 {
		return nil
	}
	if err := s.audit.reserve(len(batch)); err != nil {
		return err
	}
	if err := tx.Commit(ctx, fmt.Sprintf("%d layers that nodes sent", len(batch))); err != nil {
		return err
	}
	s.reached("committed")
	if err := s.worked(); err != nil {
		return err
	}
	s.mu.Lock()
	s.seen = time.Now()
	s.mu.Unlock()
	for i, r := range batch {
		d := DecidedPublished
		if !added[i] {
			d = DecidedPresent
		}
		r.Revision = tx.Revision()
		err = errors.Join(err, s.settle(ctx, d, r))
	}
	return err
}

// working notes which layers are being published.
func (s *Service) working(batch []Record) error {
	var digests strings.Builder
	for _, r := range batch {
		digests.WriteString(r.Digest + "\n")
	}
	return durable.Replace(filepath.Join(s.c.State, workingFile), 0o600, []byte(digests.String()))
}

// worked notes that no layers are being published.
func (s *Service) worked() error {
	err := durable.Remove(filepath.Join(s.c.State, workingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// learn finds out what the repository has and keeps, and forgets what was removed from it, or will be: when a node
// sends that again it is kept again.
func (s *Service) learn(ctx context.Context, tx sink.Transaction) error {
	layers, err := s.c.Layout.KeptLayers(ctx, tx)
	if err != nil {
		return err
	}
	present := make(map[string]bool, len(layers))
	for _, l := range layers {
		present[s.c.Layout.Digest(l)] = true
	}
	s.mu.Lock()
	s.present, s.seen, s.ask, s.blind, s.holding = present, time.Now(), false, false, true
	if len(s.hints) > 0 {
		signal(s.look)
	}
	s.mu.Unlock()
	for _, r := range s.book.in(Published) {
		if !present[r.Digest] {
			if err := s.book.drop(r.Digest); err != nil {
				return err
			}
		}
	}
	return nil
}

// add puts a layer into a transaction, and reports whether it wasn't there.
func (s *Service) add(ctx context.Context, tx sink.Transaction, r *Record) (_ bool, err error) {
	a, err := openArchive(ctx, s.book.archive(r.Digest), r, s.c.Limits.Content)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	return convert.AddReceived(ctx, tx, s.c.Layout, convert.Received{
		Digest: r.Digest, DiffID: r.DiffID, Size: r.Size, Node: r.Node, Image: r.Image, Time: time.Now().UTC(),
	}, a, r.Plain)
}

// settle ends the way of a layer that the repository has. Where that fails, it is found to be there the next time.
func (s *Service) settle(ctx context.Context, d Decision, r Record) error {
	r.State, r.Reason, r.Next = Published, "", time.Time{}
	s.mu.Lock()
	s.present[r.Digest] = true
	s.counts.published += r.Size
	s.mu.Unlock()
	if err := s.enter(d, &r, ""); err != nil {
		return err
	}
	s.reached("settled")
	if r.Key != "" && s.bucket != nil {
		s.complain("removing a layer from the bucket", r.Digest, s.bucket.Remove(ctx, r.Key)) // a poll finds what is left
	}
	return nil
}

// forget drops records that are old, and uploads that nobody goes on with.
func (s *Service) forget() {
	s.admission.Lock()
	s.sent.forget(time.Now())
	s.refused.forget(time.Now())
	s.admission.Unlock()
	for _, r := range s.book.all() {
		age := time.Since(r.Changed)
		if r.State == Sending { // its parts don't change the record
			age = min(age, time.Since(s.touched(r.Digest)))
		}
		if r.State.Pending() || r.State == Sending && age < s.c.Upload || r.State != Sending && age < s.c.Keep {
			continue
		}
		release, ok := s.book.claim(r.Digest)
		if !ok {
			continue
		}
		if now, _ := s.book.get(r.Digest); now.State == r.State && now.Changed.Equal(r.Changed) {
			s.complain("dropping a record", r.Digest, s.book.drop(r.Digest))
		}
		release()
	}
}
