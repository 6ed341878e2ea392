package objects

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// Status is the state of a store as a cache. Bytes are of disk.
type Status struct {
	Limit   int64 `json:"limit"`   // bytes that objects may take
	Used    int64 `json:"used"`    // bytes that they take, partial files among them
	Counted bool  `json:"counted"` // Used was counted; else it is what was known when the store was last in use
	Objects int64 `json:"objects"` // complete ones
	Partial int64 `json:"partial"` // bytes of Used in partial files and held objects
	Floor   int64 `json:"floor"`   // bytes of the file system that stay free
	Yield   int64 `json:"yield"`   // bytes of it that stay free while there are objects that may go; 0: Floor alone
	Free    int64 `json:"free"`    // bytes of it that are free
	Size    int64 `json:"size"`    // of the file system

	// Since the process began. What a kernel finds in the store by itself is asked for nowhere, and not counted.
	Hits     int64   `json:"hits"`     // objects that were asked for and here
	Misses   int64   `json:"misses"`   // that had to be fetched
	Unstored int64   `json:"unstored"` // fetches that were not stored, as images in use hold all up to the limit
	Refused  int64   `json:"refused"`  // fetches ended at the floor
	Evicted  Removed `json:"evicted"`
	Ahead    int64   `json:"ahead"`   // plain bytes that arrived before anybody asked for them
	Wanted   int64   `json:"wanted"`  // of Ahead, those that somebody has asked for since
	Freed    int64   `json:"freed"`   // bytes by which the free space of the file system grew while objects were evicted
	Damaged  int64   `json:"damaged"` // objects removed, as they were damaged
	Scrub    Scrub   `json:"scrub"`
}

// Status returns the state of the cache.
func (s *Store) Status() (Status, error) {
	size, free, err := s.fileSystem()
	a := &s.admission
	a.mu.Lock()
	st := Status{
		Limit: a.limits.Limit, Floor: a.limits.Floor, Yield: a.limits.yield, Partial: a.parts,
		Unstored: a.unstored, Refused: a.refused,
		Used: max(0, s.ledger.bytes.Load()+a.parts), // until all is counted, more may have gone than was known
	}
	a.mu.Unlock()
	e := &s.eviction
	st.Size, st.Free, st.Objects, st.Counted = size, free, max(0, s.ledger.objects.Load()), s.ledger.exact.Load()
	st.Hits, st.Misses, st.Damaged = s.hits.Load(), s.misses.Load(), s.damaged.Load()
	st.Ahead, st.Wanted = s.aheadBytes.Load(), s.aheadUsed.Load()
	st.Evicted, st.Freed = Removed{e.objects.Load(), e.bytes.Load()}, e.measured.Load()
	if c := s.scrubbed.Load(); c != nil {
		st.Scrub = *c
	}
	return st, err
}

// Entry is an image in the list of what the cache holds.
type Entry struct {
	Key     string    `json:"key"`
	Mounted bool      `json:"mounted"`
	Pinned  bool      `json:"pinned"`
	Used    time.Time `json:"last_used"` // last mounted or unmounted
	Local   Share     `json:"local"`
	Err     string    `json:"error,omitempty"` // why Local is empty: the image's table can't be read
}

