package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// Limits of the files: real ones have a few lines.
const (
	maxFile    = 64 << 10 // bytes of a file
	maxValue   = 16 << 10 // bytes of a value
	maxParams  = 4096
	maxSourced = 64 // files sourced by others, over the whole configuration
)

// configRepository is protected once the files of default.d were read: later ones can't change it.
const configRepository = "CVMFS_CONFIG_REPOSITORY"

// errReturn ends the file that is evaluated; no error for its caller.
var errReturn = errors.New("return")

// shell evaluates configuration files. It runs nothing and changes nothing but params.
type shell struct {
	folder  Folder
	fqrn    string
	params  map[string]string
	origin  map[string]string // "file:line" of a parameter's last assignment
	cwd     string            // folder of the file read last that isn't sourced: what relative names are relative to
	shown   string            // the file being evaluated, as the host calls it
	sourced int

	warnings []string
}

func newShell(f Folder, fqrn string) *shell {
	return &shell{folder: f, fqrn: fqrn, params: make(map[string]string), origin: make(map[string]string)}
}

// defaults reads what all repositories have in common.
func (s *shell) defaults() error {
	if err := s.evaluate("the built-in default.conf", s.folder.Defaults); err != nil {
		return err
	}
	s.finish()
	if err := s.load("default.conf"); err != nil {
		return err
	}
	files, err := filesIn(filepath.Join(s.folder.Dir, "default.d"), ".conf")
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := s.load("default.d/" + filepath.Base(file)); err != nil {
			return err
		}
	}
	return s.loadProtecting("default.local")
}

// repository reads what the domain and the repository have of their own.
func (s *shell) repository() error {
	_, domain, _ := strings.Cut(s.fqrn, ".")
	return s.loadProtecting("domain.d/"+domain+".conf", "domain.d/"+domain+".local", "config.d/"+s.fqrn+".conf",
		"config.d/"+s.fqrn+".local")
}

// loadProtecting keeps the files from changing the configuration repository, if one is set.
func (s *shell) loadProtecting(names ...string) error {
	repo, origin := s.params[configRepository], s.origin[configRepository]
	for _, name := range names {
		if err := s.load(name); err != nil {
			return err
		}
		if repo != "" {
			s.params[configRepository], s.origin[configRepository] = repo, origin
		}
	}
	return nil
}

// load evaluates a file of the folder, if it exists.
func (s *shell) load(name string) error {
	file := filepath.Join(s.folder.Dir, name)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		if to, err := os.Readlink(file); err == nil {
			s.warnings = append(s.warnings,
				fmt.Sprintf("%s is not read: it is a link to %s, which doesn't exist, or not for this process",
					s.folder.show(file), to))
		}
		return nil
	}
	s.cwd = filepath.Dir(file)
	if err := s.evaluateFile(file); err != nil {
		return err
	}
	s.finish()
	return nil
}

// finish brings values into their final form, as at the end of each file.
func (s *shell) finish() {
	org, _, _ := strings.Cut(s.fqrn, ".")
	templates := strings.NewReplacer("@fqrn@", s.fqrn, "@org@", org)
	for name, value := range s.params {
		s.params[name] = templates.Replace(strings.Join(strings.Fields(value), " "))
	}
}

func (s *shell) evaluateFile(file string) error {
	text, err := s.folder.read(file)
	if err != nil {
		return err
	}
	return s.evaluate(s.folder.show(file), text)
}

// evaluate evaluates a file's text; shown is what the host calls the file.
func (s *shell) evaluate(shown string, text []byte) error {
	outer := s.shown
	defer func() { s.shown = outer }()
	s.shown = shown
	script, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(string(text)), s.shown)
	if err != nil {
		return fmt.Errorf("%w: write it as /bin/sh would understand it", err)
	}
	if _, err := s.list(script.Stmts); err != nil && !errors.Is(err, errReturn) {
		return err
	}
	return nil
}

// at names a place in the file being evaluated.
func (s *shell) at(n syntax.Node) string { return fmt.Sprintf("%s:%d", s.shown, n.Pos().Line()) }

func (s *shell) refuse(n syntax.Node, what string) error {
	return fmt.Errorf("%s: %s is not supported, as configuration files are read and not executed: write the value itself", s.at(n), what)
}

// list evaluates statements; its status is that of the last one.
func (s *shell) list(stmts []*syntax.Stmt) (status bool, err error) {
	status = true
	for _, stmt := range stmts {
		if status, err = s.stmt(stmt); err != nil {
			return false, err
		}
	}
	return status, nil
}

