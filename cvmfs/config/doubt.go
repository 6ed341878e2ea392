package config

import (
	"fmt"
	"regexp"
	"slices"

	"mvdan.cc/sh/v3/syntax"
)

// This file is about doubt: what nobody knows after a line that failed. The rule is that a parameter that protects is
// certain or isn't used, and that doubt spreads rather too far than not far enough.

// fail records a line that isn't understood. The command being evaluated is in doubt.
func (s *shell) fail(n syntax.Node, format string, args ...any) {
	s.failAt(s.at(n), fmt.Sprintf(format, args...))
}

func (s *shell) failAt(at Place, text string) {
	s.fails++
	f := Finding{Kind: Failed, Place: at, Text: text}
	if !slices.Contains(s.findings, f) && len(s.findings) < maxParams {
		s.findings = append(s.findings, f)
	}
	s.doubt(f.String())
}

// doubt puts the command being evaluated in doubt.
func (s *shell) doubt(why string) {
	s.doubts, s.last = s.doubts+1, why
	if s.taint == "" {
		s.taint = why
	}
}

// doubtful puts a parameter in doubt. It need not be set.
func (s *shell) doubtful(name, why string) {
	v, known := s.params[name]
	if v.doubt == "" && (known || len(s.params) < maxParams) {
		v.doubt = why
		s.params[name] = v
	}
}

// doubtGuards puts all that protects in doubt: nobody knows what a failed line would have set.
func (s *shell) doubtGuards(why string) {
	for name := range guards {
		s.doubtful(name, why)
	}
}

var (
	assigned = regexp.MustCompile(`(?:^|[^\w$])(\w+)[ \t]*:?\+?=`)
	spoken   = regexp.MustCompile(`(?:^|[^\w${])(CVMFS_\w+)`)
	comment  = regexp.MustCompile(`(?m)^[ \t]*#.*$`)
	branches = regexp.MustCompile(`\b(if|then|else|elif|fi|for|while|until|do|done|case|esac)\b|[{}]|;;`)
	leaving  = regexp.MustCompile(`(?m)(^|[\s;&|{(])(return|exit|break|continue)\b`)
	unclear  = regexp.MustCompile(`(?m)(^|[\s;&|{(` + "`" + `])(\.|source|eval|command|builtin|exec|trap|alias)\s`)
)

// doubtText puts what a piece of a file would set, were it evaluated, in doubt.
func (s *shell) doubtText(text, why string) {
	s.bytes += len(text)
	text = comment.ReplaceAllString(text, "")
	for _, form := range []*regexp.Regexp{assigned, spoken} {
		for _, m := range form.FindAllStringSubmatch(text, -1) {
			s.doubtful(m[1], why)
		}
	}
	if unclear.MatchString(text) {
		s.doubtGuards(why)
	}
}

// failed is the status of a statement that was not understood. What it would set is in doubt.
func (s *shell) failed(stmt *syntax.Stmt) result {
	s.doubtText(s.source(stmt), s.taint)
	return result{code: 127, doubt: s.taint}
}

// decided evaluates what a condition has chosen of the node n. If the condition is in doubt, so is all that n would
// set, and, where n may leave the file or loop, what follows.
func (s *shell) decided(doubt string, n syntax.Node, do func() error) error {
	if doubt == "" {
		return do()
	}
	outer := s.under
	s.under = doubt
	err := do()
	s.under = outer
	text := s.source(n)
	s.doubtText(text, doubt)
	if leaving.MatchString(comment.ReplaceAllString(text, "")) {
		s.doubtRest(int(n.End().Offset()), doubt)
	}
	return err
}

// doubtRest puts all that follows an offset in the file in doubt.
func (s *shell) doubtRest(offset int, why string) {
	if s.rest == "" {
		s.rest = why
	}
	s.doubtText(between(s.text, offset, len(s.text)), why)
}