// List returns the images and how much of each is here, the one used last first. It looks at samples.
func (s *Store) List(ctx context.Context) ([]Entry, error) {
	list, err := s.images()
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, len(list))
	for _, i := range list {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		e := Entry{Key: i.Key, Mounted: i.Mounted, Pinned: i.pinned, Used: i.used}
		switch t, err := i.table(); {
		case errors.Is(err, fs.ErrNotExist) && !i.Mounted:
			continue // removed meanwhile
		case err != nil:
			e.Err = err.Error()
		default:
			e.Local = s.Local(t)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// CleanOptions say what Clean removes. Objects of images in use always stay.
type CleanOptions struct {
	Image string `json:"image,omitempty"` // key: only what this image names, and no other
	To    int64  `json:"to,omitempty"`    // bytes: only, what was used longest ago first, until so many are used
}

// ErrInUse means that an image is mounted or pinned.
var ErrInUse = errors.New("the image is in use: stop its containers, or unpin it")

// Clean removes objects: all, or what the options say.
func (s *Store) Clean(ctx context.Context, o CleanOptions) (Removed, error) {
	done, err := s.clean(ctx, o)
	if err != nil {
		return done, fmt.Errorf("clean object cache: %w", err)
	}
	return done, nil
}

func (s *Store) clean(ctx context.Context, o CleanOptions) (done Removed, err error) {
	switch {
	case o.To < 0 || o.To > 0 && o.Image != "":
		return done, errors.New("either an image or a size")
	case o.To > 0:
		return s.cleanTo(ctx, o.To)
	case o.Image == "":
		return s.purge(ctx, s.survey, (*known).inUse)
	}
	i, err := s.image(o.Image)
	if err != nil {
		return done, err
	}
	if i.inUse() {
		return done, fmt.Errorf("image %s: %w", o.Image, ErrInUse)
	}
	t, err := i.table()
	if err != nil {
		return done, err
	}
	return s.purge(ctx, func(ctx context.Context) (*survey, error) { return s.surveyTables(ctx, t) },
		allBut(o.Image))
}

// ErrHeld means that more is in use than was to be left.
var ErrHeld = errors.New("the rest is in use")

// cleanTo removes objects until so many bytes are used, partial files included. If that can't be, the error says what
// holds the rest.
func (s *Store) cleanTo(ctx context.Context, to int64) (done Removed, err error) {
	s.eviction.forgetPlan()
	for {
		over := s.ledger.bytes.Load() + s.admission.partial() - to
		if over <= 0 {
			return done, nil
		}
		if s.dropHeld() {
			continue
		}
		d, err := s.evictStep(ctx, over)
		done.Objects += d.Objects
		done.Bytes += d.Bytes
		switch {
		case err != nil:
			return done, err
		case d.Objects == 0 && s.partials.dropIdle(time.Now()):
		case d.Objects == 0:
			return done, s.held(done, to+over)
		}
		if err := context.Cause(ctx); err != nil {
			return done, err
		}
	}
}

// held is the error of cleanTo that leaves so many bytes used.
func (s *Store) held(done Removed, used int64) error {
	list, err := s.images()
	if err != nil {
		return err
	}
	var mounted, pinned int
	for _, i := range list {
		switch {
		case i.Mounted:
			mounted++
		case i.pinned:
			pinned++
		}
	}
	return fmt.Errorf("%w: %d objects, %d bytes were removed, and %d bytes stay, %d of them in files that are partly "+
		"here, for %d images that are mounted or were within the last minute, %d that are pinned, and what is being read "+
		"(\"cvmfs-graphdriver cache ls\" shows which): stop containers, or unpin images", ErrHeld, done.Objects,
		done.Bytes, used, s.admission.partial(), mounted, pinned)
}

// allBut selects all images but one, unless that has come to be in use.
func allBut(key string) func(*known) bool {
	return func(k *known) bool { return k.Key != key || k.inUse() }
}

// Prewarm fetches all objects of an image that are not here, as Complete does, and tells each one. What has been
// fetched is not removed before it ends.
func (s *Store) Prewarm(ctx context.Context, x *Index, key string, tell func(Completion)) (Completion, error) {
	i, err := s.image(key)
	if err != nil {
		return Completion{}, err
	}
	t, err := i.table()
	if err != nil {
		return Completion{}, err
	}
	s.Used(t)
	ctx, end := context.WithCancel(ctx)
	defer end()
	s.tasks.start(func() {
		for sleep(ctx, s.eviction.keep/2) == nil {
			s.Used(t)
		}
	})
	return s.complete(ctx, x, t, tell)
}
