package main

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
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
