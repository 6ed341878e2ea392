package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/listing"
	"cvmfs-graphdriver/test/testutil"
)

const shake = "shake.example.org"

// repo runs a command of `repo` on a reference repository served at url.
func repo(t *testing.T, fqrn, url, command string, args ...string) (code int, out, errOut string) {
	t.Helper()
	args = append([]string{
		"cvmfs-graphdriver", "repo", command, "--config-dir", t.TempDir(), "--server-url", url,
		"--public-key", testutil.PublicKey(t, fqrn), "--proxy", "DIRECT",
	}, args...)
	var o, e bytes.Buffer
	code = run(context.Background(), args, &o, &e)
	return code, o.String(), e.String()
}

// shown runs a command that has to succeed.
func shown(t *testing.T, fqrn, url, command string, args ...string) string {
	t.Helper()
	code, out, errOut := repo(t, fqrn, url, command, args...)
	if code != 0 || errOut != "" {
		t.Fatalf("repo %s %q: exit code %d: %s", command, args, code, errOut)
	}
	return out
}

// expected are the reference client's lines of some kinds of entries, by path.
func expected(t *testing.T, fqrn string) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	for line := range strings.Lines(testutil.Expected(t, fqrn)) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		path := entry["path"].(string)
		// Of the folders with hundreds of like files some are enough; JSON readers can't tell names that are no UTF-8.
		if _, name, many := strings.Cut(path, "/many/"); many && !strings.HasSuffix(name, "77") ||
			strings.HasPrefix(path, "/dir/dir/dir/dir") || strings.Contains(path, "\ufffd") {
			continue
		}
		all[path] = entry
	}
	if len(all) < 40 {
		t.Fatalf("%d entries", len(all))
	}
	return all
}

func TestStatAndCatShowWhatTheReferenceClientDoes(t *testing.T) {
	for _, fqrn := range []string{features, shake} {
		url := "file://" + testutil.Repository(t, fqrn)
		all := expected(t, fqrn)
		for n, path := range slices.Sorted(maps.Keys(all)) {
			if n%testutil.Stride() != 0 { // each is read by a repository that is opened anew
				continue
			}
			want := all[path]
			var got map[string]any
			if err := json.Unmarshal([]byte(shown(t, fqrn, url, "stat", "--json", fqrn, path)), &got); err != nil {
				t.Fatal(err)
			}
			for key, value := range want {
				if key == "sha256" || key == "same_inode_as" {
					continue
				}
				if diff := cmp.Diff(value, got[key]); diff != "" {
					t.Errorf("%s: %s: %s", path, key, diff)
				}
			}
			if same, linked := want["same_inode_as"]; linked {
				links, _ := got["same_inode"].([]any)
				if float64(len(links)+1) != got["nlink"] || got["hardlink_group"] == nil {
					t.Errorf("%s is the same as %v: %v", path, same, got)
				}
			}
			if want["type"] != "file" {
				continue
			}
			sum := sha256.Sum256([]byte(shown(t, fqrn, url, "cat", fqrn, path)))
			if hex.EncodeToString(sum[:]) != want["sha256"] {
				t.Errorf("%s: other content", path)
			}
		}
	}
}

func TestCatPrintsRanges(t *testing.T) {
	server := testutil.NewFaulty(t, http.FileServerFS(testutil.Reference(t, features)))
	for _, path := range []string{"/big/random", "/small/hello.txt"} { // in chunks, and whole
		whole := shown(t, features, server.URL, "cat", features+path)
		size := len(whole)
		for _, at := range [][2]int{{0, 1}, {1, size}, {size / 2, 70_000}, {size - 1, 5}, {size, 1}, {3, 0}} {
			got := shown(t, features, server.URL, "cat", "--offset", strconv.Itoa(at[0]), "--length", strconv.Itoa(at[1]),
				features, path)
			if want := whole[at[0]:min(at[0]+at[1], size)]; got != want {
				t.Errorf("%s: %d bytes at %d: got %d bytes, want %d", path, at[1], at[0], len(got), len(want))
			}
		}
		if code, out, errOut := repo(t, features, server.URL, "cat", "--offset", strconv.Itoa(size+1), features,
			path); code != 1 || out != "" || !strings.Contains(errOut, "it has "+strconv.Itoa(size)) {
			t.Errorf("%s: behind its end: exit code %d: %s", path, code, errOut)
		}
	}
	before := server.Requests("P")
	shown(t, features, server.URL, "cat", "--offset", "350000", "--length", "1", features, "/big/random")
	if n := server.Requests("P") - before; n != 1 {
		t.Errorf("%d chunks were fetched for one byte", n)
	}
}

