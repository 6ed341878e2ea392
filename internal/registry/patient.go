package registry

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	patience   = 2 * time.Minute        // waited for one request at most
	firstPause = 100 * time.Millisecond // the least before a request is sent again; it doubles each time
	// times longer are the pauses where a server that has had too many requests doesn't say how long
	restraint  = 10
	maxDrained = 64 << 10 // bytes of an answer that are read so that its connection can be used again
)

// patient asks again where a server says "later": by 429 (RFC 6585, 4), or by 503 with a time (RFC 9110, 10.2.3). It
// waits as long as the server asks for, if that is not long.
type patient struct {
	base     http.RoundTripper
	patience time.Duration
}

func (t patient) RoundTrip(r *http.Request) (*http.Response, error) {
	waited := time.Duration(0)
	for pause := firstPause; ; pause *= 2 {
		answer, err := t.base.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		wait, later := later(answer, pause, time.Now())
		if !later || waited+wait > t.patience {
			return answer, nil
		}
		again, err := repeated(r)
		if err != nil || again == nil {
			return answer, nil // the caller decides on it
		}
		drain(answer)
		if err := sleep(r.Context(), wait); err != nil {
			return nil, err
		}
		waited, r = waited+wait, again
	}
}

// later reports whether an answer means that the request may be sent again, and after how long: not before pause.
func later(answer *http.Response, pause time.Duration, now time.Time) (time.Duration, bool) {
	after, said := retryAfter(answer.Header, now)
	switch {
	case answer.StatusCode == http.StatusTooManyRequests && !said:
		return restraint * pause, true
	case said && (answer.StatusCode == http.StatusTooManyRequests ||
		answer.StatusCode == http.StatusServiceUnavailable):
		return max(after, pause), true
	}
	return 0, false
}

// retryAfter reads the header of this name: seconds, or a time, which is compared with the server's own.
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0, false
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return at.Sub(now), true
}

// drain reads a short answer's body to its end, so that its connection serves what comes next, and closes it.
func drain(answer *http.Response) {
	io.CopyN(io.Discard, answer.Body, maxDrained) // best effort: else another connection is made
	answer.Body.Close()                           // nothing more is read
}

// repeated is a request that can be sent after r; nil if its body can't be read again.
func repeated(r *http.Request) (*http.Request, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return r, nil
	}
	if r.GetBody == nil {
		return nil, nil
	}
	body, err := r.GetBody()
	if err != nil {
		return nil, err
	}
	again := r.Clone(r.Context())
	again.Body = body
	return again, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	pause := time.NewTimer(d)
	defer pause.Stop()
	select {
	case <-pause.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
