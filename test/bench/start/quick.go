package main

import (
	"errors"
	"fmt"
)

// quickImage is the image that is measured only when it is named: it needs nothing but a busybox.
const quickImage = "small"

// What a start of that image may fetch: 4.8 MB in 750 requests, and a tenth more. It reads 200 files of 4.5 kB on
// average and busybox, compressed 1 MB; the rest are neighbours of what is read, fetched ahead. None of it depends on
// how fast the machine is. Less than what is read means that the count misses some.
const (
	leastQuickBytes   = 1_900_000
	mostQuickBytes    = 5_300_000
	mostQuickRequests = 825
)

// quick is a run that takes a few minutes.
func (o options) quick() options {
	o.images, o.links, o.modes, o.rounds = list{quickImage}, list{"none"}, list{string(thin)}, 1
	o.force = true
	return o
}

// checkQuick reports what exceeds the limits.
func (r *results) checkQuick() error {
	var failures []error
	for _, c := range r.Cells {
		if c.Image != quickImage || c.Mode != string(thin) {
			continue
		}
		for _, s := range c.Samples {
			if s.fetched() < leastQuickBytes || s.fetched() > mostQuickBytes || s.requests() > mostQuickRequests {
				const want = "%v: fetched %.0f bytes in %.0f requests: want %d to %d bytes in %d at most"
				failures = append(failures, fmt.Errorf(want, c.key, s.fetched(), s.requests(),
					leastQuickBytes, mostQuickBytes, mostQuickRequests))
			}
		}
	}
	return errors.Join(failures...)
}
