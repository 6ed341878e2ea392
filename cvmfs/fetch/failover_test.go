package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"cvmfs-graphdriver/test/testutil"
)

// The table of fail-over: what a whole repository's reading costs when one member misbehaves, beside what it costs with
// the reference client (2.12.0, its packaged settings).

const (
	proxyTimeout  = 400 * time.Millisecond
	directTimeout = 600 * time.Millisecond
)

// cost is what misbehaving members took.
type cost struct {
	asked          int // requests they got, all together
	proxied, alone int // timeouts that were paid through proxies and without, each at most once at a time
}

// party is a server or proxy of a row.
type party struct {
	kind  string // "ok", "closed", "lost" (packets are dropped), "unknown" (no such name), "faulty"
	fault testutil.Fault
}

var (
	ok      = party{kind: "ok"}
	closed  = party{kind: "closed"}
	lost    = party{kind: "lost"}
	unknown = party{kind: "unknown"}
	data    = "data/"
	long    = time.Hour
	drip    = testutil.Fault{Bytes: 1, Every: 100 * time.Millisecond}
	html    = testutil.Fault{Status: 200, Body: "<html><body>Log in to the hotel's network</body></html>"}
	garbage = testutil.Fault{Flip: true}
)

func bad(f testutil.Fault) party { return party{"faulty", f} }

func only(path string, f testutil.Fault) testutil.Fault {
	f.Path = path
	return f
}

func squidError(status int) testutil.Fault {
	return testutil.Fault{Status: status, Header: http.Header{"X-Squid-Error": {"ERR_CONNECT_FAIL 111"}}}
}

// reading is a row of the table.
type reading struct {
	name    string
	servers []party
	proxies string // groups as in CVMFS_HTTP_PROXY, of "direct" and names of via
	via     map[string]party
	ours    cost
	ref     cost // what it costs the reference client; asked < 0: it fails
	fails   bool // nobody could do it
}

