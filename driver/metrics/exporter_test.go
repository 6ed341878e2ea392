package metrics

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/test/testutil"
)

// exporter makes one that tries again at once, and what it logs.
func exporter(t *testing.T, answer func() status.Node) (*Exporter, *testutil.Buffer) {
	t.Helper()
	var log testutil.Buffer
	e := New(Config{Status: answer, Log: slog.New(slog.NewTextHandler(&log, nil)), Retry: 10 * time.Millisecond})
	t.Cleanup(e.Close)
	return e, &log
}

// idle is a node that does nothing.
func idle() status.Node { return status.Node{Version: "1"} }

// freePort is an address that nobody listens at.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// scraper asks at a listener's address, whatever the URL says.
func scraper(t *testing.T, l Listen, roots *x509.CertPool) *http.Client {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "node.example.org"},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, l.Network, l.Address)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

// get asks once.
func get(c *http.Client, url, token string) (status int, body string, err error) {
	req, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("in vain waited for: ", what)
		}
	}
}

// answers waits until scrapes are answered.
func answers(t *testing.T, c *http.Client, url string) (body string) {
	t.Helper()
	eventually(t, "an answer", func() bool {
		code, text, err := get(c, url, "")
		body = text
		return err == nil && code == http.StatusOK
	})
	return body
}

func TestScrapesAreAnsweredAtAPort(t *testing.T) {
	t.Parallel()
	e, _ := exporter(t, idle)
	if e.State() != nil {
		t.Errorf("off: %+v", e.State())
	}
	l := Listen{Network: "tcp", Address: freePort(t)}
	e.Listen(l)
	c := scraper(t, l, nil)
	if body := answers(t, c, "http://node/metrics"); !strings.Contains(body, `cvmfs_build_info{version="1",commit=""} 1`) {
		t.Error(body)
	}
	if st := e.State(); st == nil || *st != (status.Metrics{Address: l.Address}) {
		t.Errorf("%+v", st)
	}
	for _, url := range []string{"http://node/", "http://node/metrics/x", "http://node/debug/pprof/"} {
		if code, _, err := get(c, url, ""); code != http.StatusNotFound || err != nil {
			t.Errorf("%s: %d, %v", url, code, err)
		}
	}
	other := Listen{Network: "tcp", Address: freePort(t)}
	e.Listen(other)
	answers(t, scraper(t, other, nil), "http://node/metrics")
	if _, _, err := get(scraper(t, l, nil), "http://node/metrics", ""); err == nil {
		t.Error("the former address is answered at")
	}
	e.Listen(Listen{})
	if _, _, err := get(scraper(t, other, nil), "http://node/metrics", ""); err == nil || e.State() != nil {
		t.Errorf("it is off, and %+v", e.State())
	}
}

// A port that is taken is told once, and had as soon as it is free.
func TestTakenPortIsToldAndTriedAgain(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e, log := exporter(t, idle)
	l := Listen{Network: "tcp", Address: taken.Addr().String()}
	began := time.Now()
	e.Listen(l)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("whoever starts a container waited %v", took)
	}
	eventually(t, "the reason", func() bool { return strings.Contains(e.State().Err, "address already in use: set another") })
	time.Sleep(100 * time.Millisecond) // ten more attempts
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, log.String())
	}
	taken.Close()
	answers(t, scraper(t, l, nil), "http://node/metrics")
	if st := e.State(); st.Err != "" {
		t.Errorf("%+v", st)
	}
}

