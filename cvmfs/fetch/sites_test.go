package fetch

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/test/testutil"
)

func TestFilesAreSpreadOverAGroup(t *testing.T) {
	t.Parallel()
	s := files(t)
	var all []*testutil.Faulty
	cfg := quick(s.URL)
	cfg.Shard = true
	cfg.Proxies = [][]string{nil, {"DIRECT"}}
	for range 3 {
		p := proxyServer(t)
		all, cfg.Proxies[0] = append(all, p), append(cfg.Proxies[0], p.URL)
	}
	const n = 150
	read := func() (each [3]int) {
		f := fetcher(t, cfg) // another host
		before := [3]int{all[0].Requests(""), all[1].Requests(""), all[2].Requests("")}
		for i := range n {
			mustGet(t, f, fmt.Sprint("data/", i))
		}
		for i, p := range all {
			each[i] = p.Requests("") - before[i]
		}
		return each
	}
	first := read()
	for _, got := range first {
		if got < n/6 || got > n/2 {
			t.Errorf("%v of %d requests", first, n)
		}
	}
	if again := read(); again != first {
		t.Errorf("another host has %v, want %v", again, first)
	}
	all[0].Close()
	if got := read(); got[1]+got[2] != n || got[1] <= first[1] || got[2] <= first[2] {
		t.Errorf("%v after one failed; before %v", got, first)
	}
}

func TestSitesOwnAuthorityIsTrusted(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, text(r.URL.Path))
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // refusals are meant
	s.StartTLS()
	t.Cleanup(s.Close)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	dir := t.TempDir()
	for name, b := range map[string][]byte{"0a1b2c3d.0": cert, "0a1b2c3d.r0": []byte("a revocation list"), "README": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	empty := t.TempDir()
	if err := os.WriteFile(filepath.Join(empty, "none"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		of   Authorities
		want string // in the log; "": it works
	}{
		{"none", Authorities{}, "certificate"},
		{"a folder", Authorities{Dir: dir}, ""},
		{"a file", Authorities{File: filepath.Join(dir, "0a1b2c3d.0")}, ""},
		{"an empty folder", Authorities{Dir: empty}, "X509_CERT_DIR"},
		{"no folder", Authorities{Dir: filepath.Join(dir, "none")}, "X509_CERT_DIR"},
		{"not a certificate", Authorities{File: filepath.Join(dir, "README")}, "X509_CERT_BUNDLE"},
		{"a folder as file", Authorities{File: dir}, "X509_CERT_BUNDLE"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var said bytes.Buffer
			cfg := quick(s.URL)
			cfg.Authorities, cfg.Log = c.of, slog.New(slog.NewTextHandler(&said, nil))
			cfg.TimeoutDirect = 10 * time.Second
			_, err := get(t.Context(), fetcher(t, cfg), "x")
			if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), "certificate") {
				t.Errorf("got %v", err)
			}
			if !strings.Contains(said.String(), c.want) {
				t.Errorf("log doesn't name %s: %s", c.want, said.String())
			}
		})
	}
}

// What is set to zero is none, and not the default.
func TestNoneIsNotTheDefault(t *testing.T) {
	t.Parallel()
	none := Config{Timeout: -1, TimeoutDirect: -1, LowSpeedLimit: -1, BackoffInit: -1, BackoffMax: -1, MaxRetries: 3}
	s := files(t)
	none.Servers = []string{s.URL}
	s.Set(testutil.Fault{Refuse: true, Times: 3})
	f := fetcher(t, none)
	start := time.Now()
	mustGet(t, f, "x")
	if took := time.Since(start); took > time.Second {
		t.Errorf("retries without a pause took %v", took)
	}
	if f.cfg.LowSpeedLimit != 0 || f.cfg.TimeoutDirect != longest || f.cfg.coolDown == 0 {
		t.Errorf("%+v", f.cfg)
	}
	s.Set(testutil.Fault{Bytes: 8, Every: 5 * time.Millisecond})
	mustGet(t, f, "slow")
}
