package receive

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/test/testutil"
)

const full = `version: 1
target: native:/srv/layers
subdirectory: pushed
state: /var/lib/receive
listen: 0.0.0.0:3000
certificate: /etc/receive/tls.crt
key: /etc/receive/tls.key
tokens: /etc/receive/tokens
event_sender: minio
bucket:
  address: s3://layers?endpoint=https://minio.example.org
  credentials: /etc/receive/s3
  poll: 30s
limits: {archive: 1GiB, content: 10GB, entries: 1000, queue: 7, spool: 2TiB, uploads: 3}
nodes:
  - name: n1
    images: ['registry.example.org/team/*']
    prefixes: [n1/, shared/n1]
    archive: 100MB
    layers_per_hour: 5
    bytes_per_day: 1GiB
    approval: true
  - name: '*'
approval: false
give_up_after: 1h
keep_records: 24h
keep_uploads: 10m
`

func TestConfigurationsAreRead(t *testing.T) {
	c, err := Read(strings.NewReader(full))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Target: "native:/srv/layers", Layout: convert.Layout{Subdirectory: "pushed"}, State: "/var/lib/receive",
		Audit: "/var/lib/receive/audit.jsonl", Listen: "0.0.0.0:3000", Certificate: "/etc/receive/tls.crt",
		Key: "/etc/receive/tls.key", Tokens: "/etc/receive/tokens", Events: "minio",
		Bucket: Bucket{"s3://layers?endpoint=https://minio.example.org", "/etc/receive/s3", 30 * time.Second},
		Limits: Limits{1 << 30, 10_000_000_000, 1000, 7, 2 << 40, 3},
		Nodes: []Node{
			{
				Name: "n1", Images: []string{"registry.example.org/team/*"}, Prefixes: []string{"n1", "shared/n1"},
				Archive: 100_000_000, PerHour: 5, PerDay: 1 << 30, Approval: true,
			},
			{Name: "*"},
		},
		GiveUp: time.Hour, Keep: 24 * time.Hour, Upload: 10 * time.Minute,
	}
	if diff := cmp.Diff(want, c, cmp.AllowUnexported(Config{})); diff != "" {
		t.Error(diff)
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	least := "version: 1\ntarget: native:/x\nbucket: {address: 's3://b'}\n"
	if _, err := Read(strings.NewReader(least)); err != nil {
		t.Errorf("the least there is: %v", err)
	}
	listening := "version: 1\ntarget: native:/x\ntokens: /t\nlisten: "
	for name, c := range map[string]struct{ text, want string }{
		"empty":                {"", "empty"},
		"no keys":              {"- 1\n", "line 1: want keys"},
		"two documents":        {least + "---\nversion: 1\n", "more than one document"},
		"no version":           {"target: native:/x\n", "want version: 1"},
		"another version":      {"version: 2\n", "line 1: version: want 1"},
		"unknown key":          {least + "approved: true\n", `line 4: unknown key "approved": the keys are version, target`},
		"nodes without any":    {least + "nodes:\n#  - name: n1\n", "line 4: nodes: want a list of nodes, or leave it out"},
		"a rate of nothing":    {least + "nodes:\n  - name: n1\n    layers_per_hour:\n", "layers_per_hour: want"},
		"nobody as sender":     {least + "event_sender:\n", "event_sender: want"},
		"approval of nothing":  {least + "nodes:\n  - name: n1\n    approval:\n", "approval: want"},
		"unknown inner key":    {least + "limits:\n  archiv: 1GiB\n", `line 5: unknown key "archiv"`},
		"key twice":            {least + "approval: true\napproval: false\n", "line 5: approval is there twice"},
		"no size":              {least + "limits: {archive: big}\n", "line 4: archive: want a size"},
		"nothing of a size":    {least + "limits: {archive: 0}\n", "line 4: archive: want a size"},
		"no number":            {least + "limits: {queue: -1}\n", "line 4: queue: want a number from 1"},
		"no time":              {least + "give_up_after: 10\n", "line 4: give_up_after: want a time"},
		"no answer":            {least + "approval: maybe\n", "line 4: approval: want true or false"},
		"no list":              {least + "nodes: n1\n", "line 4: nodes: want a list"},
		"empty list":           {least + "nodes: []\n", "line 4: nodes: an empty list"},
		"node without name":    {least + "nodes: [{approval: true}]\n", "line 4: name: want"},
		"node twice":           {least + "nodes:\n- {name: a}\n- {name: a}\n", "line 6: the node a is there twice"},
		"folder of two":        {least + "nodes:\n- {name: a, prefixes: [x]}\n- {name: b, prefixes: [x/y]}\n", "line 6: prefixes"},
		"folder of everybody":  {least + "nodes:\n- {name: '*', prefixes: [x]}\n", "line 5: prefixes"},
		"bucket without a one": {"version: 1\ntarget: native:/x\nbucket: {poll: 1m}\n", "line 3: bucket: no address"},
		"too many entries":     {least + "limits: {entries: 100000000}\n", "line 4: limits"},
		"layout":               {least + "subdirectory: ../x\n", "subdirectory"},
		"no door":              {"version: 1\ntarget: native:/x\n", "neither listen nor bucket"},
		"no target":            {"version: 1\nbucket: {address: 's3://b'}\n", "no target"},
		"without tokens":       {"version: 1\ntarget: native:/x\nlisten: '127.0.0.1:1'\n", "listen needs tokens"},
		"in the clear":         {listening + "'0.0.0.0:1'\n", "others could read the tokens"},
		"no address":           {listening + "nowhere\n", "want HOST:PORT"},
		"half of TLS":          {least + "key: /k\n", "give both, or none"},
		"state":                {least + "state: here\n", "want an absolute path"},
	} {
		if _, err := Read(strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
	if _, err := Read(strings.NewReader(listening + "'127.0.0.1:1'\n")); err != nil {
		t.Errorf("the local host: %v", err)
	}
}

func TestFaultsAreToldAllAtOnce(t *testing.T) {
	_, err := Read(strings.NewReader("version: 1\nx: 1\nlimits: {y: 1}\nnodes: [{z: 1}]\n"))
	for _, want := range []string{"line 2", "line 3", "line 4"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: nothing of %s", err, want)
		}
	}
}

func FuzzConfigurationsAreTakenOrRefused(f *testing.F) {
	f.Add(full)
	f.Add("version: 1\nlimits: &a {archive: 1}\nbucket: *a\n")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Read(strings.NewReader(text))
		if err == nil && (c.Limits.Archive <= 0 || c.Listen == "" && c.Bucket.Address == "") {
			t.Errorf("%+v", c)
		}
	})
}

func TestTokensAreRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	for text, want := range map[string]string{
		"":                              "it has none",
		"# none\n\n":                    "it has none",
		"a short\n":                     "line 1: the token of a is shorter",
		"a\n":                           "line 1: want a name and a token",
		"a " + token1 + " x\n":          "line 1: want a name and a token",
		"a " + token1 + "\nb " + token1: "line 2: a and b have the same token",
		"a " + token1 + "\na " + token2: "",
		"#x\na\t" + token1 + "\r\n":     "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := (&tokens{file: file}).read()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), token1) {
			t.Errorf("a token is told: %v", err)
		}
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := (&tokens{file: file}).read(); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("a file that others may read: %v", err)
	}
}

// The guide has all keys and all metrics.
func TestTheGuideTellsAllKeysAndMetrics(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(testutil.Root(t), "docs/pushback.md"))
	if err != nil {
		t.Fatal(err)
	}
	told := func(name string) {
		t.Helper()
		if !regexp.MustCompile("[`.]" + regexp.QuoteMeta(name) + "[`:{]").Match(text) {
			t.Errorf("docs/pushback.md has no %s", name)
		}
	}
	_, err = Read(strings.NewReader("version: 1\nx: 1\nlimits: {x: 1}\nnodes: [{x: 1}]\nbucket: {x: 1}\n"))
	lists := regexp.MustCompile(`the keys are (.*)`).FindAllStringSubmatch(err.Error(), -1)
	if len(lists) != 4 {
		t.Fatalf("%d lists of keys: %v", len(lists), err)
	}
	for _, list := range lists {
		for key := range strings.SplitSeq(list[1], ", ") {
			told(key)
		}
	}
	s := newSite(t, nil)
	s.turn()
	s.counts.last = time.Now()
	names := regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(string(s.metrics()), -1)
	if len(names) < 9 {
		t.Errorf("metrics: %v", names)
	}
	for _, name := range names {
		told(name[1])
	}
}

// The guide's configuration is taken.
func TestTheGuidesConfigurationIsTaken(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(testutil.Root(t), "docs/pushback.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "```yaml\n")
	block, _, _ := strings.Cut(rest, "```")
	if c, err := Read(strings.NewReader(strings.ReplaceAll("\n"+block, "\n   ", "\n"))); !found || err != nil {
		t.Errorf("%+v, %v", c, err)
	}
}
