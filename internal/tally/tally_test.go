package tally_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/internal/tally"
)

// A duration is counted in the bucket whose upper end it doesn't pass, as Prometheus' "le" has it.
func TestDurationsAreCountedInTheirBuckets(t *testing.T) {
	var d tally.Durations
	for _, took := range []time.Duration{
		0, time.Millisecond, time.Millisecond + 1, 3 * time.Second, 5 * time.Minute, time.Hour,
	} {
		d.Add(took)
	}
	h := d.Histogram()
	if len(h.Counts) != len(h.Bounds)+1 || !slices.IsSorted(h.Bounds) {
		t.Fatalf("%d counts for the bounds %v", len(h.Counts), h.Bounds)
	}
	of := func(bound float64) int64 { return h.Counts[slices.Index(h.Bounds, bound)] }
	if of(0.001) != 2 || of(0.0025) != 1 || of(5) != 1 || of(300) != 1 || h.Counts[len(h.Bounds)] != 1 {
		t.Errorf("%v in %v", h.Counts, h.Bounds)
	}
	if h.Sum < 3903.001 || h.Sum > 3903.003 {
		t.Errorf("the sum is %v", h.Sum)
	}
}

func TestHistogramsAreAdded(t *testing.T) {
	var a, b, both tally.Durations
	for _, took := range []time.Duration{time.Millisecond, time.Second} {
		a.Add(took)
		both.Add(took)
	}
	b.Add(time.Minute)
	both.Add(time.Minute)
	if d := cmp.Diff(both.Histogram(), tally.Histogram{}.Plus(a.Histogram()).Plus(b.Histogram())); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if n := a.Histogram().Counts; n[0] != 1 {
		t.Errorf("adding changed one of the two: %v", n)
	}
}

func TestDurationsOfManyAreAllCounted(t *testing.T) {
	var d tally.Durations
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 1000 {
				d.Add(time.Second)
			}
		})
	}
	group.Wait()
	if h := d.Histogram(); h.Counts[slices.Index(h.Bounds, 1)] != 8000 || h.Sum != 8000 {
		t.Errorf("%+v", h)
	}
}
