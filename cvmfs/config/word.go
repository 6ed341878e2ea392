package config

import (
	"regexp"
	regexpsyntax "regexp/syntax"
	"strconv"
	"strings"
	"unicode/utf8"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/pattern"
	"mvdan.cc/sh/v3/syntax"
)

// piece is a part of a word after its expansion.
type piece struct {
	text     string
	quoted   bool // means itself, also in a pattern
	expanded bool // is split into fields at blanks, unless it is quoted
}

// word expands a word as the shell does for the value of an assignment: quotes are removed, parameters replaced, and
// the result isn't split. Names of files aren't matched either.
func (s *shell) word(w *syntax.Word) (string, error) {
	if w == nil {
		return "", nil
	}
	pieces, err := s.pieces(w.Parts, false)
	return joined(pieces), err
}

func joined(pieces []piece) string {
	var b strings.Builder
	for _, p := range pieces {
		b.WriteString(p.text)
	}
	return b.String()
}

// fields expands words as the shell does for a command's arguments: what comes of expansions is split at blanks, and is
// gone if nothing is left.
func (s *shell) fields(words []*syntax.Word) ([]string, error) {
	var fields []string
	for _, w := range words {
		pieces, err := s.pieces(w.Parts, false)
		if err != nil {
			return nil, err
		}
		fields = append(fields, split(pieces)...)
	}
	return fields, nil
}

func split(pieces []piece) []string {
	var fields []string
	var field strings.Builder
	begun := false
	end := func() {
		if begun {
			fields = append(fields, field.String())
		}
		field.Reset()
		begun = false
	}
	for _, p := range pieces {
		if p.quoted || !p.expanded {
			field.WriteString(p.text)
			begun = true
			continue
		}
		for i := range len(p.text) {
			if strings.IndexByte(" \t\n", p.text[i]) >= 0 {
				end()
				continue
			}
			field.WriteByte(p.text[i])
			begun = true
		}
	}
	end()
	return fields
}

// matches reports whether a case's pattern matches a word.
func (s *shell) matches(w *syntax.Word, word string) (bool, error) {
	expr, size, err := s.pattern(w, pattern.EntireString)
	if err != nil || expr == nil {
		return false, err
	}
	return expr.MatchString(word), s.step(w, work(len(word), size))
}

// compile compiles a regular expression and returns the number of its instructions, too.
func compile(expr string) (compiled *regexp.Regexp, size int, err error) {
	if compiled, err = regexp.Compile(expr); err != nil {
		return nil, 0, err
	}
	tree, err := regexpsyntax.Parse(expr, regexpsyntax.Perl)
	if err != nil {
		return nil, 0, err
	}
	prog, err := regexpsyntax.Compile(tree.Simplify())
	if err != nil {
		return nil, 0, err
	}
	return compiled, len(prog.Inst), nil
}

// work is what matching a text of so many bytes with an expression of that size counts for, in bytes.
func work(bytes, size int) int { return bytes * (1 + size/16) }

// pattern expands a word and compiles it; nil for a pattern that isn't understood, whose line failed.
func (s *shell) pattern(w *syntax.Word, mode pattern.Mode) (compiled *regexp.Regexp, size int, err error) {
	pieces, err := s.pieces(w.Parts, false)
	if err != nil {
		return nil, 0, err
	}
	var b strings.Builder
	for _, p := range pieces {
		if p.quoted {
			p.text = pattern.QuoteMeta(p.text, 0)
		}
		b.WriteString(p.text)
	}
	expr, err := pattern.Regexp(b.String(), mode)
	if err == nil {
		if compiled, size, err = compile(expr); err == nil {
			return compiled, size, nil
		}
	}
	s.fail(w, "the pattern %.80q is not supported", b.String())
	return nil, 0, nil
}

