package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/testutil"
)

// quick is a configuration whose waits a test can afford.
func quick(servers ...string) Config {
	return Config{
		Servers: servers, Timeout: 300 * time.Millisecond, TimeoutDirect: 300 * time.Millisecond,
		BackoffInit: 50 * time.Millisecond, BackoffMax: 200 * time.Millisecond,
		HostResetAfter: time.Hour, ProxyResetAfter: time.Hour,
	}
}

func fetcher(t testing.TB, cfg Config) *Fetcher {
	t.Helper()
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// files serves the same text under every path: the path itself.
func files(t testing.TB) *testutil.Faulty {
	return testutil.NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "absent") {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, text(r.URL.Path))
	}))
}

func text(path string) string { return strings.Repeat("content of "+filepath.Base(path)+"\n", 10) }

// blackhole accepts connections and says nothing on them.
func blackhole(t testing.TB) (url string, accepted func() int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			c.Close()
		}
	})
	return "http://" + l.Addr().String(), func() int { mu.Lock(); defer mu.Unlock(); return len(conns) }
}

// closedPort is an address nobody listens on.
func closedPort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// proxyServer is a plain forward proxy.
func proxyServer(t testing.TB) *testutil.Faulty {
	forward := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) {},
		FlushInterval: -1, // what came of a body that breaks off goes on
		ErrorLog:      log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			w.Header().Set("X-Squid-Error", "ERR_CONNECT_FAIL 111")
			w.WriteHeader(http.StatusServiceUnavailable)
		},
	}
	return testutil.NewFaulty(t, forward)
}

func get(ctx context.Context, f *Fetcher, path string) (string, error) {
	var b bytes.Buffer
	err := f.Get(ctx, path, func(r io.Reader) error {
		b.Reset()
		_, err := io.Copy(&b, io.LimitReader(r, 10_000))
		if err == nil && b.String() != text(path) {
			err = fmt.Errorf("%w: wrong text", ErrBadData)
		}
		return err
	})
	return b.String(), err
}

func mustGet(t *testing.T, f *Fetcher, path string) {
	t.Helper()
	if _, err := get(t.Context(), f, path); err != nil {
		t.Fatalf("get %s: %v", path, err)
	}
}

func TestGetDeliversWhatTheServerHas(t *testing.T) {
	t.Parallel()
	s := files(t)
	f := fetcher(t, quick(s.URL+"/cvmfs/r"))
	got, err := get(t.Context(), f, "data/00/aa")
	if err != nil || got != text("aa") {
		t.Errorf("got %q, %v", got, err)
	}
	r := s.Log()[0]
	if r.URL.Path != "/cvmfs/r/data/00/aa" || r.UserAgent() != "cvmfs-graphdriver" ||
		r.Header.Get("Accept-Encoding") != "" {
		t.Errorf("request was %s %v", r.URL, r.Header)
	}
	want := Stats{Requests: 1, Bytes: int64(len(got))}
	if diff := cmp.Diff(want, f.Stats()); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	conns := map[string]bool{}
	s := testutil.NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		conns[r.RemoteAddr] = true
		mu.Unlock()
		if strings.Contains(r.URL.Path, "absent") {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, text(r.URL.Path))
	}))
	f := fetcher(t, quick(s.URL))
	for i := range 20 {
		mustGet(t, f, fmt.Sprintf("f%d", i))
		if _, err := get(t.Context(), f, "absent"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if len(conns) != 1 {
		t.Errorf("%d connections for 40 requests in turn, want 1", len(conns))
	}
}

func TestPathsAreEscapedAsTheReferenceClientDoes(t *testing.T) {
	t.Parallel()
	var uri string
	s := testutil.NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request,
	) {
		uri = r.RequestURI
		io.WriteString(w, text(r.URL.Path))
	}))
	f := fetcher(t, quick(s.URL+"/cvmfs"))
	mustGet(t, f, "a b/ü+[x],~_-@:.%/é?#&='!$(*);c")
	want := "/cvmfs/a%20b/%C3%BC+[x],~_-@:.%25/%C3%A9%3F%23%26%3D%27%21%24%28%2A%29%3Bc"
	if uri != want {
		t.Errorf("got  %s\nwant %s", uri, want)
	}
}

