package objects

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/fetch"
)

const (
	// Local looks at so many objects, which takes some 5 ms where folders are in memory, and where they aren't for no
	// longer than this.
	localSample   = 1024
	localPatience = 100 * time.Millisecond
	// completers is how many objects Complete fetches at once: it is to leave the way free for those somebody waits
	// for.
	completers = 16
)

// Share is how much of the objects of a table is on disk.
type Share struct {
	Objects   int   `json:"objects"` // on disk, complete
	Of        int   `json:"of"`      // in the table
	Bytes     int64 `json:"bytes"`   // plain
	OfBytes   int64 `json:"of_bytes"`
	Estimated bool  `json:"estimated"` // Objects and Bytes are estimates, from an even sample
}

// Local reports how much of a table's objects is on disk. Of large tables, and where the disk is slow, it looks at a
// sample.
func (s *Store) Local(t *Table) Share {
	share := Share{Of: t.Len()}
	for i := range t.Len() {
		share.OfBytes += t.record(i).size()
	}
	var n, seen int64 // objects and bytes looked at
	began := time.Now()
	for pos := range scattered(t.Len()) {
		if n == localSample || n > 0 && time.Since(began) > localPatience {
			break
		}
		r := Ref{t: t, pos: uint32(pos)}
		n++
		seen += r.Size()
		if s.Has(r) {
			share.Objects++
			share.Bytes += r.Size()
		}
	}
	if n < int64(t.Len()) {
		share.Estimated = true
		share.Objects = int(int64(share.Objects) * int64(t.Len()) / n)
		share.Bytes = int64(float64(share.Bytes) / float64(max(1, seen)) * float64(share.OfBytes))
	}
	return share
}

// scattered returns the numbers below n, each once, so that those given so far are always spread evenly: multiples of
// the golden section.
func scattered(n int) iter.Seq[int] {
	step := max(1, int(float64(n)*0.6180339887))
	for gcd(step, n) > 1 {
		step++
	}
	return func(yield func(int) bool) {
		for i, at := 0, 0; i < n && yield(at); i++ {
			at = (at + step) % n
		}
	}
}

func gcd(a, b int) int {
	for b > 0 {
		a, b = b, a%b
	}
	return a
}

// Completion is what Complete has done.
type Completion struct {
	Fetched int   `json:"fetched"`
	Bytes   int64 `json:"bytes"`  // plain
	Failed  int   `json:"failed"` // objects that couldn't be had, for other reasons than those Complete ends for
	Here    int   `json:"here"`   // objects that were here
	Of      int   `json:"of"`     // objects in the table
}

// Complete fetches the objects of a table that are not here, a few at a time, and passes over those that can't be had.
// It ends early, with an error, when servers are unavailable (fetch.ErrUnavailable), at the floor (syscall.ENOSPC) and
// at the limit (ErrLimit), and when ctx ends.
func (s *Store) Complete(ctx context.Context, x *Index, t *Table) (Completion, error) {
	return s.complete(ctx, x, t, func(Completion) {})
}

func (s *Store) complete(ctx context.Context, x *Index, t *Table, tell func(Completion)) (Completion, error) {
	var mu sync.Mutex // guards done, and orders what is told
	done := Completion{Of: t.Len()}
	group, life := errgroup.WithContext(ctx)
	group.SetLimit(completers)
	for i := 0; i < t.Len() && life.Err() == nil; i++ {
		r := Ref{x, t, uint32(i)}
		if s.Has(r) {
			mu.Lock()
			done.Here++
			mu.Unlock()
			continue
		}
		group.Go(func() error {
			err := s.Fetch(life, r)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				done.Fetched++
				done.Bytes += r.Size()
			case life.Err() != nil || s.life.Err() != nil || errors.Is(err, fetch.ErrUnavailable) ||
				errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrLimit):
				return err
			default:
				done.Failed++
				s.log.Debug("object store: passed over", slog.String("object", r.Name()), slog.Any("err", err))
			}
			tell(done)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return done, err
	}
	return done, context.Cause(ctx)
}
