package objects

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Eviction begins when a part of the limit, or of the floor beyond the floor, is left, and ends when that much is:
	// so that fetching seldom has to wait for it.
	limitBegin, limitEnd = 64, 32
	floorBegin, floorEnd = 16, 8
	// A step of eviction removes no more than this, and is followed by a pause as long as itself.
	stepObjects = 64
	stepBytes   = 16 << 20
	stepTime    = 10 * time.Millisecond
	// planLength is how many objects a plan has.
	planLength = 1 << 14
	// stuckFor is how long eviction is not tried again where it found nothing and nobody said that anything has
	// changed; doubled each time up to stuckMost: it takes a look at all names.
	stuckFor  = 10 * time.Second
	stuckMost = 5 * time.Minute
	// holdFor is Config.Hold unless that says otherwise.
	holdFor = time.Minute
	// checkImages is how often a plan is held against what is mounted now.
	checkImages = time.Second
	// checkSizes is how often the sizes of an image's objects are checked, if it is used.
	checkSizes = time.Hour
	// barren is how many steps on end may bring nothing before eviction for the floor pauses: somebody holds what is
	// removed.
	barren = 4
)

// eviction is the state of removing objects.
type eviction struct {
	keep time.Duration // Config.Hold

	mu        sync.Mutex
	running   bool
	plans     []*plan              // made and being made
	main      *plan                // of them, the one of the limit and the floor; nil: to be made
	holds     map[string]lastHold  // by key of image
	sizes     map[string]time.Time // by key of image: when the sizes of its objects were checked last
	forgotten []*Table

	objects, bytes, measured atomic.Int64 // evicted
}

type lastHold struct {
	t     *Table
	until time.Time
}

// plan is what goes next. Guarded by eviction.mu.
type plan struct {
	victims []victim
	may     map[Name]struct{} // of the victims, those that nobody has come to need meanwhile
	inUse   map[string]bool   // the images it takes into account as in use
	checked time.Time
	late    []*Table // while it is being made: tables of images used meanwhile
}

// withdraw takes an image's objects out of a plan.
func (p *plan) withdraw(t *Table) {
	if p.may == nil {
		p.late = append(p.late, t)
		return
	}
	for i := 0; i < t.Len() && len(p.may) > 0; i++ {
		delete(p.may, t.name(i))
	}
}

// hold keeps an image's objects from now on. It reports whether their sizes are to be checked.
func (e *eviction) hold(t *Table) (check bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.holds == nil {
		e.holds = map[string]lastHold{}
	}
	key, now := keyOf(t), time.Now()
	e.holds[key] = lastHold{t, now.Add(e.keep)}
	for k, h := range e.holds {
		if now.After(h.until) {
			delete(e.holds, k)
		}
	}
	for _, p := range e.plans {
		if !p.inUse[key] {
			p.withdraw(t)
		}
		if p.inUse != nil {
			p.inUse[key] = true
		}
	}
	check = now.Sub(e.sizes[key]) > checkSizes
	if e.sizes == nil {
		e.sizes = map[string]time.Time{}
	}
	if check {
		e.sizes[key] = now
	}
	return check
}

// held reports whether an image was said to be used lately.
func (e *eviction) held(key string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	h, ok := e.holds[key]
	return ok && time.Now().Before(h.until)
}

// forgetPlan has the plan made anew.
func (e *eviction) forgetPlan() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.drop(e.main)
	e.main = nil
}

func (e *eviction) drop(p *plan) {
	e.plans = slices.DeleteFunc(e.plans, func(q *plan) bool { return q == p })
}

// look makes a survey.
type look func(context.Context) (*survey, error)

// makePlan makes a plan of most victims among what look finds, without those that images name which keep selects. Young
// ones that no image names are among them only if young says so. The caller gives the plan to drop.
func (s *Store) makePlan(ctx context.Context, most int, young bool, look look, keep func(*known) bool) (*plan, error) {
	e := &s.eviction
	p := &plan{checked: time.Now()}
	e.mu.Lock()
	e.plans = append(e.plans, p)
	e.mu.Unlock()
	v, err := look(ctx)
	var kept map[string]bool
	if err == nil {
		kept, err = s.markImages(ctx, v, keep)
	}
	if err != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.drop(p)
		return nil, err
	}
	victims := s.victims(v, most, young)
	e.mu.Lock()
	defer e.mu.Unlock()
	p.victims, p.inUse, p.may = victims, kept, make(map[Name]struct{}, len(victims))
	for _, v := range victims {
		p.may[v.Name] = struct{}{}
	}
	for _, t := range p.late {
		p.withdraw(t)
	}
	p.late = nil
	return p, nil
}

