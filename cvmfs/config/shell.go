package config

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"

	"mvdan.cc/sh/v3/syntax"
)

// Limits of a configuration: real ones have a few files of a few lines. They bound time and memory, for nothing else
// does: each command, word and pass of a loop is a step, and what it expands to, reads or writes is counted in bytes.
const (
	maxFile   = 64 << 10 // bytes of a file
	maxValue  = 16 << 10 // bytes of a value, and of what a command writes
	maxParams = 4096
	maxFiles  = 128 // files read, however often the same one
	maxSteps  = 20_000
	maxBytes  = 8 << 20
	maxDepth  = 40   // commands within commands: ". file", eval, substitutions, subshells, blocks
	maxOpen   = 2000 // parentheses, braces and backquotes of a file: the parser's stack grows with them
	maxFaults = 50   // syntax errors of a file

	maxPattern  = 1 << 10 // bytes of a regular expression: {1000} makes many instructions of few
	instruction = 16      // bytes that making one of a regular expression counts for
)

var (
	// errReturn and errExit end the file that is evaluated; no errors for its reader. exit also ends those that source
	// the file.
	errReturn = errors.New("return")
	errExit   = errors.New("exit")
	// errBreak and errContinue concern the innermost loop.
	errBreak    = errors.New("break")
	errContinue = errors.New("continue")

	errLimit = errors.New("too much for a configuration file")
)

// shell evaluates configuration files as /bin/sh would. It starts no process, writes nothing, and reads only files that
// [shell.read] allows.
//
// A command that isn't understood has no effect and the status 127, as one that isn't installed. What the shell can't
// know from then on is kept track of: a parameter is in doubt when a failed line would set it or decides about it,
// whatever is computed of it too, and so on. A parameter in doubt still has the value that the rest of the files gives
// it.
type shell struct {
	folder Folder
	fqrn   string
	params map[string]variable
	random *rand.Rand // for $RANDOM

	cwd   string      // folder that relative names are relative to, as settings call it
	shown string      // the file being evaluated, as the host calls it
	text  string      // its text
	repo  *configRepo // nil: there is none, or it isn't read
	line  uint        // of the eval whose text is evaluated; 0: none
	net   bool        // the file comes from the configuration repository
	local bool        // the file is the site's own, or sourced by such a one

	steps, bytes, files, depth int

	status    result          // of the last command
	replaced  result          // of the last command substitution
	functions map[string]bool // names of functions that were defined, and not understood

	// Doubt. Each is the text of the failed line it comes from, "" for none.
	taint  string // about the command being evaluated
	under  string // whether what is evaluated is evaluated at all
	rest   string // about the rest of the file
	doubts int    // how often there was any
	last   string // the last one
	fails  int    // how often a line failed

	remotes int // how often a variable was looked up whose value came over the network
	since   int // of these, how many before the statement being evaluated
	evals   int // levels of eval

	own      map[string]variable // what the host's own files say alone; nil: there are no others
	common   variable            // the limit of the cache, as the files say that all repositories have in common
	used     map[string]bool     // names of parameters that files read
	findings []Finding
}

// variable is a parameter, or a variable that helps to compute one.
type variable struct {
	value  string
	set    bool
	at     Place  // of the last assignment
	remote bool   // what came over the network is in the value
	local  bool   // set by a file of the site's own
	doubt  string // the failed line that makes the value uncertain; "" if it is certain
}

// seed makes $$ and $RANDOM differ between hosts, and agree within a process: reading files twice gives the same.
var seed = sync.OnceValue(rand.Uint64)

func newShell(f Folder, fqrn string) *shell {
	s := &shell{
		folder: f, fqrn: fqrn, params: map[string]variable{}, functions: map[string]bool{}, used: map[string]bool{},
		random: rand.New(rand.NewPCG(seed(), 0)),
	}
	return s
}

// values are the parameters that are set.
func (s *shell) values() map[string]string {
	values := make(map[string]string, len(s.params))
	for name, v := range s.params {
		if v.set {
			values[name] = v.value
		}
	}
	return values
}

