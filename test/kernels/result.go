package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"cvmfs-graphdriver/test/gotest"
)

// row is what became of a program on a kernel.
type row struct {
	Kernel, Program         string
	Passed, Failed, Skipped int
	Seconds                 float64
	Faults                  []string // why it counts as failed, besides failed tests
}

func (r *row) ok() bool { return r.Failed == 0 && len(r.Faults) == 0 }

// reason is how a test says what it skips for; see testutil.KernelLacks.
var reason = regexp.MustCompile(`this kernel \(([^)]*)\) lacks (.*)`)

// wrongSkips returns what is wrong with the skips of tests: in a machine that has all they need, only the kernel may
// lack something, and only what is known of it.
func wrongSkips(skips []gotest.Skip, lacks []string) (faults []string) {
	for _, s := range skips {
		m := reason.FindStringSubmatch(s.Output)
		switch {
		case m == nil:
			faults = append(faults, fmt.Sprintf("%s was skipped and doesn't name anything that the kernel lacks",
				s.Test))
		case !slices.Contains(lacks, strings.TrimSpace(m[2])):
			faults = append(faults, fmt.Sprintf("%s was skipped for want of %s, which this kernel is known to have",
				s.Test, m[2]))
		}
	}
	return faults
}

// closing is the line of go test for a package, with the kernel behind it.
func (r *row) closing(module string) string {
	if r.ok() {
		return fmt.Sprintf("ok  \t%s/%s\t%.3fs\t[kernel %s]\n", module, r.Program, r.Seconds, r.Kernel)
	}
	var b strings.Builder
	for _, fault := range r.Faults {
		fmt.Fprintf(&b, "%s\n", fault)
	}
	fmt.Fprintf(&b, "FAIL\t%s/%s\t%.3fs\t[kernel %s]\n", module, r.Program, r.Seconds, r.Kernel)
	return b.String()
}

// table writes rows for people.
func table(w io.Writer, rows []row) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "kernel\tprogram\tpassed\tfailed\tskipped\tminutes\t")
	for _, r := range rows {
		verdict := ""
		if !r.ok() {
			verdict = "FAIL"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%.1f\t%s\n", r.Kernel, r.Program, r.Passed, r.Failed, r.Skipped,
			r.Seconds/60, verdict)
	}
	return t.Flush()
}

// outcome is what a run on a kernel gave, kept so that what passed isn't run again.
type outcome struct {
	Inputs string // hash of all that went in
	Rows   []row
}

func (o *outcome) ok() bool {
	return len(o.Rows) > 0 && !slices.ContainsFunc(o.Rows, func(r row) bool { return !r.ok() })
}

// load returns the outcome that is kept in a file, of these inputs, or nil.
func load(file, inputs string) (*outcome, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	o := &outcome{}
	if json.Unmarshal(text, o) != nil || o.Inputs != inputs {
		return nil, nil // of another version, or torn: as if there were none
	}
	return o, nil
}

// save keeps an outcome.
func (o *outcome) save(file string) error {
	text, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file+".part", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".part", file)
}
