package main

import (
	"errors"
	"fmt"
)

// quickImage is the image that is measured only when it is named: it needs nothing but a busybox.
const quickImage = "small"

// leastQuick is what a start of that image reads, in bytes: 200 files of 4.5 kB on average, and pages of busybox.
// Whoever counts less misses some.
const leastQuick = 1_500_000

// limits are what its starts may fetch at most, by mode. Without a profile it depends on how fast the machine is how
// many neighbours are fetched ahead of a reader; the whole image would be 10 MB in 2,000 requests. With one it comes in
// packs, in 14 requests unless the program is ahead of them.
var limits = map[string]struct{ bytes, requests float64 }{
	string(thin):     {7_500_000, 1300},
	string(profiled): {2_000_000, 50},
}

// quick is a run that takes a few minutes.
func (o options) quick() options {
	o.images, o.links, o.modes, o.rounds = list{quickImage}, list{"none"}, list{string(thin), string(profiled)}, 1
	o.force = true
	return o
}

// checkQuick reports what exceeds the limits.
func (r *results) checkQuick() error {
	var failures []error
	for _, c := range r.Cells {
		most, limited := limits[c.Mode]
		if c.Image != quickImage || !limited {
			continue
		}
		for _, s := range c.Samples {
			if s.fetched() < leastQuick || s.fetched() > most.bytes || s.requests() > most.requests {
				failures = append(failures, fmt.Errorf(
					"%v: fetched %.0f bytes in %.0f requests: want %d to %.0f bytes in %.0f requests at most", c.key,
					s.fetched(), s.requests(), leastQuick, most.bytes, most.requests))
			}
		}
	}
	return errors.Join(failures...)
}