// A socket that a killed server left is replaced; a file, or the socket of one that lives, isn't.
func TestSocketOfAKilledServerIsReplaced(t *testing.T) {
	t.Parallel()
	l := Listen{Network: "unix", Address: filepath.Join(t.TempDir(), "m.sock")}
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: l.Address, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	e, _ := exporter(t, idle)
	e.Listen(l)
	eventually(t, "the reason", func() bool { return strings.Contains(e.State().Err, "in use") })
	left.Close()
	answers(t, scraper(t, l, nil), "http://node/metrics")
	if info, err := os.Stat(l.Address); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	e.Close()
	if err := os.WriteFile(l.Address, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.Listen(l)
	eventually(t, "the reason", func() bool { return e.State().Err != "" })
	if b, err := os.ReadFile(l.Address); string(b) != "precious" {
		t.Errorf("a file was replaced: %q, %v", b, err)
	}
}

// pair makes a certificate of node.example.org and its key.
func pair(t *testing.T, serial int64, cert, key string) *x509.Certificate {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{"node.example.org"}, NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Only who shows the token is answered, over TLS. Files that come later, or are replaced, count without a restart.
func TestTokenAndCertificateAreAskedFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := Listen{
		Network: "tcp", Address: freePort(t), Cert: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k"),
		Token: filepath.Join(dir, "t"),
	}
	token := func(text string) {
		t.Helper()
		if err := os.WriteFile(l.Token, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e, log := exporter(t, idle)
	e.Listen(l)
	eventually(t, "the missing token", func() bool { return strings.Contains(e.State().Err, "token: open ") })
	token("\n")
	eventually(t, "the empty token", func() bool { return strings.Contains(e.State().Err, "want one line") })
	token("s3cret\n")
	eventually(t, "the missing certificate", func() bool { return strings.Contains(e.State().Err, "certificate and key") })
	roots := x509.NewCertPool()
	roots.AddCert(pair(t, 1, l.Cert, l.Key))
	eventually(t, "no problem", func() bool { return e.State().Err == "" })
	c := scraper(t, l, roots)
	for shown, want := range map[string]int{"": 401, "s3cre": 401, "s3cret ": 200, "s3cret": 200, "S3cret": 401} {
		if code, _, err := get(c, "https://node/metrics", shown); code != want || err != nil {
			t.Errorf("%q: %d, %v", shown, code, err)
		}
	}
	if code, _, err := get(scraper(t, l, nil), "http://node/metrics", "s3cret"); code == http.StatusOK {
		t.Errorf("without TLS: %d, %v", code, err)
	}
	token("another")
	if code, _, err := get(c, "https://node/metrics", "s3cret"); code != 401 || err != nil {
		t.Errorf("the former token: %d, %v", code, err)
	}
	if err := os.Remove(l.Token); err != nil {
		t.Fatal(err)
	}
	before := strings.Count(log.String(), "token: open ")
	for range 3 {
		if code, _, err := get(c, "https://node/metrics", ""); code != 500 || err != nil {
			t.Errorf("without the token's file: %d, %v", code, err)
		}
	}
	n := strings.Count(log.String(), "token: open ") - before
	if n != 1 || !strings.Contains(e.State().Err, "token: open ") {
		t.Errorf("%d lines of the log and %q tell of it", n, e.State().Err)
	}
	token("another")
	roots.AddCert(pair(t, 2, l.Cert, l.Key))
	if code, _, err := get(scraper(t, l, roots), "https://node/metrics", "another"); code != 200 || err != nil {
		t.Errorf("with the new certificate: %d, %v", code, err)
	}
}

// However many ask, the node is asked by one at a time, and few wait.
func TestScrapesAreAnsweredOneAfterAnother(t *testing.T) {
	t.Parallel()
	asked, proceed := make(chan struct{}, 100), make(chan struct{})
	e, _ := exporter(t, func() status.Node {
		asked <- struct{}{}
		<-proceed
		return idle()
	})
	l := Listen{Network: "tcp", Address: freePort(t)}
	e.Listen(l)
	eventually(t, "a listener", func() bool {
		c, err := net.Dial(l.Network, l.Address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	c := scraper(t, l, nil)
	codes := make(chan int, 20)
	for range cap(codes) {
		go func() {
			code, _, _ := get(c, "http://node/metrics", "")
			codes <- code
		}()
	}
	for range cap(codes) - mostScrapes {
		if code := <-codes; code != http.StatusServiceUnavailable {
			t.Errorf("%d", code)
		}
	}
	if len(asked) != 1 {
		t.Errorf("%d ask the node at once", len(asked))
	}
	close(proceed)
	for range mostScrapes {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("%d", code)
		}
	}
}

// A scrape under way doesn't hold up who turns metrics off, as the engine does when it ends.
// Connections that nobody asks anything on take a bounded number of descriptors, and room comes back.
func TestConnectionsAreBounded(t *testing.T) {
	e, _ := exporter(t, idle)
	l := Listen{Network: "tcp", Address: freePort(t)}
	e.Listen(l)
	answers(t, scraper(t, l, nil), "http://node"+Path) // whose connection stays
	var all []net.Conn
	var closed atomic.Int64
	for range 2 * mostConnections {
		c, err := net.Dial(l.Network, l.Address)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
		t.Cleanup(func() { c.Close() })
		go func() {
			io.WriteString(c, "GET /nothing HTTP/1.1\r\nHost: node\r\n\r\n") // who has asked may wait for minutes
			io.Copy(io.Discard, c)                                           // until the other side closes it
			closed.Add(1)
		}()
	}
	eventually(t, "connections to be closed", func() bool { return closed.Load() >= mostConnections })
	for _, c := range all {
		c.Close()
	}
	eventually(t, "room", func() bool {
		status, _, err := get(scraper(t, l, nil), "http://node"+Path, "")
		return err == nil && status == http.StatusOK
	})
}

func TestScrapeDoesNotHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	asked, proceed := make(chan struct{}, 1), make(chan struct{})
	e, _ := exporter(t, func() status.Node {
		asked <- struct{}{}
		<-proceed
		return idle()
	})
	defer close(proceed)
	l := Listen{Network: "unix", Address: filepath.Join(t.TempDir(), "m.sock")}
	e.Listen(l)
	c := scraper(t, l, nil)
	go func() {
		for _, _, err := get(c, "http://node/metrics", ""); err != nil; _, _, err = get(c, "http://node/metrics", "") {
			if e.State() == nil {
				return
			}
		}
	}()
	<-asked
	done := make(chan struct{})
	go func() {
		e.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("it waits")
	}
}
