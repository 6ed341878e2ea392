package main

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/testutil"
)

const features = "features.example.org"

func TestExitCodesTellWhoseFaultItIs(t *testing.T) {
	empty := t.TempDir()
	for _, c := range []struct {
		args string
		code int
		says string // on standard output if all went well, else on standard error
	}{
		{"", 0, "repo"},
		{"--help", 0, "COMMANDS"},
		{"version", 0, "cvmfs-graphdriver dev go"},
		{"version x", 2, `unknown argument "x"`},
		{"nonsense", 2, `unknown command "nonsense"`},
		{"--nonsense", 2, "nonsense"},
		{"repo", 0, "ls"},
		{"repo nonsense", 2, "nonsense"},
		{"repo ls", 2, "FQRN[/PATH]"},
		{"repo mount a.b", 2, "FQRN[/PATH] and DIR"},
		{"repo mount --view ext4 a.b /tmp", 2, "--view"},
		{"repo mount a.b /missing", 1, "/missing"},
		{"repo ls a.b c.d", 2, "FQRN[/PATH]"},
		{"repo ls --nonsense a.b", 2, "repo ls --help"},
		{"repo ls --config-dir " + empty + " --server-url http://x --public-key x --proxy |;| a.b", 2, "--proxy"},
		{"repo ls --config-dir " + empty + " no.such.repository", 1, "config.d/no.such.repository.conf"},
		{"doctor x", 2, `unknown argument "x"`},
		{"doctor --nonsense", 2, "doctor --help"},
		{
			"doctor --host unix://" + empty + "/none --cvmfs-config " + empty, 3,
			"this host doesn't qualify: engine.unreachable",
		},
		{"status x", 2, `unknown argument "x"`},
		{"bench a", 2, "want an image, its thin one"},
		{"bench --until-port 70000 a b", 2, "want a TCP port"},
		{"bench --until-port 80 --network none a b", 2, "needs a network"},
		{"bench --rounds 0 a b", 2, "want one at least"},
		{"bench --host unix://" + empty + "/none a b", 1, "ask the engine what it runs on"},
		{
			"status --host unix://" + empty + "/none --cvmfs-config " + empty, 1,
			"no engine answers at unix://" + empty + "/none",
		},
		{"repo ls --config-dir " + empty + " ..", 1, "isn't a repository's name"},
	} {
		var out, errOut bytes.Buffer
		code := run(context.Background(), append([]string{"cvmfs-graphdriver"}, strings.Fields(c.args)...), &out,
			&errOut)
		said := errOut.String()
		if c.code == 0 {
			said = out.String()
		}
		if code != c.code || !strings.Contains(said, c.says) {
			t.Errorf("%q: exit code %d, want %d; want %q in\n%s%s", c.args, code, c.code, c.says, &out, &errOut)
		}
	}
}

func TestListsOneFolderOrOneFile(t *testing.T) {
	url := testutil.ServeReference(t, features)
	all := strings.SplitAfter(testutil.Expected(t, features), "\n")
	for path, in := range map[string]func(rest string) bool{
		"":  func(p string) bool { return p != "" && !strings.Contains(p[1:], "/") && p != "/" },
		"/": func(p string) bool { return p != "" && !strings.Contains(p[1:], "/") && p != "/" },
		"/nested/": func(p string) bool {
			return strings.HasPrefix(p, "/nested/") &&
				strings.Count(p, "/") == 2
		},
		"/nested": func(p string) bool {
			return strings.HasPrefix(p, "/nested/") &&
				strings.Count(p, "/") == 2
		},
		"/hard":            func(p string) bool { return strings.HasPrefix(p, "/hard/") },
		"/small/hello.txt": func(p string) bool { return p == "/small/hello.txt" },
		"/links/variant":   func(p string) bool { return p == "/links/variant" },
	} {
		var want strings.Builder
		for _, line := range all {
			if _, rest, ok := strings.Cut(line, `"path": "`); ok {
				if p, _, _ := strings.Cut(rest, `"`); in(p) {
					want.WriteString(line)
				}
			}
		}
		code, out, errOut := ls(t, features, url, "--json", "--content", features+path)
		if code != 0 || want.Len() == 0 {
			t.Fatalf("%q: exit code %d: %s", path, code, errOut)
		}
		compareLines(t, want.String(), out)
	}
	if code, _, errOut := ls(t, features, url, features+"/no/such"); code != 1 ||
		!strings.Contains(errOut, `"/no/such"`) {
		t.Errorf("a missing path: exit code %d, %s", code, errOut)
	}
}

