package main

import (
	"fmt"
	"slices"
	"time"
)

// figure is a number that was measured several times.
type figure []float64

// of collects a figure of a cell's samples.
func (c *cell) of(get func(sample) float64) (f figure) {
	if c == nil {
		return nil
	}
	for _, s := range c.Samples {
		f = append(f, get(s))
	}
	return f
}

// median returns 0 of no numbers.
func (f figure) median() float64 {
	if len(f) == 0 {
		return 0
	}
	return median(f)
}

// text is the median and, of several numbers, the least and the greatest; "" of none.
func (f figure) text(format string) string {
	switch len(f) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf(format, f[0])
	}
	return fmt.Sprintf(format+" ("+format+"–"+format+")", f.median(), slices.Min(f), slices.Max(f))
}

// What samples tell.
func (s sample) ready() float64 { return s.Pull + s.Run }

func (s sample) warm() float64 { return s.Warm }

func (s sample) disk() float64 { return float64(s.Disk) }

func (s sample) catalogs() float64 { return float64(s.Site.Catalogs) }

func (s sample) later() float64 { return float64(s.Later.Bytes) }

// fetched is what a start has fetched of both servers, in bytes.
func (s sample) fetched() float64 { return float64(s.Registry.Bytes + s.Site.Bytes) }

func (s sample) requests() float64 { return float64(s.Registry.Requests + s.Site.Requests) }

// roundTrips is what the floor grants a start.
const roundTrips = 10

// floor is the least that a thin image's start could take: the warm run on the engine's own driver, what is needed over
// the link, and some round trips. It reports whether all of it is known.
func (r *results) floor(image string, n network, engine string) (seconds float64, known bool) {
	own := r.inMode(image, n, engine, modes[0]).of(sample.warm)
	c := r.thin(image, n, engine)
	facts, ok := r.Images[image]
	if len(own) == 0 || c == nil || !ok {
		return 0, false
	}
	seconds = own.median() + roundTrips*n.speed.Trip.Seconds()
	if n.speed.Rate > 0 {
		described := c.of(func(s sample) float64 { return float64(s.Registry.Bytes) + s.catalogs() }).median()
		seconds += (float64(facts.Needed) + described) / float64(n.speed.Rate)
	}
	return seconds, true
}

// inMode is the cell of a mode, thin ones in the view that the kernel is best at, or nil.
func (r *results) inMode(image string, n network, engine string, m mode) *cell {
	return r.cell(m.key(image, n, engine, "auto"))
}

// thin is the cell of the thin image, in the view that the kernel is best at, or nil.
func (r *results) thin(image string, n network, engine string) *cell {
	return r.cell(key{image, n.name, engine, string(thin), "auto"})
}

// samples is how many there are.
func (r *results) samples() (n int) {
	for _, c := range r.Cells {
		n += len(c.Samples)
	}
	return n
}

// period is when the first and the last sample were taken, on what load, and of which programs.
func (r *results) period() (first, last time.Time, least, most float64, versions []string) {
	for _, c := range r.Cells {
		for _, s := range c.Samples {
			if first.IsZero() {
				first, last, least, most = s.Time, s.Time, s.Load, s.Load
			}
			if s.Time.Before(first) {
				first = s.Time
			}
			if s.Time.After(last) {
				last = s.Time
			}
			least, most = min(least, s.Load), max(most, s.Load)
			if !slices.Contains(versions, s.Version) {
				versions = append(versions, s.Version)
			}
		}
	}
	return first, last, least, most, versions
}
