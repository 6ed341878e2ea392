package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/driver/record"
	"cvmfs-graphdriver/test/testutil"
)

// asProgram makes the test's own program run as docker2cvmfs.
const asProgram = "TEST_RUNS_DOCKER2CVMFS"

func TestMain(m *testing.M) {
	record.Main()
	if os.Getenv(asProgram) != "" {
		os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// blocks returns a guide's code blocks of a language.
func blocks(t *testing.T, guide, language string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testutil.Root(t), "docs", guide))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, part := range strings.Split(string(b), "\n```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(part, "\n```")
		found = append(found, block)
	}
	return found
}

func TestGuideSaysWhatWorks(t *testing.T) {
	testutil.NeedRoot(t)
	alone(t)
	registry := testutil.NewRegistry(t, "", "")
	registry.Push(t, "library/tiny:1", tiny(t), nil)
	registry.Push(t, "library/tiny:2.1", tiny(t), nil)
	dir, bin, publisher := t.TempDir(), t.TempDir(), newPublisher(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, filepath.Join(bin, "docker2cvmfs")); err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("https://registry.example.org", registry.URL, "registry.example.org", registry.Host,
		"/srv/layers", publisher)
	lists := blocks(t, "converting.md", "yaml")
	if len(lists) != 1 {
		t.Fatalf("%d wish lists", len(lists))
	}
	script := "set -e\ncat > wishes.yaml <<'END'\n" + here.Replace(lists[0]) + "\nEND\n"
	for _, block := range append(blocks(t, "converting.md", "sh"), blocks(t, "thin-images.md", "sh")...) {
		script += strings.ReplaceAll(here.Replace(block), "wishes.yaml", filepath.Join(dir, "wishes.yaml")) + "\n"
	}
	c := exec.CommandContext(t.Context(), "sh", "-c", script)
	c.Dir = dir
	c.Env = append(os.Environ(), asProgram+"=1", "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s\n%s", err, script, out)
	}
	for _, file := range []string{
		"thin.tar", "thin-layout/index.json", "image/thin.json", "image/manifest.json",
		"image/notes",
	} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
	if layers, err := filepath.Glob(filepath.Join(dir, "image/unpacked/*/.cvmfscatalog")); err != nil ||
		len(layers) != 3 {
		t.Errorf("unpacked: %v, %v", layers, err)
	}
}
