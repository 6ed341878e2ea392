package config

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWhatIsGivenReplacesWhatIsConfigured(t *testing.T) {
	dir := t.TempDir()
	text := "CVMFS_SERVER_URL=http://configured/@fqrn@\nCVMFS_PUBLIC_KEY=/etc/cvmfs/keys/a.pub\n" +
		"CVMFS_HTTP_PROXY=http://p:1\nCVMFS_FALLBACK_PROXY=http://f:1\n"
	if err := os.WriteFile(filepath.Join(dir, "default.local"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	folder := Folder{Dir: dir, Shown: dir}
	type result struct {
		Servers, Keys []string
		Proxies       [][]string
	}
	configured := result{
		[]string{"http://configured/a.example.org"},
		[]string{filepath.Join(dir, "keys/a.pub")},
		[][]string{{"http://p:1"}, {"http://f:1"}},
	}
	for name, c := range map[string]struct {
		given Given
		want  result
	}{
		"nothing": {Given{}, configured},
		"servers": {
			Given{Servers: "http://a/@fqrn@;http://b"},
			result{[]string{"http://a/a.example.org", "http://b"}, configured.Keys, configured.Proxies},
		},
		// As the caller calls them: not below the folder, though they are named as if they were.
		"keys": {
			Given{PublicKeys: "/etc/cvmfs/keys/b.pub:c.pub"},
			result{configured.Servers, []string{"/etc/cvmfs/keys/b.pub", "c.pub"}, configured.Proxies},
		},
		"proxies, without the fallback": {
			Given{Proxies: "http://q:1|http://r:1;DIRECT"},
			result{configured.Servers, configured.Keys, [][]string{{"http://q:1", "http://r:1"}, {"DIRECT"}}},
		},
	} {
		got, err := folder.LoadGiven("a.example.org", c.given)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(c.want, result{got.Servers, got.PublicKeys, got.ProxyGroups}); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
	if _, err := (Folder{Dir: t.TempDir()}).LoadGiven("a.example.org", Given{Servers: "http://a"}); !errors.Is(err,
		ErrNotConfigured) {
		t.Errorf("with a server alone: %v", err)
	}
}
