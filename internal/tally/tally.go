// Package tally counts how long things take where they happen, in buckets, for whoever draws it.
package tally

import (
	"slices"
	"sync/atomic"
	"time"
)

// bounds are the upper ends of buckets: from an answer of the neighbouring machine to the longest wait there is.
var bounds = [...]time.Duration{
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second,
	2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute,
}

// Durations counts durations. The zero value is none. It is safe for concurrent use, and adding waits for nobody.
type Durations struct {
	counts [len(bounds) + 1]atomic.Int64
	sum    atomic.Int64 // nanoseconds
}

// Add counts one.
func (d *Durations) Add(took time.Duration) {
	i := 0
	for i < len(bounds) && took > bounds[i] {
		i++
	}
	d.counts[i].Add(1)
	d.sum.Add(int64(took))
}

// Histogram is durations in buckets.
type Histogram struct {
	Bounds []float64 // upper ends of all buckets but the last one, which has none, in seconds
	Counts []int64   // of each bucket
	Sum    float64   // of all durations, in seconds
}

// Plus returns the durations of both.
func (h Histogram) Plus(other Histogram) Histogram {
	if len(h.Counts) == 0 {
		return other
	}
	sum := Histogram{Bounds: h.Bounds, Counts: slices.Clone(h.Counts), Sum: h.Sum + other.Sum}
	for i, n := range other.Counts {
		sum.Counts[i] += n
	}
	return sum
}

// Histogram returns what was counted so far.
func (d *Durations) Histogram() Histogram {
	h := Histogram{Sum: time.Duration(d.sum.Load()).Seconds()}
	for i := range d.counts {
		h.Counts = append(h.Counts, d.counts[i].Load())
	}
	for _, b := range bounds {
		h.Bounds = append(h.Bounds, b.Seconds())
	}
	return h
}
