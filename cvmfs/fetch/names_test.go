package fetch

import (
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/test/testutil"
)

// freePort is a port that nobody listens on at any loopback address.
func freePort(t testing.TB) string {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// named is quick with names that a server of the test's own resolves.
func named(t testing.TB, servers ...string) (Config, *testutil.NameServer) {
	dns := testutil.NewNameServer(t)
	cfg := quick(servers...)
	cfg.Names = Names{Server: dns.Addr, Timeout: 200 * time.Millisecond, MinTTL: time.Hour}
	return cfg, dns
}

// A name of three addresses is three proxies: the one that stalls is paid for once, the closed one not at all.
func TestAddressesOfAProxysNameAreTriedInTurn(t *testing.T) {
	t.Parallel()
	for _, second := range []string{"stalls", "is closed"} {
		for i := range 3 { // the order is random
			t.Run(fmt.Sprint("one ", second, ", ", i), func(t *testing.T) {
				t.Parallel()
				s, good, port := files(t), proxyServer(t), freePort(t)
				relay := func(ip string) *testutil.Faulty {
					return testutil.NewFaultyAt(t, net.JoinHostPort(ip, port), good)
				}
				if second == "stalls" {
					relay("127.0.0.2").Set(testutil.Fault{Silent: true})
				}
				relay("127.0.0.4")
				cfg, dns := named(t, s.URL)
				dns.Set("squid.test", "127.0.0.2", "127.0.0.3", "127.0.0.4")
				cfg.Proxies = [][]string{{"http://squid.test:" + port}}
				cfg.Timeout = proxyTimeout
				waits := &waits{}
				cfg.Log = slog.New(waits)
				f := fetcher(t, cfg)
				if err := readAll(t.Context(), f); err != nil {
					t.Fatal(err)
				}
				if c := waits.cost(); c.proxied > 1 {
					t.Errorf("paid %+v", c)
				}
				if st := f.Stats(); st.Failures > 2 {
					t.Errorf("%+v", st)
				}
			})
		}
	}
}

func TestAddressesAreChosen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(*Names)
		want   []string // of any of these
		n      int
	}{
		{"IPv4 where there are both", func(*Names) {}, []string{"127.0.0.2", "127.0.0.3"}, 2},
		{"IPv6 where it's preferred", func(n *Names) { n.PreferIPv6 = true }, []string{"::1"}, 1},
		{"IPv4 only", func(n *Names) { n.PreferIPv6, n.IPv4Only = true, true }, []string{"127.0.0.2", "127.0.0.3"}, 2},
		{"at most one", func(n *Names) { n.MaxAddresses = 1 }, []string{"127.0.0.2", "127.0.0.3"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg, dns := named(t, "http://127.0.0.1:9")
			dns.Set("squid.test", "127.0.0.2", "::1", "127.0.0.3", "127.0.0.2", "127.0.0.3", "127.0.0.2", "::1")
			c.change(&cfg.Names)
			cfg.Proxies = [][]string{{"http://squid.test:3128"}}
			f := fetcher(t, cfg)
			if err := f.resolve(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := map[string]bool{}
			for _, p := range f.proxies {
				got[p.ip.String()] = true
			}
			for ip := range got {
				if !strings.Contains(strings.Join(c.want, " ")+" ", ip+" ") {
					t.Errorf("address %s, want of %v", ip, c.want)
				}
			}
			if len(got) != c.n || len(f.proxies) != c.n {
				t.Errorf("addresses %v, want %d", got, c.n)
			}
		})
	}
}

func TestManyAddressesLeaveEachTimeEnough(t *testing.T) {
	t.Parallel()
	const whole = 10 * time.Second
	for _, c := range []struct {
		left time.Duration
		n    int
		want time.Duration
	}{{whole, 1, whole}, {whole, 2, whole / 2}, {whole, 40, whole / 5}, {time.Second, 3, time.Second}, {0, 30, 0}} {
		if got := share(whole, c.left, c.n); got != c.want {
			t.Errorf("%v for one of %d where %v are left, want %v", got, c.n, c.left, c.want)
		}
	}
}

func TestProxyWithoutAnAddressIsPassedBy(t *testing.T) {
	t.Parallel()
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprint("silent name server: ", silent), func(t *testing.T) {
			t.Parallel()
			s := files(t)
			cfg, dns := named(t, s.URL)
			cfg.Names.Retries = 2
			if silent {
				dns.Silence(1000)
			}
			cfg.Proxies = [][]string{{"http://squid.test:3128"}, {"DIRECT"}}
			f := fetcher(t, cfg)
			start := time.Now()
			for i := range 5 {
				mustGet(t, f, fmt.Sprint(i))
			}
			if took := time.Since(start); took > 10*cfg.Names.Timeout {
				t.Errorf("took %v", took)
			}
			most := 2 // A and AAAA
			if silent {
				most *= 3
			}
			if n := dns.Asked(); n > most {
				t.Errorf("%d questions, want at most %d", n, most)
			}
			cfg.Proxies = cfg.Proxies[:1]
			_, err := get(t.Context(), fetcher(t, cfg), "x")
			if err == nil || !strings.Contains(err.Error(), "lookup squid.test") {
				t.Errorf("doesn't name the cause: %v", err)
			}
		})
	}
}

func TestNamesAreAskedForAgain(t *testing.T) {
	t.Parallel()
	s, p, port := files(t), proxyServer(t), freePort(t)
	first := testutil.NewFaultyAt(t, "127.0.0.2:"+port, p)
	second := testutil.NewFaultyAt(t, "127.0.0.3:"+port, p)
	cfg, dns := named(t, s.URL)
	cfg.Names.MinTTL = 50 * time.Millisecond
	cfg.Proxies = [][]string{{"http://squid.test:" + port}}
	dns.Set("squid.test", "127.0.0.2")
	f := fetcher(t, cfg)
	mustGet(t, f, "a")
	dns.Set("squid.test", "127.0.0.3")
	for range 100 {
		time.Sleep(10 * time.Millisecond)
		mustGet(t, f, "b")
		if second.Requests("b") > 0 {
			break
		}
	}
	if second.Requests("b") == 0 || first.Requests("a") != 1 {
		t.Error("the new address is not used")
	}
	dns.Set("squid.test") // gone: the last answer goes on
	time.Sleep(100 * time.Millisecond)
	mustGet(t, f, "c")
	mustGet(t, f, "d")
}

// A server's name may have several addresses, too.
func TestAddressesOfAServersNameAreTriedInTurn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		fault   testutil.Fault
		retries int
	}{
		{"stalls", testutil.Fault{Silent: true}, 1},
		{"is closed", testutil.Fault{}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			inner := files(t)
			if c.fault.Silent {
				testutil.NewFaultyAt(t, "127.0.0.2:"+port, inner).Set(c.fault)
			}
			testutil.NewFaultyAt(t, "127.0.0.3:"+port, inner)
			cfg, dns := named(t, "http://server.test:"+port)
			dns.Set("server.test", "127.0.0.2", "127.0.0.3")
			cfg.MaxRetries = c.retries
			f := fetcher(t, cfg)
			start := time.Now()
			for i := range 10 {
				mustGet(t, f, fmt.Sprint(i))
			}
			if took := time.Since(start); took > 5*cfg.TimeoutDirect {
				t.Errorf("took %v", took)
			}
		})
	}
}
