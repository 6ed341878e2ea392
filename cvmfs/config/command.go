package config

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// redirected applies a statement's redirections: what is written to /dev/null or to another stream, and what is read
// from a file. Nothing is ever written to a file; !ok for a redirection that would, or that isn't understood.
func (s *shell) redirected(stmt *syntax.Stmt, io streams) (_ streams, ok bool, err error) {
	for _, r := range stmt.Redirs {
		word, err := s.word(r.Word)
		if err != nil {
			return io, false, err
		}
		errorsOnly := r.N != nil && r.N.Value == "2"
		switch {
		case (r.Op == syntax.RdrOut || r.Op == syntax.AppOut) && word == "/dev/null":
			if !errorsOnly {
				io.out = nil
			}
		case r.Op == syntax.DplOut && errorsOnly && (word == "1" || word == "-"):
			// There are no messages on the error stream.
		case r.Op == syntax.DplOut && word == "2":
			io.out = nil
		case r.Op == syntax.RdrIn && word == "/dev/null":
			io.in = ""
		case r.Op == syntax.RdrIn:
			text, err := s.read(r, word)
			if errors.Is(err, errLimit) {
				return io, false, err
			}
			if err != nil {
				s.fail(r, "%v", err)
				return io, false, nil
			}
			io.in = string(text)
		default:
			s.fail(r, "this redirection is not supported")
			return io, false, nil
		}
	}
	return io, true, nil
}

// call evaluates assignments and simple commands.
func (s *shell) call(stmt *syntax.Stmt, c *syntax.CallExpr, io streams) (result, error) {
	if len(c.Args) == 0 {
		return s.assignments(stmt, c.Assigns)
	}
	name := c.Args[0].Lit()
	if name == "export" || name == "readonly" {
		return s.declare(stmt, c.Args[1:])
	}
	fails := s.fails
	args, err := s.fields(c.Args)
	if err != nil {
		return result{}, err
	}
	if s.fails > fails {
		if name == "unset" {
			s.doubtGuards(s.taint)
		}
		return s.failed(stmt), nil
	}
	if len(args) == 0 {
		return result{doubt: s.taint}, nil
	}
	r, err := s.run(stmt, c, args, io)
	if r.doubt == "" {
		r.doubt = s.taint
	}
	if s.taint != "" {
		s.doubts, s.last = s.doubts+1, s.taint
	}
	return r, err
}

// assignments are those that stand for themselves. The status is that of the last substitution in them.
func (s *shell) assignments(stmt *syntax.Stmt, assigns []*syntax.Assign) (result, error) {
	s.replaced = result{}
	for _, a := range assigns {
		if a.Append || a.Index != nil || a.Array != nil {
			s.fail(a, "this kind of assignment is not supported")
			return s.failed(stmt), nil
		}
		if err := s.assign(a, a.Name.Value, a.Value); err != nil {
			return result{}, err
		}
	}
	return result{code: s.replaced.code, doubt: s.taint}, nil
}

// assign sets a parameter; a nil word is an empty value. It is empty, too, where the line fails.
func (s *shell) assign(n syntax.Node, name string, w *syntax.Word) error {
	fails := s.fails
	value, err := s.word(w)
	if err != nil {
		return err
	}
	if s.fails > fails {
		value = ""
	}
	return s.set(n, name, value)
}

// declare evaluates the words after export or readonly: NAME=value, or NAME alone, which changes nothing here.
func (s *shell) declare(stmt *syntax.Stmt, words []*syntax.Word) (result, error) {
	for _, w := range words {
		first, ok := w.Parts[0].(*syntax.Lit)
		if !ok {
			s.fail(w, "a name that isn't written out is not supported")
			s.doubtGuards(s.taint)
			return s.failed(stmt), nil
		}
		name, value, assigned := strings.Cut(first.Value, "=")
		if strings.HasPrefix(first.Value, "-") && len(w.Parts) == 1 {
			continue // an option
		}
		if !syntax.ValidName(name) || !assigned && len(w.Parts) > 1 {
			s.fail(w, "a name that isn't written out is not supported")
			s.doubtGuards(s.taint)
			return s.failed(stmt), nil
		}
		if !assigned {
			continue
		}
		rest := *first
		rest.Value = value
		if err := s.assign(w, name, &syntax.Word{
			Parts: append([]syntax.WordPart{&rest}, w.Parts[1:]...),
		}); err != nil {
			return result{}, err
		}
	}
	return result{doubt: s.taint}, nil
}

// run runs a command of the shell, or one of those in [programs].
func (s *shell) run(stmt *syntax.Stmt, c *syntax.CallExpr, args []string, io streams) (result, error) {
	switch name := args[0]; name {
	case "[", "test":
		return s.test(stmt, args, c.Args), nil
	case ".", "source":
		return s.sourced(stmt, args[1:])
	case "eval":
		return s.eval(stmt, args[1:])
	case "unset":
		return s.unsetAll(stmt, args[1:])
	case "cd":
		return s.changeFolder(stmt, args[1:])
	case "set":
		return s.options(stmt, args[1:])
	case "return", "exit", "break", "continue":
		return s.leave(stmt, args)
	default:
		if do, ok := programs[name]; ok {
			return s.program(stmt, do, args, io)
		}
		return s.unknown(stmt, c, args), nil
	}
}

// assigning are commands of other shells that set what their arguments name.
var assigning = map[string]bool{
	"declare": true, "typeset": true, "local": true, "read": true, "getopts": true, "let": true, "mapfile": true,
	"readarray": true, "nameref": true,
}