func TestGetRefusesPathsThatLeaveTheRepository(t *testing.T) {
	t.Parallel()
	f := fetcher(t, quick("http://127.0.0.1:1"))
	for _, path := range []string{"", ".", "/etc/passwd", "../x", "a/../../x", "a//b"} {
		if err := f.Get(t.Context(), path, nil); err == nil || f.Stats().Requests != 0 {
			t.Errorf("Get(%q) = %v", path, err)
		}
	}
}

func TestMissingOnlyWhenAllServersSaySo(t *testing.T) {
	t.Parallel()
	a, b := files(t), files(t)
	f := fetcher(t, quick(a.URL, b.URL))
	_, err := get(t.Context(), f, "absent")
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrUnavailable) {
		t.Errorf("both 404: %v", err)
	}
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != 404 {
		t.Errorf("both 404: not an *Error with the status: %v", err)
	}
	if a.Requests("") != 1 || b.Requests("") != 1 {
		t.Errorf("asked %d and %d times, want once each", a.Requests(""), b.Requests(""))
	}
	b.Set(testutil.Fault{Status: 500})
	if _, err = get(t.Context(), f, "absent"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("404 and 500: %v", err)
	}
	b.Close()
	if _, err = get(t.Context(), f, "absent"); errors.Is(err, fs.ErrNotExist) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("404 and gone: %v", err)
	}
	mustGet(t, f, "present")
}

// Who lacks what another has loses its place till its time; who lacks what nobody has, doesn't.
func TestServerThatLacksWhatAnotherHasIsLeft(t *testing.T) {
	t.Parallel()
	a, b := files(t), files(t)
	a.Set(testutil.Fault{Path: "late", Status: 404})
	cfg := quick(a.URL, b.URL)
	cfg.HostResetAfter = 300 * time.Millisecond
	f := fetcher(t, cfg)
	if _, err := get(t.Context(), f, "absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	mustGet(t, f, "late")
	if a.Requests("late") != 1 {
		t.Error("a file that nobody has cost the first server its place")
	}
	mustGet(t, f, "other")
	if a.Requests("other") != 0 {
		t.Error("the server was asked first again")
	}
	time.Sleep(350 * time.Millisecond)
	mustGet(t, f, "another")
	if a.Requests("another") != 1 {
		t.Error("the server did not regain its place")
	}
}

func TestAnswersAreClassified(t *testing.T) {
	t.Parallel()
	squid := http.Header{"X-Squid-Error": {"ERR_DNS_FAIL 0"}}
	status := http.Header{"Proxy-Status": {"cache; error=dns_error"}}
	for _, c := range []struct {
		name  string
		fault testutil.Fault
		want  string // who is asked next: "server 2" or "proxy 2"
	}{
		{"500 is the server's", testutil.Fault{Status: 500}, "server 2"},
		{"502 is the server's", testutil.Fault{Status: 502}, "server 2"},
		{"400 is the server's", testutil.Fault{Status: 400}, "server 2"},
		{"404 is the server's", testutil.Fault{Status: 404}, "server 2"},
		{"429 is the server's", testutil.Fault{Status: 429}, "server 2"},
		{"403 is the proxy's", testutil.Fault{Status: 403}, "proxy 2"},
		{"302 is the proxy's", testutil.Fault{Status: 302}, "proxy 2"},
		{"squid's 503 is the proxy's", testutil.Fault{Status: 503, Header: squid}, "proxy 2"},
		{"squid's 404 is the proxy's", testutil.Fault{Status: 404, Header: squid}, "proxy 2"},
		{"Proxy-Status is the proxy's", testutil.Fault{Status: 500, Header: status}, "proxy 2"},
		{"a refused connection is the proxy's", testutil.Fault{Refuse: true}, "proxy 2"},
		{"silence is the proxy's", testutil.Fault{Silent: true}, "proxy 2"},
		{"a stall is the proxy's", testutil.Fault{Stall: 10}, "proxy 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s1, s2, p1, p2 := files(t), files(t), proxyServer(t), proxyServer(t)
			cfg := quick(s1.URL, s2.URL)
			cfg.Proxies = [][]string{{p1.URL}, {p2.URL}}
			f := fetcher(t, cfg)
			c.fault.Times = 1
			p1.Set(c.fault)
			mustGet(t, f, "x")
			if f.Stats().Requests != 2 {
				t.Fatalf("%d attempts, want 2", f.Stats().Requests)
			}
			got := "something else"
			switch {
			case p1.Requests("") == 2 && "http://"+p1.Log()[1].Host == s2.URL:
				got = "server 2"
			case p2.Requests("") == 1 && "http://"+p2.Log()[0].Host == s1.URL:
				got = "proxy 2"
			}
			if got != c.want {
				t.Errorf("next was %s, want %s", got, c.want)
			}
		})
	}
}

