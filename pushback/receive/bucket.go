package receive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/publish/s3"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/pushback/api"
)

// pollAgain is the pause before a bucket that couldn't be looked into is tried again.
const pollAgain = 10 * time.Second

// mostHints bounds the keys that events told of; beyond, all of the bucket is looked at.
const mostHints = 10_000

// longestKey is that of an object in S3, in bytes.
const longestKey = 1024

// told takes an event: the next look is soon.
func (s *Service) told(e event) {
	if s.bucket == nil || e.bucket != s.bucket.Name() {
		return
	}
	key, ok := s.bucket.Below(e.key)
	if !ok || len(key) > longestKey || !api.ValidDigest(path.Base(key)) {
		return
	}
	s.mu.Lock()
	if len(s.hints) < mostHints {
		s.hints[key] = true
	}
	s.mu.Unlock()
	signal(s.look)
}

// watch looks into the bucket until ctx ends: at what events tell of, and at all from time to time.
func (s *Service) watch(ctx context.Context) {
	var next time.Time // when all is looked at
	problem := ""
	for ctx.Err() == nil {
		var err error
		if hints := s.takeHints(); time.Now().Before(next) {
			_, err = s.follow(ctx, hints)
		} else {
			err = s.poll(ctx)
			next = time.Now().Add(s.c.Bucket.Poll)
		}
		if err != nil { // what was told of may be lost
			next = time.Now().Add(min(s.c.Bucket.Poll, pollAgain))
		}
		s.count(func(c *counts) {
			c.polls++
			if err != nil {
				c.pollFailures++
			}
		})
		if text := fmt.Sprint(err); err != nil && ctx.Err() == nil && text != problem {
			s.log.Warn("the bucket can't be looked into, which is tried again", "err", err)
			problem = text
		} else if err == nil && problem != "" {
			s.log.Info("the bucket can be looked into again")
			problem = ""
		}
		select {
		case <-s.look:
		case <-time.After(time.Until(next)):
		case <-ctx.Done():
		}
	}
}

func (s *Service) takeHints() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	hints := slices.Sorted(maps.Keys(s.hints))
	s.hints = map[string]bool{}
	return hints
}

// follow looks at objects that somebody told of, and reports whether one is there.
func (s *Service) follow(ctx context.Context, keys []string) (there bool, err error) {
	for _, key := range keys {
		o, err := s.bucket.Stat(ctx, key)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed, or nobody put it there
		}
		if err == nil {
			there, err = true, s.object(ctx, *o, nil)
		}
		if err != nil {
			return there, err
		}
	}
	return there, nil
}

// The bounds of looking into bucket and repository because a status is asked for. A node of 2017 waits 2 s for an
// answer, asks as soon as it has put its layer into the bucket, and takes "unknown" for the end.
const (
	askedTime  = 1500 * time.Millisecond
	askedAgain = 20 * time.Millisecond
)

