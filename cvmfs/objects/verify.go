package objects

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
)

// Verified is what a check of objects has found.
type Verified struct {
	Objects    int64    `json:"objects"`              // looked at
	Bytes      int64    `json:"bytes"`                // plain
	Damaged    int64    `json:"damaged"`              // of them, removed: they are fetched again when they are used next
	Unrecorded int64    `json:"unrecorded"`           // whose content nothing was recorded of: only their size was checked
	Names      []string `json:"names,omitempty"`      // of the first damaged ones
	Unreadable int64    `json:"unreadable,omitempty"` // that could not be read for now, or not be removed
}

// someNames is how many names a Verified gives.
const someNames = 100

func (v *Verified) add(w Verified) {
	v.Objects += w.Objects
	v.Bytes += w.Bytes
	v.Damaged += w.Damaged
	v.Unrecorded += w.Unrecorded
	v.Unreadable += w.Unreadable
	v.Names = append(v.Names, w.Names[:min(len(w.Names), someNames-len(v.Names))]...)
}

// Verify reads objects and holds them against what was recorded of them when they were fetched: those of an image, or
// with key "" all of them. It removes damaged ones, and tells from time to time what it has found so far.
func (s *Store) Verify(ctx context.Context, key string, tell func(Verified)) (v Verified, err error) {
	if key != "" {
		return s.verifyImage(ctx, key, tell)
	}
	for n := range folders {
		w, err := s.verifyFolder(ctx, n, 0)
		v.add(w)
		if err != nil {
			return v, fmt.Errorf("verify objects: %w", err)
		}
		tell(v)
	}
	return v, nil
}

// toldEvery is after how many objects of an image it is told how far verifying has got.
const toldEvery = 1024

func (s *Store) verifyImage(ctx context.Context, key string, tell func(Verified)) (v Verified, err error) {
	i, err := s.image(key)
	if err != nil {
		return v, err
	}
	t, err := i.table()
	if err != nil {
		return v, err
	}
	for pos := range t.Len() {
		if pos%toldEvery == toldEvery-1 {
			tell(v)
		}
		if err := context.Cause(ctx); err != nil {
			return v, err
		}
		v.add(s.verifyObject(ctx, t.name(pos)))
	}
	return v, nil
}

// verifyFolder verifies a folder, at so many bytes a second; 0 is without a limit.
func (s *Store) verifyFolder(ctx context.Context, n int, rate int64) (v Verified, err error) {
	var files []string
	if err := s.eachFile(n, func(name string) error {
		files = append(files, name)
		return nil
	}); err != nil {
		return v, err
	}
	for _, file := range files {
		if err := context.Cause(ctx); err != nil {
			return v, err
		}
		name, err := ParseName(file)
		if err != nil {
			continue // not ours
		}
		v.add(s.verifyObject(ctx, name))
		if rate > 0 {
			const lookup = 16 << 10 // what finding a file counts
			seconds := float64(name.Size+lookup) / float64(rate)
			if err := sleep(ctx, time.Duration(seconds*float64(time.Second))); err != nil {
				return v, err
			}
		}
	}
	return v, nil
}

// verifyObject verifies an object, if it is here, and removes it if it is damaged.
func (s *Store) verifyObject(ctx context.Context, n Name) Verified {
	name := n.String()
	path := place(name)
	var was unix.Stat_t
	if unix.Fstatat(int(s.dir.Fd()), path, &was, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return Verified{}
	}
	v := Verified{Objects: 1, Bytes: n.Size}
	err := verify(ctx, filepath.Join(s.cfg.Dir, path), n)
	switch {
	case ctx.Err() != nil:
		return Verified{}
	case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM):
		// Our want says nothing of the object.
		s.log.Warn("object store: an object can't be verified now", slog.String("object", name), slog.Any("err", err))
		v.Unreadable = 1
		return v
	case err == nil || errors.Is(err, fs.ErrNotExist):
		return v
	case errors.Is(err, errUnrecorded) && was.Size == n.Size:
		v.Unrecorded = 1
		return v
	}
	if err := s.drop(path, &was, err); err != nil {
		s.log.Error("object store: a damaged object can't be removed", slog.String("object", name), slog.Any("err", err))
		v.Unreadable = 1
		return v
	}
	v.Damaged, v.Names = 1, []string{name}
	return v
}