// chunksOf are the names of a file's chunks below the repository.
func chunksOf(t *testing.T, fqrn, url, path string) (chunks []string) {
	t.Helper()
	var entry struct{ Chunks []struct{ Object string } }
	if err := json.Unmarshal([]byte(shown(t, fqrn, url, "stat", "--json", fqrn, path)), &entry); err != nil {
		t.Fatal(err)
	}
	for _, c := range entry.Chunks {
		chunks = append(chunks, c.Object)
	}
	return chunks
}

func TestCatFailsHalfWayAndSaysSo(t *testing.T) {
	dir := testutil.Repository(t, features)
	url := "file://" + dir
	whole := shown(t, features, url, "cat", features, "/big/random")
	chunks := chunksOf(t, features, url, "/big/random")
	if len(chunks) < 3 {
		t.Fatalf("%d chunks", len(chunks))
	}
	if err := os.WriteFile(filepath.Join(dir, chunks[len(chunks)-1]), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errOut := repo(t, features, url, "cat", features, "/big/random")
	if code != 1 || out == "" || !strings.HasPrefix(whole, out) || len(out) == len(whole) ||
		!strings.Contains(errOut, chunks[len(chunks)-1]) {
		t.Errorf("exit code %d after %d of %d bytes: %s", code, len(out), len(whole), errOut)
	}
}

func TestCatAndStatRefuse(t *testing.T) {
	url := "file://" + testutil.Repository(t, features)
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"cat " + features + " /links/relative", 1, `symbolic link to "../small/hello.txt"`},
		{"cat " + features + " /small", 1, "not a regular file"},
		{"cat " + features + " /nothing", 1, "does not exist"},
		{"stat " + features + " /nothing", 1, "does not exist"},
		{"stat " + features + " /small/../small", 1, "not a path"},
		{"cat --offset -1 " + features + " /small/hello.txt", 2, "negative"},
		{"cat", 2, "want FQRN PATH"},
		{"stat a b c", 2, "want FQRN PATH"},
		{"verify", 2, "want FQRN [PATH]"},
		{"tags", 2, "want one argument"},
		{"info a b", 2, "want one argument"},
		{"verify " + features + " /nothing", 1, "does not exist"},
	} {
		args := strings.Fields(c.args)
		code, out, errOut := repo(t, features, url, args[0], args[1:]...)
		if code != c.code || out != "" && args[0] != "verify" || !strings.Contains(errOut, c.says) {
			t.Errorf("%s: exit code %d: %s%s", c.args, code, out, errOut)
		}
	}
}

func TestStatForPeople(t *testing.T) {
	url := "file://" + testutil.Repository(t, features)
	for path, want := range map[string][]string{
		"/hard/one":         {"links           3, hard-link group ", "with /hard/three, /hard/two\n"},
		"/xattr/capability": {"xattr           security.capability = 0x0100000200040000"},
		"/links/relative":   {"type            symlink", "target          ../small/hello.txt"},
		"/big/random":       {"size            700001 bytes", "chunk           data/", " bytes at 0\n"},
		"/nested":           {"nested catalog  begins here; in it and below: 43 files"},
		"":                  {"path            /\n", "4 catalogs"},
	} {
		out := shown(t, features, url, "stat", features, path)
		for _, line := range want {
			if !strings.Contains(out, line) {
				t.Errorf("%s lacks %q:\n%s", path, line, out)
			}
		}
	}
}

