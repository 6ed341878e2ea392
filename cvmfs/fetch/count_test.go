package fetch

import (
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/testutil"
)

// What became of attempts is counted by the host they were made at, each kind of failure by itself.
func TestAttemptsAreCountedByHost(t *testing.T) {
	t.Parallel()
	a, b := files(t), files(t)
	a.Set(testutil.Fault{Path: "late", Status: 404}, testutil.Fault{Path: "broken", Status: 500})
	f := fetcher(t, quick(a.URL+"/one", b.URL, a.URL+"/two"))
	mustGet(t, f, "good")
	mustGet(t, f, "late")
	hosts := f.Hosts()
	if len(hosts) != 2 {
		t.Fatalf("%d hosts of three servers at two", len(hosts))
	}
	for i, s := range []*testutil.Faulty{a, b} {
		if u, err := url.Parse(s.URL); err != nil || hosts[i].Host != u.Host {
			t.Errorf("host %q, want that of %s", hosts[i].Host, s.URL)
		}
	}
	want := map[string]int64{
		"missing": 1, "corrupt": 0, "server_fault": 0, "proxy_fault": 0, "short": 0, "broken": 0, "dead": 0,
		"unreachable": 0,
	}
	if d := cmp.Diff(want, hosts[0].Failures); d != "" || hosts[0].Attempts != 2 || hosts[1].Attempts != 1 {
		t.Errorf("%d and %d attempts, failures -want +got\n%s", hosts[0].Attempts, hosts[1].Attempts, d)
	}
	for _, h := range hosts {
		n := int64(0)
		for _, c := range h.Latency.Counts {
			n += c
		}
		if n != 1 || h.Latency.Sum <= 0 {
			t.Errorf("%s: %d deliveries, %v s", h.Host, n, h.Latency.Sum)
		}
	}
}

// Whoever asks is told one count: by member, by host, and of all together.
func TestAllCountsAreOne(t *testing.T) {
	t.Parallel()
	a, b, p := files(t), files(t), proxyServer(t)
	a.Set(testutil.Fault{Path: "gone", Status: 404}, testutil.Fault{Path: "cut", Cut: 2})
	cfg := quick(a.URL+"/one", b.URL, a.URL+"/two")
	cfg.Proxies, cfg.Timeout = [][]string{{p.URL}}, time.Minute
	f := fetcher(t, cfg)
	for _, name := range []string{"good", "gone", "cut", "good"} {
		mustGet(t, f, name)
	}
	servers, proxies := f.Members()
	stats := f.Stats()
	var answers, failures, attempts, kinds int64
	for _, m := range servers {
		answers, failures = answers+m.Answers, failures+m.Failures
	}
	for _, h := range f.Hosts() {
		attempts += h.Attempts
		for _, n := range h.Failures {
			kinds += n
		}
	}
	if stats.Requests == 0 || attempts != stats.Requests || answers != stats.Requests {
		t.Errorf("%d attempts by host, %d answers by member, %+v", attempts, answers, stats)
	}
	if stats.Failures == 0 || failures != stats.Failures || kinds != stats.Failures {
		t.Errorf("%d failures by member, %d by kind, %+v", failures, kinds, stats)
	}
	if want := (Member{Name: p.URL, Answers: answers, Failures: failures, Wait: proxies[0].Wait}); len(proxies) != 1 ||
		proxies[0] != want {
		t.Errorf("proxies %+v, want %+v", proxies, want)
	}
}

func TestFailOversAreCounted(t *testing.T) {
	t.Parallel()
	a, b, p := files(t), files(t), proxyServer(t)
	a.Set(testutil.Fault{Status: 500})
	cfg := quick(a.URL, b.URL)
	cfg.Proxies = [][]string{{p.URL}, {"DIRECT"}}
	cfg.HostResetAfter = 100 * time.Millisecond
	f := fetcher(t, cfg)
	for _, name := range []string{"one", "two"} {
		mustGet(t, f, name)
	}
	servers, proxies := f.Standing()
	if want := (Standing{Of: 2, Failed: 1, Failovers: 1}); servers != want {
		t.Errorf("servers %+v, want %+v", servers, want)
	}
	if want := (Standing{Of: 1}); proxies != want {
		t.Errorf("proxies %+v, want %+v", proxies, want)
	}
	p.Set(testutil.Fault{Status: 503, Header: http.Header{"X-Squid-Error": {"ERR"}}})
	mustGet(t, f, "three")
	if _, proxies = f.Standing(); proxies != (Standing{Of: 1, Failed: 1, Failovers: 1}) {
		t.Errorf("proxies %+v", proxies)
	}
}

// Requests that wait for their turn at a busy server are seen.
func TestRequestsThatQueueAreCounted(t *testing.T) {
	t.Parallel()
	s := files(t)
	s.Set(testutil.Fault{Path: "slow", Silent: true})
	cfg := quick(s.URL)
	cfg.TimeoutDirect, cfg.Connections = time.Minute, &Connections{}
	f := fetcher(t, cfg)
	const all = 40
	for range all {
		go get(t.Context(), f, "slow")
	}
	deadline := time.Now().Add(10 * time.Second)
	for s.MostAtOnce() == 0 || cfg.Connections.Queued()+s.MostAtOnce() != all {
		if time.Now().After(deadline) {
			t.Fatalf("%d at the server, %d in the queue, of %d", s.MostAtOnce(), cfg.Connections.Queued(), all)
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.Close()
	if slices.Contains([]int{0, all}, s.MostAtOnce()) {
		t.Error("all were at the server, and nothing queued")
	}
}