func TestRefusedConnectionMeansNextServerWithoutProxy(t *testing.T) {
	t.Parallel()
	good := files(t)
	f := fetcher(t, quick(closedPort(t), good.URL))
	mustGet(t, f, "a")
	mustGet(t, f, "b")
	if st := f.Stats(); st.Requests != 3 || st.Failures != 1 {
		t.Errorf("the dead server was asked more than once: %+v", st)
	}
}

func TestMembersTellHowTheyWereFound(t *testing.T) {
	s, p := files(t), proxyServer(t)
	s.Set(testutil.Fault{Path: "slow", Latency: 50 * time.Millisecond})
	dead := closedPort(t)
	cfg := quick(s.URL)
	cfg.Proxies = [][]string{{dead}, {p.URL}, {"DIRECT"}}
	f := fetcher(t, cfg)
	mustGet(t, f, "slow")
	mustGet(t, f, "b")
	servers, proxies := f.Members()
	if len(servers) != 1 || servers[0].Name != s.URL || servers[0].Answers != 2 || servers[0].Failures == 0 ||
		servers[0].Wait < 25*time.Millisecond || servers[0].Err != nil {
		t.Errorf("servers: %+v", servers)
	}
	if len(proxies) != 3 || proxies[0].Err == nil || proxies[0].Answers != 0 || proxies[1].Answers != 2 ||
		proxies[1].Failures != 0 || proxies[2] != (Member{Name: "DIRECT"}) {
		t.Errorf("proxies: %+v", proxies)
	}
}

func TestFailedServerRegainsItsPlaceAfterItsTime(t *testing.T) {
	t.Parallel()
	a, b := files(t), files(t)
	a.Set(testutil.Fault{Status: 500, Times: 1})
	cfg := quick(a.URL, b.URL)
	cfg.HostResetAfter = 100 * time.Millisecond
	f := fetcher(t, cfg)
	mustGet(t, f, "one")
	mustGet(t, f, "two")
	if a.Requests("") != 1 {
		t.Fatalf("the failed server was asked %d times before its time", a.Requests(""))
	}
	time.Sleep(150 * time.Millisecond)
	mustGet(t, f, "three")
	if a.Requests("three") != 1 {
		t.Error("the first server did not regain its place")
	}
}

func TestFailedProxyGroupIsFollowedByTheNextAndRegainsItsPlace(t *testing.T) {
	t.Parallel()
	s, p1, p2, p3 := files(t), proxyServer(t), proxyServer(t), proxyServer(t)
	cfg := quick(s.URL)
	cfg.Proxies = [][]string{{p1.URL, p2.URL}, {p3.URL}}
	cfg.ProxyResetAfter = 200 * time.Millisecond
	f := fetcher(t, cfg)
	for i := range 10 {
		mustGet(t, f, fmt.Sprint("kept", i))
	}
	if n1, n2 := p1.Requests(""), p2.Requests(""); n1*n2 != 0 || n1+n2 != 10 {
		t.Errorf("one member of the group should be kept: asked %d and %d times", n1, n2)
	}
	for _, p := range []*testutil.Faulty{p1, p2} {
		p.Set(testutil.Fault{Status: 503, Header: http.Header{"X-Squid-Error": {"ERR"}}, Times: 1})
	}
	mustGet(t, f, "moved")
	mustGet(t, f, "stays")
	if p3.Requests("moved") != 1 || p3.Requests("stays") != 1 {
		t.Error("the second group was not used")
	}
	time.Sleep(250 * time.Millisecond)
	mustGet(t, f, "back")
	if p3.Requests("back") != 0 {
		t.Error("the first group did not regain its place")
	}
}

