package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/test/testutil"
)

// The commands of docs/repositories.md, on a host that has the repository configured.
func TestCommandsOfTheRepositoriesPageWork(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(testutil.Root(t), "docs/repositories.md"))
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	config := testutil.Configure(t, map[string]string{features: testutil.ServeReference(t, features)})
	bin, dir := t.TempDir(), t.TempDir()
	wrapper := "#!/bin/sh\na=$1 b=$2\nshift 2\nexec '" + program + "' $a $b --config-dir '" + config + "' \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "cvmfs-graphdriver"), []byte(wrapper), 0o755); err != nil {
		t.Fatal(err)
	}
	told, blocks := string(text), 0
	for _, part := range strings.Split(told, "\n```sh\n")[1:] {
		block, _, _ := strings.Cut(part, "\n```")
		blocks++
		for line := range strings.Lines(strings.ReplaceAll(block, "unpacked.example.org", features)) {
			c := exec.CommandContext(t.Context(), "sh", "-c", line)
			c.Dir = dir
			c.Env = append(os.Environ(), underTest+"=1", "PATH="+bin+":"+os.Getenv("PATH"))
			out, err := c.CombinedOutput()
			if err != nil || len(out) == 0 && !strings.Contains(line, ">") {
				t.Errorf("%s: %v: %s", line, err, out)
			}
			// What the page shows of the output is what is printed, but for names and times.
			if strings.HasSuffix(strings.TrimSpace(line), "repo info "+features) {
				shows(t, told, string(out), "revision", "root hash", "TTL", "certificate", "whitelist", "content")
			}
			if strings.HasSuffix(strings.TrimSpace(line), "repo verify "+features) {
				shows(t, told, strings.ReplaceAll(string(out), features, "unpacked.example.org"), "unpacked")
			}
		}
	}
	if part, err := os.ReadFile(filepath.Join(dir, "part")); err != nil || len(part) != 1000 || blocks != 4 {
		t.Errorf("%d blocks; %d bytes, %v", blocks, len(part), err)
	}
}

// shows holds the lines of an output that begin so against a page.
func shows(t *testing.T, page, out string, beginnings ...string) {
	t.Helper()
	n := 0
	for line := range strings.Lines(out) {
		for _, b := range beginnings {
			if strings.HasPrefix(line, b) {
				if n++; !strings.Contains(page, "\n"+line) {
					t.Errorf("the page doesn't show %q", line)
				}
			}
		}
	}
	if n != len(beginnings) {
		t.Errorf("%d lines of %q in\n%s", n, beginnings, out)
	}
}
