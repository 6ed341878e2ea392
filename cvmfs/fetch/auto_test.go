package fetch

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/pac"
	"cvmfs-graphdriver/test/testutil"
)

func TestMain(m *testing.M) {
	pac.Main()
	os.Exit(m.Run())
}

// script is a server of a proxy auto-configuration script that gives an answer.
func script(t testing.TB, answer string) *testutil.Faulty {
	return testutil.NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "function FindProxyForURL(url, host) { return %q; }", answer)
	}))
}

// found is quick with proxies that the scripts say.
func found(t testing.TB, server string, proxies string, scripts ...string) Config {
	cfg := quick(server)
	for group := range strings.SplitSeq(proxies, ";") {
		cfg.Proxies = append(cfg.Proxies, strings.Split(group, "|"))
	}
	cfg.Auto = Auto{URLs: scripts, Cache: filepath.Join(t.TempDir(), "proxies")}
	return cfg
}

func closedURL(t testing.TB) string { return "http://" + testutil.ClosedAddress(t, "127.0.0.1") }

func TestProxiesOfAScriptAreUsed(t *testing.T) {
	t.Parallel()
	s, p := files(t), proxyServer(t)
	host := strings.TrimPrefix(p.URL, "http://")
	wpad := script(t, "PROXY "+testutil.ClosedAddress(t, "127.0.0.1")+"; PROXY "+host+"; DIRECT")
	cfg := found(t, s.URL, "auto", wpad.URL+"/wpad.dat")
	cfg.ProxyResetAfter = long
	if err := readAll(t.Context(), fetcher(t, cfg)); err != nil {
		t.Fatal(err)
	}
	if p.Requests("") != 43 || s.Requests("") != 43 || wpad.Requests("") != 1 {
		t.Errorf("requests: proxy %d, server %d, script %d", p.Requests(""), s.Requests(""), wpad.Requests(""))
	}
}

// The script is told the server's address without its password, and its name.
func TestScriptIsAskedForTheServer(t *testing.T) {
	t.Parallel()
	p := proxyServer(t)
	text := `function FindProxyForURL(url, host) {
		if (host == "nobody.invalid" && url == "http://nobody.invalid/cvmfs/x/.cvmfspublished") return "PROXY %s";
		return "DIRECT";
	}`
	name := filepath.Join(t.TempDir(), "wpad.dat")
	if err := os.WriteFile(name, fmt.Appendf(nil, text, strings.TrimPrefix(p.URL, "http://")), 0o600); err != nil {
		t.Fatal(err)
	}
	f := fetcher(t, found(t, "http://user:secret@nobody.invalid/cvmfs/x", "auto", "file://"+name))
	get(t.Context(), f, "a") // the proxy can't reach that server
	if p.Requests("") == 0 {
		t.Error("the proxy was not asked")
	}
}

// Who has no script is passed by, whatever it has, and the first that answers counts.
func TestScriptsAreAskedInTurn(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]testutil.Fault{
		"missing":         {Status: 404},
		"stalls":          {Silent: true},
		"drips":           drip,
		"HTML":            html,
		"endless":         {Endless: true},
		"cut":             {Cut: 9},
		"no answer":       {Status: 200, Body: "function FindProxyForURL() { return 'SOCKS s:1'; }"},
		"throws":          {Status: 200, Body: "function FindProxyForURL() { throw 'no'; }"},
		"redirect":        {Status: 302, Header: http.Header{"Location": {"/elsewhere"}}},
		"none of a proxy": {Status: 200, Body: "function FindProxyForURL() { return null; }"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, p := files(t), proxyServer(t)
			bad := script(t, "PROXY "+testutil.ClosedAddress(t, "127.0.0.1"))
			bad.Set(first)
			good := script(t, "PROXY "+strings.TrimPrefix(p.URL, "http://"))
			third := script(t, "DIRECT")
			cfg := found(t, s.URL, "auto", closedURL(t), bad.URL, good.URL, third.URL)
			cfg.TimeoutDirect = directTimeout
			if _, err := get(t.Context(), fetcher(t, cfg), "a"); err != nil {
				t.Fatal(err)
			}
			if p.Requests("") != 1 || bad.Requests("") != 1 || good.Requests("") != 1 || third.Requests("") != 0 {
				t.Errorf("requests: proxy %d, scripts %d, %d, %d", p.Requests(""), bad.Requests(""), good.Requests(""),
					third.Requests(""))
			}
		})
	}
}