// All proxies fail for the first server because it is the server that is dead: no proxy is to be left out for it.
func TestServerIsFoundOutBehindItsProxies(t *testing.T) {
	t.Parallel()
	good, p := files(t), proxyServer(t)
	hole, _ := blackhole(t)
	cfg := quick(hole, good.URL)
	cfg.Proxies = [][]string{{p.URL}}
	f := fetcher(t, cfg)
	mustGet(t, f, "a")
	start := time.Now()
	for i := range 20 {
		mustGet(t, f, fmt.Sprint(i))
	}
	if f.Stats().Requests != 22 {
		t.Errorf("%d attempts in %v, want 22: the dead server is asked again and again", f.Stats().Requests,
			time.Since(start))
	}
}

func TestTransferErrorsAreRetriedStatusCodesNot(t *testing.T) {
	t.Parallel()
	s := files(t)
	cfg := quick(s.URL)
	cfg.MaxRetries = 2
	s.Set(testutil.Fault{Path: "reset", Refuse: true, Times: 2}, testutil.Fault{Path: "status", Status: 503, Times: 1})
	f := fetcher(t, cfg)
	mustGet(t, f, "reset")
	if n := s.Requests("reset"); n != 3 {
		t.Errorf("%d attempts, want 3", n)
	}
	if _, err := get(t.Context(), f, "status"); err == nil || s.Requests("status") != 1 {
		t.Errorf("a status code was retried: %v", err)
	}
	mustGet(t, f, "afterwards")
}

// A proxy may hold a bad copy: it is passed by first. Without one it is most likely the server's, and another is asked.
func TestBadDataIsAskedForPastAllCachesAndElsewhere(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		proxied bool
		second  bool // there is another server
		fault   testutil.Fault
		a, b    int // requests the servers see
	}{
		{"a proxy's fault", true, true, testutil.Fault{Flip: true, Cached: true}, 2, 0},
		{"a server's fault behind a proxy", true, true, testutil.Fault{Flip: true}, 2, 1},
		{"a server's fault", false, true, testutil.Fault{Flip: true}, 1, 1},
		{"a long body", false, true, testutil.Fault{Extra: "more"}, 1, 1},
		{"a cache's before the only server", false, false, testutil.Fault{Flip: true, Cached: true}, 2, 0},
		{"a short body", false, true, testutil.Fault{Cut: 20}, 2, 1},
		{"a short body in a cache", false, true, testutil.Fault{Cut: -1, Cached: true}, 2, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := files(t), files(t)
			a.Set(c.fault)
			cfg := quick(a.URL, b.URL)
			if !c.second {
				cfg.Servers = cfg.Servers[:1]
			}
			if c.proxied {
				cfg.Proxies = [][]string{{proxyServer(t).URL}}
			}
			mustGet(t, fetcher(t, cfg), "x")
			if got := [2]int{a.Requests(""), b.Requests("")}; got != [2]int{c.a, c.b} {
				t.Fatalf("requests %v, want %v", got, [2]int{c.a, c.b})
			}
			if h := a.Log()[0].Header; h.Get("Pragma") != "" || h.Get("Cache-Control") != "" {
				t.Errorf("the first request was %v", h)
			}
			if c.a < 2 {
				return
			}
			if h := a.Log()[1].Header; h.Get("Pragma") != "no-cache" || h.Get("Cache-Control") != "no-cache" {
				t.Errorf("the second request was %v", h)
			}
		})
	}
}