// drop removes a damaged object, unless another file has taken its place.
func (s *Store) drop(path string, was *unix.Stat_t, cause error) error {
	var is unix.Stat_t
	err := unix.Fstatat(int(s.dir.Fd()), path, &is, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || err == nil && is.Ino != was.Ino {
		return nil
	}
	if err == nil {
		_, err = s.remove(path)
	}
	if err == nil {
		s.damaged.Add(1)
		s.log.Warn("object store: removed a damaged object, which is fetched again when it is used; a container that has it open has to be started again",
			slog.String("object", filepath.Base(path)), slog.Any("err", cause))
	}
	return err
}

// checkSizes removes those objects of an image whose size is wrong: a kernel that finds them wouldn't ask. Where the
// image names more objects than are here, all that are here are looked at instead.
func (s *Store) checkSizes(t *Table) {
	if s.ledger.objects.Load() >= int64(t.Len()) {
		for i := 0; i < t.Len() && s.life.Err() == nil; i++ {
			s.checkSize(t.name(i))
		}
		return
	}
	for folder := range folders {
		err := s.eachFile(folder, func(name string) error {
			if n, err := ParseName(name); err == nil {
				s.checkSize(n)
			}
			return s.life.Err()
		})
		switch {
		case s.life.Err() != nil:
			return
		case err != nil:
			s.log.Warn("object store: sizes of objects can't be checked", slog.Any("err", err))
		}
	}
}

// checkSize removes an object whose size is wrong.
func (s *Store) checkSize(n Name) {
	path := place(n.String())
	var st unix.Stat_t
	if unix.Fstatat(int(s.dir.Fd()), path, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Size == n.Size {
		return
	}
	if err := s.drop(path, &st, fmt.Errorf("%d bytes instead of %d", st.Size, n.Size)); err != nil {
		s.log.Error("object store: a damaged object can't be removed", slog.String("object", n.String()), slog.Any("err", err))
	}
}

const (
	scrubFile = "scrub.json"
	// scrubRate is how many bytes a second scrubbing reads where nothing else is said; scrubEvery is the time from the
	// end of one round to the beginning of the next.
	scrubRate  = 8 << 20
	scrubEvery = 7 * 24 * time.Hour
)

// Scrub is the state of scrubbing.
type Scrub struct {
	Folder int       `json:"folder"` // that is next, of 256
	Ended  time.Time `json:"ended"`  // the last round; zero: none has yet
	Last   Verified  `json:"last"`   // what the last round found
	Round  Verified  `json:"round"`  // what this round has found
}

// scrub verifies all objects slowly, again and again, and goes on where a former life has stopped. It ends with ctx.
func (s *Store) scrub(ctx context.Context) {
	state := s.readScrub()
	for s.cfg.ScrubRate >= 0 {
		if state.Folder == 0 {
			if err := sleep(ctx, max(time.Minute, time.Until(state.Ended.Add(scrubEvery)))); err != nil {
				return
			}
		}
		if err := s.scrubFolder(ctx, &state); err != nil {
			if ctx.Err() != nil || errors.Is(err, errSucceeded) {
				return
			}
			s.log.Warn("object store: scrubbing was interrupted", slog.Any("err", err))
			if err := sleep(ctx, time.Hour); err != nil {
				return
			}
		}
	}
}

// scrubFolder verifies the next folder and counts it.
func (s *Store) scrubFolder(ctx context.Context, state *Scrub) error {
	rate := s.cfg.ScrubRate
	if rate == 0 {
		rate = scrubRate
	}
	v, err := s.verifyFolder(ctx, state.Folder, rate)
	if err == nil {
		err = s.countFolder(state.Folder)
	}
	if err != nil {
		return err
	}
	state.Round.add(v)
	if state.Folder++; state.Folder == folders {
		s.log.Info("object store: scrubbed", slog.Int64("objects", state.Round.Objects),
			slog.Int64("damaged", state.Round.Damaged))
		*state = Scrub{Ended: time.Now(), Last: state.Round}
	}
	s.scrubbed.Store(state.copy())
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	return s.asOwner(func() error { return durable.Replace(filepath.Join(s.cfg.State, scrubFile), 0o600, b) })
}

func (c *Scrub) copy() *Scrub {
	d := *c
	return &d
}

// readScrub returns the state a former life has left; one that can't be read is that of a new store.
func (s *Store) readScrub() (state Scrub) {
	b, err := os.ReadFile(filepath.Join(s.cfg.State, scrubFile))
	if err == nil {
		err = json.Unmarshal(b, &state)
	}
	if err != nil || state.Folder < 0 || state.Folder >= folders {
		state = Scrub{}
	}
	s.scrubbed.Store(state.copy())
	return state
}
