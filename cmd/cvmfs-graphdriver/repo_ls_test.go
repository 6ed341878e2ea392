package main

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"testing"

	"cvmfs-graphdriver/internal/testutil"
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
			url := testutil.Serve(t, testutil.Repository(t, fqrn))
			code, out, errOut := ls(t, fqrn, url, "-R", "--json", "--content", fqrn)
			if code != 0 || errOut != "" {
				t.Fatalf("exit code %d: %s", code, errOut)
			}
			compareLines(t, testutil.Expected(t, fqrn), out)
		})
	}
}

func TestRequestsSayWhichBuildAsks(t *testing.T) {
	const fqrn = "images.example.org"
	server := testutil.NewFaulty(t, http.FileServer(http.Dir(testutil.Repository(t, fqrn))))
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