func TestBadDataEverywhereSaysSo(t *testing.T) {
	t.Parallel()
	a, b := files(t), files(t)
	a.Set(testutil.Fault{Flip: true})
	b.Set(testutil.Fault{Cut: 7})
	f := fetcher(t, quick(a.URL, b.URL))
	if _, err := get(t.Context(), f, "x"); !errors.Is(err, ErrBadData) || errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	a.Set()
	mustGet(t, f, "x")
}

func TestSinksOwnErrorEndsTheFetch(t *testing.T) {
	t.Parallel()
	a, b := files(t), files(t)
	f := fetcher(t, quick(a.URL, b.URL))
	full := errors.New("disk full")
	err := f.Get(t.Context(), "x", func(io.Reader) error { return full })
	if !errors.Is(err, full) || b.Requests("") != 0 || f.Stats().Failures != 0 {
		t.Errorf("got %v, stats %+v", err, f.Stats())
	}
}

func TestStalledServerIsCutAndAnotherUsed(t *testing.T) {
	t.Parallel()
	hole, _ := blackhole(t)
	for _, c := range []struct {
		name  string
		fault testutil.Fault
	}{
		{"before the answer", testutil.Fault{Silent: true}},
		{"after the header", testutil.Fault{Stall: -1}},
		{"in the body", testutil.Fault{Stall: 30}},
		{"trickling", testutil.Fault{Bytes: 1, Every: 20 * time.Millisecond}},
		{"not even accepting HTTP", testutil.Fault{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, b := files(t), files(t)
			a.Set(c.fault)
			cfg := quick(a.URL, b.URL)
			if c.name == "not even accepting HTTP" {
				cfg.Servers[0] = hole
			}
			f := fetcher(t, cfg)
			start := time.Now()
			mustGet(t, f, "x")
			if took := time.Since(start); took < cfg.TimeoutDirect || took > 10*cfg.TimeoutDirect {
				t.Errorf("took %v with a timeout of %v", took, cfg.TimeoutDirect)
			}
			mustGet(t, f, "y")
			if a.Requests("y") != 0 {
				t.Error("the stalled server was asked again")
			}
		})
	}
}

func TestSlowButSufficientTransferIsLeftAlone(t *testing.T) {
	t.Parallel()
	s := files(t)
	s.Set(testutil.Fault{Bytes: 10, Every: 200 * time.Millisecond}) // 50 bytes/s, 120 bytes
	cfg := quick(s.URL)
	cfg.LowSpeedLimit, cfg.TimeoutDirect = 20, time.Second // much more than a part takes on a busy machine
	f := fetcher(t, cfg)
	start := time.Now()
	mustGet(t, f, "x")
	if time.Since(start) < 2*cfg.TimeoutDirect {
		t.Error("the server was too quick to tell anything")
	}
}

