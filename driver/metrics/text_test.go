package metrics

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"testing"

	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/test/prometheus"
)

// busy is a node of which everything can be told, with names of all kinds.
func busy() status.Node {
	took := status.Durations{Bounds: []float64{0.5, 1}, Counts: []int64{2, 0, 1}, Sum: 62.25}
	return status.Node{
		Version: "1.2", Commit: "c0ffee",
		Objects: status.Objects{Fetched: 7, FetchedBytes: 1 << 60, Waiting: 3},
		Cache:   status.Cache{Limit: 1 << 40, Used: 1 << 39, Hits: 5},
		Fetch:   map[string]status.Fetch{"b.example.org": {Bytes: 12}, "a.example.org": {Bytes: 11, Retries: 2}},
		Servers: map[string]status.Ways{
			"a.example.org": {
				Hosts: []status.Host{{
					Host: "s1.example.org:8000", Attempts: 4, Failures: map[string]int64{"missing": 1, "dead": 0}, Latency: took,
				}},
				Servers: status.Standing{Of: 2, Failed: 1, Failovers: 9},
			},
		},
		Compose: status.Work{Took: took, Failed: 1}, Mounted: status.Work{Took: took},
		Memory: status.Memory{Heap: 1, Resident: 2},
		Store: status.Store{
			Layers: 5, Thin: 2,
			Images: []status.Image{
				{
					Key: "0123456789abcdef", Origin: "https://r.example.org/a\\b\n\"c\xff:1", Objects: 100, Size: 1000,
					Local: &status.Share{Objects: 25, Bytes: 250},
				},
				{Key: "k2", Size: 500},
				{Key: "k3", Err: "unreadable"},
			},
			Mounts: []status.Mount{{Layer: "x", Image: "k2"}, {Layer: "y", Image: "k2", Stale: true}, {Layer: "z"}},
		},
	}
}

func textOf(st status.Node) string {
	e := New(Config{Status: func() status.Node { return st }})
	return string(e.text())
}

func TestStateIsWrittenAsPrometheusReadsIt(t *testing.T) {
	text := textOf(busy())
	for _, line := range []string{
		"# TYPE cvmfs_objects_fetched_bytes_total counter",
		"cvmfs_objects_fetched_bytes_total 1.152921504606847e+18",
		`cvmfs_build_info{version="1.2",commit="c0ffee"} 1`,
		"cvmfs_cache_limit_bytes 1099511627776",
		`cvmfs_fetch_received_bytes_total{repository="b.example.org"} 12`,
		`cvmfs_fetch_errors_total{repository="a.example.org",server="s1.example.org:8000",kind="missing"} 1`,
		`cvmfs_fetch_duration_seconds_bucket{repository="a.example.org",server="s1.example.org:8000",le="0.5"} 2`,
		`cvmfs_fetch_duration_seconds_bucket{repository="a.example.org",server="s1.example.org:8000",le="1"} 2`,
		`cvmfs_fetch_duration_seconds_bucket{repository="a.example.org",server="s1.example.org:8000",le="+Inf"} 3`,
		`cvmfs_fetch_duration_seconds_sum{repository="a.example.org",server="s1.example.org:8000"} 62.25`,
		`cvmfs_fetch_duration_seconds_count{repository="a.example.org",server="s1.example.org:8000"} 3`,
		`cvmfs_fetch_failovers_total{repository="a.example.org",member="server"} 9`,
		"cvmfs_image_local_bytes{origin=\"https://r.example.org/a\\\\b\\n\\\"c\uFFFD:1\",image=\"0123456789ab\"} 250",
		`cvmfs_image_size_bytes{origin="",image="k2"} 500`,
		`cvmfs_image_mounts{origin="",image="k2"} 2`,
		"cvmfs_images 3", "cvmfs_images_unreadable 1", "cvmfs_saved_bytes 750", "cvmfs_mounts_stale 1",
		`cvmfs_layers{kind="ordinary"} 3`, "cvmfs_compose_failures_total 1",
		"cvmfs_compose_duration_seconds_count 3",
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	if strings.Contains(text, `image_size_bytes{origin="",image="k3"}`) {
		t.Error("a size is told of an image that can't be read")
	}
}

// Names, types, units and help are as Prometheus' own check wants them, of a busy node and of one that has begun.
func TestPrometheusAcceptsAllMetrics(t *testing.T) {
	for _, st := range []status.Node{busy(), {Err: "not initialised"}} {
		prometheus.Check(t, strings.NewReader(textOf(st)), "check", "metrics")
	}
}

// The families say which labels their samples have, and every family has samples where there is something to tell.
func TestFamiliesSayWhatIsWritten(t *testing.T) {
	st := busy()
	label := regexp.MustCompile(`[{,](\w+)="`)
	for _, f := range Families() {
		var w writer
		w.write(&f, &st)
		lines := bytes.Split(bytes.TrimSpace(w.Bytes()), []byte("\n"))
		if len(lines) < 3 {
			t.Errorf("%s: no sample", f.Name)
			continue
		}
		for _, line := range lines[2:] {
			var got []string
			for _, m := range label.FindAllSubmatch(line, -1) {
				if name := string(m[1]); name != "le" {
					got = append(got, name)
				}
			}
			if !slices.Equal(got, f.Labels) {
				t.Errorf("%s has the labels %q, and says %q: %s", f.Name, got, f.Labels, line)
			}
		}
		if f.Help == "" || !strings.HasSuffix(f.Help, ".") {
			t.Errorf("%s: help %q", f.Name, f.Help)
		}
	}
}
