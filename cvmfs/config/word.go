package config

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// word expands a word as the shell does for the value of an assignment: quotes are removed, parameters replaced, and
// the result isn't split. Names of files aren't matched either.
func (s *shell) word(w *syntax.Word) (string, error) {
	var b strings.Builder
	if err := s.parts(&b, w.Parts, false); err != nil {
		return "", err
	}
	return b.String(), nil
}

func (s *shell) parts(b *strings.Builder, parts []syntax.WordPart, quoted bool) error {
	for i, part := range parts {
		var err error
		switch p := part.(type) {
		case *syntax.Lit:
			if !quoted && (i == 0 && strings.HasPrefix(p.Value, "~") || strings.Contains(p.Value, ":~")) {
				return s.refuse(p, "a home folder (~)")
			}
			b.WriteString(unescape(p.Value, quoted))
		case *syntax.SglQuoted:
			b.WriteString(p.Value)
		case *syntax.DblQuoted:
			err = s.parts(b, p.Parts, true)
		case *syntax.ParamExp:
			err = s.param(b, p, quoted)
		case *syntax.CmdSubst:
			err = s.refuse(p, "a command substitution")
		case *syntax.ArithmExp:
			err = s.refuse(p, "arithmetic")
		default:
			err = s.refuse(p, "this expansion")
		}
		if err != nil {
			return err
		}
		if b.Len() > maxValue {
			return fmt.Errorf("%s: a value of more than %d bytes", s.at(part), maxValue)
		}
	}
	return nil
}