// pieces expands the parts of a word. What can't be expanded fails the line and expands to nothing.
func (s *shell) pieces(parts []syntax.WordPart, quoted bool) (pieces []piece, err error) {
	size := 0
	for i, part := range parts {
		var more []piece
		switch p := part.(type) {
		case *syntax.Lit:
			if !quoted && (i == 0 && strings.HasPrefix(p.Value, "~") || strings.Contains(p.Value, ":~")) {
				s.fail(p, "a home folder (~) is not supported: write its path")
			}
			more = literal(p.Value, quoted)
		case *syntax.SglQuoted:
			more = []piece{{text: p.Value, quoted: true}}
		case *syntax.DblQuoted:
			more, err = s.pieces(p.Parts, true)
			more = append(more, piece{quoted: true})
		case *syntax.ParamExp:
			more, err = s.param(p, quoted)
		case *syntax.CmdSubst:
			more, err = s.substituted(p, quoted)
		case *syntax.ArithmExp:
			more, err = s.arithmetic(p, quoted)
		default:
			s.fail(part, "this expansion is not supported")
		}
		if err != nil {
			return nil, err
		}
		for _, p := range more {
			size += len(p.text)
		}
		if err := s.step(part, size); err != nil {
			return nil, err
		}
		if size > maxValue {
			s.fail(part, "a value of more than %d bytes", maxValue)
			return nil, nil
		}
		pieces = append(pieces, more...)
	}
	return pieces, nil
}

// literal removes backslashes: all of them outside of quotes, those before $ ` " \ within double quotes. Escaped
// newlines are gone already.
func literal(text string, quoted bool) []piece {
	if !strings.Contains(text, `\`) {
		return []piece{{text: text, quoted: quoted}}
	}
	var pieces []piece
	begin := 0
	for i := 0; i+1 < len(text); i++ {
		if text[i] == '\\' && (!quoted || strings.IndexByte("$`\"\\", text[i+1]) >= 0) {
			_, size := utf8.DecodeRuneInString(text[i+1:])
			pieces = append(pieces, piece{text: text[begin:i], quoted: quoted},
				piece{text: text[i+1 : i+1+size], quoted: true})
			i += size
			begin = i + 1
		}
	}
	return append(pieces, piece{text: text[begin:], quoted: quoted})
}

// arithmetic expands $((…)). A fault in it, such as a division by zero, fails the line.
func (s *shell) arithmetic(p *syntax.ArithmExp, quoted bool) ([]piece, error) {
	env := &environ{shell: s, at: p}
	n, err := expand.Arithm(&expand.Config{Env: env}, p.X)
	if env.err != nil {
		return nil, env.err
	}
	if err != nil {
		s.fail(p, "arithmetic: %v", err)
		return nil, nil
	}
	return []piece{{text: strconv.Itoa(n), quoted: quoted, expanded: true}}, nil
}

// environ gives arithmetic the parameters.
type environ struct {
	shell *shell
	at    syntax.Node
	err   error
}

// Get implements expand.Environ.
func (e *environ) Get(name string) expand.Variable {
	if name == "IFS" {
		return expand.Variable{}
	}
	value, set := e.shell.special(name)
	if e.err == nil {
		e.err = e.shell.step(e.at, len(value))
	}
	if e.err != nil {
		return expand.Variable{}
	}
	return expand.Variable{Set: set, Kind: expand.String, Str: value}
}

// Set implements expand.WriteEnviron.
func (e *environ) Set(name string, v expand.Variable) error {
	if e.err == nil {
		e.err = e.shell.set(e.at, name, v.Str)
	}
	return e.err
}

// Each implements expand.Environ.
func (e *environ) Each(func(string, expand.Variable) bool) {}

// substituted is what the commands of $(…) write. If a line of them failed nobody knows what that would be.
func (s *shell) substituted(p *syntax.CmdSubst, quoted bool) ([]piece, error) {
	if p.TempFile || p.ReplyVar {
		s.fail(p, "this expansion is not supported")
		return nil, nil
	}
	var out strings.Builder
	before := s.doubts
	taint := s.taint
	r, err := s.isolated(p, func() (result, error) { return s.list(p.Stmts, streams{out: &out}) })
	s.taint = taint
	if err != nil {
		return nil, err
	}
	s.status, s.replaced = r, r
	if s.doubts > before {
		s.doubt(s.last)
	}
	return []piece{{text: strings.TrimRight(out.String(), "\n"), quoted: quoted, expanded: true}}, nil
}