func TestInfoTellsOfRevisionAndServers(t *testing.T) {
	server := testutil.NewFaulty(t, http.FileServerFS(testutil.Reference(t, features)))
	dead := "http://" + testutil.ClosedAddress(t, "127.0.0.1")
	urls := dead + ";" + server.URL
	var i listing.Info
	if err := json.Unmarshal([]byte(shown(t, features, urls, "info", "--json", features)), &i); err != nil {
		t.Fatal(err)
	}
	if i.Revision != 4 || i.Root != "ab66511a6c08cb9c9b39832d5931780e833ccdab" || i.Expires.Year() != 2046 ||
		!strings.HasPrefix(i.Certificate, "66:3E:87:42:") || strings.Contains(i.Certificate, " ") || i.TTL != 240 ||
		i.Counts.Files != 1272 || i.Counts.Catalogs != 4 {
		t.Errorf("%+v", i)
	}
	if len(i.Servers) != 2 || i.Servers[0].Name != dead || i.Servers[0].Failures == 0 || i.Servers[0].Error == "" ||
		i.Servers[1].Answers < 3 || i.Servers[1].Wait <= 0 || i.Servers[1].Error != "" {
		t.Errorf("servers: %+v", i.Servers)
	}
	if len(i.Proxies) != 1 || i.Proxies[0].Name != "DIRECT" || i.Proxies[0].Answers < 3 {
		t.Errorf("proxies: %+v", i.Proxies)
	}
	out := shown(t, features, urls, "info", features)
	for _, want := range []string{
		"revision        4, published 2026-11-23T04:56:14Z", "66:3E:87:42", "good until 2046-",
		"1272 files", "not in order: get " + dead, "proxy           DIRECT: ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
}

func TestTagsAreListed(t *testing.T) {
	dir := testutil.Repository(t, features)
	var tags listing.Tags
	if err := json.Unmarshal([]byte(shown(t, features, "file://"+dir, "tags", "--json", features)), &tags); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tag := range tags.Tags {
		names = append(names, tag.Name)
	}
	if diff := cmp.Diff([]string{
		"second", "trunk", "first", "trunk-previous", "hardlinks", "generic-2026-11-23T04:56:09Z",
	}, names); diff != "" {
		t.Error(diff)
	}
	first := tags.Tags[2]
	if first.Revision != 3 || first.Root != "0857a577da667cef9dd39ecd6423939e72d31e5d" ||
		first.Time.Unix() != 1795409773 || first.Description != "first" {
		t.Errorf("%+v", first)
	}
	if out := shown(t, features, "file://"+dir, "tags", features); strings.Count(out, "\n") != 6 ||
		!strings.Contains(out, "0857a577da667cef9dd39ecd6423939e72d31e5d  default undo target\n") {
		t.Error(out)
	}
	spoil(t, dir, "H")
	if code, _, errOut := repo(t, features, "file://"+dir, "tags", features); code != 1 ||
		!strings.Contains(errOut, "history") {
		t.Errorf("a bad history: exit code %d: %s", code, errOut)
	}
}

// spoil puts rubbish into all objects whose names end so.
func spoil(t *testing.T, dir, suffix string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "data/*/*"+suffix))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d objects end with %s, %v", len(files), suffix, err)
	}
	for _, file := range files {
		if err := os.WriteFile(file, []byte("rubbish"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestVerifyNamesWhatIsBadAndGoesOn(t *testing.T) {
	dir := testutil.Repository(t, features)
	server := testutil.NewFaulty(t, http.FileServer(http.Dir(dir)))
	out := shown(t, features, server.URL, "verify", features)
	if !strings.Contains(out, `"/": complete: 4 catalogs, 1376 entries, 1272 files, 1264 objects of 2.2 MB, 0 bad; 0 req`) {
		t.Error(out)
	}
	var entry struct{ Object string }
	if err := json.Unmarshal([]byte(shown(t, features, server.URL, "stat", "--json", features, "/hard/one")),
		&entry); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, entry.Object)); err != nil {
		t.Fatal(err)
	}
	chunk := chunksOf(t, features, server.URL, "/big/random")[1]
	if err := os.WriteFile(filepath.Join(dir, chunk), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	spoil(t, dir, "H")
	code, out, errOut := repo(t, features, server.URL, "verify", "--json", "--progress", features)
	if code != 1 || !strings.Contains(errOut, "3 are bad") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	bad := map[string]string{}
	var last struct {
		Bad, Files int64
		Complete   bool
	}
	for line := range strings.Lines(out) {
		var p struct{ Kind, Path, Error string }
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatal(err)
		}
		if p.Kind == "" {
			if err := json.Unmarshal([]byte(line), &last); err != nil {
				t.Fatal(err)
			}
			continue
		}
		bad[p.Path] = p.Kind
		if !strings.Contains(p.Error, server.URL) && p.Error != "bad, as told before" {
			t.Errorf("%s: the error doesn't name the server: %s", p.Path, p.Error)
		}
	}
	want := map[string]string{
		"/": "history", "/hard/one": "object", "/hard/two": "object", "/hard/three": "object",
		"/big/random": "chunk", "/hard/big": "chunk", "/hard/big-again": "chunk", // which begins as that does
	}
	if diff := cmp.Diff(want, bad); diff != "" || last.Bad != 3 || last.Files != 1272 || !last.Complete {
		t.Errorf("%+v:\n%s", last, diff)
	}
	code, out, _ = repo(t, features, server.URL, "verify", features, "/nested")
	if code != 0 || !strings.Contains(out, `"/nested": complete: 2 catalogs`) {
		t.Errorf("a sound folder: exit code %d: %s", code, out)
	}
}
