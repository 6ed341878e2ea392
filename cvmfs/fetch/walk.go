package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"time"
)

// route is a way to get a file.
type route struct {
	server *server
	proxy  *proxy
}

// answered counts the header of an answer.
func (r route) answered(waited time.Duration) {
	r.server.header(waited)
	r.proxy.header(waited)
}

// failure is how the attempts on a route failed.
type failure struct {
	out   outcome
	err   error
	hard  bool // it has cost time: a cool-down
	probe bool // it was tried after a cool-down
}

// walk is one call's way over the routes.
type walk struct {
	path    string
	request Request
	only    *server   // it alone is asked, for the order of all; nil: all are
	began   time.Time // the latest attempt
	noCache bool      // caches on the way are passed by
	retries int       // attempts made again after a failed transfer
	errs    failures

	tried  map[route]failure
	own    map[*health]bool // failed in this walk: may be tried on another route of it
	guilty []*health        // were in order, and failed as it seems from a body that is not judged yet
}

func (w *walk) mine(h *health) {
	if w.own == nil {
		w.own = map[*health]bool{}
	}
	w.own[h] = true
}

func (w *walk) may(h *health, now time.Time) bool { return h.usable(now) || w.own[h] }

// doubted reports whether the server was said not to have the file.
func (w *walk) doubted(s *server) bool {
	for r, fail := range w.tried {
		if r.server == s && fail.out.answer() {
			return true
		}
	}
	return false
}

// spent reports whether the proxy itself couldn't be reached.
func (w *walk) spent(p *proxy) bool {
	if p.direct() {
		return false
	}
	for r, fail := range w.tried {
		if r.proxy == p && fail.out == unreachable {
			return true
		}
	}
	return false
}

// choose returns the best route not yet tried: with servers that may have the file, and where these are exhausted, past
// the proxies through which a server seemed not to have it.
func (f *Fetcher) choose(w *walk, now time.Time) (route, bool) {
	for _, doubted := range []bool{false, true} {
		for _, last := range []bool{false, true} {
			for _, s := range f.candidates(w) {
				if s.preferred(now) == last || !w.may(&s.health, now) || w.doubted(s) != doubted {
					continue
				}
				if p := f.pick(w, s, now); p != nil {
					return route{s, p}, true
				}
			}
		}
	}
	return route{}, false
}

func (f *Fetcher) pick(w *walk, s *server, now time.Time) *proxy {
	for _, last := range []bool{false, true} {
		for _, p := range f.ways(w, s) {
			if _, tried := w.tried[route{s, p}]; !tried && p.preferred(now) != last && w.may(&p.health, now) &&
				!w.spent(p) {
				return p
			}
		}
	}
	return nil
}

// candidates are the servers that may be asked. It is called with mu held.
func (f *Fetcher) candidates(w *walk) []*server {
	if w.only != nil {
		return []*server{w.only}
	}
	return f.servers
}

// ways are what may lead to a server, in order. It is called with mu held.
func (f *Fetcher) ways(w *walk, s *server) []*proxy {
	switch {
	case s.file:
		return f.local
	case f.cfg.Shard:
		return sharded(f.proxies, w.path)
	}
	return f.proxies
}

// trial is a walk's try of a route. A probe is held where server or proxy is tried after a cool-down.
type trial struct {
	route
	probes []*health
}

// next returns the route to try now, if there is one.
func (f *Fetcher) next(w *walk) (trial, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	r, ok := f.choose(w, now)
	t := trial{route: r}
	if ok {
		for _, h := range []*health{&r.server.health, &r.proxy.health} {
			if h.wait > 0 && h.usable(now) {
				h.probing = true
				t.probes = append(t.probes, h)
			}
		}
	}
	return t, ok
}

// again prepares a further attempt where no route is left, if the request deserves one: past all caches where a body
// was bad, or after a back-off where a transfer failed.
func (f *Fetcher) again(ctx context.Context, w *walk) (bool, error) {
	if !w.noCache && f.retake(w, func(fail failure) bool { return fail.out == corrupt }, true) {
		w.noCache = true
		return true, nil
	}
	failed := func(fail failure) bool { return fail.out.transfer() && !fail.probe }
	if w.retries >= f.cfg.MaxRetries || !f.retake(w, failed, false) {
		return false, nil
	}
	return true, f.pause(ctx, w)
}

// retake lets the best of the walk's failed routes, or all, be tried once more.
func (f *Fetcher) retake(w *walk, which func(failure) bool, all bool) (found bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for _, s := range f.candidates(w) {
		for _, p := range f.ways(w, s) {
			r := route{s, p}
			fail, tried := w.tried[r]
			if !tried || !which(fail) || !w.may(&s.health, now) || !w.may(&p.health, now) {
				continue
			}
			delete(w.tried, r)
			if found = true; !all {
				return true
			}
		}
	}
	return found
}