// rows are CLIENT's cases: a server alone that misbehaves before a good one, proxies, and nobody who is good.
var rows = []reading{
	{name: "all well", servers: []party{ok, ok}},
	{name: "server closed", servers: []party{closed, ok}},
	{name: "server loses packets", servers: []party{lost, ok}, ours: cost{alone: 1}, ref: cost{alone: 2}},
	{name: "server unresolvable", servers: []party{unknown, ok}},
	{
		name: "server stalls", servers: []party{bad(testutil.Fault{Silent: true}), ok},
		ours: cost{asked: 1, alone: 1}, ref: cost{asked: 2, alone: 2},
	},
	{
		name: "server stalls in bodies", servers: []party{bad(testutil.Fault{Stall: 9}), ok},
		ours: cost{asked: 1, alone: 1}, ref: cost{asked: 2, alone: 2},
	},
	{
		name: "server drips", servers: []party{bad(drip), ok},
		ours: cost{asked: 1, alone: 1}, ref: cost{asked: 2, alone: 2},
	},
	{
		name: "server 404", servers: []party{bad(testutil.Fault{Status: 404}), ok},
		ours: cost{asked: 1}, ref: cost{asked: 1},
	},
	{
		name: "server 404 for data", servers: []party{bad(only(data, testutil.Fault{Status: 404})), ok},
		ours: cost{asked: 2}, ref: cost{asked: 2},
	},
	{name: "server garbage", servers: []party{bad(garbage), ok}, ours: cost{asked: 1}, ref: cost{asked: 1}},
	{
		name: "server garbage for data", servers: []party{bad(only(data, garbage)), ok},
		ours: cost{asked: 2}, ref: cost{asked: 2},
	},
	{name: "server HTML", servers: []party{bad(html), ok}, ours: cost{asked: 1}, ref: cost{asked: 1}},
	{
		name: "server truncates", servers: []party{bad(testutil.Fault{Cut: 9}), ok},
		ours: cost{asked: 2}, ref: cost{asked: 2},
	},
	{
		name: "server endless", servers: []party{bad(testutil.Fault{Endless: true}), ok},
		ours: cost{asked: 1}, ref: cost{asked: 1},
	},
	{
		name: "server's manifest well, data stalls", servers: []party{bad(only(data, testutil.Fault{Silent: true})), ok},
		ours: cost{asked: 2, alone: 1}, ref: cost{asked: 3, alone: 2},
	},
	{
		name: "server resets", servers: []party{bad(testutil.Fault{Refuse: true}), ok},
		ours: cost{asked: 2}, ref: cost{asked: 2},
	},
	{
		name: "only server stalls", servers: []party{bad(testutil.Fault{Silent: true})},
		fails: true, ours: cost{2, 0, 2}, ref: cost{2, 0, 2},
	},
	{name: "only server drips", servers: []party{bad(drip)}, fails: true, ours: cost{2, 0, 2}, ref: cost{2, 0, 2}},
	{
		name: "only server loses packets", servers: []party{lost},
		fails: true, ours: cost{0, 0, 2}, ref: cost{0, 0, 2},
	},
	{name: "only server closed", servers: []party{closed}, fails: true},
	{
		name: "only server, each fourth answer 503", servers: []party{bad(testutil.Fault{Status: 503, Each: 4})},
		fails: true, ours: cost{asked: 4}, ref: cost{asked: 4},
	},
	{
		name: "latency", servers: []party{bad(testutil.Fault{Latency: 20 * time.Millisecond})},
		ours: cost{asked: 43}, ref: cost{asked: 43},
	},

	{name: "proxy closed;DIRECT", servers: []party{ok}, proxies: "p;DIRECT", via: map[string]party{"p": closed}},
	{name: "proxy closed|ok", servers: []party{ok}, proxies: "p|q", via: map[string]party{"p": closed, "q": ok}},
	{
		name: "four closed proxies in three groups;DIRECT", servers: []party{ok}, proxies: "p|q;r;s;DIRECT",
		via: map[string]party{"p": closed, "q": closed, "r": closed, "s": closed},
	},
	{
		name: "proxy loses packets;ok", servers: []party{ok}, proxies: "p;q",
		via: map[string]party{"p": lost, "q": ok}, ours: cost{proxied: 1}, ref: cost{proxied: 2},
	},
	{
		name: "proxy stalls;DIRECT", servers: []party{ok}, proxies: "p;DIRECT",
		via:  map[string]party{"p": bad(testutil.Fault{Silent: true})},
		ours: cost{asked: 1, proxied: 1}, ref: cost{asked: 2, proxied: 2},
	},
	{
		name: "proxy drips;DIRECT", servers: []party{ok}, proxies: "p;DIRECT", via: map[string]party{"p": bad(drip)},
		ours: cost{asked: 1, proxied: 1}, ref: cost{asked: 2, proxied: 2},
	},
	{
		name: "proxy's data stalls;DIRECT", servers: []party{ok}, proxies: "p;DIRECT",
		via:  map[string]party{"p": bad(only(data, testutil.Fault{Silent: true}))},
		ours: cost{asked: 2, proxied: 1}, ref: cost{asked: 3, proxied: 2},
	},
	{
		name: "proxy 403;DIRECT", servers: []party{ok}, proxies: "p;DIRECT",
		via: map[string]party{"p": bad(testutil.Fault{Status: 403})}, ours: cost{asked: 1}, ref: cost{asked: 1},
	},
	{
		name: "proxy truncates;DIRECT", servers: []party{ok}, proxies: "p;DIRECT",
		via: map[string]party{"p": bad(testutil.Fault{Cut: 9})}, ours: cost{asked: 2}, ref: cost{asked: 2},
	},
	{
		name: "proxy X-Squid-Error;DIRECT", servers: []party{ok}, proxies: "p;DIRECT",
		via: map[string]party{"p": bad(squidError(503))}, ours: cost{asked: 1}, ref: cost{asked: -1},
	},
	{
		name: "proxy 404;DIRECT", servers: []party{ok}, proxies: "p;DIRECT",
		via: map[string]party{"p": bad(testutil.Fault{Status: 404})}, ours: cost{asked: 1}, ref: cost{asked: -1},
	},
	{
		name: "proxy 404 for data;DIRECT", servers: []party{ok, ok}, proxies: "p;DIRECT",
		via:  map[string]party{"p": bad(only(data, testutil.Fault{Status: 404}))},
		ours: cost{asked: 3}, ref: cost{asked: -1},
	},
	{
		name: "proxy 503;DIRECT", servers: []party{ok}, proxies: "p;DIRECT",
		via: map[string]party{"p": bad(testutil.Fault{Status: 503})}, ours: cost{asked: 1}, ref: cost{asked: -1},
	},
	{
		name: "proxy garbage;DIRECT", servers: []party{ok}, proxies: "p;DIRECT",
		via: map[string]party{"p": bad(garbage)}, ours: cost{asked: 2}, ref: cost{asked: -1},
	},
	{
		name: "proxy HTML;DIRECT, two servers", servers: []party{ok, ok}, proxies: "p;DIRECT",
		via: map[string]party{"p": bad(html)}, ours: cost{asked: 3}, ref: cost{asked: -1},
	},
	{
		name: "proxy HTML;a closed one;ok", servers: []party{ok}, proxies: "p;q;r",
		via: map[string]party{"p": bad(html), "q": closed, "r": ok}, ours: cost{asked: 2}, ref: cost{asked: -1},
	},
	{
		name: "closed proxy, fallback", servers: []party{ok}, proxies: "p;q",
		via: map[string]party{"p": closed, "q": ok},
	},
	{
		name: "proxy, server closed", servers: []party{closed, ok}, proxies: "p", via: map[string]party{"p": ok},
		ours: cost{}, ref: cost{},
	},
	{
		name: "proxy, server stalls", servers: []party{bad(testutil.Fault{Silent: true}), ok}, proxies: "p",
		via: map[string]party{"p": ok}, ours: cost{asked: 1, proxied: 1}, ref: cost{asked: 2, proxied: 2},
	},
	{
		name: "proxy;DIRECT, server stalls", servers: []party{bad(testutil.Fault{Silent: true}), ok}, proxies: "p;DIRECT",
		via:  map[string]party{"p": ok},
		ours: cost{asked: 2, proxied: 1, alone: 1}, ref: cost{asked: 3, proxied: 2, alone: 1},
	},
	{
		name: "proxy, server truncates data", servers: []party{bad(only(data, testutil.Fault{Cut: 9})), ok}, proxies: "p",
		via: map[string]party{"p": ok}, ours: cost{asked: 3}, ref: cost{asked: 3},
	},
	{
		name: "proxy, server 404 for data", servers: []party{bad(only(data, testutil.Fault{Status: 404})), ok},
		proxies: "p", via: map[string]party{"p": ok}, ours: cost{asked: 2}, ref: cost{asked: 2},
	},
}

