package program

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/urfave/cli/v2"
)

// manPage returns the manual page of an app, in section 1, as troff's man(7) macros. It says all that --help says, for
// every command that isn't hidden. The date is the page's.
func manPage(app *cli.App, date time.Time) string {
	m := &manual{}
	m.line(`.TH "%s" 1 "%s" "" "User Commands"`, troff(strings.ToUpper(app.Name)), date.UTC().Format(time.DateOnly))
	m.section("NAME")
	m.line(`%s \- %s`, troff(app.Name), markup(app.Usage))
	m.section("SYNOPSIS")
	m.line(`\fB%s\fR \fICOMMAND\fR [\fIoption\fR ...] [\fIargument\fR ...]`, troff(app.Name))
	if app.Description != "" {
		m.section("DESCRIPTION")
		m.text(app.Description)
	}
	m.section("OPTIONS")
	m.flags(app.VisibleFlags())
	m.section("COMMANDS")
	m.commands(app.Name, app.VisibleCommands())
	m.section("EXIT STATUS")
	for _, e := range exits {
		m.line(".TP\n\\fB%d\\fR\n%s", e.code, markup(e.means))
	}
	return m.String()
}

// manual is a page that is being written.
type manual struct{ strings.Builder }

func (m *manual) line(format string, args ...any) { fmt.Fprintf(m, format+"\n", args...) }

func (m *manual) section(name string) { m.line(".SH %s", name) }

// commands describes commands, each followed by those below it; path is what stands before their names.
func (m *manual) commands(path string, commands []*cli.Command) {
	for _, c := range commands {
		if c.Hidden || c.Name == "help" {
			continue
		}
		title := path + " " + c.Name
		if len(c.VisibleFlags()) > 0 {
			title += " [option ...]"
		}
		if c.ArgsUsage != "" {
			title += " " + c.ArgsUsage
		}
		m.line(`.SS "%s"`, troff(title))
		m.line("%s", markup(c.Usage))
		if c.Description != "" {
			m.line(".PP")
			m.text(c.Description)
		}
		m.flags(c.VisibleFlags())
		m.commands(path+" "+c.Name, c.Subcommands)
	}
}

// text writes paragraphs, which empty lines divide. One whose lines are all indented keeps its lines.
func (m *manual) text(text string) {
	for n, paragraph := range strings.Split(strings.Trim(text, "\n"), "\n\n") {
		if n > 0 {
			m.line(".PP")
		}
		lines := strings.Split(paragraph, "\n")
		kept := true
		for _, l := range lines {
			kept = kept && strings.HasPrefix(l, " ")
		}
		if kept {
			m.line(".nf")
		}
		for _, l := range lines {
			m.line("%s", markup(l))
		}
		if kept {
			m.line(".fi")
		}
	}
}

// flags lists options with their values' names and defaults.
func (m *manual) flags(flags []cli.Flag) {
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		usage, value := d.GetUsage(), ""
		if d.TakesValue() {
			value = " VALUE"
			if name := quoted.FindStringSubmatch(usage); name != nil {
				value = " " + name[1]
			}
			if v := cmp.Or(d.GetDefaultText(), d.GetValue()); v != "" {
				usage += " (default: " + v + ")"
			}
		}
		var names []string
		for _, name := range f.Names() {
			dashes := "--"
			if len(name) == 1 {
				dashes = "-"
			}
			names = append(names, fmt.Sprintf(`\fB%s\fR\fI%s\fR`, troff(dashes+name), troff(value)))
		}
		m.line(".TP\n%s\n%s", strings.Join(names, ", "), markup(usage))
	}
}

// quoted is what stands between backquotes in a command's or an option's description: the name of a value, or what one
// types.
var quoted = regexp.MustCompile("`([^`]*)`")

// markup makes a line of text troff, with what is quoted in italics.
func markup(line string) string { return quoted.ReplaceAllString(troff(line), `\fI$1\fR`) }

// troff makes text that troff shows as it is, in a line or between double quotes.
func troff(text string) string {
	var b strings.Builder
	for n, r := range text {
		switch {
		case r == '.' && n == 0:
			b.WriteString(`\&.`)
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case strings.ContainsRune(`"'^~`, r) || r > unicode.MaxASCII:
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
