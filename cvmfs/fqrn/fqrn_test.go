package fqrn

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNames(t *testing.T) {
	for _, good := range []string{
		"a.b", "unpacked.cern.ch", "legacy_aufs.cern.ch", "A-1.x", "short", "a-", "a.-b", "_",
		strings.Repeat("a", 60),
	} {
		if err := Check(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", ".", "..", ".a", "a.", "a..b", "a/b", "../x", "a b", "a\n", "a\x00", "ä.b", "a:b",
		"-a", "a@b", strings.Repeat("a", 61),
	} {
		if err := Check(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestLists(t *testing.T) {
	got, err := ParseList(" a.example.org,b.example.org ,c")
	if diff := cmp.Diff([]string{"a.example.org", "b.example.org", "c"}, got); err != nil || diff != "" {
		t.Errorf("%v, %s", err, diff)
	}
	for _, bad := range []string{"", "a.example.org,", "a.example.org, -b"} {
		if got, err := ParseList(bad); err == nil {
			t.Errorf("%q is %q", bad, got)
		}
	}
}
