package preflight

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Severity says how much a finding matters.
type Severity string

// The severities, the gravest first.
const (
	Error   Severity = "error"   // the plan would fail, or does
	Warning Severity = "warning" // it works, and something is lost or at risk
	Note    Severity = "note"    // worth knowing
	OK      Severity = "ok"      // what was looked at is as it should be
)

var order = []Severity{Error, Warning, Note, OK}

// Finding is what a fact means.
type Finding struct {
	ID       string   `json:"id"` // such as "engine.version"; says the rule, and stays the same over versions
	Severity Severity `json:"severity"`
	What     string   `json:"what"`             // one line, without a full stop
	Remedy   string   `json:"remedy,omitempty"` // what to do about it; "" where there is nothing to do
	Detail   string   `json:"detail,omitempty"` // evidence: an error's text, names
}

// ErrUnfit is the error of a host that doesn't qualify.
var ErrUnfit = errors.New("this host doesn't qualify")

// Unfit returns an error that is [ErrUnfit] and names what stands against the host, or nil if nothing does.
func Unfit(findings []Finding) error {
	var ids []string
	for _, f := range findings {
		if f.Severity == Error && !slices.Contains(ids, f.ID) {
			ids = append(ids, f.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrUnfit, strings.Join(ids, ", "))
}

// Write writes findings for people, a line each and a further one for its remedy and its detail. Those of severity [OK]
// are left out unless all are wanted.
func Write(w io.Writer, findings []Finding, all bool) error {
	var b strings.Builder
	for _, f := range findings {
		if f.Severity == OK && !all {
			continue
		}
		fmt.Fprintf(&b, "%-8s %s (%s)\n", f.Severity, f.What, f.ID)
		if f.Detail != "" {
			fmt.Fprintf(&b, "         %s\n", f.Detail)
		}
		if f.Remedy != "" {
			fmt.Fprintf(&b, "      -> %s\n", f.Remedy)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// sorted puts the gravest first and leaves the order of equals.
func sorted(findings []Finding) []Finding {
	slices.SortStableFunc(findings, func(a, b Finding) int {
		return slices.Index(order, a.Severity) - slices.Index(order, b.Severity)
	})
	return findings
}