// startEviction has eviction run in the background, unless it does. It returns what is closed at its next step; nil
// where there is nothing to evict.
func (s *Store) startEviction() <-chan struct{} {
	if s.admission.isStuck() {
		return nil
	}
	turn := s.admission.wait()
	e := &s.eviction
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.running {
		e.running = s.tasks.start(s.evict)
	}
	if !e.running {
		return nil
	}
	return turn
}

// keepAhead starts eviction before fetching has to wait for it.
func (s *Store) keepAhead() {
	if limit, floor := s.excess(limitBegin, floorBegin); limit > 0 || floor > 0 {
		s.startEviction()
	}
}

// excess returns how many bytes are too many for a part of the limit, and of the floor, to be left when what is waited
// for has come.
func (s *Store) excess(limitPart, floorPart int64) (limit, floor int64) {
	_, free, err := s.fileSystem()
	if limit, floor = s.admission.excess(free, s.ledger.bytes.Load(), limitPart, floorPart); err != nil {
		floor = 0
	}
	return limit, floor
}

func (a *admission) excess(free, stored, limitPart, floorPart int64) (limit, floor int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	limit = stored + a.flying + a.parts + a.want - (a.limits.Limit - a.limits.Limit/limitPart)
	floor = max(a.limits.Floor+a.limits.Floor/floorPart, a.limits.yield) - (free - a.flying - a.want)
	return limit, floor
}

// evict removes the objects of forgotten images, and then what has to go.
func (s *Store) evict() {
	stuck, err := s.evictAll(s.life)
	if err != nil && !errors.Is(err, errSucceeded) && s.life.Err() == nil {
		s.log.Error("object store: eviction failed", slog.Any("err", err))
	}
	e := &s.eviction
	e.mu.Lock()
	e.running = false
	again := len(e.forgotten) > 0 && err == nil
	e.mu.Unlock()
	s.admission.ended(stuck || err != nil)
	if again {
		s.startEviction()
	}
}

// evictAll reports whether it came to an end because nothing more may go.
func (s *Store) evictAll(ctx context.Context) (stuck bool, err error) {
	if err := s.reclaim(ctx); err != nil {
		return false, err
	}
	for empty := 0; ; {
		limit, floor := s.excess(limitEnd, floorEnd)
		if limit <= 0 && floor <= 0 {
			return false, nil
		}
		if s.dropHeld() {
			continue
		}
		_, before, err := s.fileSystem()
		if err != nil {
			return false, err
		}
		began := time.Now()
		done, err := s.evictStep(ctx, max(limit, floor))
		switch {
		case err != nil:
			return false, err
		case done.Objects == 0 && s.partials.dropIdle(time.Now()):
			continue
		case done.Objects == 0:
			return true, nil
		}
		_, after, err := s.fileSystem()
		if err != nil {
			return false, err
		}
		s.eviction.measured.Add(after - before)
		if after-before < done.Bytes/4 {
			empty++
		} else {
			empty = 0
		}
		if limit <= 0 && empty >= barren {
			s.log.Warn("object store: removing objects frees no space: they are held open, or others fill the disk faster")
			return true, nil
		}
		s.admission.step()
		if err := sleep(ctx, time.Since(began)); err != nil {
			return false, err
		}
	}
}

// evictStep takes a step of the plan, which it makes if there is none.
func (s *Store) evictStep(ctx context.Context, want int64) (Removed, error) {
	e := &s.eviction
	for {
		e.mu.Lock()
		p := e.main
		e.mu.Unlock()
		fresh := p == nil
		if fresh {
			var err error
			if p, err = s.makePlan(ctx, planLength, s.cfg.Images == nil, s.survey, (*known).inUse); err != nil {
				return Removed{}, err
			}
			e.mu.Lock()
			e.drop(e.main) // somebody else's, made meanwhile
			e.main = p
			e.mu.Unlock()
		}
		done, err := s.step(p, want)
		if errors.Is(err, errDropped) {
			continue
		}
		if err != nil || done.Objects > 0 {
			return done, err
		}
		e.forgetPlan() // used up
		if fresh {
			return Removed{}, nil
		}
	}
}