// pause waits before a retry, for a random time: many who failed at once must not come back at once.
func (f *Fetcher) pause(ctx context.Context, w *walk) error {
	longest := f.cfg.BackoffInit
	for range w.retries {
		longest = min(2*longest, f.cfg.BackoffMax)
	}
	w.retries++
	f.retries.Add(1)
	t := time.NewTimer(rand.N(longest + 1))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return fmt.Errorf("fetch %s: %w", w.path, context.Cause(ctx))
	case <-t.C:
		return nil
	}
}

// persists reports whether a walk that failed with an error begins anew: it does while somebody didn't answer.
func (f *Fetcher) persists(w *walk, err error) bool {
	return f.cfg.Persistent && w.only == nil && errors.Is(err, ErrUnavailable)
}

// leastPause is between the walks of a request that goes on for ever.
const leastPause = 100 * time.Millisecond

// startAgain has a walk begin anew, after a pause that grows. What it has learnt of servers and proxies stays.
func (f *Fetcher) startAgain(ctx context.Context, w *walk) error {
	w.tried, w.own, w.errs, w.guilty, w.noCache = nil, nil, nil, nil, false
	select {
	case <-time.After(leastPause):
	case <-ctx.Done():
		return fmt.Errorf("fetch %s: %w", w.path, context.Cause(ctx))
	}
	return f.pause(ctx, w)
}

// still reports whether a route is the one to try after waiting for a connection. Where others have found it dead in
// the meantime, or still do, this walk need not find that out as well.
func (f *Fetcher) still(t trial, w *walk) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(t.probes) > 0 {
		return true
	}
	for _, h := range []*health{&t.server.health, &t.proxy.health} {
		if h.wait > 0 {
			delete(w.own, h)
		}
	}
	r, ok := f.choose(w, time.Now())
	return ok && r == t.route
}

// try makes attempts on one route: once more where a cache may be at fault, where the connection broke, and where a
// server that answers others took no more connections. The first uses the slot.
func (f *Fetcher) try(ctx context.Context, t trial, s *slot, w *walk, sink func(io.Reader) error) (outcome, error) {
	for full := 0; ; {
		w.began = time.Now()
		out, err := f.attempt(ctx, t.route, s, w, sink)
		switch {
		case !w.noCache && (out == short && w.retries == 0 || out == corrupt && !t.proxy.direct()):
			w.noCache = true
			f.retries.Add(1)
		case out == broken && !w.noCache && w.retries < f.cfg.MaxRetries && f.alive(t):
			if err := f.pause(ctx, w); err != nil {
				return stopped, err
			}
		case out == unreachable && full < 3 && f.lane(t.route).answeredSince(w.began):
			full++ // the queue for its next connection is shorter now
			f.retries.Add(1)
		default:
			return out, err
		}
		if s, _, err = f.lane(t.route).enter(ctx); err != nil {
			return stopped, fmt.Errorf("fetch %s: %w", w.path, err)
		}
	}
}

// alive reports whether a route is worth a retry: it wasn't a probe, and others have not found it dead meanwhile.
func (f *Fetcher) alive(t trial) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(t.probes) == 0 && t.server.wait == 0 && t.proxy.wait == 0
}

// settle records how a route did.
func (f *Fetcher) settle(t trial, w *walk, out outcome, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for _, h := range t.probes {
		h.probing = false
	}
	switch out {
	case delivered:
		f.delivered(t.route, w, now)
		return
	case stopped:
		return
	case corrupt:
		w.acquit()
	}
	w.note(err)
	fail := failure{out: out, err: err, probe: len(t.probes) > 0}
	w.fail(t.route, fail)
	if out.hard() {
		// What costs time costs it once. A quick failure, as a refused connection, may be over after this walk's retry.
		slow := now.Sub(w.began) >= t.proxy.timeout/2
		_, elsewhere := f.choose(w, now)
		fail.hard = slow || elsewhere || fail.probe || w.retries >= f.cfg.MaxRetries
		w.fail(t.route, fail)
	}
	if out.answer() {
		t.server.answered(now)
	}
	if out != unreachable && !out.transfer() {
		t.proxy.answered(now)
	}
	f.presume(t.route, w, now, fail)
}

// presume lays a failure at somebody's door before there is evidence.
func (f *Fetcher) presume(r route, w *walk, now time.Time, fail failure) {
	switch {
	case fail.out == missing || fail.out == corrupt || w.excuses(fail):
		// Nobody may have better.
	case fail.out == hostFault:
		f.blameServer(r.server, w, now, fail)
	case !r.proxy.direct():
		f.blameProxy(r.proxy, w, now, fail)
	default:
		f.blameServer(r.server, w, now, fail)
		// Without a proxy it failed as well: so it wasn't those.
		for t, other := range w.tried {
			if t.server == r.server && t.proxy != r.proxy && other.out.transfer() && !w.spent(t.proxy) {
				t.proxy.pardon()
			}
		}
	}
}