func (s *shell) stmt(stmt *syntax.Stmt) (status bool, err error) {
	switch {
	case len(stmt.Redirs) > 0:
		return false, s.refuse(stmt, "a redirection")
	case stmt.Background || stmt.Coprocess || stmt.Disown:
		return false, s.refuse(stmt, "a background command")
	}
	switch c := stmt.Cmd.(type) {
	case *syntax.CallExpr:
		status, err = s.call(c)
	case *syntax.IfClause:
		status, err = s.ifClause(c)
	case *syntax.Block:
		status, err = s.list(c.Stmts)
	case *syntax.BinaryCmd:
		status, err = s.binary(c)
	default:
		return false, s.refuse(stmt, construct(stmt.Cmd))
	}
	return status != stmt.Negated, err
}

// construct is what people call a command that isn't supported.
func construct(c syntax.Command) string {
	switch c.(type) {
	case *syntax.WhileClause, *syntax.ForClause:
		return "a loop"
	case *syntax.CaseClause:
		return "case"
	case *syntax.FuncDecl:
		return "a function"
	case *syntax.Subshell:
		return "a subshell"
	}
	return "this command"
}

// ifClause also evaluates elif and else, which the parser hangs below as clauses of their own, else without condition.
func (s *shell) ifClause(c *syntax.IfClause) (bool, error) {
	for ; c != nil; c = c.Else {
		holds, err := s.list(c.Cond)
		if err != nil {
			return false, err
		}
		if holds {
			return s.list(c.Then)
		}
	}
	return true, nil
}

func (s *shell) binary(c *syntax.BinaryCmd) (bool, error) {
	if c.Op != syntax.AndStmt && c.Op != syntax.OrStmt {
		return false, s.refuse(c, "a pipe")
	}
	status, err := s.stmt(c.X)
	if err != nil || status == (c.Op == syntax.OrStmt) {
		return status, err
	}
	return s.stmt(c.Y)
}

func (s *shell) call(c *syntax.CallExpr) (bool, error) {
	if len(c.Args) == 0 {
		for _, a := range c.Assigns {
			if a.Append || a.Index != nil || a.Array != nil {
				return false, s.refuse(a, "this kind of assignment")
			}
			if err := s.assign(a, a.Name.Value, a.Value); err != nil {
				return false, err
			}
		}
		return true, nil
	}
	if len(c.Assigns) > 0 {
		return false, s.refuse(c, "a command")
	}
	switch name := c.Args[0].Lit(); name {
	case "export", "readonly":
		return true, s.declare(c.Args[1:])
	case "[", "test":
		return s.test(c, name)
	case ".", "source":
		return true, s.source(c)
	case "return":
		return true, errReturn
	case "":
		return false, s.refuse(c, "a command")
	default:
		return false, s.refuse(c, fmt.Sprintf("the command %.40q", name))
	}
}

// declare evaluates the words after export or readonly: NAME=value, or NAME alone, which changes nothing here.
func (s *shell) declare(words []*syntax.Word) error {
	for _, w := range words {
		first, ok := w.Parts[0].(*syntax.Lit)
		if !ok {
			return s.refuse(w, "a name that isn't written out")
		}
		name, value, assigned := strings.Cut(first.Value, "=")
		if !syntax.ValidName(name) || !assigned && len(w.Parts) > 1 {
			return s.refuse(w, "a name that isn't written out")
		}
		if !assigned {
			continue
		}
		rest := *first
		rest.Value = value
		parts := append([]syntax.WordPart{&rest}, w.Parts[1:]...)
		if err := s.assign(w, name, &syntax.Word{Parts: parts}); err != nil {
			return err
		}
	}
	return nil
}

// assign sets a parameter; a nil word is an empty value.
func (s *shell) assign(at syntax.Node, name string, w *syntax.Word) error {
	value := ""
	if w != nil {
		var err error
		if value, err = s.word(w); err != nil {
			return err
		}
	}
	return s.set(at, name, value)
}

func (s *shell) set(at syntax.Node, name, value string) error {
	if len(s.params) >= maxParams {
		return fmt.Errorf("%s: more than %d parameters", s.at(at), maxParams)
	}
	s.params[name], s.origin[name] = value, s.at(at)
	return nil
}

// source evaluates another file of the folder in the place of the command.
func (s *shell) source(c *syntax.CallExpr) error {
	if len(c.Args) != 2 {
		return s.refuse(c, "sourcing with arguments")
	}
	name, err := s.word(c.Args[1])
	if err != nil {
		return err
	}
	file := s.path(name)
	if _, ok := below(file, filepath.Clean(s.folder.Dir)); !ok {
		return fmt.Errorf("%s: %.200q is not below %s, the only place files are sourced from", s.at(c), name,
			s.folder.Shown)
	}
	if s.sourced++; s.sourced > maxSourced {
		return fmt.Errorf("%s: more than %d files are sourced: does one of them source itself?", s.at(c), maxSourced)
	}
	if err := s.evaluateFile(file); err != nil {
		return fmt.Errorf("%s: %w", s.at(c), err)
	}
	return nil
}

// path is where a file lies that a command names.
func (s *shell) path(name string) string {
	if !path.IsAbs(name) {
		return filepath.Join(s.cwd, name)
	}
	return s.folder.locate(name)
}