// statusRows are codes by which a server says that it can't.
func statusRows() (all []reading) {
	for _, code := range []int{503, 500, 403, 400, 429, 301, 204, 206} {
		all = append(all, reading{
			name:    fmt.Sprint("server ", code),
			servers: []party{bad(testutil.Fault{Status: code}), ok},
			ours:    cost{asked: 1}, ref: cost{asked: 1},
		})
	}
	return all
}

func TestFailOverCostsNoMoreThanTheReference(t *testing.T) {
	t.Parallel()
	for _, row := range append(rows, statusRows()...) {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.hold(t)
		})
	}
}

// hold holds a row's costs against what they are to be, and what they may be.
func (row *reading) hold(t *testing.T) {
	began := time.Now()
	got := row.read(t)
	t.Logf("%.1f s: %+v", time.Since(began).Seconds(), got)
	if got != row.ours {
		t.Errorf("cost %+v, want %+v", got, row.ours)
	}
	ref := row.ref
	if ref.asked >= 0 && (got.asked > ref.asked || got.proxied > ref.proxied || got.alone > ref.alone) {
		t.Errorf("cost %+v, the reference's is %+v", got, ref)
	}
}

// read reads a repository as the row has it.
func (row *reading) read(t *testing.T) cost {
	var misbehaving []*testutil.Faulty
	place := func(m party, honest func(testing.TB) *testutil.Faulty) string {
		switch m.kind {
		case "closed":
			return "http://" + testutil.ClosedAddress(t, "127.0.0.1")
		case "lost":
			return "http://" + testutil.LostAddress(t)
		case "unknown":
			return "http://nobody.invalid"
		case "squid":
			return startSquid(t)
		}
		s := honest(t)
		if m.kind == "faulty" {
			s.Set(m.fault)
			misbehaving = append(misbehaving, s)
		}
		return s.URL
	}
	waits := &waits{}
	cfg := Config{
		Timeout: proxyTimeout, TimeoutDirect: directTimeout, MaxRetries: 1,
		BackoffInit: 20 * time.Millisecond, BackoffMax: 100 * time.Millisecond,
		HostResetAfter: long, ProxyResetAfter: long, Log: slog.New(waits),
	}
	for _, m := range row.servers {
		cfg.Servers = append(cfg.Servers, place(m, files))
	}
	urls := map[string]string{"DIRECT": "DIRECT"}
	for name, m := range row.via {
		urls[name] = place(m, proxyServer)
	}
	for group := range strings.SplitSeq(row.proxies, ";") {
		var g []string
		for name := range strings.SplitSeq(group, "|") {
			if name != "" {
				g = append(g, urls[name])
			}
		}
		if g != nil {
			cfg.Proxies = append(cfg.Proxies, g)
		}
	}
	err := readAll(t.Context(), fetcher(t, cfg))
	if (err != nil) != row.fails {
		t.Fatalf("reading: %v", err)
	}
	c := waits.cost()
	for _, s := range misbehaving {
		c.asked += s.Requests("")
	}
	return c
}

