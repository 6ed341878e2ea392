package main

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/testutil"
)

// told runs the program and gives what it says; it must end with a code.
func told(t *testing.T, code int, args ...string) (out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	if got := run(t.Context(), append([]string{"cvmfs-graphdriver"}, args...), &o, &e); got != code {
		t.Fatalf("%q: exit code %d, want %d: %s%s", args, got, code, &o, &e)
	}
	return o.String(), e.String()
}

// saved writes a bundle's archive into a folder and gives its path.
func saved(t *testing.T, dir, arch string) string {
	t.Helper()
	b, err := bundle.New(testutil.PluginProgram(t, arch, "1.0", ""),
		rootfs.Build{Version: "1.0", Time: time.Unix(0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	file, err := b.Save(t.Context(), dir, bundle.TarGz)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestBundlesGoThroughARegistryUnchanged(t *testing.T) {
	r := testutil.NewRegistry(t, "", "")
	built, pulled := t.TempDir(), t.TempDir()
	archives := map[string]string{"amd64": saved(t, built, "amd64"), "arm64": saved(t, built, "arm64")}
	ref := r.Host + "/cvmfs/graphdriver:1.0"
	out, progress := told(t, 0, "bundle", "push", archives["amd64"], archives["arm64"], ref)
	want := `^amd64 REF-amd64@sha256:[0-9a-f]{64}\narm64 REF-arm64@sha256:[0-9a-f]{64}\nlist REF@sha256:[0-9a-f]{64}\n$`
	if !regexp.MustCompile(strings.ReplaceAll(want, "REF", regexp.QuoteMeta(ref))).MatchString(out) {
		t.Errorf("push says\n%s", out)
	}
	if !regexp.MustCompile(`^amd64 layer .* KiB\narm64 layer .* KiB\n$`).MatchString(progress) {
		t.Errorf("progress is\n%s", progress)
	}
	for arch, archive := range archives {
		got := filepath.Join(pulled, filepath.Base(archive))
		out, _ := told(t, 0, "bundle", "pull", "--arch", arch, "--output", pulled, ref)
		if !strings.HasPrefix(out, got+"\nsha256:") || !strings.HasSuffix(out, "version 1.0 for "+arch+"\n") {
			t.Errorf("pull says\n%s", out)
		}
		before, err := os.ReadFile(archive)
		if err != nil {
			t.Fatal(err)
		}
		if after, err := os.ReadFile(got); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s is another after push and pull: %v", archive, err)
		}
		told(t, 0, "bundle", "verify", got)
		if out, _ := told(t, 0, "bundle", "inspect", ref+"-"+arch); !strings.Contains(out, "architecture  "+arch+"\n") {
			t.Errorf("inspect says\n%s", out)
		}
	}
	// Of a list, the one for this machine.
	if out, _ := told(t, 0, "bundle", "inspect", "--json", ref); !strings.Contains(out,
		`"arch": "`+runtime.GOARCH+`"`) {
		t.Errorf("inspect says\n%s", out)
	}
}

func TestBundleCommandsForRegistriesSayWhatIsWrong(t *testing.T) {
	r := testutil.NewRegistry(t, "", "")
	dir := t.TempDir()
	archive := saved(t, dir, "amd64")
	output := filepath.Join(dir, "output")
	if err := os.Mkdir(output, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"push", archive}, 2, "want FILE or DIR"},
		{[]string{"push", dir + "/missing.tar.gz", r.Host + "/a"}, 1, "no such file"},
		{[]string{"push", archive, archive, r.Host + "/a"}, 1, "once for each architecture"},
		{[]string{"push", archive, "127.0.0.1:1/a"}, 1, "connection refused"},
		{[]string{"pull"}, 2, "want REF"},
		{[]string{"pull", "--arch", "mips", r.Host + "/a"}, 2, "amd64 or arm64"},
		{[]string{"pull", "--format", "zip", r.Host + "/a"}, 2, "tar.gz or tar.zst"},
		{[]string{"pull", "--output", output, r.Host + "/none"}, 1, "check the name"},
		{[]string{"pull", "--output", archive, r.Host + "/a"}, 1, "not a directory"},
		{[]string{"inspect", dir + "/missing"}, 1, "no such file"},
		{[]string{"inspect", "missing.tar.gz"}, 1, "no such file"},
		{[]string{"inspect", r.Host + "/none"}, 1, "check the name"},
	} {
		if c.args[0] == "pull" && strings.Contains(c.says, "directory") {
			told(t, 0, "bundle", "push", archive, r.Host+"/a")
		}
		if _, said := told(t, c.code, append([]string{"bundle"}, c.args...)...); !strings.Contains(said, c.says) {
			t.Errorf("%q: %s, want %q", c.args, said, c.says)
		}
	}
	if left, err := os.ReadDir(output); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRegistriesGetTheCredentialsOfDockerLogin(t *testing.T) {
	r := testutil.NewRegistry(t, "user", "secret")
	home := t.TempDir()
	t.Setenv("DOCKER_CONFIG", home)
	archive, ref := saved(t, t.TempDir(), "amd64"), r.Host+"/a:1"
	if _, said := told(t, 1, "bundle", "push", archive, ref); !strings.Contains(said, "docker login "+r.Host) {
		t.Errorf("without: %s", said)
	}
	login := `{"auths": {"` + r.Host + `": {"auth": "` + base64.StdEncoding.EncodeToString([]byte("user:secret")) +
		`"}}}`
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(login), 0o600); err != nil {
		t.Fatal(err)
	}
	told(t, 0, "bundle", "push", archive, ref)
	told(t, 0, "bundle", "inspect", ref)
}