// keys are those that a layer may have which somebody asks for: who has a token knows its folder.
func (s *Service) keys(digest, name, folder string) []string {
	keys := []string{digest}
	if n, err := s.c.rights(name); name != "" && err == nil {
		for _, p := range n.Prefixes {
			keys = append(keys, path.Join(p, digest))
		}
		if folder, err := url.PathUnescape(bounded(folder)); err == nil {
			if key, ok := s.bucket.Below(path.Join(folder, digest)); ok && !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// seek looks whether a layer is in the bucket by now of which a knows nothing good, and returns what is to be said of
// it when ctx ends at the latest. Anybody may have it do so, one after the other.
func (s *Service) seek(ctx context.Context, a *api.Answer, keys []string) *api.Answer {
	select {
	case s.seeking <- struct{}{}:
		defer func() { time.AfterFunc(askedAgain, func() { <-s.seeking }) }()
	case <-ctx.Done(): // it has had no turn, and isn't known not to be there
		if a.Status == api.Unknown {
			a.Status, a.Reason = api.Publishing, "the bucket is looked into"
		}
		return a
	}
	for {
		there, err := s.follow(ctx, keys)
		now := s.answer(a.Digest)
		if err != nil || !there || now.Status != api.Unknown {
			return now
		}
		select { // another look works on it
		case <-time.After(askedAgain):
		case <-ctx.Done():
			return now
		}
	}
}

// poll looks at all objects. One that can't be dealt with stops no other.
func (s *Service) poll(ctx context.Context) error {
	waiting := map[string]string{}
	var first error
	err := s.bucket.List(ctx, func(o s3.Object) error {
		if err := s.object(ctx, o, waiting); err != nil && first == nil {
			first = err
		}
		return context.Cause(ctx)
	})
	if err == nil {
		s.mu.Lock()
		s.deferred = waiting
		s.mu.Unlock()
	}
	return errors.Join(err, first)
}

// object takes a layer's object, unless it is known, or there is no room for it now; then waiting, which may be nil,
// says why.
func (s *Service) object(ctx context.Context, o s3.Object, waiting map[string]string) error {
	digest := path.Base(o.Key)
	if !api.ValidDigest(digest) {
		return nil
	}
	release, ok := s.book.claim(digest)
	if !ok {
		return nil // it is being worked on: what is left of it the next look finds
	}
	defer release()
	r, known := s.book.get(digest)
	switch {
	case known && r.State == Published && s.answer(digest).Status != api.Done:
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.hints) < mostHints {
			s.hints[o.Key] = true // once it is known whether the repository still has it
		}
		return nil
	case known && (r.State == Published || r.State == Rejected):
		return s.bucket.Remove(ctx, o.Key)
	case known && (r.State.Pending() || r.State == Sending && !s.still(digest) ||
		len(r.Failed) >= mostObjects || slices.Contains(r.Failed, failedObject(o.Key, o.Version))):
		return nil
	}
	r = Record{
		Digest: digest, Size: o.Size, Key: o.Key, Object: o.Version, Failed: r.Failed, State: Arrived,
		Since: time.Now().UTC(),
	}
	s.admission.Lock()
	wait, why := s.place(&r) // whose it is isn't known yet
	s.admission.Unlock()
	if wait > 0 {
		return s.later(waiting, digest, why)
	}
	stat, err := s.bucket.Stat(ctx, o.Key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.arrive(r, stat, waiting)
}

// later has an object wait in the bucket.
func (s *Service) later(waiting map[string]string, digest, why string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if waiting == nil { // the next poll makes the list anew
		waiting = s.deferred
	}
	waiting[digest] = why + ": it waits for its turn"
	return nil
}

// arrive takes an object whose metadata are known.
func (s *Service) arrive(r Record, o *s3.Object, waiting map[string]string) error {
	r.Size, r.Object = o.Size, o.Version
	r.Image, r.DiffID = bounded(o.Metadata[api.MetaImage]), o.Metadata[api.MetaDiffID]
	r.Node = bounded(o.Metadata[api.MetaNode])
	node, err := s.c.sender(folderOf(r.Key), r.Node)
	if r.Node = node; err == nil {
		err = s.c.admit(&r)
	}
	if err == nil && r.DiffID != "" && !api.ValidDigest(r.DiffID) {
		err = refusef("diffID %.80q: want 64 lower-case hex digits", r.DiffID)
	}
	s.admission.Lock()
	defer s.admission.Unlock()
	if err != nil {
		return s.refuseObject(r, err, waiting)
	}
	if wait, why := s.room(&r); wait > 0 {
		return s.later(waiting, r.Digest, why)
	}
	if err := s.enter(DecidedReceived, &r, ""); err != nil {
		return err
	}
	s.sent.add(r.Node, r.Size, r.Since)
	s.reached("recorded")
	signal(s.wake)
	return nil
}

// refuseObject refuses an object. What another node sends of the same layer goes on. The caller holds admission.
func (s *Service) refuseObject(r Record, why error, waiting map[string]string) error {
	if s.refused.within(time.Hour, s.c.origin(&r), r.Since) >= mostRefusals {
		return s.later(waiting, r.Digest, fmt.Sprintf("too many layers of %s were refused",
			cmp.Or(s.c.origin(&r), "nobody in particular")))
	}
	s.refused.add(s.c.origin(&r), 0, r.Since)
	r.DiffID = ""
	old, known := s.book.get(r.Digest)
	if !known || old.State != Sending {
		return s.fail(DecidedRefused, r, why)
	}
	r.Reason = why.Error()
	old.Failed = append(slices.Clone(old.Failed), failedObject(r.Key, r.Object))
	return s.follows(DecidedRefused, &r, "", func() error { return s.book.put(old) })
}

// folderOf is the folder of a key; "" for one that lies in none. To a store, and to its policies, ".." is a name like
// others: whoever may write below a folder may write one that leads out of it.
func folderOf(key string) string { return key[:max(0, strings.LastIndexByte(key, '/'))] }

// bounded cuts what a node says of a layer.
func bounded(text string) string {
	const most = 1024 // bytes
	return text[:min(len(text), most)]
}

// leastFetch is what fetching an object may take, however small it is.
const leastFetch = time.Minute

// fetch brings an object's archive here.
func (s *Service) fetch(ctx context.Context, r *Record) error {
	if s.bucket == nil {
		return errors.New("it is in a bucket, and the configuration has none any more")
	}
	limit := leastFetch + time.Duration(r.Size/leastRate)*time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the store gives it too slowly: not within %v", limit))
	defer cancel()
	content, err := s.bucket.Get(ctx, r.Key)
	if errors.Is(err, fs.ErrNotExist) {
		return refusef("it is gone from the bucket: send it again")
	}
	if err != nil {
		return err
	}
	err = durable.ReplaceBy(s.book.archive(r.Digest), 0o600, func(w io.Writer) error {
		n, err := io.Copy(w, io.LimitReader(content, r.Size+1))
		if err == nil && n != r.Size {
			err = refusef("it has changed in the bucket, from %d to %d bytes or more", r.Size, n)
		}
		return err
	})
	return errors.Join(err, content.Close())
}
