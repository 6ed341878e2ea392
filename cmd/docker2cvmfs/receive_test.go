package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/test/testutil"
)

const nodeToken = "the-token-of-a-node"

// receiving writes the configuration of a service for a new repository.
func receiving(t *testing.T) (config, publisher string) {
	t.Helper()
	dir := t.TempDir()
	config, publisher = filepath.Join(dir, "receive.yaml"), newPublisher(t)
	text := fmt.Sprintf("version: 1\ntarget: native:%s\nstate: %s\nlisten: 127.0.0.1:0\ntokens: %s\napproval: true\n",
		publisher, filepath.Join(dir, "state"), filepath.Join(dir, "tokens"))
	for file, content := range map[string]string{config: text, filepath.Join(dir, "tokens"): "n1 " + nodeToken + "\n"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return config, publisher
}

// background runs the program until stop is called, and returns what it says.
func background(t *testing.T, args ...string) (said *testutil.Buffer, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	said = &testutil.Buffer{}
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, append([]string{"docker2cvmfs"}, args...), io.Discard, said) }()
	return said, func() {
		cancel()
		if code := <-ended; code != 0 {
			t.Errorf("exit code %d: %s", code, said)
		}
	}
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// asked sends a request to a service as a node does.
func asked(t *testing.T, method, url string, body []byte) string {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+nodeToken)
	answer, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sentLayer is an archive as a node sends it, with its digest.
func sentLayer(t *testing.T, name string) (archive []byte, digest string) {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(testutil.Tar(t, tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644})); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return b.Bytes(), hex.EncodeToString(sum[:])
}

func TestLayersAreReceivedApprovedAndDropped(t *testing.T) {
	config, publisher := receiving(t)
	if out := must(t, "receive", "--check-config", config); !strings.Contains(out, "good") {
		t.Errorf("check: %s", out)
	}
	said, stop := background(t, "receive", config)
	defer stop()
	address := ""
	eventually(t, "it listens", func() bool {
		found := regexp.MustCompile(`address=(127\.0\.0\.1:\d+)`).FindStringSubmatch(said.String())
		if found != nil {
			address = "http://" + found[1]
		}
		return found != nil
	})
	good, goodDigest := sentLayer(t, "good")
	bad, badDigest := sentLayer(t, "bad")
	for digest, archive := range map[string][]byte{goodDigest: good, badDigest: bad} {
		asked(t, http.MethodPut, address+"/layers/"+digest, archive)
	}
	eventually(t, "both wait for approval", func() bool {
		return strings.Count(must(t, "receive", "list", "--asking", config), "\n") == 2
	})
	if code, _, errOut := call(t, "receive", "approve", config, strings.Repeat("0", 64)); code != 1 ||
		!strings.Contains(errOut, "doesn't wait for a decision") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	must(t, "receive", "approve", config, goodDigest)
	must(t, "receive", "reject", "--reason", "not wanted", config, "sha256:"+badDigest)
	status := func(digest string) string { return asked(t, http.MethodGet, address+"/status/"+digest, nil) }
	eventually(t, "one is published", func() bool { return status(goodDigest) == "done" })
	eventually(t, "one is rejected", func() bool { return strings.HasPrefix(status(badDigest), "failed: rejected by") })
	if out := must(t, "receive", "list", "--json", config); strings.Count(out, "\n") != 2 {
		t.Errorf("list: %s", out)
	}
	target := "native:" + publisher
	if out := must(t, "gc", "--target", target, "--grace-period", "0", "--received-days", "1"); !strings.Contains(out,
		"1 layers kept, 0 removed") {
		t.Errorf("gc: %s", out)
	}
	if out := must(t, "gc", "--target", target, "--grace-period", "0", "--drop-received", goodDigest); !strings.Contains(
		out, "0 layers kept, 1 removed") {
		t.Errorf("gc: %s", out)
	}
}

func TestWrongUseOfReceiveIsTold(t *testing.T) {
	config, _ := receiving(t)
	wrong := filepath.Join(t.TempDir(), "wrong.yaml")
	if err := os.WriteFile(wrong, []byte("version: 1\nlimit: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{2, "want CONFIG.yaml", []string{"receive"}},
		{2, "at least one digest", []string{"receive", "approve", config}},
		{1, "line 2: unknown key", []string{"receive", wrong}},
		{1, "line 2: unknown key", []string{"receive", "--check-config", wrong}},
		{1, "no service has run", []string{"receive", "list", config}},
		{2, "received layers of 0 days", []string{"gc", "--received-days", "0"}},
		{2, "received layers of 213504 days", []string{"gc", "--received-days", "213504"}},
		{2, "no wish list", []string{"gc"}},
	} {
		if code, _, errOut := call(t, c.args...); code != c.code || !strings.Contains(errOut, c.want) {
			t.Errorf("%v: exit code %d: %s, want %d with %q", c.args, code, errOut, c.code, c.want)
		}
	}
}