// origins are where the parameters were set.
func (s *shell) origins() map[string]Place {
	origins := make(map[string]Place, len(s.params))
	for name, v := range s.params {
		if v.set {
			origins[name] = v.at
		}
	}
	return origins
}

// finish brings values into their final form, as at the end of each file.
func (s *shell) finish() {
	org, _, _ := strings.Cut(s.fqrn, ".")
	templates := strings.NewReplacer("@fqrn@", s.fqrn, "@org@", org)
	for name, v := range s.params {
		v.value = templates.Replace(strings.Join(strings.Fields(v.value), " "))
		s.params[name] = v
	}
}

// at names a place in the file being evaluated.
func (s *shell) at(n syntax.Node) Place {
	if s.line > 0 {
		return Place{File: s.shown, Line: s.line, Network: s.net}
	}
	return Place{File: s.shown, Line: n.Pos().Line(), Network: s.net}
}

// source is the text of a node.
func (s *shell) source(n syntax.Node) string {
	return between(s.text, int(n.Pos().Offset()), int(n.End().Offset()))
}

// between is text[from:to] as far as there is any.
func between(text string, from, to int) string {
	to = max(0, min(to, len(text)))
	return text[min(max(0, from), to):to]
}

// step counts a step and the bytes it is about.
func (s *shell) step(n syntax.Node, bytes int) error {
	s.steps, s.bytes = s.steps+1, s.bytes+bytes
	switch {
	case s.steps > maxSteps:
		return fmt.Errorf("%v: %w: more than %d steps", s.at(n), errLimit, maxSteps)
	case s.bytes > maxBytes:
		return fmt.Errorf("%v: %w: more than %d bytes are read and written", s.at(n), errLimit, maxBytes)
	}
	return nil
}

// enter begins something within something; the caller defers what it returns.
func (s *shell) enter(n syntax.Node) (leave func(), err error) {
	if s.depth++; s.depth > maxDepth {
		err = fmt.Errorf("%v: %w: more than %d levels: does it call itself?", s.at(n), errLimit, maxDepth)
	}
	return func() { s.depth-- }, err
}

// evaluate evaluates a file's text. What is wrong with a line is that line's failure; errors are of the whole.
func (s *shell) evaluate(text string) error {
	if n := strings.Count(text, "(") + strings.Count(text, "{") + strings.Count(text, "`"); n > maxOpen {
		return fmt.Errorf("%s: %w: %d parentheses and braces", s.shown, errLimit, n)
	}
	outer := s.text
	defer func() { s.text = outer }()
	s.text = text
	done := 0 // bytes evaluated
	for faults, twins := 0, 0; ; {
		err := s.statements(&done)
		fault, ok := errors.AsType[syntax.ParseError](err)
		if !ok {
			if _, foreign := errors.AsType[syntax.LangError](err); !foreign {
				return err
			}
			fault = syntax.ParseError{Pos: langPos(err), Text: err.Error()}
		}
		if twins < maxFaults && s.separate(done, fault) {
			twins++
			continue
		}
		if faults++; faults > maxFaults {
			return fmt.Errorf("%s: %w: more than %d syntax errors", s.shown, errLimit, maxFaults)
		}
		done = s.skip(done, fault)
	}
}

func langPos(err error) syntax.Pos {
	e, _ := errors.AsType[syntax.LangError](err)
	return e.Pos
}

// errParser is a fault of the parser's.
var errParser = errors.New("the parser of configuration files failed")

// statements parses and evaluates the text from done on, which it moves on. The parser is another's, and the text may
// come from a network: if the parser fails, the file can't be read, and nothing else stops.
func (s *shell) statements(done *int) (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("%s: %w: %v", s.shown, errParser, fault)
		}
	}()
	// What is done is blank, so that lines and offsets are the file's.
	padded := blank(s.text[:*done]) + s.text[*done:]
	parser := syntax.NewParser(syntax.Variant(syntax.LangPOSIX))
	for stmt, fault := range parser.StmtsSeq(strings.NewReader(padded)) {
		// The loop isn't left early: the parser takes that amiss where the text goes on with an error.
		if err != nil {
			continue
		}
		if err = fault; err != nil {
			continue
		}
		if _, err = s.stmt(stmt, streams{}); err == nil {
			*done = max(*done, int(stmt.End().Offset()))
		}
	}
	return err
}