// readAll gets what a client gets: the manifest, which is judged by two other files, and forty of data.
func readAll(ctx context.Context, f *Fetcher) error {
	err := f.Get(ctx, ".cvmfspublished", func(body io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(body, 10_000))
		if err == nil && string(b) != text(".cvmfspublished") {
			err = fmt.Errorf("%w: wrong text", ErrBadData)
		}
		if err != nil {
			return err
		}
		for _, name := range []string{"data/certificate", ".cvmfswhitelist"} {
			if _, err := get(ctx, f, name); err != nil {
				return err
			}
		}
		return nil
	})
	for i := 0; i < 40 && err == nil; i++ {
		_, err = get(ctx, f, fmt.Sprintf("data/%02x/file", i))
	}
	return err
}

// waits is a log's handler that counts the attempts that ended by a timeout.
type waits struct {
	mu   sync.Mutex
	paid cost
}

func (w *waits) cost() cost {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.paid
}

func (w *waits) Enabled(context.Context, slog.Level) bool { return true }
func (w *waits) WithAttrs([]slog.Attr) slog.Handler       { return w }
func (w *waits) WithGroup(string) slog.Handler            { return w }

func (w *waits) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "attempt failed" {
		return nil
	}
	attrs := map[string]slog.Value{}
	r.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value; return true })
	w.mu.Lock()
	defer w.mu.Unlock()
	outcome, after := attrs["outcome"].String(), attrs["after"].Duration()
	switch proxied := attrs["proxy"].String() != ""; {
	case outcome != dead.String() && outcome != unreachable.String():
	case proxied && after >= proxyTimeout*9/10:
		w.paid.proxied++
	case !proxied && after >= directTimeout*9/10:
		w.paid.alone++
	}
	return nil
}

// A persistent request outlasts its servers, but not its caller, and not an answer.
func TestPersistentRequestsWaitForServers(t *testing.T) {
	t.Parallel()
	addr := testutil.ClosedAddress(t, "127.0.0.1")
	cfg := quick("http://" + addr)
	cfg.Persistent = true
	f := fetcher(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := get(ctx, f, "file"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a server: %v", err)
	}
	got := make(chan error)
	go func() {
		_, err := get(t.Context(), f, "file")
		got <- err
	}()
	time.Sleep(500 * time.Millisecond)
	s := testutil.NewFaultyAt(t, addr, files(t))
	if err := <-got; err != nil {
		t.Errorf("once there is a server: %v", err)
	}
	if _, err := get(t.Context(), f, "absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what the server lacks: %v", err)
	}
	s.Set(testutil.Fault{Status: 503})
	if _, err := get(t.Context(), f, "other"); err == nil || errors.Is(err, ErrUnavailable) {
		t.Errorf("what the server refuses: %v", err)
	}
}

// Each of many clients stays with one member of a group, and together they use all.
func TestClientsAreSpreadOverAGroup(t *testing.T) {
	t.Parallel()
	s, p, q := files(t), proxyServer(t), proxyServer(t)
	before := 0
	for range 24 {
		cfg := quick(s.URL)
		cfg.Proxies = [][]string{{p.URL, q.URL}}
		f := fetcher(t, cfg)
		for i := range 3 {
			mustGet(t, f, fmt.Sprint("file", i))
		}
		if n := p.Requests("") - before; n != 0 && n != 3 {
			t.Errorf("one client asked one member %d times of 3", n)
		}
		before = p.Requests("")
	}
	if p.Requests("") == 0 || q.Requests("") == 0 {
		t.Errorf("24 clients asked one member %d times, the other %d times", p.Requests(""), q.Requests(""))
	}
}

// Many requests at once pay side by side and not one after the other, however few connections are left.
func TestDeadServerIsPaidForSideBySide(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		server func(testing.TB) string
	}{
		{"loses packets", func(t testing.TB) string { return "http://" + testutil.LostAddress(t) }},
		{"stalls", func(t testing.TB) string { url, _ := blackhole(t); return url }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := quick(c.server(t))
			cfg.TimeoutDirect, cfg.MaxRetries = directTimeout, 1
			f := fetcher(t, cfg)
			start := time.Now()
			var wg sync.WaitGroup
			for i := range 40 {
				wg.Go(func() {
					if _, err := get(t.Context(), f, fmt.Sprint(i)); err == nil {
						t.Error("no error")
					}
				})
			}
			wg.Wait()
			if took := time.Since(start); took > 4*directTimeout {
				t.Errorf("took %v with a timeout of %v and one retry", took, directTimeout)
			}
		})
	}
}