func TestSlowReaderIsNotTheServersFault(t *testing.T) {
	t.Parallel()
	s := files(t)
	f := fetcher(t, quick(s.URL))
	err := f.Get(t.Context(), "x", func(r io.Reader) error {
		time.Sleep(500 * time.Millisecond)
		_, err := io.Copy(io.Discard, r)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// The promise: a dead server costs a bounded time once, not on each file.
func TestDeadServerCostsOneWaitThenFailsAtOnce(t *testing.T) {
	t.Parallel()
	for _, proxied := range []bool{false, true} {
		t.Run(fmt.Sprintf("through a proxy: %v", proxied), func(t *testing.T) {
			t.Parallel()
			hole, accepted := blackhole(t)
			cfg := quick(hole + "/cvmfs/r")
			cfg.BackoffInit, cfg.BackoffMax = time.Minute, time.Minute // for which it is in a cool-down
			if proxied {
				cfg.Servers = []string{"http://s1.invalid/cvmfs/r", "http://s2.invalid/cvmfs/r"}
				cfg.Proxies = [][]string{{hole}}
			}
			f := fetcher(t, cfg)
			if _, err := get(t.Context(), f, "a"); !errors.Is(err, ErrUnavailable) {
				t.Fatalf("got %v", err)
			}
			first := accepted()
			var err error
			for i := range 100 {
				if _, err = get(t.Context(), f, fmt.Sprint(i)); !errors.Is(err, ErrUnavailable) {
					t.Fatalf("got %v", err)
				}
			}
			if accepted() != first || f.Stats().Unavailable != 100 {
				t.Errorf("%d more connections, stats %+v", accepted()-first, f.Stats())
			}
			if !strings.Contains(err.Error(), cfg.Servers[0]) ||
				!strings.Contains(err.Error(), "since "+time.Now().Format("2006-01-02")) {
				t.Errorf("doesn't say who, or since when: %v", err)
			}
		})
	}
}

func TestOneProbeIsLetThroughAfterTheCoolDown(t *testing.T) {
	t.Parallel()
	hole, accepted := blackhole(t)
	f := fetcher(t, quick(hole))
	if _, err := get(t.Context(), f, "a"); err == nil {
		t.Fatal("no error")
	}
	before := accepted()
	time.Sleep(70 * time.Millisecond)
	var wg sync.WaitGroup
	var mu sync.Mutex
	slow := 0
	for i := range 20 {
		wg.Go(func() {
			start := time.Now()
			get(t.Context(), f, fmt.Sprint(i))
			if time.Since(start) > 200*time.Millisecond {
				mu.Lock()
				slow++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if accepted() != before+1 || slow != 1 {
		t.Errorf("%d connections, %d slow calls; want one probe", accepted()-before, slow)
	}
}

func TestRecoveryEndsTheCoolDown(t *testing.T) {
	t.Parallel()
	s := files(t)
	s.Set(testutil.Fault{Silent: true, Times: 1})
	f := fetcher(t, quick(s.URL))
	if _, err := get(t.Context(), f, "a"); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	if _, err := get(t.Context(), f, "b"); !errors.Is(err, ErrUnavailable) || s.Requests("b") != 0 {
		t.Fatalf("asked during the cool-down: %v", err)
	}
	time.Sleep(70 * time.Millisecond)
	mustGet(t, f, "c")
	mustGet(t, f, "d")
}

// A manifest is judged, in its sink, by a certificate that is fetched from the same server.
func TestRefusalIsNotWaitedForHoweverSlowTransfersMayBe(t *testing.T) {
	t.Parallel()
	drips := testutil.NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		for r.Context().Err() == nil {
			io.WriteString(w, "no")
			http.NewResponseController(w).Flush()
			time.Sleep(50 * time.Millisecond)
		}
	}))
	cfg := quick(drips.URL, files(t).URL)
	cfg.LowSpeedLimit = -1
	ctx, cancel := context.WithTimeout(t.Context(), 20*cfg.TimeoutDirect)
	defer cancel()
	if _, err := get(ctx, fetcher(t, cfg), "x"); err != nil {
		t.Error(err)
	}
}

func TestSinkThatPanicsHoldsNoProbe(t *testing.T) {
	t.Parallel()
	s := files(t)
	cfg := quick(s.URL)
	cfg.MaxRetries = 0
	f := fetcher(t, cfg)
	s.Set(testutil.Fault{Silent: true})
	if _, err := get(t.Context(), f, "x"); err == nil {
		t.Fatal("a silent server delivered")
	}
	s.Set()
	time.Sleep(2 * cfg.BackoffInit) // the cool-down
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the sink wasn't called")
			}
		}()
		_ = f.Get(t.Context(), "x", func(io.Reader) error { panic("sink") })
	}()
	mustGet(t, f, "x")
}

func TestASinkMayFetchFromTheServerItsBodyProvedAlive(t *testing.T) {
	t.Parallel()
	s := files(t)
	s.Set(testutil.Fault{Silent: true, Times: 1})
	f := fetcher(t, quick(s.URL))
	if _, err := get(t.Context(), f, "a"); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	time.Sleep(70 * time.Millisecond)
	err := f.Get(t.Context(), "manifest", func(body io.Reader) error {
		if _, err := io.ReadAll(body); err != nil {
			return err
		}
		_, err := get(t.Context(), f, "certificate")
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// One file that hangs, on a server that delivers others meanwhile, must not make those fail.
func TestStalledFileLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	s := files(t)
	s.Set(testutil.Fault{Path: "hangs", Stall: 5})
	cfg := quick(s.URL)
	cfg.BackoffInit, cfg.BackoffMax = time.Second, time.Second
	f := fetcher(t, cfg)
	done := make(chan error)
	go func() { _, err := get(t.Context(), f, "hangs"); done <- err }()
	for i := 0; ; i++ {
		select {
		case err := <-done:
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("hanging file: %v", err)
			}
			mustGet(t, f, "after")
			return
		default:
			mustGet(t, f, fmt.Sprint(i))
			time.Sleep(time.Millisecond)
		}
	}
}

func TestWaitsEndWithTheContext(t *testing.T) {
	t.Parallel()
	hole, _ := blackhole(t)
	for _, c := range []struct {
		name   string
		change func(*Config)
	}{
		{"connecting", func(c *Config) { c.TimeoutDirect = time.Minute }},
		{"back-off", func(c *Config) {
			c.Servers, c.MaxRetries, c.BackoffInit, c.BackoffMax = []string{closedPort(t)}, 1000, time.Hour, time.Hour
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := quick(hole)
			c.change(&cfg)
			f := fetcher(t, cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := get(ctx, f, "x")
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			if s := f.servers[0]; s.wait != 0 {
				t.Error("the caller's haste was laid at the server's door")
			}
		})
	}
}

func TestRedirectsAreFollowedOnlyIfConfigured(t *testing.T) {
	t.Parallel()
	target := files(t)
	hops := 0
	s := testutil.NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hops--; hops > 0 {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
			return
		}
		http.Redirect(w, r, target.URL+r.URL.Path, http.StatusMovedPermanently)
	}))
	cfg := quick(s.URL)
	if _, err := get(t.Context(), fetcher(t, cfg), "x"); err == nil ||
		!strings.Contains(err.Error(), "CVMFS_FOLLOW_REDIRECTS") {
		t.Errorf("not configured: %v", err)
	}
	cfg.FollowRedirects = true
	hops = 4
	mustGet(t, fetcher(t, cfg), "x")
	hops = 5
	if _, err := get(t.Context(), fetcher(t, cfg), "x"); err == nil {
		t.Error("five redirects were followed")
	}
}

func TestFolderAsServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a file"), []byte(text("a file")), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := quick("file://" + dir)
	cfg.Proxies = [][]string{{closedPort(t)}} // not for folders
	f := fetcher(t, cfg)
	mustGet(t, f, "a file")
	if _, err := get(t.Context(), f, "absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := get(t.Context(), f, "sub"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder: %v", err)
	}
}

func TestCredentialsNeverPrint(t *testing.T) {
	t.Parallel()
	const user, secret = "alice7", "hunter2"
	hidden := func(name string, err error) {
		t.Helper()
		if err == nil || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), user) {
			t.Errorf("%s: %v", name, err)
		}
	}
	at := strings.Replace(closedPort(t), "://", "://"+user+":"+secret+"@", 1)
	_, err := get(t.Context(), fetcher(t, quick(at)), "x")
	hidden("server", err)
	cfg := quick("http://example.invalid")
	cfg.Proxies = [][]string{{at}}
	f := fetcher(t, cfg)
	_, err = get(t.Context(), f, "x")
	hidden("proxy", err)
	_, err = get(t.Context(), f, "x")
	hidden("in cool-down", err)
	for _, bad := range []string{
		at + ":x", "ftp://" + user + ":" + secret + "@h/",
		"http://" + user + ":" + secret + "@%zz/", at + "/?q",
	} {
		_, err = New(quick(bad))
		hidden("bad server URL", err)
	}
	cfg.Proxies = [][]string{{user + ":" + secret + "@%zz"}}
	_, err = New(cfg)
	hidden("bad proxy", err)
}