// blank replaces all bytes but newlines.
func blank(text string) string {
	b := []byte(text)
	for i := range b {
		if b[i] != '\n' {
			b[i] = ' '
		}
	}
	return string(b)
}

// separate makes "$((" that begins no arithmetic "$( (", as a shell takes it, and reports whether there was one.
func (s *shell) separate(done int, fault syntax.ParseError) bool {
	end := strings.IndexByte(s.text[min(int(fault.Pos.Offset()), len(s.text)):], '\n')
	if end += int(fault.Pos.Offset()); end < int(fault.Pos.Offset()) || end > len(s.text) {
		end = len(s.text)
	}
	i := strings.LastIndex(between(s.text, done, end), "$((")
	if i < 0 || !strings.Contains(fault.Text, "arithm") && !strings.Contains(fault.Text, "((") {
		return false
	}
	i += done
	s.text = s.text[:i] + "$( (" + s.text[i+len("$(("):]
	return true
}

// skip records a syntax error and returns where to read on: behind its line. Where the error may be about more than
// its line, all that follows is in doubt.
func (s *shell) skip(done int, fault syntax.ParseError) int {
	at := Place{File: s.shown, Line: fault.Pos.Line(), Network: s.net}
	if s.line > 0 {
		at.Line = s.line
	}
	s.failAt(at, fault.Text+": write it as /bin/sh would understand it")
	why := s.taint
	s.taint = ""
	next := lineEnd(s.text, max(done, int(fault.Pos.Offset())))
	faulty := s.text[done:next]
	s.doubtText(faulty, why)
	if fault.Incomplete || strings.Contains(fault.Text, "EOF") || strings.Contains(fault.Text, "without closing") ||
		branches.MatchString(faulty) {
		s.doubtRest(next, why)
	}
	return next
}

// lineEnd is the offset behind the line that offset lies in.
func lineEnd(text string, offset int) int {
	offset = min(offset, len(text))
	if i := strings.IndexByte(text[offset:], '\n'); i >= 0 {
		return offset + i + 1
	}
	return len(text)
}

// result is a command's exit status.
type result struct {
	code  int
	doubt string // the failed line that the status depends on
}

func (r result) ok() bool { return r.code == 0 }

func statusIf(holds bool) result {
	if holds {
		return result{}
	}
	return result{code: 1}
}

// streams are a command's input and output.
type streams struct {
	in  string
	out *strings.Builder // nil: discarded
}

// list evaluates statements; its status is that of the last one.
func (s *shell) list(stmts []*syntax.Stmt, io streams) (r result, err error) {
	for _, stmt := range stmts {
		if r, err = s.stmt(stmt, io); err != nil {
			return result{}, err
		}
	}
	return r, nil
}

func (s *shell) stmt(stmt *syntax.Stmt, io streams) (r result, err error) {
	if err := s.step(stmt, 0); err != nil {
		return r, err
	}
	leave, err := s.enter(stmt)
	defer leave()
	if err != nil {
		return r, err
	}
	taint, since := s.taint, s.since
	s.taint = ""
	if s.evals == 0 { // else it is as remote as its text
		s.since = s.remotes
	}
	defer func() { s.taint, s.since = taint, since }()
	io, ok, err := s.redirected(stmt, io)
	if err != nil {
		return r, err
	}
	if !ok {
		return s.failed(stmt), nil
	}
	r, err = s.command(stmt, io)
	if stmt.Negated {
		r = result{code: statusIf(!r.ok()).code, doubt: r.doubt}
	}
	s.status = r
	return r, err
}