func TestConfigurationOfTheHostSuffices(t *testing.T) {
	dir := testutil.Configure(t, map[string]string{features: testutil.ServeReference(t, features)})
	var out, errOut bytes.Buffer
	if code := run(context.Background(), []string{"x", "repo", "ls", "--config-dir", dir, features + "/links"}, &out,
		&errOut); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errOut)
	}
	if want := "lrwxrwxrwx   1     0     0"; !strings.HasPrefix(out.String(), want) ||
		!strings.Contains(out.String(), " /links/variant -> fallback/bin\n") {
		t.Errorf("got\n%swant lines like %q", &out, want)
	}
}

// A file that can't be read ends the listing with an error, after all lines before it.
func TestListingEndsAtAnUnreadableFile(t *testing.T) {
	const fqrn = "images.example.org"
	repository := http.StripPrefix("/cvmfs/"+fqrn+"/", http.FileServerFS(testutil.Reference(t, fqrn)))
	server := testutil.NewFaulty(t, repository)
	want := strings.SplitAfter(testutil.Expected(t, fqrn), "\n")
	at := slices.IndexFunc(want, func(line string) bool { return strings.Contains(line, "data/c.txt") })
	server.Set(testutil.Fault{Path: lastObject(t, server, fqrn, "data/c.txt"), Status: http.StatusNotFound})
	code, out, errOut := ls(t, fqrn, server.URL+"/cvmfs/"+fqrn, "-R", "--json", "--content", fqrn)
	if code != 1 || !strings.Contains(errOut, "missing on all servers") || out != strings.Join(want[:at], "") {
		t.Errorf("exit code %d, %d lines, want 1 after %d: %s", code, strings.Count(out, "\n"), at, errOut)
	}
}

// lastObject lists one file with its content and gives the path of the object that was got for it.
func lastObject(t *testing.T, server *testutil.Faulty, fqrn, file string) string {
	t.Helper()
	const layer = "/.layers/32/324dca449b9bf9156b44f478fff77fb6c221398ac6f5003697b9feaa828b366c/layerfs/"
	if code, _, errOut := ls(t, fqrn, server.URL+"/cvmfs/"+fqrn, "--content", fqrn+layer+file); code != 0 {
		t.Fatal(errOut)
	}
	log := server.Log()
	return log[len(log)-1].URL.Path
}

// A host whose configuration names server, key and proxy, and nothing else, has the defaults that the bundle has.
func TestDefaultsHoldWhereTheHostSaysNothing(t *testing.T) {
	dir := testutil.Configure(t, map[string]string{features: "http://127.0.0.1/cvmfs/" + features})
	c, err := config.Folder{Dir: dir, Defaults: rootfs.Defaults}.Load(features)
	if err != nil {
		t.Fatal(err)
	}
	if c.Timeout != 5*time.Second || c.ProxyResetAfter != 5*time.Minute || c.HostResetAfter != 30*time.Minute ||
		c.BackoffMax != 10*time.Second {
		t.Errorf("got %+v", c)
	}
	if c.TimeoutDirect != 2*time.Second || c.MaxRetries != 0 {
		t.Errorf("the host's own settings are %v and %d, want 2s and 0", c.TimeoutDirect, c.MaxRetries)
	}
}