func TestCredentialsAreSent(t *testing.T) {
	t.Parallel()
	s := files(t)
	p := proxyServer(t)
	cfg := quick(strings.Replace(s.URL, "://", "://u:p@", 1))
	cfg.Proxies = [][]string{{strings.Replace(p.URL, "://", "://x:y@", 1)}}
	mustGet(t, fetcher(t, cfg), "x")
	if u, pw, _ := s.Log()[0].BasicAuth(); u != "u" || pw != "p" {
		t.Errorf("the server saw %q %q", u, pw)
	}
	if p.Log()[0].Header.Get("Proxy-Authorization") == "" {
		t.Error("the proxy saw no authorization")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{
		{},
		{Servers: []string{"example.org/cvmfs"}},
		{Servers: []string{"ftp://example.org/"}},
		{Servers: []string{"http:///cvmfs"}},
		{Servers: []string{"file://host/path"}},
		{Servers: []string{"http://h/?x"}},
		{Servers: []string{"http://h/"}, Proxies: [][]string{{""}}},
		{Servers: []string{"http://h/"}, Proxies: [][]string{{"ftp://p"}}},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("New(%+v) gave no error", c)
		}
	}
}

func TestManyAtOnceWhileServersComeAndGo(t *testing.T) {
	t.Parallel()
	a, b := files(t), files(t)
	cfg := quick(a.URL, b.URL)
	cfg.HostResetAfter, cfg.MaxRetries = 20*time.Millisecond, 1
	cfg.TimeoutDirect = 2 * time.Second // the good one may be slow: 32 ask at once
	f := fetcher(t, cfg)
	stop := make(chan struct{})
	var chaos sync.WaitGroup
	chaos.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				a.Set([]testutil.Fault{{Status: 500}, {Refuse: true}, {Flip: true}, {Cut: 3}, {Stall: 5}, {}}[i%6])
			}
		}
	})
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for j := range 20 {
				if _, err := get(t.Context(), f, fmt.Sprintf("%d-%d", i, j)); err != nil {
					t.Errorf("with one good server: %v", err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	chaos.Wait()
}

func TestDirectAsLastGroup(t *testing.T) {
	t.Parallel()
	s := files(t)
	cfg := quick(s.URL)
	cfg.Proxies = [][]string{{closedPort(t), closedPort(t)}, {"DIRECT"}}
	f := fetcher(t, cfg)
	for i := range 10 {
		mustGet(t, f, fmt.Sprint(i))
	}
	if n := f.Stats().Requests; n != 12 {
		t.Errorf("%d attempts, want 12: two dead proxies once each", n)
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"data/00/ab-rmd160C", "a b", "%41", "ü/\x00?#", ".cvmfspublished"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		got := escape(path)
		if back, err := url.PathUnescape(got); err != nil || back != path {
			t.Errorf("escape(%q) = %q, which reads %q, %v", path, got, back, err)
		}
		if strings.ContainsAny(got, " ?#\\\"<>^`{|}\x00\n\r\x7f") {
			t.Errorf("escape(%q) = %q", path, got)
		}
		srv, err := newServer("http://host/cvmfs")
		if err != nil {
			t.Fatal(err)
		}
		if u := srv.url(path); u.RequestURI() != "/cvmfs/"+got {
			t.Errorf("%q is requested as %q, want %q", path, u.RequestURI(), got)
		}
	})
}

// What failed is told once, also where the servers are unavailable from then on; who is not asked any more is told with
// the reason.
func TestEachCauseIsToldOnce(t *testing.T) {
	const server = "http://127.0.0.1:9/x" // nobody listens there
	cfg := quick(server)
	cfg.MaxRetries = 1
	f := fetcher(t, cfg)
	for range 2 {
		_, err := get(t.Context(), f, "a")
		if err == nil || strings.Count(err.Error(), "connection refused") != 1 || !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	}
}
