package program

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
)

// asProgram makes the test's own program run as the app it names.
const asProgram = "TEST_RUNS_AN_APP"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asProgram) != "":
		os.Exit(Run(context.Background(), app(os.Stdout), os.Args))
	case os.Getenv(cleaning) != "":
		Main(clean)
	}
	os.Exit(m.Run())
}

// app has a command with options and one with commands below it.
func app(out *os.File) *cli.App {
	return &cli.App{
		Name: "some-program", Usage: "do things", Writer: out, ErrWriter: os.Stderr,
		Commands: []*cli.Command{
			{
				Name: "copy", Usage: "copy \"it\" – or don't", ArgsUsage: "FROM TO",
				Description: "One paragraph with \\n and -x.\n\n  kept   as\n  it is\n\n.not a macro",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "mode", Aliases: []string{"m"}, Usage: "`MODE` of the copy", Value: "fast"},
					&cli.BoolFlag{Name: "move", Usage: "remove what was copied"},
					&cli.BoolFlag{Name: "secret", Hidden: true},
				},
				Action: func(*cli.Context) error { panic("a completion must not run commands") },
			},
			{Name: "show", Usage: "look", Subcommands: []*cli.Command{
				{Name: "all", Usage: "look at all"},
				{Name: "one", Usage: "look at one"},
			}},
			VersionCommand("1", ""),
		},
	}
}

// docs returns what the hidden command prints.
func docs(t *testing.T, args ...string) string {
	t.Helper()
	a := app(nil)
	var out, errOut bytes.Buffer
	a.Writer, a.ErrWriter = &out, &errOut
	if code := Run(t.Context(), a, append([]string{"some-program", "docs"}, args...)); code != Done {
		t.Fatalf("docs %q: exit code %d: %s", args, code, &errOut)
	}
	return out.String()
}

func TestManualPageSaysWhatHelpSays(t *testing.T) {
	want := `.TH "SOME\-PROGRAM" 1 "2026-01-31" "" "User Commands"
.SH NAME
some\-program \- do things
.SH SYNOPSIS
\fBsome\-program\fR \fICOMMAND\fR [\fIoption\fR ...] [\fIargument\fR ...]
.SH OPTIONS
.TP
\fB\-\-help\fR\fI\fR, \fB\-h\fR\fI\fR
show help
.SH COMMANDS
.SS "some\-program copy [option ...] FROM TO"
copy \[u0022]it\[u0022] \[u2013] or don\[u0027]t
.PP
One paragraph with \en and \-x.
.PP
.nf
  kept   as
  it is
.fi
.PP
\&.not a macro
.TP
\fB\-\-mode\fR\fI MODE\fR, \fB\-m\fR\fI MODE\fR
\fIMODE\fR of the copy (default: \[u0022]fast\[u0022])
.TP
\fB\-\-move\fR\fI\fR
remove what was copied
.SS "some\-program show"
look
.SS "some\-program show all"
look at all
.SS "some\-program show one"
look at one
.SS "some\-program version"
print the version
.SH EXIT STATUS
.TP
\fB0\fR
success
.TP
\fB1\fR
failure
.TP
\fB2\fR
wrong usage
.TP
\fB3\fR
the host or the repository does not meet the requirements
.TP
\fB4\fR
install, upgrade or uninstall failed, and its changes to the host were undone
.TP
\fB141\fR
the output was not read to its end, for example because a pipe was closed
`
	if diff := cmp.Diff(want, docs(t, "man", "--date", "2026-01-31")); diff != "" {
		t.Error(diff)
	}
}

func TestBashCompletes(t *testing.T) {
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "some-program")); err != nil {
		t.Fatal(err)
	}
	script := docs(t, "bash") + `
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_some-program
printf '%s\n' "${COMPREPLY[@]}"
`
	for _, c := range []struct {
		line []string
		want string
	}{
		{[]string{""}, "copy show version help h"},
		{[]string{"s"}, "show"},
		{[]string{"show", ""}, "all one help h"},
		{[]string{"show", "o"}, "one"},
		{[]string{"copy", ""}, ""},
		{[]string{"copy", "--mo"}, "--mode --move"},
		{[]string{"copy", "a b", "--mov"}, "--move"},
		{[]string{"copy", "--", ""}, ""},
	} {
		cmd := exec.CommandContext(t.Context(), "bash", append([]string{"-c", script, "bash", "some-program"},
			c.line...)...)
		cmd.Env = append(os.Environ(), asProgram+"=1", "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", c.line, err, out)
		}
		if got := strings.Join(strings.Fields(string(out)), " "); got != c.want {
			t.Errorf("%q: got %q, want %q", c.line, got, c.want)
		}
	}
}
