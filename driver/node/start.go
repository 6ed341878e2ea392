package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"sync"
	"time"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/thin"
)

const (
	// recordQuiet ends the recording of a start: nothing new was read for so long. Programs that serve have started
	// then.
	recordQuiet = 10 * time.Second
	// recordMost ends it in any case.
	recordMost = time.Minute
	// coldShare is what part of an image may be here, at most, for its start to be worth recording: what is here is
	// opened without us, and isn't seen.
	coldShare = 50
	// settledFor is how long an image isn't looked at again of whose profile all was here, or that has none, or one
	// that can't be had: containers start by the dozen.
	settledFor = 10 * time.Minute
)

// ErrNoProfile means that no start of an image was recorded here.
var ErrNoProfile = errors.New("no start of this image was recorded here: that is done for the first container of an " +
	"image that comes without a start profile, if next to nothing of the image is here")

// starts are the images whose start is under way: what it reads is fetched ahead, or recorded.
type starts struct {
	life context.Context
	end  context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	images  map[string]*helped
	ended   bool
	watched map[string]bool      // images whose start was looked at without a profile
	settled map[string]time.Time // until when images aren't looked at again
}

// helped is a start under way.
type helped struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it is over
}

func newStarts() *starts {
	s := &starts{images: map[string]*helped{}, watched: map[string]bool{}, settled: map[string]time.Time{}}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// begin calls prepare, and runs what that returns beside its caller, one at a time for each image, unless it is too
// late.
func (s *starts) begin(key string, prepare func() (help func(ctx context.Context))) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.images[key] != nil || time.Now().Before(s.settled[key]) {
		return
	}
	ctx, cancel := context.WithCancel(s.life)
	h := &helped{cancel, make(chan struct{})}
	s.images[key] = h
	help := prepare()
	s.work.Go(func() {
		defer close(h.done)
		defer cancel()
		help(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.images, key)
	})
}

// stop ends the start of an image, and waits for it.
func (s *starts) stop(key string) {
	s.mu.Lock()
	h := s.images[key]
	s.mu.Unlock()
	if h != nil {
		h.cancel()
		<-h.done
	}
}

// first reports whether an image was not looked at before.
func (s *starts) first(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.watched[key]
	s.watched[key] = true
	return !was
}

// settle has an image left alone for a while.
func (s *starts) settle(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(s.settled, func(_ string, until time.Time) bool { return now.After(until) })
	s.settled[key] = now.Add(settledFor)
}

// forget has an image that is removed be a new one when it comes again.
func (s *starts) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watched, key)
	delete(s.settled, key)
}

// unsettle has all images looked at again: what was here may not be any more.
func (s *starts) unsettle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.settled)
}

// close ends all, and waits for it.
func (s *starts) close() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.end()
	s.work.Wait()
}

// start helps a container to start, beside its caller: it fetches what the start profile of its image names. Where
// there is none, and next to nothing of the image is here, it records one, for the next time that the image comes.
func (n *Node) start(c *configuration, topmost string, image *images.Image) {
	if n.cfg.Recorder {
		return
	}
	n.starts.begin(image.Key, func() func(context.Context) {
		rec := n.objects.Record() // the program reads before it is known whether that is of use
		return func(ctx context.Context) {
			defer rec.Stop()
			n.helpStart(ctx, c, topmost, image, rec)
		}
	})
}

// startSoon fetches what the start profile names that comes with an image which has just been composed: whoever pulls
// an image is about to start it.
func (n *Node) startSoon(c *configuration, chain []layers.Link, image *images.Image) {
	at := images.ProfileOf(partsOf(chain))
	if at == nil || n.cfg.Recorder {
		return
	}
	n.starts.begin(image.Key, func() func(context.Context) {
		return func(ctx context.Context) {
			p, err := n.profile(ctx, c, at, image.Key)
			if err != nil {
				n.unusable(image, err)
				return
			}
			n.fetchProfile(ctx, c, image, p, false)
		}
	})
}

// helpStart does it, with a recording from the beginning of the start.
func (n *Node) helpStart(
	ctx context.Context, c *configuration, topmost string, image *images.Image, rec *objects.Recording,
) {
	var p objects.Profile
	chain, _, err := n.layers.Chain(topmost)
	if err == nil {
		p, err = n.profile(ctx, c, images.ProfileOf(partsOf(chain)), image.Key)
	}
	if errors.Is(err, ErrNoProfile) {
		n.objects.Usual(n.index, image.Table)
		if n.starts.first(image.Key) {
			n.record(ctx, c, image, rec)
		} else {
			n.starts.settle(image.Key)
		}
		return
	}
	rec.Stop()
	if err != nil {
		n.unusable(image, err)
		n.starts.settle(image.Key) // not asked for, nor told, at each start
		return
	}
	if all := n.fetchProfile(ctx, c, image, p, n.starts.first(image.Key)); all {
		n.starts.settle(image.Key)
	}
}