func (s *shell) command(stmt *syntax.Stmt, io streams) (result, error) {
	if stmt.Background || stmt.Coprocess || stmt.Disown {
		s.fail(stmt, "a command in the background is not supported")
		return s.failed(stmt), nil
	}
	switch c := stmt.Cmd.(type) {
	case nil:
		return result{}, nil
	case *syntax.CallExpr:
		return s.call(stmt, c, io)
	case *syntax.Block:
		return s.list(c.Stmts, io)
	case *syntax.Subshell:
		return s.isolated(stmt, func() (result, error) { return s.list(c.Stmts, io) })
	case *syntax.BinaryCmd:
		return s.binary(stmt, c, io)
	case *syntax.IfClause:
		return s.ifClause(c, io)
	case *syntax.CaseClause:
		return s.caseClause(c, io)
	case *syntax.WhileClause:
		return s.whileClause(c, io)
	case *syntax.ForClause:
		return s.forClause(stmt, c, io)
	case *syntax.FuncDecl:
		if c.Name != nil {
			s.functions[c.Name.Value] = true
		}
		s.fail(stmt, "a function is not supported: write its commands where it is called")
	default:
		s.fail(stmt, "this command is not supported")
	}
	return s.failed(stmt), nil
}

// isolated evaluates what can't change this shell's parameters. Where a line of it failed, what it would set is in
// doubt all the same, for its author took it to be set: CVMFS_HTTP_PROXY=a|b.
func (s *shell) isolated(n syntax.Node, do func() (result, error)) (result, error) {
	if err := s.step(n, 64*len(s.params)); err != nil {
		return result{}, err
	}
	params, cwd, before := s.params, s.cwd, s.doubts
	s.params = maps.Clone(params)
	r, err := do()
	s.params, s.cwd = params, cwd
	if errors.Is(err, errReturn) || errors.Is(err, errExit) || errors.Is(err, errBreak) ||
		errors.Is(err, errContinue) {
		r, err = s.status, nil
	}
	if s.doubts > before {
		r.doubt = s.last
		s.doubtText(s.source(n), s.last)
	}
	return r, err
}

func (s *shell) binary(stmt *syntax.Stmt, c *syntax.BinaryCmd, io streams) (result, error) {
	switch c.Op {
	case syntax.Pipe:
		return s.isolated(c, func() (result, error) {
			var between strings.Builder
			if _, err := s.stmt(c.X, streams{in: io.in, out: &between}); err != nil {
				return result{}, err
			}
			return s.stmt(c.Y, streams{in: between.String(), out: io.out})
		})
	case syntax.AndStmt, syntax.OrStmt:
	default:
		s.fail(stmt, "this command is not supported")
		return s.failed(stmt), nil
	}
	x, err := s.stmt(c.X, io)
	if err != nil {
		return x, err
	}
	y := x
	err = s.decided(x.doubt, c.Y, func() (err error) {
		if x.ok() == (c.Op == syntax.AndStmt) {
			y, err = s.stmt(c.Y, io)
		}
		return err
	})
	if y.doubt == "" {
		y.doubt = x.doubt
	}
	return y, err
}

// ifClause also evaluates elif and else, which the parser hangs below as clauses of their own, else without condition.
func (s *shell) ifClause(c *syntax.IfClause, io streams) (r result, err error) {
	var cond result
	if len(c.Cond) > 0 {
		if cond, err = s.list(c.Cond, io); err != nil {
			return cond, err
		}
	}
	err = s.decided(cond.doubt, c, func() (err error) {
		switch {
		case cond.ok():
			r, err = s.list(c.Then, io)
		case c.Else != nil:
			r, err = s.ifClause(c.Else, io)
		}
		return err
	})
	if r.doubt == "" {
		r.doubt = cond.doubt
	}
	return r, err
}

func (s *shell) caseClause(c *syntax.CaseClause, io streams) (r result, err error) {
	word, err := s.word(c.Word)
	if err != nil {
		return r, err
	}
	for _, item := range c.Items {
		for _, w := range item.Patterns {
			matches, err := s.matches(w, word)
			if err != nil {
				return r, err
			}
			if matches {
				return s.chosen(c, item.Stmts, io)
			}
		}
	}
	return s.chosen(c, nil, io)
}

