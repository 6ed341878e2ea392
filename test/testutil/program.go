package testutil

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// PluginProgram builds a small static program that may stand for the plugin's in a bundle: one for the architecture,
// stamped as of the version and commit, as the Makefile stamps the plugin's. It does nothing.
func PluginProgram(t testing.TB, arch, version, commit string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":  "module small\n\ngo 1.26\n",
		"main.go": "package main\n\nfunc main() {}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags=-s -w -buildid=cvmfs-graphdriver/"+version+"/"+commit, "-o", "plugin", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return filepath.Join(dir, "plugin")
}