// special is lookup for names that may be one of the shell's own. There are no arguments.
func (s *shell) special(name string) (value string, set bool) {
	switch name {
	case "$":
		return strconv.FormatUint(seed()%(1<<22)+2, 10), true
	case "?":
		if s.status.doubt != "" {
			s.doubt(s.status.doubt)
		}
		return strconv.Itoa(s.status.code), true
	case "#":
		return "0", true
	case "0":
		return "sh", true
	case "@", "*", "-", "!", "1", "2", "3", "4", "5", "6", "7", "8", "9":
		return "", false
	}
	return s.lookup(name)
}

// param replaces $NAME and ${NAME…} with the operators of POSIX.
func (s *shell) param(p *syntax.ParamExp, quoted bool) ([]piece, error) {
	if p.Param == nil || p.Excl || p.Width || p.IsSet || p.Index != nil || p.Slice != nil || p.Repl != nil ||
		p.Names != 0 {
		s.fail(p, "this expansion of a parameter is not supported")
		return nil, nil
	}
	name := p.Param.Value
	value, set := s.special(name)
	plain := func(text string) []piece { return []piece{{text: text, quoted: quoted, expanded: true}} }
	if p.Length {
		return plain(strconv.Itoa(utf8.RuneCountInString(value))), nil
	}
	if p.Exp == nil {
		return plain(value), nil
	}
	switch op := p.Exp.Op; op {
	case syntax.AlternateUnset, syntax.AlternateUnsetOrNull:
		if set && (op == syntax.AlternateUnset || value != "") {
			return s.operand(p, quoted)
		}
		return nil, nil
	case syntax.DefaultUnset, syntax.AssignUnset, syntax.ErrorUnset:
		if set {
			return plain(value), nil
		}
	case syntax.DefaultUnsetOrNull, syntax.AssignUnsetOrNull, syntax.ErrorUnsetOrNull:
		if value != "" {
			return plain(value), nil
		}
	case syntax.RemSmallPrefix, syntax.RemLargePrefix, syntax.RemSmallSuffix, syntax.RemLargeSuffix:
		value, err := s.trim(p, value)
		return plain(value), err
	default:
		s.fail(p, "this expansion of a parameter is not supported")
		return nil, nil
	}
	pieces, err := s.operand(p, quoted)
	if err != nil {
		return nil, err
	}
	switch p.Exp.Op {
	case syntax.AssignUnset, syntax.AssignUnsetOrNull:
		return pieces, s.set(p, name, joined(pieces))
	case syntax.ErrorUnset, syntax.ErrorUnsetOrNull:
		s.fail(p, "%s is not set: %.200s", name, joined(pieces))
		s.doubtRest(int(p.End().Offset()), s.taint) // a shell reads no more of the file
		return nil, nil
	}
	return pieces, nil
}

// operand expands the word behind an operator.
func (s *shell) operand(p *syntax.ParamExp, quoted bool) ([]piece, error) {
	if p.Exp.Word == nil {
		return nil, nil
	}
	leave, err := s.enter(p)
	defer leave()
	if err != nil {
		return nil, err
	}
	pieces, err := s.pieces(p.Exp.Word.Parts, quoted)
	for i := range pieces {
		pieces[i].expanded = true
	}
	return pieces, err
}

// trim applies # ## % %%.
func (s *shell) trim(p *syntax.ParamExp, value string) (string, error) {
	if p.Exp.Word == nil {
		return value, nil
	}
	expr, size, err := s.pattern(p.Exp.Word, pattern.EntireString)
	if err != nil || expr == nil {
		return value, err
	}
	// Each cut is tried, the one that removes least first or last: a regular expression can't say "shortest suffix".
	if err := s.step(p, work(len(value)*len(value)/2, size)); err != nil {
		return "", err
	}
	cuts := make([]int, 0, len(value)+1)
	for i := range value + "." {
		cuts = append(cuts, i)
	}
	op := p.Exp.Op
	prefix := op == syntax.RemSmallPrefix || op == syntax.RemLargePrefix
	if fromEnd := op == syntax.RemLargePrefix || op == syntax.RemSmallSuffix; fromEnd {
		for i, j := 0, len(cuts)-1; i < j; i, j = i+1, j-1 {
			cuts[i], cuts[j] = cuts[j], cuts[i]
		}
	}
	for _, cut := range cuts {
		switch {
		case prefix && expr.MatchString(value[:cut]):
			return value[cut:], nil
		case !prefix && expr.MatchString(value[cut:]):
			return value[:cut], nil
		}
	}
	return value, nil
}