func TestWithoutAScriptWhatIsKeptOrConfiguredIsUsed(t *testing.T) {
	t.Parallel()
	s, p, other := files(t), proxyServer(t), proxyServer(t)
	wpad := script(t, "PROXY "+strings.TrimPrefix(p.URL, "http://"))
	cfg := found(t, s.URL, "auto;"+other.URL, wpad.URL)
	for range 2 { // the second one has but what the first one kept
		if _, err := get(t.Context(), fetcher(t, cfg), "a"); err != nil {
			t.Fatal(err)
		}
		wpad.Set(testutil.Fault{Status: 503})
	}
	if p.Requests("") != 2 || other.Requests("") != 0 {
		t.Errorf("requests: the script's %d, the other %d", p.Requests(""), other.Requests(""))
	}
	if err := os.Remove(cfg.Auto.Cache); err != nil {
		t.Fatal(err)
	}
	if _, err := get(t.Context(), fetcher(t, cfg), "a"); err != nil || other.Requests("") != 1 {
		t.Errorf("%v; the other was asked %d times", err, other.Requests(""))
	}
}

// Where nothing is found and nothing else is configured no server is asked, DIRECT least of all.
func TestWithoutAnyProxyNothingIsFetched(t *testing.T) {
	t.Parallel()
	s, wpad := files(t), script(t, "DIRECT")
	wpad.Set(testutil.Fault{Status: 503})
	f := fetcher(t, found(t, s.URL, "auto", wpad.URL))
	_, err := get(t.Context(), f, "a")
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "set CVMFS_HTTP_PROXY") ||
		!strings.Contains(err.Error(), "status 503") || s.Requests("") != 0 {
		t.Fatalf("%v, %d requests", err, s.Requests(""))
	}
	wpad.Set()
	f.mu.Lock()
	f.due = time.Now() // and not after failedTTL
	f.mu.Unlock()
	for deadline := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(deadline); {
		_, err = get(t.Context(), f, "a")
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("the script is there again: %v", err)
	}
}

// Nor where a script names what can't be used, or so many proxies that to resolve and try them would never end.
func TestProxiesThatCannotBeUsedAreSaid(t *testing.T) {
	t.Parallel()
	for answer, says := range map[string]string{
		"PROXY %%%:3128": "none of the proxies found can be used",
		strings.Repeat("PROXY 127.0.0.1:9; ", maxFound+1):                                      "it names 65 proxies",
		"PROXY " + strings.Repeat("127.0.0.1:9|", maxFound) + "127.0.0.1:9":                    "it names 65 proxies",
		"PROXY 127.0.0.1:9; PROXY a" + strings.Repeat("a", maxAutoCache) + ".example.org:3128": "65",
	} {
		s := files(t)
		_, err := get(t.Context(), fetcher(t, found(t, s.URL, "auto", script(t, answer).URL)), "a")
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), says) ||
			!strings.Contains(err.Error(), "set CVMFS_HTTP_PROXY") || strings.Contains(err.Error(), "%!") ||
			s.Requests("") != 0 {
			t.Errorf("%.40q: %v", answer, err)
		}
	}
}

func TestFallbacksReplaceDirectInWhatIsFound(t *testing.T) {
	t.Parallel()
	s, p := files(t), proxyServer(t)
	cfg := found(t, s.URL, "auto;"+p.URL, script(t, "PROXY "+testutil.ClosedAddress(t, "127.0.0.1")+"; DIRECT").URL)
	cfg.Auto.NoDirect = true
	if _, err := get(t.Context(), fetcher(t, cfg), "a"); err != nil || p.Requests("") != 1 {
		t.Errorf("%v; the fallback was asked %d times", err, p.Requests(""))
	}
}

// Proxies that are found once more stay what they were, a dead one dead.
func TestProxiesFoundAgainKeepTheirHealth(t *testing.T) {
	t.Parallel()
	s, p := files(t), proxyServer(t)
	dead := testutil.NewFaulty(t, p)
	dead.Set(testutil.Fault{Status: 403})
	answer := "PROXY " + strings.TrimPrefix(dead.URL, "http://") + "; PROXY " + strings.TrimPrefix(p.URL, "http://")
	wpad := script(t, answer)
	cfg := found(t, s.URL, "auto", wpad.URL)
	cfg.ProxyResetAfter = long
	f := fetcher(t, cfg)
	for range 3 {
		if _, err := get(t.Context(), f, "a"); err != nil {
			t.Fatal(err)
		}
		f.lookUp()
	}
	if dead.Requests("") != 1 || wpad.Requests("") != 4 {
		t.Errorf("the dead proxy was asked %d times, the script %d times", dead.Requests(""), wpad.Requests(""))
	}
}

func TestFoundProxiesDontShowPasswords(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	s, p := files(t), proxyServer(t)
	cfg := found(t, s.URL, "auto", closedURL(t))
	cfg.Auto.Proxies = strings.Replace(p.URL, "//", "//user:secret@", 1) + ";ftp://user:secret@x"
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	if _, err := get(t.Context(), fetcher(t, cfg), "a"); err != nil || p.Requests("") != 1 {
		t.Errorf("%v; asked %d times", err, p.Requests(""))
	}
	if strings.Contains(log.String(), "secret") {
		t.Error(log.String())
	}
}