// chosen evaluates the statements of a clause whose words were expanded just now.
func (s *shell) chosen(n syntax.Node, stmts []*syntax.Stmt, io streams) (r result, err error) {
	doubt := s.taint
	err = s.decided(doubt, n, func() (err error) {
		r, err = s.list(stmts, io)
		return err
	})
	if r.doubt == "" {
		r.doubt = doubt
	}
	return r, err
}

func (s *shell) whileClause(c *syntax.WhileClause, io streams) (r result, err error) {
	for {
		if err := s.step(c, 0); err != nil {
			return r, err
		}
		cond, err := s.list(c.Cond, io)
		if err != nil {
			return r, err
		}
		err = s.decided(cond.doubt, c, func() (err error) {
			if cond.ok() != c.Until {
				r, err = s.list(c.Do, io)
			}
			return err
		})
		if cond.doubt != "" {
			r.doubt = cond.doubt
		}
		if cond.ok() == c.Until || errors.Is(err, errBreak) {
			return r, nil
		}
		if err != nil && !errors.Is(err, errContinue) {
			return r, err
		}
	}
}

func (s *shell) forClause(stmt *syntax.Stmt, c *syntax.ForClause, io streams) (r result, err error) {
	loop, ok := c.Loop.(*syntax.WordIter)
	if !ok || c.Select {
		s.fail(stmt, "this loop is not supported")
		return s.failed(stmt), nil
	}
	items, err := s.fields(loop.Items)
	if err != nil {
		return r, err
	}
	doubt := s.taint
	for _, item := range items {
		if err := s.set(c, loop.Name.Value, item); err != nil {
			return r, err
		}
		err := s.decided(doubt, c, func() (err error) {
			r, err = s.list(c.Do, io)
			return err
		})
		if errors.Is(err, errBreak) {
			break
		}
		if err != nil && !errors.Is(err, errContinue) {
			return r, err
		}
	}
	if doubt != "" {
		r.doubt = doubt
		s.doubtText(s.source(c), doubt)
	}
	return r, nil
}

// set sets a parameter.
func (s *shell) set(n syntax.Node, name, value string) error {
	if err := s.step(n, len(value)); err != nil {
		return err
	}
	if _, known := s.params[name]; !known && len(s.params) >= maxParams {
		return fmt.Errorf("%v: %w: more than %d parameters", s.at(n), errLimit, maxParams)
	}
	v := variable{value: value, set: true, at: s.at(n), remote: s.net || s.remotes > s.since, local: s.local}
	if !s.net && name == "CVMFS_KEYS_DIR" {
		s.dropRemoteKeys()
	}
	for _, why := range []string{s.taint, s.under, s.rest} {
		if v.doubt == "" {
			v.doubt = why
		}
	}
	s.params[name] = v
	return nil
}

// dropRemoteKeys forgets the keys that the configuration repository named, which would go before a folder of keys that
// the host's own files name after it.
func (s *shell) dropRemoteKeys() {
	const name = "CVMFS_PUBLIC_KEY"
	if v := s.params[name]; v.at.Network {
		s.params[name] = variable{doubt: v.doubt}
	}
}

func (s *shell) unset(name string) {
	v := variable{}
	for _, why := range []string{s.taint, s.under, s.rest} {
		if v.doubt == "" {
			v.doubt = why
		}
	}
	if v == (variable{}) {
		delete(s.params, name)
		return
	}
	s.params[name] = v
}

// lookup returns a variable. CVMFS_FQRN is set for every file, as in the reference client.
func (s *shell) lookup(name string) (value string, set bool) {
	if name == "CVMFS_FQRN" {
		return s.fqrn, true
	}
	v := s.params[name]
	s.used[name] = true
	if v.doubt != "" {
		s.doubt(v.doubt)
	}
	if v.remote {
		s.remotes++
	}
	if name == "RANDOM" && !v.set {
		return fmt.Sprint(s.random.IntN(1 << 15)), true
	}
	return v.value, v.set
}
