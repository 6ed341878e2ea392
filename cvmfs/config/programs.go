package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"
)

// program does what a program of that name does with its arguments, as far as configuration files use it, and returns
// its exit status. It changes nothing but its process.
type program func(p *process, args []string) int

// process is a running program.
type process struct {
	shell *shell
	at    syntax.Node
	in    string
	out   strings.Builder
	fault string // why the line fails
	limit error
}

// programs are all there are.
var programs = map[string]program{
	":": succeed, "true": succeed, "false": func(*process, []string) int { return 1 },
	"echo": echo, "printf": printf, "cat": cat, "ls": ls,
	"grep": grepper(basic), "egrep": grepper(extended), "fgrep": grepper(regexp.QuoteMeta),
	"cut": cut, "tr": tr, "sort": sorted, "head": head, "basename": basename, "dirname": dirname, "uname": uname,
}

func succeed(*process, []string) int { return 0 }

// refuse fails the line.
func (p *process) refuse(format string, args ...any) int {
	p.fault = fmt.Sprintf(format, args...)
	return 2
}

func echo(p *process, args []string) int {
	end := "\n"
	if len(args) > 0 && args[0] == "-n" {
		args, end = args[1:], ""
	}
	p.out.WriteString(strings.Join(args, " ") + end)
	return 0
}

// printf knows %s, %d, %%, \n and \t.
func printf(p *process, args []string) int {
	if len(args) == 0 {
		return p.refuse("no format")
	}
	format, args := args[0], args[1:]
	for {
		used := 0
		for i := 0; i < len(format); i++ {
			two := format[i:min(i+2, len(format))]
			switch {
			case two == "%s" || two == "%d":
				if used < len(args) {
					p.out.WriteString(args[used])
				}
				used++
			case two == "%%":
				p.out.WriteByte('%')
			case two == `\n`:
				p.out.WriteByte('\n')
			case two == `\t`:
				p.out.WriteByte('\t')
			case format[i] == '%' || format[i] == '\\':
				return p.refuse("the format %.40q is not supported", format)
			default:
				p.out.WriteByte(format[i])
				continue
			}
			i++
		}
		if p.out.Len() > maxValue {
			return p.refuse("writes more than %d bytes", maxValue)
		}
		if used == 0 || used >= len(args) {
			return 0
		}
		args = args[used:]
	}
}

// input is the text of the files named, or the input where there is none. A file that isn't there is passed over, with
// the status 2.
func (p *process) input(files []string) (texts []string, status int) {
	if len(files) == 0 {
		return []string{p.in}, 0
	}
	for _, file := range files {
		if file == "-" {
			texts = append(texts, p.in)
			continue
		}
		text, err := p.shell.read(p.at, file)
		if errors.Is(err, errLimit) {
			p.limit = err
			return nil, 2
		}
		if errors.Is(err, fs.ErrNotExist) {
			status = 2
			continue
		}
		if err != nil {
			return nil, p.refuse("%v", err)
		}
		texts = append(texts, string(text))
	}
	return texts, status
}

func cat(p *process, args []string) int {
	texts, status := p.input(args)
	for _, text := range texts {
		p.out.WriteString(text)
	}
	return status
}

// ls lists a folder that may be read. Where repositories are mounted there is nothing: that isn't configuration.
func ls(p *process, args []string) int {
	args = slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return arg == "-1" })
	if len(args) != 1 || strings.HasPrefix(args[0], "-") {
		return p.refuse("want one folder")
	}
	if p.shell.absolute(args[0]) == p.shell.mountDir() {
		return 0
	}
	names, err := p.shell.names(args[0])
	if err != nil {
		return p.refuse("%v", err)
	}
	for _, name := range names {
		p.out.WriteString(name + "\n")
	}
	return 0
}

// options takes flags of one letter off the arguments; those in valued have a value. Unknown ones fail the line.
func (p *process) options(args []string, flags, valued string) (set map[byte]string, rest []string, ok bool) {
	set = map[byte]string{}
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		arg := args[0][1:]
		args = args[1:]
		if arg == "-" {
			break
		}
		for arg != "" {
			c := arg[0]
			arg = arg[1:]
			switch {
			case strings.IndexByte(flags, c) >= 0:
				set[c] = "yes"
				continue
			case strings.IndexByte(valued, c) < 0:
				p.refuse("the option -%c is not supported", c)
				return nil, nil, false
			case arg != "":
				set[c] = arg
			case len(args) > 0:
				set[c], args = args[0], args[1:]
			default:
				p.refuse("the option -%c lacks its value", c)
				return nil, nil, false
			}
			arg = ""
		}
	}
	return set, args, true
}

