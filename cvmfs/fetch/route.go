package fetch

import (
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"
)

// health is what is known of a server or proxy. The zero value is in order.
type health struct {
	since   time.Time     // first failure since the last success; zero: in order
	reset   time.Time     // regains its place in the order; zero: not by time alone
	retry   time.Time     // end of the cool-down
	wait    time.Duration // length of the cool-down; 0: none, it answers
	probing bool          // a request is trying it after a cool-down
	cause   error         // of the last failure
	worked  time.Time     // last sign of life
}

// usable reports whether a request may try it.
func (h *health) usable(now time.Time) bool { return h.wait == 0 || !h.probing && !now.Before(h.retry) }

// preferred reports whether it stands in its own place rather than behind all others.
func (h *health) preferred(now time.Time) bool {
	return h.since.IsZero() || !h.reset.IsZero() && !now.Before(h.reset) && h.usable(now)
}

// fail records the failure of an attempt that began at the time given. Failures of requests that ran side by side count
// as one, and a stall starts no cool-down where another request got an answer meanwhile.
func (h *health) fail(now, began time.Time, cfg *Config, resetAfter time.Duration, fail failure) {
	h.cause = fail.err
	if h.since.IsZero() {
		h.since = now
	}
	h.reset = time.Time{}
	if resetAfter > 0 {
		h.reset = now.Add(resetAfter)
	}
	switch {
	case !fail.hard || h.worked.After(began):
		h.wait, h.retry = 0, time.Time{}
	case h.wait == 0:
		h.wait = cfg.BackoffInit
		h.retry = now.Add(h.wait)
	case !now.Before(h.retry):
		h.wait = min(2*h.wait, cfg.BackoffMax)
		h.retry = now.Add(h.wait)
	}
}

// route is a way to get a file. A probe is held where the server or proxy is tried after a cool-down.
type route struct {
	server                  *server
	proxy                   *proxy
	probeServer, probeProxy bool
}

// walk is one call's way over the routes.
type walk struct {
	path    string
	began   time.Time // the latest attempt
	noCache bool      // caches on the way are passed by
	errs    failures

	answers int               // servers that answered, though not with the file
	absent  int               // of these, with 404
	done    map[*server]bool  // need not be asked again
	spent   map[*proxy]bool   // can't be reached, by no server's fault
	own     map[*proxy]bool   // failed in this walk, perhaps by a server's fault: is tried with others
	tried   map[route]failure // through proxies, by neither one\'s clear fault
}

// failure is how an attempt failed.
type failure struct {
	err  error
	hard bool
}

// next returns the best route not yet tried, if there is one.
func (f *Fetcher) next(w *walk) (route, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for _, last := range []bool{false, true} {
		for _, s := range f.servers {
			if s.preferred(now) == last || w.done[s] || !s.usable(now) {
				continue
			}
			if p := f.pick(w, s, now); p != nil {
				r := route{server: s, proxy: p, probeServer: s.wait > 0, probeProxy: p.wait > 0 && p.usable(now)}
				s.probing = s.probing || r.probeServer
				p.probing = p.probing || r.probeProxy
				return r, true
			}
		}
	}
	return route{}, false
}

func (f *Fetcher) pick(w *walk, s *server, now time.Time) *proxy {
	proxies := f.proxies
	if s.file {
		proxies = f.local
	}
	for _, last := range []bool{false, true} {
		for _, p := range proxies {
			if p.preferred(now) != last && !w.spent[p] && !w.triedOn(s, p) && (p.usable(now) || w.own[p]) {
				return p
			}
		}
	}
	return nil
}

// worthRetrying is false where the attempt was a probe, or where others have found the route dead meanwhile.
func (f *Fetcher) worthRetrying(r route) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return r.server.wait == 0 && r.proxy.wait == 0
}

// arrived records that a whole body came, before the sink has judged it: a sink that fetches what it judges by, as a
// manifest's does, must not find the route closed because it holds the probe itself.
func (f *Fetcher) arrived(r route) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.succeed(&r.server.health, now, "server", r.server.name)
	f.succeed(&r.proxy.health, now, "proxy", r.proxy.name)
}

