package installer

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCommandsThatUndoAreWordsOfAShell(t *testing.T) {
	words := []string{
		"", "plain", "with space", "it's", `"`, `\`, "$HOME", "`id`", "*", "[a]", "{a,b}", "#x", "~", "!x", "a=b", "a;b",
		"a|b", "tab\t", "line\nfeed", "\xff", "é", "if", "-x",
	}
	out, err := exec.CommandContext(t.Context(), "bash", "-c", `printf '%s\0' `+quote(words...)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(words, strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if got := quote("cvmfs-graphdriver", "/etc/docker/daemon.json"); got != "cvmfs-graphdriver /etc/docker/daemon.json" {
		t.Errorf("got %s", got)
	}
}
