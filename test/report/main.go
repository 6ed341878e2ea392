// Command report runs go test with the arguments given and shows what matters: what failed with all its output, what was
// skipped with its reason, and go test's line for each package. With CVMFS_TEST_NO_SKIP=1 a skipped test is a failure.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

func main() {
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report: run go test:", err)
		os.Exit(1)
	}
	skipped, err := show(os.Stdout, out)
	if err = errors.Join(err, cmd.Wait()); err != nil {
		fmt.Fprintln(os.Stderr, "report: go test:", err)
		os.Exit(1)
	}
	if skipped > 0 && os.Getenv("CVMFS_TEST_NO_SKIP") == "1" {
		fmt.Fprintf(os.Stderr, "report: %d skipped, and CVMFS_TEST_NO_SKIP=1 wants all tests run\n", skipped)
		os.Exit(1)
	}
}

// event is a line of go test -json; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output string
}

// test names a test, or, without Test, its package.
type test struct{ Package, Test string }

// show copies what matters of a stream of events to w and counts the skipped tests.
func show(w io.Writer, events io.Reader) (skipped int, err error) {
	said := map[test]*strings.Builder{}
	for in := json.NewDecoder(events); ; {
		var e event
		if err := in.Decode(&e); errors.Is(err, io.EOF) {
			return skipped, nil
		} else if err != nil {
			return skipped, fmt.Errorf("read its events: %w", err)
		}
		key := test{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			fmt.Fprint(w, e.Output)
		case "output":
			if said[key] == nil {
				said[key] = new(strings.Builder)
			}
			said[key].WriteString(e.Output)
		case "skip", "fail", "pass":
			if e.Test == "" {
				fmt.Fprint(w, closing(said[key], e.Action))
			} else if e.Action != "pass" && said[key] != nil {
				fmt.Fprint(w, said[key])
			}
			if e.Action == "skip" && e.Test != "" {
				skipped++
			}
			delete(said, key)
		}
	}
}

// closing is what to show of a package's own output: all if it failed, else go test's line for it.
func closing(said *strings.Builder, action string) string {
	if said == nil {
		return ""
	}
	if action == "fail" {
		return said.String()
	}
	var lines strings.Builder
	for line := range strings.Lines(said.String()) {
		if strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "?   \t") {
			lines.WriteString(line)
		}
	}
	return lines.String()
}
