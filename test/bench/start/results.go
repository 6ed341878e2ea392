package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/test/bench/scale"
)

// results is what was measured: the file results.json.
type results struct {
	Machine machine          `json:"machine"`
	Images  map[string]facts `json:"images"`
	Cells   []*cell          `json:"cells"`
	Scale   scaled           `json:"scale,omitzero"`
}

// machine is where it was measured. Figures of several machines aren't mixed.
type machine struct {
	Processor string `json:"processor"`
	Cores     int    `json:"cores"`
	Memory    uint64 `json:"memory"` // bytes
	Kernel    string `json:"kernel"`
}

// facts is what an image is, all in bytes.
type facts struct {
	Layers     int   `json:"layers"`
	Size       int64 `json:"size"`       // of the files, as the engine tells
	Compressed int64 `json:"compressed"` // of the layers in the registry
	Touched    int64 `json:"touched"`    // of the pages that a start touches
	Needed     int64 `json:"needed"`     // the same, compressed file by file
}

// key says what is measured in a cell.
type key struct {
	Image  string `json:"image"`
	Link   string `json:"link"`
	Engine string `json:"engine"`
	Mode   string `json:"mode"`
	View   string `json:"view,omitempty"` // of thin images
}

func (k key) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%s, %s, engine %s, %s %s", k.Image, k.Link, k.Engine, k.Mode, k.View), " ")
}

// scaled is what was measured of what grows.
type scaled struct {
	Nodes    []*scaleCell[scale.NodesKey, scale.Nodes]       `json:"nodes,omitempty"`
	Composed []*scaleCell[scale.ComposedKey, scale.Composed] `json:"composed,omitempty"`
	Together []*scaleCell[togetherKey, together]             `json:"together,omitempty"`
	Hoards   []*scaleCell[hoardKey, hoard]                   `json:"hoards,omitempty"`
}

// scaleCell has what is measured as a whole, and when. There is one sample a cell: what counts doesn't vary.
type scaleCell[K comparable, M any] struct {
	Key      K         `json:"key"`
	Time     time.Time `json:"time"`
	Load     float64   `json:"load"` // of the machine before, over a minute
	Measured *M        `json:"measured"`
}

// find returns the cell of a key, or nil.
func find[K comparable, M any](cells []*scaleCell[K, M], k K) *scaleCell[K, M] {
	for _, c := range cells {
		if c.Key == k {
			return c
		}
	}
	return nil
}

type cell struct {
	key
	Samples []sample `json:"samples"`
}

// sample is one start on a node that had nothing.
type sample struct {
	Time    time.Time `json:"time"`
	Version string    `json:"version"` // of our programs
	Load    float64   `json:"load"`    // of the machine before, over a minute

	Pull float64 `json:"pull"` // seconds
	Run  float64 `json:"run"`  // seconds until ready
	Warm float64 `json:"warm"` // the same, of runs that follow

	Registry traffic `json:"registry"`         // until the run had ended
	Site     traffic `json:"site"`             // likewise
	Later    traffic `json:"later"`            // of the site, after that
	Disk     int64   `json:"disk"`             // bytes, after all runs
	CPU      float64 `json:"cpu,omitempty"`    // seconds of our daemon, until the run had ended
	Memory   int64   `json:"memory,omitempty"` // bytes, the largest that our daemon had
}

// readResults reads the file of earlier runs.
func readResults(file string) (*results, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &results{Images: map[string]facts{}}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return r, nil
}

// openResults reads the file of earlier runs on this machine. There need be none.
func openResults(file string) (*results, error) {
	here, err := thisMachine()
	if err != nil {
		return nil, err
	}
	r, err := readResults(file)
	if errors.Is(err, fs.ErrNotExist) {
		return &results{Machine: here, Images: map[string]facts{}}, nil
	}
	if err == nil && r.Machine != here {
		err = fmt.Errorf("%s has the figures of another machine (%+v): choose another file with -results", file,
			r.Machine)
	}
	return r, err
}

func (r *results) write(file string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return durable.Replace(file, 0o644, append(b, '\n'))
}

// cell returns the cell of a key, or nil.
func (r *results) cell(k key) *cell {
	for _, c := range r.Cells {
		if c.key == k {
			return c
		}
	}
	return nil
}

// drop forgets a cell.
func (r *results) drop(k key) {
	r.Cells = slices.DeleteFunc(r.Cells, func(c *cell) bool { return c.key == k })
}

// add keeps a sample.
func (r *results) add(k key, s sample) {
	c := r.cell(k)
	if c == nil {
		c = &cell{key: k}
		r.Cells = append(r.Cells, c)
	}
	c.Samples = append(c.Samples, s)
}

func thisMachine() (m machine, err error) {
	var name unix.Utsname
	var info unix.Sysinfo_t
	if err := errors.Join(unix.Uname(&name), unix.Sysinfo(&info)); err != nil {
		return m, err
	}
	m = machine{
		Cores: runtime.NumCPU(), Kernel: unix.ByteSliceToString(name.Release[:]),
		Memory: info.Totalram * uint64(info.Unit),
	}
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(b)) {
		if before, after, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(before) == "model name" {
			m.Processor = strings.TrimSpace(after)
			break
		}
	}
	return m, nil
}

// load is the machine's load average over a minute.
func load() (average float64, err error) {
	b, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, err = fmt.Sscan(string(b), &average)
	}
	return average, err
}

// median returns the middle of some numbers, the upper one of two.
func median(numbers []float64) float64 {
	sorted := slices.Sorted(slices.Values(numbers))
	return sorted[len(sorted)/2]
}
