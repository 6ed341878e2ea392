package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cvmfs-graphdriver/test/testutil"
)

// ls runs `repo ls` on a repository served at url and gives the exit code and what was printed.
func ls(t *testing.T, fqrn, url string, args ...string) (code int, out, errOut string) {
	t.Helper()
	args = append([]string{
		"cvmfs-graphdriver", "repo", "ls", "--config-dir", t.TempDir(), "--server-url", url,
		"--public-key", testutil.PublicKey(t, fqrn), "--proxy", "DIRECT",
	}, args...)
	var o, e bytes.Buffer
	code = run(context.Background(), args, &o, &e)
	return code, o.String(), e.String()
}

func compareLines(t *testing.T, want, got string) {
	t.Helper()
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			t.Fatalf("line %d:\nwant %s\ngot  %s", i+1, w[i], g[i])
		}
	}
	if len(w) != len(g) {
		t.Fatalf("%d lines, want %d", len(g), len(w))
	}
}

func TestListingsAreThoseOfTheReferenceClient(t *testing.T) {
	for _, fqrn := range []string{"features.example.org", "shake.example.org", "images.example.org"} {
		t.Run(fqrn, func(t *testing.T) {
			url := testutil.ServeReference(t, fqrn)
			code, out, errOut := ls(t, fqrn, url, "-R", "--json", "--content", fqrn)
			if code != 0 || errOut != "" {
				t.Fatalf("exit code %d: %s", code, errOut)
			}
			compareLines(t, testutil.Expected(t, fqrn), out)
		})
	}
}

// The program itself evaluates the script, in a process of its own.
func TestProxiesAreThoseOfAScript(t *testing.T) {
	const fqrn = "images.example.org"
	server := testutil.NewFaulty(t, http.FileServerFS(testutil.Reference(t, fqrn)))
	proxy := testutil.NewFaulty(t, &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}})
	script := testutil.NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `function FindProxyForURL(url, host) {
			return isInNet(host, "127.0.0.0", "255.0.0.0") ? "PROXY %s; DIRECT" : "DIRECT";
		}`, strings.TrimPrefix(proxy.URL, "http://"))
	}))
	dir := t.TempDir()
	settings := "CVMFS_HTTP_PROXY='auto;DIRECT'\nCVMFS_PAC_URLS=" + script.URL + "/wpad.dat\n"
	if err := os.WriteFile(filepath.Join(dir, "default.local"), []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	code := run(t.Context(), []string{
		"cvmfs-graphdriver", "repo", "ls", "--config-dir", dir, "--server-url", server.URL,
		"--public-key", testutil.PublicKey(t, fqrn), fqrn,
	}, &out, &errOut)
	if code != 0 || errOut.Len() > 0 {
		t.Fatalf("exit code %d: %s", code, &errOut)
	}
	if script.Requests("") != 1 || proxy.Requests("") == 0 || proxy.Requests("") != server.Requests("") {
		t.Errorf("requests: script %d, proxy %d, server %d", script.Requests(""), proxy.Requests(""), server.Requests(""))
	}
}

// CVMFS_WORLD_READABLE is for people's views.
func TestWorldReadableListing(t *testing.T) {
	const fqrn = "features.example.org"
	url := testutil.ServeReference(t, fqrn)
	dir := t.TempDir()
	unreadable := map[string]int{}
	for _, setting := range []string{"no", "yes"} {
		text := "CVMFS_HTTP_PROXY=DIRECT\nCVMFS_WORLD_READABLE=" + setting + "\n"
		if err := os.WriteFile(filepath.Join(dir, "default.local"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		code := run(t.Context(), []string{
			"cvmfs-graphdriver", "repo", "ls", "-R", "--config-dir", dir, "--server-url", url,
			"--public-key", testutil.PublicKey(t, fqrn), fqrn,
		}, &out, &errOut)
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, &errOut)
		}
		for line := range strings.Lines(out.String()) {
			if line[1] != 'r' || line[4] != 'r' || line[7] != 'r' {
				unreadable[setting]++
			}
		}
	}
	if unreadable["no"] == 0 || unreadable["yes"] != 0 {
		t.Errorf("lines that aren't readable by all: %v", unreadable)
	}
}