// lines are the lines of a text without their ends.
func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// grepper makes a grep whose patterns are of a kind, which options may change.
func grepper(kind func(string) string) program {
	return func(p *process, args []string) int { return grep(p, args, kind) }
}

func extended(pattern string) string { return pattern }

func grep(p *process, args []string, kind func(string) string) int {
	set, args, ok := p.options(args, "qsivEFGxwcoh", "e")
	if !ok {
		return 2
	}
	pattern, given := set['e']
	if !given {
		if len(args) == 0 {
			return p.refuse("no pattern")
		}
		pattern, args = args[0], args[1:]
	}
	switch {
	case set['F'] != "":
		kind = regexp.QuoteMeta
	case set['E'] != "":
		kind = extended
	}
	if len(pattern) > maxPattern {
		return p.refuse("a pattern of more than %d bytes", maxPattern)
	}
	pattern = kind(pattern)
	if set['w'] != "" {
		pattern = `\b(?:` + pattern + `)\b`
	}
	if set['x'] != "" {
		pattern = `^(?:` + pattern + `)$`
	}
	if set['i'] != "" {
		pattern = "(?i)" + pattern
	}
	expr, size, err := compile(pattern)
	if err != nil {
		return p.refuse("the pattern is not supported: %v", err)
	}
	if p.limit = p.shell.step(p.at, size*instruction); p.limit != nil {
		return 2
	}
	texts, status := p.input(args)
	if p.fault != "" || p.limit != nil {
		return 2
	}
	found := 0
	for _, text := range texts {
		if p.limit = p.shell.step(p.at, work(len(text), size)); p.limit != nil {
			return 2
		}
		for _, line := range lines(text) {
			if expr.MatchString(line) == (set['v'] != "") {
				continue
			}
			found++
			switch {
			case set['q'] != "" || set['c'] != "":
			case set['o'] != "":
				for _, part := range expr.FindAllString(line, -1) {
					p.out.WriteString(part + "\n")
				}
			default:
				p.out.WriteString(line + "\n")
			}
		}
	}
	if set['c'] != "" && set['q'] == "" {
		fmt.Fprintln(&p.out, found)
	}
	switch {
	case found > 0 && (set['q'] != "" || status == 0):
		return 0
	case status != 0:
		return status
	}
	return 1
}