// unusable tells that an image has a start profile that can't be used.
func (n *Node) unusable(image *images.Image, err error) {
	n.cfg.Log.Warn("start profile: it can't be used, and a container starts without", "image", image.Key, "err", err)
}

// fetchProfile fetches what a start profile names of an image, unless it is here, and reports whether all was. first
// tells that the image's first container is created.
func (n *Node) fetchProfile(
	ctx context.Context, c *configuration, image *images.Image, p objects.Profile, first bool,
) (all bool) {
	began := time.Now()
	done, err := n.objects.Start(ctx, n.index, image.Table, p, objects.StartOptions{
		Around: c.around, Packs: image.Packs, First: first,
	})
	log := n.cfg.Log.With("image", image.Key, "fetched", done.Fetched, "bytes", done.Bytes, "here", done.Here,
		"failed", done.Failed, "took", time.Since(began).Round(time.Millisecond))
	switch {
	case err != nil && ctx.Err() == nil:
		log.Warn("start profile: not all could be fetched ahead", "err", err)
	case err == nil && done.Fetched > 0:
		log.Info("start profile: fetched ahead of a container's start")
	}
	return err == nil && done.Fetched+done.Failed == 0
}

// profile returns the start profile of an image: the one that its descriptor names, or the one that was recorded here.
func (n *Node) profile(ctx context.Context, c *configuration, at *thin.Profile, key string) (objects.Profile, error) {
	var failed error
	if at != nil {
		p, err := c.composer.Profile(ctx, key, at)
		if err == nil {
			return p, nil
		}
		failed = err
	}
	p, err := c.composer.RecordedProfile(key)
	switch {
	case errors.Is(err, fs.ErrNotExist) && failed != nil:
		return nil, failed
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrNoProfile
	}
	return p, err
}

// record goes on with the recording of a start until that is over, and keeps it, if next to nothing of the image is
// here.
func (n *Node) record(ctx context.Context, c *configuration, image *images.Image, rec *objects.Recording) {
	if here := n.objects.Local(image.Table); here.Bytes > here.OfBytes/coldShare {
		return
	}
	quiet := cmp.Or(n.cfg.RecordQuiet, recordQuiet)
	end := time.NewTimer(recordMost)
	defer end.Stop()
	tick := time.NewTicker(quiet / 10)
	defer tick.Stop()
	before, since := 0, time.Now()
	for over := false; !over; {
		select {
		case <-ctx.Done():
			return
		case <-end.C:
			over = true
		case <-tick.C:
			if now := rec.Len(); now != before {
				before, since = now, time.Now()
			}
			over = before > 0 && time.Since(since) >= quiet
		}
	}
	p := rec.Profile(image.Table)
	if len(p) == 0 {
		return
	}
	if err := c.composer.KeepProfile(image.Key, p); err != nil {
		n.cfg.Log.Warn("a recorded start profile can't be kept", "image", image.Key, "err", err)
		return
	}
	n.cfg.Log.Info("a start was recorded", slog.String("image", image.Key), slog.Int("reads", len(p)))
}

// Record begins to record what is read. The function that it returns ends that, and gives the start profile of an image
// in use and how much it names.
func (n *Node) Record() (profile func(image string) (objects.Profile, objects.Named, error)) {
	rec := n.objects.Record()
	return func(image string) (objects.Profile, objects.Named, error) {
		rec.Stop()
		c, err := n.configured()
		if err != nil {
			return nil, objects.Named{}, err
		}
		composed, err := c.composer.Image(image)
		if err != nil {
			return nil, objects.Named{}, err
		}
		p := rec.Profile(composed.Table)
		return p, p.Of(composed.Table), nil
	}
}

// CacheProfile returns the file of the start profile that was recorded of an image here; ErrNoProfile if none was.
func (n *Node) CacheProfile(ctx context.Context, key string) (string, error) {
	c, err := n.configured()
	if err != nil {
		return "", err
	}
	p, err := c.composer.RecordedProfile(key)
	if err == nil {
		return string(p.Encode()), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("start profile of image %s: %w", key, err)
	}
	return "", ErrNoProfile
}
