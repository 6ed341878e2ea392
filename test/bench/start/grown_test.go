package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/test/bench/scale"
)

func TestWhatGrowsIsMeasuredOnce(t *testing.T) {
	o := options{results: filepath.Join(t.TempDir(), resultsName)}
	r, err := openResults(o.results)
	if err != nil {
		t.Fatal(err)
	}
	keys := []scale.ComposedKey{{Files: 10, Layers: 1}, {Files: 10, Layers: 2}}
	asked := 0
	measure := func(k scale.ComposedKey) (*scale.Composed, error) {
		if asked++; asked == 2 {
			return nil, errors.New("cut off")
		}
		return &scale.Composed{Took: float64(k.Layers)}, nil
	}
	if err := fill(o, r, &r.Scale.Composed, keys, measure); err == nil {
		t.Error("a failure is passed over")
	}
	if r, err = openResults(o.results); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := fill(o, r, &r.Scale.Composed, keys, measure); err != nil {
			t.Fatal(err)
		}
	}
	if asked != 3 || len(r.Scale.Composed) != 2 || r.Scale.Composed[1].Measured.Took != 2 {
		t.Errorf("asked %d times for %+v", asked, r.Scale.Composed)
	}
	o.force = true
	if err := fill(o, r, &r.Scale.Composed, keys, measure); err != nil || asked != 5 || len(r.Scale.Composed) != 2 {
		t.Errorf("measured again: asked %d times, %d cells, %v", asked, len(r.Scale.Composed), err)
	}
}

func TestTheReportShowsWhatGrows(t *testing.T) {
	r := starts(t)
	if text, err := r.document(); err != nil || strings.Contains(text, "## Scale") {
		t.Errorf("nothing was measured: %v", err)
	}
	for n := 1; n <= 100; n *= 10 {
		r.Scale.Nodes = append(r.Scale.Nodes, &scaleCell[scale.NodesKey, scale.Nodes]{
			Key: scale.NodesKey{Nodes: n, Profile: true, Proxy: scale.Squid}, Time: time.Now(), Load: 1,
			Measured: &scale.Nodes{
				AtOnce: 1, Took: 1, Node: scale.Traffic{Requests: int64(250 * n), Bytes: int64(1e6 * n)},
				Server: scale.Traffic{Requests: 251, Bytes: 1e6},
			},
		})
		r.Scale.Composed = append(r.Scale.Composed, &scaleCell[scale.ComposedKey, scale.Composed]{
			Key:      scale.ComposedKey{Files: 1000 * n, Layers: 1},
			Measured: &scale.Composed{Took: float64(n), CPU: float64(n) / 2},
		})
	}
	for n, seconds := range map[int]float64{1: 1, 8: 3} {
		for i, mode := range togetherModes {
			r.Scale.Together = append(r.Scale.Together, &scaleCell[togetherKey, together]{
				Key: togetherKey{n, "29", mode}, Load: 1,
				Measured: &together{Took: seconds * float64(i+1), CPU: 1, Memory: 20e6},
			})
		}
	}
	for i, mode := range []string{"overlay2", string(thin), string(profiled)} {
		r.Scale.Hoards = append(r.Scale.Hoards, &scaleCell[hoardKey, hoard]{
			Key: hoardKey{5, "29", mode}, Measured: &hoard{Disk: int64(1e6 * (i + 1)), Fetched: 1e5},
		})
	}
	dir := t.TempDir()
	if err := writeReport(r, dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, documentName))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| 100 | yes | squid | 1 | 250 | 1.0 MB | 25000 | 251 | 1.0 MB | 1 | 1 |",
		"| 1 | 100000 | 1 | 100.00 s | 50.00 s |", "](performance/nodes.png)", "](performance/composed.png)",
		// 40 requests and 3 MB a start: 6,667 requests and 500 MB a second.
		"| 29 | 8 | 3.0 s | 6.0 s | × 2.00 | 1.0 s | 20.0 MB | 1–1 |",
		"| 29 | 5 | 1.0 MB | 2.0 MB | 3.0 MB | 0.1 MB | 0.1 MB | 0.1 MB |",
		"| base | thin | 40 | 3.0 MB | 6667 | 4.0 | 2 | 1 | requests | 40 |",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the document lacks %q:\n%s", want, text)
		}
	}
	for _, name := range []string{nodesPicture, composedPicture} {
		if _, err := os.Stat(filepath.Join(dir, pictureDir, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestHostsWithManyImagesAreNamed(t *testing.T) {
	keys, err := options{grown: grown{hoard: list{"5", "1"}}, engines: list{"29"}, modes: list{"thin", "ordinary"}}.hoardCells()
	if want := []hoardKey{{1, "29", "thin"}, {5, "29", "thin"}}; err != nil || !slices.Equal(keys, want) {
		t.Errorf("%v, %v, want %v", keys, err, want)
	}
	for _, wrong := range []string{"many", "11", "-1"} {
		if _, err := (options{grown: grown{hoard: list{wrong}}}).hoardCells(); err == nil {
			t.Errorf("-hoard %s is taken", wrong)
		}
	}
	if keys, err := (options{}).hoardCells(); err != nil || len(keys) != 2*3*len(hoardNumbers) {
		t.Errorf("%d cells, %v", len(keys), err)
	}
}

func TestSizesAreNamed(t *testing.T) {
	nodes, composed, err := grown{}.cells()
	if err != nil || len(nodes) != len(nodeNumbers)*len(usualProxies)*2 || len(composed) != len(imageSizes) {
		t.Errorf("%d and %d cells, %v", len(nodes), len(composed), err)
	}
	nodes, composed, err = grown{nodes: list{"0"}, composed: list{"20x2x1"}}.cells()
	if want := (scale.ComposedKey{Files: 20, Layers: 2}); err != nil || len(nodes) > 0 || len(composed) != 1 ||
		composed[0] != want {
		t.Errorf("%v and %v, %v", nodes, composed, err)
	}
	for _, wrong := range []grown{
		{nodes: list{"many"}},
		{proxies: list{"none"}},
		{composed: list{"20"}},
		{composed: list{"2x3"}},
		{composed: list{"3x2x-1"}},
		{composed: list{"3x2x1x1"}},
	} {
		if _, _, err := wrong.cells(); err == nil {
			t.Errorf("%+v is taken", wrong)
		}
	}
}
