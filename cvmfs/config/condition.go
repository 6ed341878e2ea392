package config

import (
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// test evaluates [ … ] or test …, of which words are the arguments before their expansion.
func (s *shell) test(stmt *syntax.Stmt, args []string, words []*syntax.Word) result {
	gone := len(args) < len(words) // [ $X = yes ] is [ = yes ] without X
	bracket := args[0] == "["
	args = args[1:]
	if bracket {
		if len(args) == 0 || args[len(args)-1] != "]" {
			s.fail(stmt, `"[" without "]" at its end`)
			return s.failed(stmt)
		}
		args = args[:len(args)-1]
	}
	if len(args) == 0 {
		return result{code: 1}
	}
	t := &test{shell: s, args: args}
	holds, ok := t.or()
	switch {
	case ok && len(t.args) == 0:
		return statusIf(holds)
	case gone, t.noNumber:
		return result{code: 2} // the shell complains, and goes on as if it didn't hold
	}
	s.fail(stmt, "a test that is not understood")
	return s.failed(stmt)
}

// test is what is left of a test's arguments. Its methods take an expression off their front and report whether it
// holds; ok is false where there is none.
type test struct {
	shell    *shell
	args     []string
	depth    int
	noNumber bool // something compared with -eq and the like is none
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
	if t.depth++; t.depth > maxDepth {
		return false, false
	}
	defer func() { t.depth-- }()
	if len(t.args) >= 3 && slices.Contains([]string{"=", "==", "!="}, t.args[1]) {
		same := t.args[0] == t.args[2]
		differ := t.args[1] == "!="
		t.args = t.args[3:]
		return same != differ, true
	}
	if len(t.args) >= 3 && comparisons[t.args[1]] != nil {
		return t.compare()
	}
	if len(t.args) >= 2 && t.accept("!") {
		holds, ok = t.primary()
		return !holds, ok
	}
	if len(t.args) >= 3 && t.accept("(") {
		holds, ok = t.or()
		return holds, ok && t.accept(")")
	}
	if len(t.args) >= 2 && len(t.args[0]) == 2 && strings.IndexByte("znefdrsxLh", t.args[0][1]) >= 0 &&
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

var comparisons = map[string]func(a, b int64) bool{
	"-eq": func(a, b int64) bool { return a == b },
	"-ne": func(a, b int64) bool { return a != b },
	"-lt": func(a, b int64) bool { return a < b },
	"-le": func(a, b int64) bool { return a <= b },
	"-gt": func(a, b int64) bool { return a > b },
	"-ge": func(a, b int64) bool { return a >= b },
}

func (t *test) compare() (holds, ok bool) {
	a, errA := strconv.ParseInt(strings.TrimSpace(t.args[0]), 10, 64)
	b, errB := strconv.ParseInt(strings.TrimSpace(t.args[2]), 10, 64)
	if errA != nil || errB != nil {
		t.noNumber = true
		return false, false
	}
	holds = comparisons[t.args[1]](a, b)
	t.args = t.args[3:]
	return holds, true
}

// unary applies -z and -n to text, the others to a file. Whether there is a file that this process may not see, or not
// for the configuration repository's files, nobody knows.
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
	stat := t.shell.stat
	if op == "-L" || op == "-h" {
		stat = t.shell.lstat
	}
	info, err := stat(arg)
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
	case "-x":
		return info.Mode()&0o111 != 0
	case "-L", "-h":
		return info.Mode()&fs.ModeSymlink != 0
	}
	return true
}