// Whoever wants to know is told what of the configuration has no effect, once each.
func TestVerboseListingTellsOfTheConfiguration(t *testing.T) {
	const fqrn = "images.example.org"
	url := testutil.ServeReference(t, fqrn)
	dir := t.TempDir()
	text := "CVMFS_HTTP_PROXY=DIRECT\nCVMFS_PROXI=x\nCVMFS_HTTP_TRACING=yes\n"
	if err := os.WriteFile(filepath.Join(dir, "default.local"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	code := run(t.Context(), []string{
		"cvmfs-graphdriver", "repo", "ls", "-v", "--config-dir", dir, "--server-url", url,
		"--public-key", testutil.PublicKey(t, fqrn), fqrn,
	}, &out, &errOut)
	for _, want := range []string{"default.local:2: CVMFS_PROXI:", "default.local:3: CVMFS_HTTP_TRACING:"} {
		if n := strings.Count(errOut.String(), want); code != 0 || n != 1 {
			t.Errorf("exit code %d, %q is told %d times: %s", code, want, n, &errOut)
		}
	}
}

func TestRequestsSayWhichBuildAsks(t *testing.T) {
	const fqrn = "images.example.org"
	server := testutil.NewFaulty(t, http.FileServerFS(testutil.Reference(t, fqrn)))
	if code, _, errOut := ls(t, fqrn, server.URL, fqrn); code != 0 {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	for _, r := range server.Log() {
		if r.UserAgent() != "cvmfs-graphdriver/"+version {
			t.Errorf("%s: User-Agent %q", r.URL.Path, r.UserAgent())
		}
	}
	if len(server.Log()) == 0 {
		t.Error("nothing was asked for")
	}
}

// lsAway starts `repo ls` as a process of its own, with a folder for its temporary files.
func lsAway(t *testing.T, url string, out *os.File) (cmd *exec.Cmd, temporary string, errOut *testutil.Buffer) {
	t.Helper()
	temporary, errOut = t.TempDir(), new(testutil.Buffer)
	cmd = exec.Command(os.Args[0], "repo", "ls", "-R", "--config-dir", t.TempDir(), "--server-url", url,
		"--public-key", testutil.PublicKey(t, features), "--proxy", "DIRECT", features)
	cmd.Env = append(os.Environ(), underTest+"=1", "TMPDIR="+temporary)
	cmd.Stdout, cmd.Stderr = out, errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, temporary, errOut
}

func leavesNothing(t *testing.T, temporary string) {
	t.Helper()
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("left in the folder for temporary files: %v, %v", left, err)
	}
}

func TestAListingThatNobodyReadsLeavesNothing(t *testing.T) {
	r, w, err := os.Pipe()
	if err == nil {
		err = r.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd, temporary, errOut := lsAway(t, testutil.ServeReference(t, features), w)
	_ = cmd.Wait() // the exit code says it
	if code := cmd.ProcessState.ExitCode(); code != 141 || errOut.String() != "" {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	leavesNothing(t, temporary)
}

func TestAListingThatIsEndedLeavesNothing(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		asked := make(chan struct{}, 100)
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			asked <- struct{}{}
			<-r.Context().Done()
		}))
		cmd, temporary, errOut := lsAway(t, server.URL, nil)
		<-asked
		if err := cmd.Process.Signal(signal); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // the exit code says it
		if code := cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("%v: exit code %d: %s", signal, code, errOut)
		}
		server.Close()
		leavesNothing(t, temporary)
	}
}

func TestAConfigurationIsNamedWhereItLies(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"default.local":               "CVMFS_HTTP_PROXY=gopher://proxy\n",
		"config.d/a.example.org.conf": "CVMFS_SERVER_URL=http://127.0.0.1:9/x\nCVMFS_PUBLIC_KEY=/x\n",
	} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755),
			os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for fqrn, file := range map[string]string{
		"a.example.org": "default.local:1", "b.example.org": "default.local:1",
		"b": "default.local",
	} {
		var out, errOut bytes.Buffer
		code := run(context.Background(), []string{"x", "repo", "ls", "--config-dir", dir, fqrn}, &out, &errOut)
		if said := errOut.String(); code != 1 || !strings.Contains(said, filepath.Join(dir, file)) ||
			strings.Contains(said, "/etc/cvmfs/default") {
			t.Errorf("%s: exit code %d: %s", fqrn, code, said)
		}
	}
}

// The flag takes what CVMFS_SERVER_URL takes.
func TestServerURLIsExpanded(t *testing.T) {
	const fqrn = "images.example.org"
	server := testutil.NewFaulty(t, http.StripPrefix("/images/"+fqrn,
		http.FileServerFS(testutil.Reference(t, fqrn))))
	code, _, errOut := ls(t, fqrn, "http://"+testutil.ClosedAddress(t, "127.0.0.1")+"/ ; "+server.URL+"/@org@/@fqrn@/", fqrn)
	if code != 0 {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	code, _, errOut = ls(t, fqrn, "file://"+testutil.Repository(t, fqrn), fqrn)
	if code != 0 {
		t.Errorf("a folder: exit code %d: %s", code, errOut)
	}
}
