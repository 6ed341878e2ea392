package main

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

// TestByHandItSaysWhatItIsAndStartsNothing: it is found on a host beside the other programs, and tried.
func TestByHandItSaysWhatItIsAndStartsNothing(t *testing.T) {
	if inPlugin() {
		t.Fatalf("this host has %s", rootDir)
	}
	places := []string{socket, runDir, fuseDir}
	there := func() (found []string) {
		for _, place := range places {
			if _, err := os.Lstat(place); err == nil {
				found = append(found, place)
			}
		}
		return found
	}
	before := there()
	for _, c := range []struct {
		args []string
		code int
		out  string // on stdout, or for a wrong call on stderr
	}{
		{nil, exitUsage, "no plugin"},
		{[]string{"--help"}, 0, "cvmfs-graphdriver install"},
		{[]string{"-h"}, 0, "cvmfs-graphdriver install"},
		{[]string{"help"}, 0, "cvmfs-graphdriver install"},
		{[]string{"version"}, 0, "cvmfs-graphdriver-plugin " + version},
		{[]string{"--version"}, 0, "cvmfs-graphdriver-plugin " + version},
		{[]string{"serve"}, exitUsage, "cvmfs-graphdriver install"},
		{[]string{"install"}, exitUsage, `"install"`},
		{[]string{"version", "x"}, exitUsage, "arguments"},
		{[]string{""}, exitUsage, "argument"},
		{[]string{"evaluate-pac"}, exitFailed, "EOF"}, // for a script, of which there is none
	} {
		cmd := exec.Command(os.Args[0], c.args...)
		cmd.Env = append(os.Environ(), underTest+"=1")
		var out, errOut strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := cmd.Run()
		code := 0
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		said, silent := out.String(), errOut.String()
		if c.code != 0 {
			said, silent = silent, said
		}
		if code != c.code || !strings.Contains(said, c.out) || silent != "" {
			t.Errorf("%q: exit %d, want %d; said %q, want %q; and %q", c.args, code, c.code, said, c.out, silent)
		}
	}
	if after := there(); !slices.Equal(before, after) {
		t.Errorf("there is %q, and was %q", after, before)
	}
}

// A plugin that was given a folder that nobody shares any more ends, so that the engine starts it anew.
func TestItEndsWhereNobodySeesWhatItMounts(t *testing.T) {
	testutil.NeedRoot(t)
	const peer = `mkdir "$0"/peer; mount --bind "$1" "$0"/peer; `
	for what, c := range map[string]struct {
		commands, run string // before it starts, and the options of /run
		unseen        bool
	}{
		// what goes on ends where it can't make its socket
		"the engine has the folder, too": {peer, "ro", false},
		"the engine has lost it":         {"", "ro", true},
		"the engine loses it later": {
			peer + `(until test -S ` + socket + `; do sleep 0.1; done; umount "$0"/peer) & `, "rw", true,
		},
	} {
		t.Run(what, func(t *testing.T) {
			script := shareFolder + `; mount --make-shared "$1"; mount -t tmpfs -o ` + c.run + ` tmpfs /run; ` +
				c.commands + `exec "$2"`
			cmd := exec.Command("/bin/sh", "-ec", script, t.TempDir(), rootDir, os.Args[0])
			cmd.Env = append(os.Environ(), underTest+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
			out, err := cmd.CombinedOutput()
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != exitFailed {
				t.Fatalf("%v: %s", err, out)
			}
			if got := strings.Contains(string(out), "start the plugin anew"); got != c.unseen {
				t.Errorf("it says: %s", out)
			}
		})
	}
}
