package receive

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
	"cvmfs-graphdriver/pushback/api"
	"cvmfs-graphdriver/test/testutil"
)

// run runs a service until stop is called, and returns where it listens.
func run(t *testing.T, c *Config) (address string, stop func()) {
	t.Helper()
	s, err := New(c, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended, listens := make(chan error, 1), make(chan net.Addr, 1)
	go func() { ended <- s.Run(ctx, func(at net.Addr) { listens <- at }) }()
	at := <-listens
	return at.String(), func() {
		began := time.Now()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v to stop", took)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// becomes waits for a layer's status.
func becomes(t *testing.T, c *api.Client, l layer, want api.Status) {
	t.Helper()
	var last *api.Answer
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		a, err := c.Status(t.Context(), l.digest)
		if err != nil {
			t.Fatal(err)
		}
		if last = a; a.Status == want {
			return
		}
	}
	t.Fatalf("%+v, want %s", last, want)
}

// certified gives a configuration a certificate of the local host, and returns what trusts it.
func certified(t *testing.T, c *Config) *tls.Config {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	pair := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	c.Certificate, c.Key = filepath.Join(t.TempDir(), "crt"), filepath.Join(t.TempDir(), "key")
	for file, block := range map[string]*pem.Block{
		c.Certificate: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, c.Key: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	return &tls.Config{RootCAs: roots}
}

func TestAServiceRunsFromBothDoorsToTheRepository(t *testing.T) {
	c, store := atRest(t)
	trusts := certified(t, c)
	c.Bucket.Poll = 50 * time.Millisecond
	address, stop := run(t, c)
	client, err := api.NewClient("https://"+address+"/status", api.Options{Token: token1, TLS: trusts})
	if err != nil {
		t.Fatal(err)
	}
	one, two := newLayer(t, "one"), newLayer(t, "two")
	store.Set("in/"+one.digest, one.archive, nil)
	sent := api.Layer{Digest: two.digest, DiffID: two.diffID, Size: int64(len(two.archive)), Node: "n1"}
	if _, err := client.Upload(t.Context(), sent, bytes.NewReader(two.archive)); err != nil {
		t.Fatal(err)
	}
	becomes(t, client, one, api.Done)
	becomes(t, client, two, api.Done)
	_, err = New(c, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "another service") {
		t.Errorf("two services with one state: %v", err)
	}
	stop()
	hasLayers(t, c, one, two)
}

func TestReceivedLayersOutliveACollection(t *testing.T) {
	s := newSite(t, nil)
	one, two := newLayer(t, "one"), newLayer(t, "two")
	s.puts("", one)
	s.puts("", two)
	s.turn()
	target, err := s.open()
	if err != nil {
		t.Fatal(err)
	}
	conv := &convert.Converter{Sink: target, Layout: s.c.Layout}
	if g, err := conv.Collect(t.Context(), convert.CollectOptions{}); err != nil || g.Kept != 2 {
		t.Errorf("%+v, %v", g, err)
	}
	s.has(one, two)
	g, err := conv.Collect(t.Context(), convert.CollectOptions{Dropped: []string{one.digest}})
	if err != nil || len(g.Removed) != 1 {
		t.Errorf("%+v, %v", g, err)
	}
	s.has(two)
}

func TestConfigurationsAreHeldToWhatTheyName(t *testing.T) {
	good := newConfig(t)
	everybodys := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(everybodys, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Check(t.Context(), good); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(good.State); err == nil {
		t.Error("a check has made the state")
	}
	for name, change := range map[string]func(c *Config){
		"--repository":  func(c *Config) { c.Target = "dir:" + t.TempDir() },
		"no such file":  func(c *Config) { c.Tokens = "/no/such/file" },
		"want s3://":    func(c *Config) { c.Bucket.Address = "http://x" },
		"certificate":   func(c *Config) { c.Certificate, c.Key = "/no/such/file", "/no/such/file" },
		"credentials":   func(c *Config) { c.Bucket.Address, c.Bucket.Credentials = "s3://x", "/no/such/file" },
		"other.example": func(c *Config) { c.Repository = "other.example.org" },
		"bucket: ": func(c *Config) {
			c.Bucket.Address = "s3://none/in?endpoint=" + s3test.NewStore(t).URL
			c.Bucket.Credentials = filepath.Join(t.TempDir(), "credentials")
			keys := "[default]\naws_access_key_id = " + s3test.AccessKey + "\naws_secret_access_key = " + s3test.SecretKey + "\n"
			if err := os.WriteFile(c.Bucket.Credentials, []byte(keys), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"state: ":    func(c *Config) { c.State = filepath.Join(everybodys, "folder") },
		"chmod 0600": func(c *Config) { c.Certificate, c.Key = everybodys, everybodys },
	} {
		c := *good
		change(&c)
		if err := Check(t.Context(), &c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want one with %q", err, name)
		}
	}
}

// On a full disk nothing is lost, and it is said.
func TestAFullDiskIsTold(t *testing.T) {
	disk := testutil.SmallDisk(t, "256k")
	s := newSite(t, func(c *Config) {
		c.State = filepath.Join(disk, "state")
		c.Audit = filepath.Join(c.State, "audit.jsonl")
	})
	big := layer{archive: bytes.Repeat([]byte("x"), 512<<10)}
	big.digest = hexSum(big.archive)
	code, text, _ := s.request(http.MethodPut, "/layers/"+big.digest, token1, big.archive)
	if code != http.StatusInsufficientStorage || !strings.Contains(text, "disk is full") {
		t.Errorf("%d %s", code, text)
	}
	s.is(big, api.Unknown, "isn't complete")
	if err := s.book.drop(big.digest); err != nil {
		t.Fatal(err)
	}
	l := newLayer(t, "file")
	s.puts("", l)
	s.store.Objects["in/"+big.digest] = s3test.Object{Content: big.archive}
	s.turn()
	s.is(l, api.Done, "")
	s.is(big, api.Publishing, "no space left")
}
