package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/cvmfs/config"
)

func TestShowconfigTellsWhereEachParameterCameFrom(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "default.local")
	show := func(text string, args ...string) (code int, out, errs string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var o, e bytes.Buffer
		code = run(t.Context(), append([]string{"cvmfs-graphdriver", "repo", "showconfig", "--config-dir", dir}, args...),
			&o, &e)
		return code, o.String(), e.String()
	}
	const text = "CVMFS_SERVER_URL=http://s/@fqrn@\nCVMFS_HTTP_PROXY='http://user:secret@p:3128'\nCVMFS_PUBLIC_KEY=/k\nCVMFS_TIMOUT=3\ndate\n"
	code, out, errs := show(text, "a.example.org")
	if code != 0 || errs != "" {
		t.Errorf("exit code %d, %s", code, errs)
	}
	for _, want := range []string{
		"CVMFS_SERVER_URL=http://s/a.example.org    # " + file + ":1\n",
		"CVMFS_HTTP_PROXY=http://…@p:3128    # " + file + ":2\n",
		"CVMFS_FOLLOW_REDIRECTS=no    # default\n", "CVMFS_TIMEOUT_DIRECT=10    # the built-in default.conf:",
		"# unknown: " + file + ":4: CVMFS_TIMOUT: no such parameter is known: is CVMFS_TIMEOUT meant?\n",
		"# failed: " + file + `:5: the command "date" is not run`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nlacks %q", out, want)
		}
	}
	code, out, errs = show(text+"CVMFS_PUBLIC_KEY=$(find-keys)\n", "--json", "a.example.org")
	var r config.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 1 || !strings.Contains(errs, "is not certain") ||
		!strings.Contains(r.Err, "is not certain") || len(r.Findings) != 3 || strings.Contains(out, "secret") {
		t.Errorf("exit code %d, %v, %s%s", code, err, out, errs)
	}
	if code, _, _ := show(text); code != 2 {
		t.Errorf("without a name: exit code %d", code)
	}
}
