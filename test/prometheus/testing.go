package prometheus

import (
	"errors"
	"io"
	"os/exec"
	"testing"

	"cvmfs-graphdriver/test/engine"
)

// Check runs promtool with some arguments and what it is to read, and has the test fail if it finds anything wrong.
// Where it isn't fetched the test skips.
func Check(t testing.TB, stdin io.Reader, args ...string) {
	t.Helper()
	tool, err := Find(Tool)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), tool, args...)
	cmd.Stdin = stdin
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %q: %v\n%s", args, err, out)
	}
}