// errDropped means that a plan isn't held against what is used any more, and has to be made anew.
var errDropped = errors.New("the plan of eviction was dropped")

// Removed is what was removed.
type Removed struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"` // on disk
}

// step removes the next objects of a plan, no more than want asks for and a step may; errDropped if the plan was
// dropped.
func (s *Store) step(p *plan, want int64) (done Removed, err error) {
	if err := s.checkPlan(p); err != nil {
		return done, err
	}
	e := &s.eviction
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Contains(e.plans, p) {
		return done, errDropped
	}
	began := time.Now()
	want = min(want, stepBytes)
	err = s.asOwner(func() error {
		for len(p.victims) > 0 && done.Objects < stepObjects && done.Bytes < want &&
			(done.Objects == 0 || time.Since(began) < stepTime) {
			n := p.victims[0].Name
			p.victims = p.victims[1:]
			if _, may := p.may[n]; !may {
				continue
			}
			delete(p.may, n)
			bytes, err := s.remove(place(n.String()))
			if err != nil {
				return err
			}
			if bytes >= 0 {
				done.Objects++
				done.Bytes += bytes
			}
		}
		return nil
	})
	e.objects.Add(done.Objects)
	e.bytes.Add(done.Bytes)
	return done, err
}

// checkPlan withdraws what images name that are in use and weren't when the plan was made.
func (s *Store) checkPlan(p *plan) error {
	e := &s.eviction
	e.mu.Lock()
	fresh := time.Since(p.checked) < checkImages
	e.mu.Unlock()
	if fresh {
		return nil
	}
	list, err := s.images()
	if err != nil {
		return err
	}
	for _, i := range list {
		e.mu.Lock()
		counted := p.inUse[i.Key]
		e.mu.Unlock()
		if !i.inUse() || counted {
			continue
		}
		t, err := i.table()
		if err != nil {
			return err
		}
		e.mu.Lock()
		p.withdraw(t)
		p.inUse[i.Key] = true
		e.mu.Unlock()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p.checked = time.Now()
	return nil
}

// remove removes an object and its fresh link. It returns what it took on disk; -1 if it wasn't here.
func (s *Store) remove(path string) (bytes int64, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(int(s.dir.Fd()), path, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = unix.Unlinkat(int(s.dir.Fd()), path, 0)
	}
	if errors.Is(err, unix.ENOENT) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("remove object %s: %w", path, err)
	}
	s.ledger.enter(path, st.Blocks, -1)
	s.changed.Store(true)
	if st.Nlink > 1 {
		os.Remove(filepath.Join(s.cfg.Fresh, path)) // it goes within two minutes anyway
	}
	return st.Blocks * sector, nil
}

// reclaim removes the objects of images that are gone, unless others name them.
func (s *Store) reclaim(ctx context.Context) error {
	e := &s.eviction
	e.mu.Lock()
	tables := e.forgotten
	e.forgotten = nil
	e.mu.Unlock()
	if len(tables) == 0 {
		return nil
	}
	done, err := s.purge(ctx, func(ctx context.Context) (*survey, error) { return s.surveyTables(ctx, tables...) },
		func(*known) bool { return true })
	if done.Objects > 0 {
		s.log.Info("object store: removed what only removed images named", slog.Int64("objects", done.Objects),
			slog.Int64("bytes", done.Bytes))
	}
	return err
}

// purge removes all that look finds but what images name that keep selects.
func (s *Store) purge(ctx context.Context, look look, keep func(*known) bool) (done Removed, err error) {
	const all = 1 << 62
	p, err := s.makePlan(ctx, all, true, look, keep)
	if err != nil {
		return done, err
	}
	e := &s.eviction
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.drop(p)
	}()
	for {
		began := time.Now()
		d, err := s.step(p, all)
		done.Objects += d.Objects
		done.Bytes += d.Bytes
		if err != nil || d.Objects == 0 {
			return done, err
		}
		if err := sleep(ctx, time.Since(began)); err != nil {
			return done, err
		}
	}
}
