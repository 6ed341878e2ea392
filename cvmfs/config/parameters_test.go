package config

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the table of docs/configuration.md")

// table is the parameters as a table of Markdown.
func table() string {
	var b strings.Builder
	b.WriteString("| parameter | value | default | here | meaning |\n|---|---|---|---|---|\n")
	for _, p := range Parameters {
		value := strings.ReplaceAll(string(p.Type), "|", `\|`)
		fallback := ""
		if p.Default != "" {
			fallback = "`" + p.Default + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", p.Name, value, fallback, p.Status, p.Meaning)
	}
	return b.String()
}

func TestTheDocumentHasAllParameters(t *testing.T) {
	const file = "../../docs/configuration.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), "-update -->\n")
	_, after, ended := strings.Cut(rest, "<!-- end of parameters -->")
	if !ok || !ended {
		t.Fatal("the document lacks the table's marks")
	}
	want := before + "-update -->\n" + table() + "<!-- end of parameters -->" + after
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, string(b)); d != "" {
		t.Errorf("write it with -update (-want +got):\n%s", d)
	}
}

func TestParametersAreDescribedOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range Parameters {
		sentence := strings.HasSuffix(p.Meaning, ".") && p.Meaning[0] >= 'A' && p.Meaning[0] <= 'Z'
		if seen[p.Name] || p.Name == "" || p.Type == "" || p.Status == "" || !sentence {
			t.Errorf("%+v", p)
		}
		seen[p.Name] = true
		if n, whole := leading(p.Default); p.Default != "" && p.max > 0 && (!whole || n < p.min || n > p.max) {
			t.Errorf("%s: default %s", p.Name, p.Default)
		}
	}
}

// Every parameter that is read has its row, and what has no effect isn't read as if it had one.
func TestEveryParameterThatIsReadIsInTheTable(t *testing.T) {
	text := ""
	for _, file := range []string{"settings.go", "files.go", "config.go"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text += string(b)
	}
	for _, m := range strings.FieldsFunc(text, func(r rune) bool { return r == '"' }) {
		if (strings.HasPrefix(m, "CVMFS_") || strings.HasPrefix(m, "X509_")) && strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == "" {
			if _, ok := Lookup(m); !ok && !strings.HasSuffix(m, "_") {
				t.Errorf("%s is read and not in the table", m)
			}
		}
	}
}

func TestSettingsWithoutEffectAndMisspeltNamesAreTold(t *testing.T) {
	dir := folder(t, map[string]string{
		"default.conf": "CVMFS_QUOTA_LIMIT=4000\nCVMFS_CLAIM_OWNERSHIP=yes\nCVMFS_SEND_INFO_HEADER=no\n",
		"default.local": `CVMFS_HTTP_PROXI=http://user:secret@p
CVMFS_PUBLIC_KYE=/x
CMVFS_TIMEOUT=3
CVMFS_SITE=here
CVMFS_MY_HELPER=1
CVMFS_OTHER=$CVMFS_MY_HELPER
CVMFS_CACHE_fast_TYPE=ram
CVMFS_HTTP_TRACING=on
CVMFS_HTTP_TRACING_HEADERS=
http_proxy=x
TIMEOUTS=4
`,
		"config.d/" + fqrn + ".conf": complete,
	})
	c, found := load(t, dir)
	want := `/etc/cvmfs/default.local:3: CMVFS_TIMEOUT: no such parameter is known: is CVMFS_TIMEOUT meant?
/etc/cvmfs/default.local:1: CVMFS_HTTP_PROXI: no such parameter is known: is CVMFS_HTTP_PROXY meant?
/etc/cvmfs/default.local:8: CVMFS_HTTP_TRACING: is set and has no effect here: Whether requests have headers for tracing.
/etc/cvmfs/default.local:6: CVMFS_OTHER: no such parameter is known
/etc/cvmfs/default.local:2: CVMFS_PUBLIC_KYE: no such parameter is known: is CVMFS_PUBLIC_KEY meant?
/etc/cvmfs/default.local:4: CVMFS_SITE: no such parameter is known
`
	if d := cmp.Diff(want, found); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if c.Findings[0].Kind != Unknown || c.Findings[2].Kind != NotHonored {
		t.Errorf("kinds: %+v", c.Findings)
	}
}

func TestDistancesCountChanges(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"abc", "abc", 0},
		{"abc", "abd", 1},
		{"abc", "ab", 1},
		{"abc", "xabc", 1},
		{"abc", "acb", 1},
		{"abc", "cba", 2},
		{"", "ab", 2},
		{"abcdef", "uvwxyz", 5},
	} {
		if got := distance(c.a, c.b, 5); got != c.want {
			t.Errorf("%q, %q: got %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
