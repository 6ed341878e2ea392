package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/internal/program"
)

// printer shows the steps of a run.
type printer struct {
	out      io.Writer
	json     bool
	terminal bool // a line may be written over
	waits    int  // of the step under way, so far
}

// seldom is how many tidings of a step that waits make a line where lines can't be written over.
const seldom = 5

func newPrinter(c *cli.Context) *printer {
	return &printer{out: c.App.Writer, json: c.Bool(jsonFlag.Name), terminal: program.IsTerminal(c.App.Writer)}
}

// tell shows an event. What can't be written is lost, as it must not end a run half way.
func (p *printer) tell(e installer.Event) {
	if p.json {
		if e.Outcome != installer.Begins {
			json.NewEncoder(p.out).Encode(e) // lost if it fails, as is said above
		}
		return
	}
	if e.Outcome != installer.Waits {
		p.waits = 0
	} else if p.waits++; !p.terminal && p.waits%seldom != 0 {
		return
	}
	line := fmt.Sprintf("%-15s %-10s", e.Step, e.Outcome)
	if e.Text != "" && e.Outcome != installer.Failed { // of a step that failed the program's last line says why
		line += strings.ReplaceAll(e.Text, "\n", "\n"+strings.Repeat(" ", 26))
	}
	line = strings.TrimRight(line, " ")
	switch {
	case e.Outcome == installer.Waits && p.terminal:
		fmt.Fprint(p.out, "\r\x1b[K", line)
	case e.Outcome != installer.Begins:
		if p.terminal {
			line = "\r\x1b[K" + line
		}
		fmt.Fprintln(p.out, line)
	case p.terminal:
		fmt.Fprintf(p.out, "%-15s …", e.Step)
	}
}