// unescape removes backslashes: all of them outside of quotes, those before $ ` " \ within double quotes. Escaped
// newlines are gone already.
func unescape(text string, quoted bool) string {
	if !strings.Contains(text, `\`) {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+1 < len(text) && (!quoted || strings.IndexByte("$`\"\\", text[i+1]) >= 0) {
			i++
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// param replaces $NAME, ${NAME} and ${NAME op word}, op being one of :- - := = :+ + :? ?. The name CVMFS_FQRN is set for every
// file, as in the reference client.
func (s *shell) param(b *strings.Builder, p *syntax.ParamExp, quoted bool) error {
	if p.Param == nil || !syntax.ValidName(p.Param.Value) || p.Excl || p.Length || p.Width || p.Index != nil ||
		p.Slice != nil || p.Repl != nil || p.Names != 0 {
		return s.refuse(p, "this expansion of a parameter")
	}
	name := p.Param.Value
	value, set := s.params[name]
	if name == "CVMFS_FQRN" {
		value, set = s.fqrn, true
	}
	if p.Exp == nil {
		b.WriteString(value)
		return nil
	}
	given := set && value != "" // what the operators with a colon ask
	otherwise := func() (string, error) {
		if p.Exp.Word == nil {
			return "", nil
		}
		var word strings.Builder
		err := s.parts(&word, p.Exp.Word.Parts, quoted)
		return word.String(), err
	}
	var err error
	switch op := p.Exp.Op; op {
	case syntax.DefaultUnset, syntax.DefaultUnsetOrNull:
		if op == syntax.DefaultUnset && !set || op == syntax.DefaultUnsetOrNull && !given {
			value, err = otherwise()
		}
	case syntax.AssignUnset, syntax.AssignUnsetOrNull:
		if op == syntax.AssignUnset && !set || op == syntax.AssignUnsetOrNull && !given {
			if value, err = otherwise(); err == nil {
				err = s.set(p, name, value)
			}
		}
	case syntax.AlternateUnset, syntax.AlternateUnsetOrNull:
		if op == syntax.AlternateUnset && set || given {
			value, err = otherwise()
		} else {
			value = ""
		}
	case syntax.ErrorUnset, syntax.ErrorUnsetOrNull:
		if op == syntax.ErrorUnset && !set || op == syntax.ErrorUnsetOrNull && !given {
			if value, err = otherwise(); err == nil {
				err = fmt.Errorf("%s: %s is not set: %.200s", s.at(p), name, value)
			}
		}
	default:
		return s.refuse(p, "this expansion of a parameter")
	}
	b.WriteString(value)
	return err
}

// test evaluates [ … ] or test ….
func (s *shell) test(c *syntax.CallExpr, name string) (bool, error) {
	words := c.Args[1:]
	if name == "[" {
		if len(words) == 0 || words[len(words)-1].Lit() != "]" {
			return false, fmt.Errorf(`%s: "[" without "]" at its end`, s.at(c))
		}
		words = words[:len(words)-1]
	}
	t, gone := &test{shell: s}, false
	for _, w := range words {
		value, err := s.word(w)
		if err != nil {
			return false, err
		}
		// A parameter without quotes is split, and gone if it is empty: [ -n $X ] holds for any X.
		if _, bare := w.Parts[0].(*syntax.ParamExp); bare && len(w.Parts) == 1 {
			fields := strings.Fields(value)
			t.args, gone = append(t.args, fields...), gone || len(fields) == 0
		} else {
			t.args = append(t.args, value)
		}
	}
	if len(t.args) == 0 {
		return false, nil
	}
	holds, ok := t.or()
	ok = ok && len(t.args) == 0
	if !ok && gone {
		return false, nil // [ $X = yes ] is [ = yes ] without X: the shell complains, and goes on as if it didn't hold
	}
	if !ok {
		return false, fmt.Errorf("%s: a test that is not understood: known are = == != -z -n -e -f -d -r -s ! -a -o",
			s.at(c))
	}
	return holds, nil
}

// test is what is left of a test's arguments. Its methods take an expression off their front and tell whether it holds; ok is
// false where there is none.
type test struct {
	shell *shell
	args  []string
}

func (t *test) accept(arg string) bool {
	if len(t.args) == 0 || t.args[0] != arg {
		return false
	}
	t.args = t.args[1:]
	return true
}

func (t *test) or() (holds, ok bool) {
	holds, ok = t.and()
	for ok && t.accept("-o") {
		var more bool
		more, ok = t.and()
		holds = holds || more
	}
	return holds, ok
}

func (t *test) and() (holds, ok bool) {
	holds, ok = t.primary()
	for ok && t.accept("-a") {
		var more bool
		more, ok = t.primary()
		holds = holds && more
	}
	return holds, ok
}

// primary looks for an operator in the middle first, as POSIX wants it: [ ! = x ] compares.
func (t *test) primary() (holds, ok bool) {
	if len(t.args) >= 3 && slices.Contains([]string{"=", "==", "!="}, t.args[1]) {
		same := t.args[0] == t.args[2]
		differ := t.args[1] == "!="
		t.args = t.args[3:]
		return same != differ, true
	}
	if len(t.args) >= 2 && t.accept("!") {
		holds, ok = t.primary()
		return !holds, ok
	}
	if len(t.args) >= 2 && len(t.args[0]) == 2 && strings.IndexByte("znefdrs", t.args[0][1]) >= 0 &&
		t.args[0][0] == '-' {
		op, arg := t.args[0], t.args[1]
		t.args = t.args[2:]
		return t.unary(op, arg), true
	}
	if len(t.args) == 0 {
		return false, false
	}
	holds = t.args[0] != ""
	t.args = t.args[1:]
	return holds, true
}

// unary applies -z and -n to text, the others to a file.
func (t *test) unary(op, arg string) bool {
	switch op {
	case "-z":
		return arg == ""
	case "-n":
		return arg != ""
	}
	if arg == "" {
		return false
	}
	info, err := os.Stat(t.shell.path(arg))
	if err != nil {
		return false
	}
	switch op {
	case "-f":
		return info.Mode().IsRegular()
	case "-d":
		return info.IsDir()
	case "-s":
		return info.Size() > 0
	}
	return true
}
