package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"cvmfs-graphdriver/driver/metrics"
	"cvmfs-graphdriver/test/prometheus"
	"cvmfs-graphdriver/test/testutil"
)

// exported returns the labels of all series that a node exports, by their names. Those that Prometheus adds are among
// them.
func exported() map[string][]string {
	series := map[string][]string{"up": {"job", "instance"}}
	for _, f := range metrics.Families() {
		labels := append([]string{"job", "instance"}, f.Labels...)
		if f.Type != "histogram" {
			series[f.Name] = labels
			continue
		}
		series[f.Name+"_sum"], series[f.Name+"_count"] = labels, labels
		series[f.Name+"_bucket"] = append(labels, "le")
	}
	return series
}

var (
	quoted   = regexp.MustCompile(`"[^"]*"`)
	selector = regexp.MustCompile(`([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}`)
	matcher  = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)`)
	span     = regexp.MustCompile(`\[[^\]]*\]`)
	grouping = regexp.MustCompile(`\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
	word     = regexp.MustCompile(`\b[a-zA-Z_:][\w:]*\b\s*\(?`)
)

// words of the language that look like names of series.
var reserved = []string{"and", "or", "unless", "bool", "offset"}

// strangers returns what an expression names and no node exports: series, and labels that its series have not.
func strangers(expr string) (found []string) {
	series := exported()
	expr = quoted.ReplaceAllString(expr, `""`)
	var labels []string // of any series in the expression
	note := func(name string) {
		if of, ok := series[name]; ok {
			labels = append(labels, of...)
		} else {
			found = append(found, name)
		}
	}
	for _, m := range selector.FindAllStringSubmatch(expr, -1) {
		for _, label := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(series[m[1]], label[1]) {
				found = append(found, m[1]+"{"+label[1]+"}")
			}
		}
	}
	expr = selector.ReplaceAllString(expr, "$1 ")
	expr = span.ReplaceAllString(expr, " ")
	groupings := grouping.FindAllStringSubmatch(expr, -1)
	for _, w := range word.FindAllString(grouping.ReplaceAllString(expr, " "), -1) {
		if !strings.HasSuffix(w, "(") && !slices.Contains(reserved, strings.TrimSpace(w)) {
			note(strings.TrimSpace(w))
		}
	}
	for _, m := range groupings {
		for label := range strings.FieldsFuncSeq(m[2], func(r rune) bool { return r == ',' || r == ' ' }) {
			if !slices.Contains(labels, label) {
				found = append(found, m[1]+" ("+label+")")
			}
		}
	}
	return found
}

func TestStrangersAreFound(t *testing.T) {
	for expr, want := range map[string]string{
		`up{job="x"} == 0`: "", `rate(cvmfs_cache_hits_total[5m]) > 3`: "",
		`sum by (server, le) (rate(cvmfs_fetch_duration_seconds_bucket{instance=~".*"}[5m]))`: "",
		`cvmfs_images and on (instance) cvmfs_build_info`:                                     "",
		`cvmfs_cache_hits`: "cvmfs_cache_hits",
		`cvmfs_images + rate(node_load1{x="cvmfs_images"}[1m])`:      "node_load1{x} node_load1",
		`cvmfs_fetch_duration_seconds`:                               "cvmfs_fetch_duration_seconds",
		`sum by (kind) (cvmfs_images)`:                               "by (kind)",
		`cvmfs_images{repository="x"}`:                               "cvmfs_images{repository}",
		`increase(cvmfs_fetch_errors_total{kind="dead",le="1"}[1m])`: "cvmfs_fetch_errors_total{le}",
	} {
		if got := strings.Join(strangers(expr), " "); got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}

// labelUse is how texts of alerts, and legends, name labels.
var labelUse = regexp.MustCompile(`\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}`)

// checkLabels has the test fail for labels in a text that no series of the expression has.
func checkLabels(t *testing.T, text, expr string) {
	t.Helper()
	for _, m := range labelUse.FindAllStringSubmatch(text, -1) {
		has := func(labels []string) bool { return slices.Contains(labels, m[1]) }
		known := false
		for name, labels := range exported() {
			known = known || has(labels) && strings.Contains(expr, name)
		}
		if !known {
			t.Errorf("%q names %s, which %s has not", text, m[1], expr)
		}
	}
}

func TestTheDashboardShowsWhatNodesExport(t *testing.T) {
	d, err := prometheus.ReadDashboard(testutil.Root(t))
	if err != nil || len(d.Panels) < 10 {
		t.Fatal(len(d.Panels), err)
	}
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []rule
	for _, p := range d.Panels {
		if p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("%s: no description, or nothing to show", p.Title)
		}
		for _, target := range p.Targets {
			query := target.Query("5m")
			if names := strangers(query); len(names) > 0 {
				t.Errorf("%s: no node exports %q: %s", p.Title, names, query)
			}
			checkLabels(t, target.LegendFormat, query)
			rules = append(rules, rule{fmt.Sprintf("panel:%d", len(rules)), query})
		}
	}
	// As rules they are parsed by Prometheus' own program.
	b, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	prometheus.Check(t, nil, "check", "rules", file)
}

func TestAlertsWatchWhatNodesExport(t *testing.T) {
	root := testutil.Root(t)
	alerts, err := prometheus.ReadAlerts(root)
	if err != nil || len(alerts) < 10 {
		t.Fatal(len(alerts), err)
	}
	for _, a := range alerts {
		if names := strangers(a.Expr); len(names) > 0 {
			t.Errorf("%s: no node exports %q", a.Alert, names)
		}
		if a.Annotations["summary"] == "" || a.Annotations["description"] == "" {
			t.Errorf("%s: doesn't say what is wrong and what to do", a.Alert)
		}
		for _, name := range slices.Sorted(maps.Keys(a.Annotations)) {
			checkLabels(t, a.Annotations[name], a.Expr)
		}
	}
	prometheus.Check(t, nil, "check", "rules", filepath.Join(root, prometheus.AlertsFile))
}

// Each alert is given by a node in trouble, and none by one in order.
func TestAlertsAreGivenWhenTheyShould(t *testing.T) {
	prometheus.Check(t, nil, "test", "rules", filepath.Join(testutil.Root(t), "packaging/testdata/alerts_test.yml"))
}

// The table of alerts in the guide for operators is that of the file, and each has a line that says what to do.
func TestTheGuideTellsWhatToDoAtEachAlert(t *testing.T) {
	root := testutil.Root(t)
	alerts, err := prometheus.ReadAlerts(root)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, a := range alerts {
		want = append(want, a.Alert)
	}
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(Cvmfs\\w+)` \\| .+ \\| .+ \\|$").FindAllStringSubmatch(string(text), -1) {
		got = append(got, m[1])
	}
	if !slices.Equal(want, got) {
		t.Errorf("docs/operations.md tells of\n%q\nand the alerts are\n%q", got, want)
	}
}