// arrived records that a whole body came by a route, and who failed on the way to it: a server where the proxy that
// brought it had another's file, a proxy where the server's file came by another way. That is so before the sink has
// judged the body, for a sink may fetch what it judges by, as a manifest's does: it must not pay once more for who
// failed, nor find the route closed because it holds the probe itself.
func (f *Fetcher) arrived(r route, w *walk) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	r.server.answered(now)
	r.proxy.answered(now)
	for t, fail := range w.tried {
		switch {
		case w.excuses(fail):
		case t.proxy == r.proxy && t.server != r.server:
			w.suspect(&t.server.health)
			f.blameServer(t.server, w, now, fail)
			if !t.proxy.direct() && fail.out.presumedProxy() {
				t.proxy.pardon()
			}
		case t.server == r.server && t.proxy != r.proxy:
			w.suspect(&t.proxy.health)
			f.blameProxy(t.proxy, w, now, fail)
			if fail.out == hostFault {
				t.server.pardon()
			}
		}
	}
}

// excuses reports whether a failure says nothing of who brings files: the question for the order was refused.
func (w *walk) excuses(fail failure) bool { return w.only != nil && !fail.out.transfer() }

// suspect notes whom the arrival of a body puts out of order.
func (w *walk) suspect(h *health) {
	if h.since.IsZero() {
		w.guilty = append(w.guilty, h)
	}
}

// acquit takes back what seemed proved by a body that turned out to be bad.
func (w *walk) acquit() {
	for _, h := range w.guilty {
		h.pardon()
	}
	w.guilty = nil
}

// fail notes how a route failed.
func (w *walk) fail(r route, fail failure) {
	if w.tried == nil {
		w.tried = map[route]failure{}
	}
	w.tried[r] = fail
}

// note keeps an error for the caller, once. Walks are short, but retried servers of a long chain need not all be told.
func (w *walk) note(err error) {
	known := func(e error) bool { return e.Error() == err.Error() }
	if len(w.errs) < 8 && !slices.ContainsFunc(w.errs, known) {
		w.errs = append(w.errs, err)
	}
}

// answers reports whether the server said anything of the file, and whether it was only ever that it's missing.
func (w *walk) answers(s *server) (anything, absent bool) {
	absent = true
	for r, fail := range w.tried {
		if r.server == s && (fail.out.answer() || fail.out == short) {
			anything, absent = true, absent && fail.out == missing
		}
	}
	return anything, anything && absent
}

// giveUp says why no route is left.
func (f *Fetcher) giveUp(w *walk) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	servers := f.candidates(w)
	answered, absent := 0, 0
	for _, s := range servers {
		if a, m := w.answers(s); m {
			answered, absent = answered+1, absent+1
		} else if a {
			answered++
		}
	}
	if absent == len(servers) {
		return w.missing(absent)
	}
	if len(w.errs) == 0 {
		f.refused.Add(1)
	}
	errs := w.errs
	if answered < len(servers) {
		errs = append(errs, f.unavailable(w))
	}
	return fmt.Errorf("fetch %s: %w", w.path, errs)
}

// missing is the error for a file that none of n servers has.
func (w *walk) missing(n int) error {
	for _, err := range w.errs {
		e, ok := errors.AsType[*Error](err)
		if !ok || !errors.Is(e.Err, errMissing) {
			continue
		}
		c := *e
		c.Err = fs.ErrNotExist
		if n > 1 {
			c.Err = fmt.Errorf("none of %d servers has it: %w", n, fs.ErrNotExist)
		}
		return &c
	}
	return fmt.Errorf("fetch %s: none of %d servers has it: %w", w.path, n, fs.ErrNotExist)
}

// unavailable names who could not be asked, since when, and why where the walk's own errors don't say that.
// It is called with mu held.
func (f *Fetcher) unavailable(w *walk) error {
	now := time.Now()
	text := ""
	for _, s := range f.candidates(w) {
		if answered, _ := w.answers(s); !answered || s.wait > 0 {
			text += ", " + s.name + s.state(now, w.errs)
		}
	}
	for _, p := range f.proxies {
		if !p.since.IsZero() {
			text += ", proxy " + p.name + p.state(now, w.errs)
		}
	}
	if text == "" {
		return ErrUnavailable
	}
	return fmt.Errorf("%w: %s", ErrUnavailable, text[2:])
}
