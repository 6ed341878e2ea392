package fetch

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"cvmfs-graphdriver/internal/tally"
)

// count is what became of the attempts at a server, or through a proxy. All that is told of them is made of it.
type count struct {
	outcomes [unreachable + 1]atomic.Int64
	answers  atomic.Int64    // headers that came
	waited   atomic.Int64    // for these in all, in nanoseconds
	took     tally.Durations // of the attempts that delivered
}

// ended counts an attempt that ended after some time.
func (c *count) ended(out outcome, took time.Duration) {
	c.outcomes[out].Add(1)
	if out == delivered {
		c.took.Add(took)
	}
}

// header counts that of an answer.
func (c *count) header(waited time.Duration) {
	c.answers.Add(1)
	c.waited.Add(int64(waited))
}

// attempts is how many have ended.
func (c *count) attempts() (n int64) {
	for out := range c.outcomes {
		n += c.outcomes[out].Load()
	}
	return n
}

// failures is how many brought nothing; that a caller left is none.
func (c *count) failures() int64 {
	return c.attempts() - c.outcomes[delivered].Load() - c.outcomes[stopped].Load()
}

// HostStats count the attempts at the servers of one host since the Fetcher was made.
type HostStats struct {
	Host     string // as in the servers' URLs, with a port if they have one; "file" for folders
	Attempts int64
	Failures map[string]int64 // by their kind, which are always all of them; that a caller left is none
	Latency  tally.Histogram  // of attempts that delivered, until the body was read and taken
}

// Hosts returns the counters of all hosts, in the order of the configuration.
func (f *Fetcher) Hosts() []HostStats {
	var list []HostStats
	for _, s := range f.everyServer() {
		i := slices.IndexFunc(list, func(h HostStats) bool { return h.Host == s.host() })
		if i < 0 {
			i = len(list)
			list = append(list, HostStats{Host: s.host(), Failures: map[string]int64{}})
		}
		h := &list[i]
		h.Attempts += s.attempts()
		h.Latency = h.Latency.Plus(s.took.Histogram())
		for out := missing; out <= unreachable; out++ {
			h.Failures[strings.ReplaceAll(out.String(), " ", "_")] += s.outcomes[out].Load()
		}
	}
	return list
}

// host names the server where a whole URL would be too much.
func (s *server) host() string {
	if s.file {
		return "file"
	}
	return s.base.Host
}

// everyServer is all servers, those of external files last.
func (f *Fetcher) everyServer() []*server {
	if f.external == nil {
		return f.all
	}
	return slices.Concat(f.all, f.external.all)
}

// Standing is that of all servers or all proxies together, and how often one lost its place.
type Standing struct {
	Of        int   // there are
	Failed    int   // of them are out of order now: others are tried first
	Failovers int64 // times one of them got out of order
}

// Standing returns the state of servers and proxies. Proxies are counted by their addresses, which are known from the
// first request on; DIRECT is none.
func (f *Fetcher) Standing() (servers, proxies Standing) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	servers = Standing{Of: len(f.all), Failovers: f.failovers.servers.Load()}
	for _, s := range f.all {
		servers.note(&s.health, now)
	}
	proxies = Standing{Failovers: f.failovers.proxies.Load()}
	for _, p := range f.proxies {
		if !p.direct() {
			proxies.Of++
			proxies.note(&p.health, now)
		}
	}
	return servers, proxies
}

// note counts one that is out of order.
func (m *Standing) note(h *health, now time.Time) {
	if !h.preferred(now) {
		m.Failed++
	}
}
