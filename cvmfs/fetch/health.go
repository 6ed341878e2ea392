package fetch

import (
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// health is what is known of a server or proxy. The zero value is in order.
type health struct {
	since   time.Time     // first failure since the last success; zero: in order
	failed  time.Time     // last failure
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
	h.cause, h.failed = fail.err, now
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
		h.wait = cfg.coolDown
		h.retry = now.Add(h.wait)
	case !now.Before(h.retry):
		h.wait = min(2*h.wait, cfg.coolDownMax)
		h.retry = now.Add(h.wait)
	}
}

// answered records a sign of life, which ends a cool-down. The place in the order it doesn't restore.
func (h *health) answered(now time.Time) {
	h.worked, h.wait, h.retry = now, 0, time.Time{}
}

// delivered records a file that an attempt begun at the time given got. It restores the place in the order, unless the
// failure is younger than the attempt.
func (h *health) delivered(now, began time.Time) (restored bool) {
	h.answered(now)
	if h.since.IsZero() || h.failed.After(began) {
		return false
	}
	h.pardon()
	return true
}

// pardon takes back a failure that was somebody else's.
func (h *health) pardon() { *h = health{worked: h.worked, probing: h.probing} }

// state tells since when and why it is out of order, for an error's text that tells those of told already.
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

// The following are called with Fetcher.mu held.

func (f *Fetcher) blameServer(s *server, w *walk, now time.Time, fail failure) {
	if s.since.IsZero() {
		f.failovers.servers.Add(1)
		f.log.Warn("server failed, using others", slog.String("server", s.name), slog.Any("err", fail.err))
	}
	s.fail(now, w.began, &f.cfg, f.cfg.HostResetAfter, fail)
	w.mine(&s.health)
}

func (f *Fetcher) blameProxy(p *proxy, w *walk, now time.Time, fail failure) {
	if p.since.IsZero() {
		f.failovers.proxies.Add(1)
		f.log.Warn("proxy failed, using others", slog.String("proxy", p.name), slog.Any("err", fail.err))
	}
	p.fail(now, w.began, &f.cfg, f.cfg.ProxyResetAfter, fail)
	w.mine(&p.health)
}

func (f *Fetcher) delivered(r route, w *walk, now time.Time) {
	for _, m := range []struct {
		*health
		kind, name string
	}{{&r.server.health, "server", r.server.name}, {&r.proxy.health, "proxy", r.proxy.name}} {
		since := m.since
		if m.health.delivered(now, w.began) {
			f.log.Info(m.kind+" works again", slog.String(m.kind, m.name),
				slog.Duration("after", now.Sub(since).Round(time.Second)))
		}
	}
}