// settle records how a route did.
func (f *Fetcher) settle(r route, w *walk, out outcome, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	r.server.probing = r.server.probing && !r.probeServer
	r.proxy.probing = r.proxy.probing && !r.probeProxy
	if out == stopped {
		return
	}
	if out != delivered {
		w.note(err)
	}
	fail := failure{err, out.hard()}
	switch {
	case out == delivered || out == missing || out == corrupt:
		f.succeed(&r.server.health, now, "server", r.server.name)
		f.succeed(&r.proxy.health, now, "proxy", r.proxy.name)
		f.convict(r, w, now)
	case out == hostFault:
		f.succeed(&r.proxy.health, now, "proxy", r.proxy.name)
		f.convict(r, w, now)
		f.blameServer(r.server, w, now, fail)
	case r.proxy.direct():
		f.blameServer(r.server, w, now, fail)
	default:
		f.blameProxy(r.proxy, w, now, fail)
		w.burn(r, fail, out == unreachable)
		return
	}
	w.leave(r.server, out)
}

// convict finds, after an answer, the servers that failed through the very proxy that then worked: it was they.
func (f *Fetcher) convict(r route, w *walk, now time.Time) {
	for t, fail := range w.tried {
		if t.proxy == r.proxy && t.server != r.server {
			f.blameServer(t.server, w, now, fail)
		}
	}
}

func (f *Fetcher) blameServer(s *server, w *walk, now time.Time, fail failure) {
	if s.since.IsZero() {
		f.log.Warn("server failed, using others", slog.String("server", s.name), slog.Any("err", fail.err))
	}
	s.fail(now, w.began, &f.cfg, f.cfg.HostResetAfter, fail)
}

func (f *Fetcher) blameProxy(p *proxy, w *walk, now time.Time, fail failure) {
	if p.since.IsZero() {
		f.log.Warn("proxy failed, using others", slog.String("proxy", p.name), slog.Any("err", fail.err))
	}
	p.fail(now, w.began, &f.cfg, f.cfg.ProxyResetAfter, fail)
}

func (f *Fetcher) succeed(h *health, now time.Time, kind, name string) {
	if !h.since.IsZero() {
		f.log.Info(kind+" works again", slog.String(kind, name),
			slog.Duration("after", now.Sub(h.since).Round(time.Second)))
	}
	*h = health{worked: now}
}

// note keeps an error for the caller. Walks are short, but retried servers of a long chain need not all be told.
func (w *walk) note(err error) {
	if len(w.errs) < 8 {
		w.errs = append(w.errs, err)
	}
}

// leave ends a server's part in the walk.
func (w *walk) leave(s *server, out outcome) {
	if w.done == nil {
		w.done = map[*server]bool{}
	}
	w.done[s] = true
	if !out.transfer() {
		w.answers++
	}
	if out == missing {
		w.absent++
	}
}

// burn ends a proxy's part: with this server, or where it can't be reached, with all.
func (w *walk) burn(r route, fail failure, spent bool) {
	if w.tried == nil {
		w.tried, w.own, w.spent = map[route]failure{}, map[*proxy]bool{}, map[*proxy]bool{}
	}
	w.tried[route{server: r.server, proxy: r.proxy}] = fail
	w.own[r.proxy] = true
	w.spent[r.proxy] = spent
}

func (w *walk) triedOn(s *server, p *proxy) bool {
	_, ok := w.tried[route{server: s, proxy: p}]
	return ok
}

// giveUp says why no route is left.
func (f *Fetcher) giveUp(w *walk) error {
	if w.absent == len(f.servers) {
		e := *w.errs[0].(*Error)
		e.Err = fs.ErrNotExist
		if n := len(f.servers); n > 1 {
			e.Err = fmt.Errorf("none of %d servers has it: %w", n, fs.ErrNotExist)
		}
		return &e
	}
	if len(w.errs) == 0 {
		f.refused.Add(1)
	}
	errs := w.errs
	if w.answers < len(f.servers) {
		errs = append(errs, f.unavailable(w))
	}
	return fmt.Errorf("fetch %s: %w", w.path, errs)
}

// unavailable names who could not be asked, since when, and why where the walk's own errors don't say that.
func (f *Fetcher) unavailable(w *walk) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	text := ""
	for _, s := range f.servers {
		if !w.done[s] || s.wait > 0 {
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

func (h *health) state(now time.Time, told []error) string {
	if h.since.IsZero() {
		return ""
	}
	s := " (since " + h.since.Format(time.DateTime)
	if h.wait > 0 {
		s += fmt.Sprintf(", next try in %v", max(0, h.retry.Sub(now)).Round(100*time.Millisecond))
	}
	if why := h.cause.Error(); !slices.ContainsFunc(told, func(err error) bool { return err.Error() == why }) {
		s += ": " + why
	}
	return s + ")"
}