// unknown is a command that isn't there. Words of it that name parameters tell what its author wanted to set.
func (s *shell) unknown(stmt *syntax.Stmt, c *syntax.CallExpr, args []string) result {
	name := args[0]
	switch {
	case len(c.Assigns) > 0:
		s.fail(stmt, "the command %.40q is not run: write quotes around a value with blanks", name)
	case len(args) > 1 && syntax.ValidName(name) && strings.HasPrefix(args[1], "="):
		s.fail(stmt, "there must be no blanks around = after %.60q", name)
	case strings.Contains(name, "://"):
		s.fail(stmt, "a server or proxy stands where a command should: write quotes around a value with ; or |")
	default:
		s.fail(stmt, "the command %.40q is not run: no program is started for a configuration file", name)
	}
	why := s.taint
	for _, word := range args {
		if syntax.ValidName(word) {
			s.doubtful(word, why)
		}
	}
	if s.functions[name] || assigning[name] && strings.ContainsAny(s.source(stmt), "$`") {
		s.doubtGuards(why)
	}
	return s.failed(stmt)
}

// sourced evaluates another file in the place of the command.
func (s *shell) sourced(stmt *syntax.Stmt, args []string) (result, error) {
	if len(args) != 1 || s.taint != "" {
		s.fail(stmt, "the file to be read is not known")
		return s.failed(stmt), nil
	}
	text, err := s.read(stmt, args[0])
	if err != nil {
		if errors.Is(err, errLimit) {
			return result{}, err
		}
		s.fail(stmt, "%v", err)
		if !errors.Is(err, fs.ErrNotExist) || !s.inside(args[0]) { // it may be there for the host
			s.doubtGuards(s.taint)
		}
		return result{code: 2, doubt: s.taint}, nil
	}
	outer := *s
	s.shown, s.line = s.shownAs(args[0]), 0
	if _, remote := s.inRepository(args[0]); remote {
		s.net = true
	}
	leave, err := s.enter(stmt)
	defer leave()
	if err == nil {
		err = s.evaluate(string(text))
	}
	s.shown, s.line, s.net = outer.shown, outer.line, outer.net
	if !errors.Is(err, errExit) {
		s.rest = outer.rest
	}
	if errors.Is(err, errReturn) {
		err = nil
	}
	if err != nil && !flow(err) {
		err = fmt.Errorf("%v: %w", s.at(stmt), err)
	}
	return s.status, err
}

// flow reports whether an error only says where evaluation goes on.
func flow(err error) bool {
	return errors.Is(err, errReturn) || errors.Is(err, errExit) || errors.Is(err, errBreak) ||
		errors.Is(err, errContinue)
}

// eval evaluates its arguments as a text.
func (s *shell) eval(stmt *syntax.Stmt, args []string) (result, error) {
	if s.taint != "" {
		s.fail(stmt, "what is to be evaluated is not known")
		return s.failed(stmt), nil
	}
	outer := s.line
	s.line = s.at(stmt).Line
	s.evals++
	err := s.evaluate(strings.Join(args, " "))
	s.evals--
	s.line = outer
	return s.status, err
}

func (s *shell) unsetAll(stmt *syntax.Stmt, names []string) (result, error) {
	for _, name := range names {
		if name == "-v" {
			continue
		}
		if !syntax.ValidName(name) || s.taint != "" {
			s.fail(stmt, "the parameter to be unset is not known")
			s.doubtGuards(s.taint)
			return s.failed(stmt), nil
		}
		s.unset(name)
	}
	return result{}, nil
}

// options takes those of set that change nothing here.
func (s *shell) options(stmt *syntax.Stmt, args []string) (result, error) {
	for _, arg := range args {
		if strings.Trim(arg, "+-axhb") != "" {
			s.fail(stmt, "set %.20s is not supported", arg)
			s.doubtRest(int(stmt.End().Offset()), s.taint)
			return s.failed(stmt), nil
		}
	}
	return result{}, nil
}

func (s *shell) changeFolder(stmt *syntax.Stmt, args []string) (result, error) {
	if len(args) == 1 && s.taint == "" {
		if info, err := s.stat(args[0]); err == nil && info.IsDir() {
			s.cwd = s.absolute(args[0])
			return result{}, nil
		}
	}
	s.fail(stmt, "the folder to go to is not there")
	s.doubtRest(int(stmt.End().Offset()), s.taint)
	return s.failed(stmt), nil
}

func (s *shell) leave(stmt *syntax.Stmt, args []string) (result, error) {
	if s.taint != "" {
		s.doubtRest(int(stmt.End().Offset()), s.taint)
	}
	return s.status, map[string]error{
		"return": errReturn, "exit": errExit, "break": errBreak, "continue": errContinue,
	}[args[0]]
}

// program runs one of [programs].
func (s *shell) program(stmt *syntax.Stmt, do program, args []string, io streams) (result, error) {
	p := &process{shell: s, at: stmt, in: io.in}
	size := len(io.in)
	for _, arg := range args {
		size += len(arg)
	}
	if err := s.step(stmt, size); err != nil {
		return result{}, err
	}
	code := do(p, args[1:])
	if p.limit != nil {
		return result{}, p.limit
	}
	if p.out.Len() > maxValue && p.fault == "" {
		p.fault = fmt.Sprintf("writes more than %d bytes", maxValue)
	}
	if err := s.step(stmt, p.out.Len()); err != nil {
		return result{}, err
	}
	if p.fault != "" {
		s.fail(stmt, "%s: %s", args[0], p.fault)
		return s.failed(stmt), nil
	}
	if io.out != nil {
		if io.out.Len()+p.out.Len() > maxValue {
			s.fail(stmt, "more than %d bytes are written", maxValue)
			return s.failed(stmt), nil
		}
		io.out.WriteString(p.out.String())
	}
	return result{code: code}, nil
}