// basic makes an extended expression of a basic one, in which ( ) { } | + ? are special only behind a backslash.
func basic(pattern string) string {
	var b strings.Builder
	class := false
	for i := 0; i < len(pattern); i++ {
		c := pattern[i]
		switch {
		case class:
			class = c != ']' || pattern[i-1] == '[' || strings.HasSuffix(pattern[:i], "[^")
		case c == '[':
			class = true
		case c == '\\' && i+1 < len(pattern):
			i++
			if c = pattern[i]; strings.IndexByte("(){}|+?", c) < 0 {
				b.WriteByte('\\')
			}
		case strings.IndexByte("(){}|+?", c) >= 0:
			b.WriteByte('\\')
		case c == '*' && (i == 0 || pattern[i-1] == '^'):
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}

// cut knows -d and -f, and -c, with lists such as 1,3-.
func cut(p *process, args []string) int {
	set, args, ok := p.options(args, "s", "dfc")
	if !ok {
		return 2
	}
	list, separator := cmp.Or(set['f'], set['c']), cmp.Or(set['d'], "\t")
	chosen, err := ranges(list)
	if err != nil || len(separator) != 1 || set['f'] != "" && set['c'] != "" {
		return p.refuse("want -d C and -f LIST, or -c LIST")
	}
	texts, status := p.input(args)
	for _, text := range texts {
		for _, line := range lines(text) {
			if set['c'] != "" {
				p.out.WriteString(strings.Join(chosen(strings.Split(line, "")), "") + "\n")
				continue
			}
			fields := strings.Split(line, separator)
			switch {
			case len(fields) > 1:
				p.out.WriteString(strings.Join(chosen(fields), separator) + "\n")
			case set['s'] == "":
				p.out.WriteString(line + "\n")
			}
		}
	}
	return status
}

// ranges reads a list such as 1,3-5,7- and returns what chooses these, counted from 1.
func ranges(list string) (func([]string) []string, error) {
	var more [maxValue + 2]int // by how many more spans an item is chosen than the one before
	for item := range strings.SplitSeq(list, ",") {
		from, to, dash := strings.Cut(item, "-")
		if !dash {
			to = from
		}
		first, last := 1, maxValue
		for i, text := range []string{from, to} {
			if text == "" && dash {
				continue
			}
			v, err := strconv.Atoi(text)
			if err != nil || v < 1 {
				return nil, fmt.Errorf("%.40q isn't a list", list)
			}
			*[]*int{&first, &last}[i] = min(v, maxValue)
		}
		if first <= last {
			more[first]++
			more[last+1]--
		}
	}
	return func(items []string) (chosen []string) {
		n := 0
		for i, item := range items[:min(len(items), maxValue)] {
			if n += more[i+1]; n > 0 {
				chosen = append(chosen, item)
			}
		}
		return chosen
	}, nil
}

// tr knows SET SET, -d SET and -s SET of characters, ranges and \n \t.
func tr(p *process, args []string) int {
	set, args, ok := p.options(args, "ds", "")
	if !ok {
		return 2
	}
	if len(args) == 0 || len(args) > 2 || len(args) == 1 && len(set) == 0 || set['d'] != "" && len(args) > 1 {
		return p.refuse("want SET SET, -d SET or -s SET")
	}
	from, ok := characters(args[0])
	to := from
	if ok && len(args) == 2 {
		to, ok = characters(args[1])
	}
	if !ok || to == "" {
		return p.refuse("this set of characters is not supported")
	}
	become := map[byte]byte{} // the first place in a set is the one that counts
	for i := range len(from) {
		if _, twice := become[from[i]]; !twice {
			become[from[i]] = to[min(i, len(to)-1)]
		}
	}
	var squeezed [256]bool
	for i := range len(to) {
		squeezed[to[i]] = set['s'] != ""
	}
	var last byte
	for i := range len(p.in) {
		c := p.in[i]
		other, ok := become[c]
		if ok && set['d'] != "" {
			continue
		}
		if ok {
			c = other
		}
		if i > 0 && c == last && squeezed[c] {
			continue
		}
		p.out.WriteByte(c)
		last = c
	}
	return 0
}

func characters(set string) (string, bool) {
	classes := strings.NewReplacer("[:upper:]", "A-Z", "[:lower:]", "a-z", "[:digit:]", "0-9", "[:space:]", " \\t\\n",
		"[:blank:]", " \\t", `\n`, "\n", `\t`, "\t", `\\`, `\`)
	set = classes.Replace(classes.Replace(set))
	if strings.Contains(set, "[:") {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(set); i++ {
		if i+2 < len(set) && set[i+1] == '-' && set[i] <= set[i+2] {
			for c := int(set[i]); c <= int(set[i+2]); c++ {
				b.WriteByte(byte(c))
			}
			i += 2
			continue
		}
		b.WriteByte(set[i])
	}
	return b.String(), true
}

func sorted(p *process, args []string) int {
	set, args, ok := p.options(args, "ur", "")
	if !ok {
		return 2
	}
	texts, status := p.input(args)
	var all []string
	for _, text := range texts {
		all = append(all, lines(text)...)
	}
	slices.Sort(all)
	if set['r'] != "" {
		slices.Reverse(all)
	}
	if set['u'] != "" {
		all = slices.Compact(all)
	}
	for _, line := range all {
		p.out.WriteString(line + "\n")
	}
	return status
}

func head(p *process, args []string) int {
	if len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && strings.Trim(args[0][1:], "0123456789") == "" {
		args = append([]string{"-n", args[0][1:]}, args[1:]...)
	}
	set, args, ok := p.options(args, "", "n")
	if !ok {
		return 2
	}
	n, err := strconv.Atoi(cmp.Or(set['n'], "10"))
	if err != nil || n < 0 {
		return p.refuse("want a number of lines")
	}
	texts, status := p.input(args)
	for _, text := range texts {
		for i, line := range lines(text) {
			if i < n {
				p.out.WriteString(line + "\n")
			}
		}
	}
	return status
}

func basename(p *process, args []string) int {
	if len(args) < 1 || len(args) > 2 {
		return p.refuse("want a path")
	}
	name := path.Base(args[0])
	if len(args) == 2 {
		name = strings.TrimSuffix(name, args[1])
	}
	p.out.WriteString(name + "\n")
	return 0
}

func dirname(p *process, args []string) int {
	if len(args) != 1 {
		return p.refuse("want a path")
	}
	p.out.WriteString(path.Dir(args[0]) + "\n")
	return 0
}

// uname tells what is the kernel's, which is the host's also for a container.
func uname(p *process, args []string) int {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return p.refuse("%v", err)
	}
	known := map[string]string{
		"": unix.ByteSliceToString(u.Sysname[:]), "-s": unix.ByteSliceToString(u.Sysname[:]),
		"-m": unix.ByteSliceToString(u.Machine[:]), "-r": unix.ByteSliceToString(u.Release[:]),
	}
	text, ok := known[strings.Join(args, " ")]
	if !ok {
		return p.refuse("known are the options -m, -r and -s")
	}
	p.out.WriteString(text + "\n")
	return 0
}
