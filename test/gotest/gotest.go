// Package gotest reads what go test -json says, or go tool test2json, and shows what matters of it.
package gotest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// event is a line of go test -json; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds
}

// test names a test, or, without Test, its package.
type test struct{ Package, Test string }

// Summary is what became of the tests, each subtest counted.
type Summary struct {
	Passed, Failed int
	Skipped        []Skip
	took           []took
}

// took is how long a test ran, in seconds, with what it waited for.
type took struct {
	test
	seconds float64
}

// parent is the test that a test is part of; itself if there is none.
func (t test) parent() test {
	if at := strings.LastIndexByte(t.Test, '/'); at >= 0 {
		return test{t.Package, t.Test[:at]}
	}
	return t
}

// note takes note of how long a test ran, whose parts have ended: no less than these together, which go test doesn't
// count if they ran beside others.
func (s *Summary) note(t test, seconds float64, parts map[test]float64) {
	seconds = max(seconds, parts[t])
	delete(parts, t)
	if whole := t.parent(); whole != t {
		parts[whole] += seconds
		return
	}
	s.took = append(s.took, took{t, seconds})
}

// Slowest returns lines for people about the tests that took the longest, longest first, and a second at least.
func (s *Summary) Slowest(most int) (lines []string) {
	slices.SortStableFunc(s.took, func(a, b took) int { return cmp.Compare(b.seconds, a.seconds) })
	for _, t := range s.took[:min(most, len(s.took))] {
		if t.seconds < 1 {
			break
		}
		lines = append(lines, fmt.Sprintf("%6.1f s  %s %s", t.seconds, t.Package, t.Test))
	}
	return lines
}

// Skip is a test that didn't run, with what it said.
type Skip struct{ Package, Test, Output string }

// Show copies what matters of a stream of events to w: what failed, was skipped or didn't come to an end, with all it
// said, and go test's line for each package.
func Show(w io.Writer, events io.Reader) (*Summary, error) {
	s := &Summary{}
	said, parts := map[test]*strings.Builder{}, map[test]float64{}
	for in := json.NewDecoder(events); ; {
		var e event
		if err := in.Decode(&e); errors.Is(err, io.EOF) {
			// go tool test2json says nothing of the end of a program that was killed.
			s.unfinished(w, said, func(string) bool { return true })
			return s, nil
		} else if err != nil {
			return s, fmt.Errorf("read go test's events: %w", err)
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
				s.unfinished(w, said, func(pkg string) bool { return pkg == e.Package })
				fmt.Fprint(w, closing(said[key], e.Action))
			} else {
				s.count(w, e, said[key])
				s.note(key, e.Elapsed, parts)
			}
			delete(said, key)
		}
	}
}

// unfinished shows the tests of packages that ended before they did, as with a panic or at the time limit: they failed.
func (s *Summary) unfinished(w io.Writer, said map[test]*strings.Builder, ended func(pkg string) bool) {
	for _, key := range slices.SortedFunc(maps.Keys(said), func(a,
		b test,
	) int {
		return strings.Compare(a.Test, b.Test)
	}) {
		if ended(key.Package) && key.Test != "" {
			s.Failed++
			fmt.Fprintf(w, "%s--- FAIL: %s (unfinished)\n", said[key], key.Test)
			delete(said, key)
		}
	}
}

// count notes the end of a test.
func (s *Summary) count(w io.Writer, e event, said *strings.Builder) {
	text := ""
	if said != nil {
		text = said.String()
	}
	switch e.Action {
	case "pass":
		s.Passed++
		return
	case "fail":
		s.Failed++
	case "skip":
		s.Skipped = append(s.Skipped, Skip{e.Package, e.Test, text})
	}
	fmt.Fprint(w, text)
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
