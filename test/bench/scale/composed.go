package scale

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/thin"
)

// ComposedKey says what image is composed: so many files in so many layers.
type ComposedKey struct {
	Files  int `json:"files"`
	Layers int `json:"layers"`
}

func (k ComposedKey) String() string { return fmt.Sprintf("%d files in %d layers", k.Files, k.Layers) }

// Compare orders keys: by files, then layers.
func (k ComposedKey) Compare(other ComposedKey) int {
	return cmp.Or(cmp.Compare(k.Files, other.Files), cmp.Compare(k.Layers, other.Layers))
}

// Composed is what composing an image took, in a process of its own.
type Composed struct {
	Took     float64 `json:"took"`     // seconds, with fetching the catalogs on loopback
	CPU      float64 `json:"cpu"`      // seconds of processors for that, which other work hardly changes
	Opened   float64 `json:"opened"`   // seconds until the image is in use in another life of the node
	Memory   int64   `json:"memory"`   // bytes, the most that were resident
	Metadata int64   `json:"metadata"` // bytes of the EROFS image
	Table    int64   `json:"table"`    // bytes of the table of its objects
	Catalogs Traffic `json:"catalogs"` // all that was fetched
}

// task is what a process of its own is to compose.
type task struct{ Descriptor, Configuration, Dir string }

// taskVariable, in the environment, has a process compose.
const taskVariable = "CVMFS_BENCH_COMPOSE"

// Main composes an image and ends the process, if it was started for that. Programs that measure call it first.
func Main() {
	text := os.Getenv(taskVariable)
	if text == "" {
		return
	}
	var t task
	var c *Composed
	err := json.Unmarshal([]byte(text), &t)
	if err == nil {
		c, err = t.compose(context.Background())
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Compose publishes an image of empty contents below a folder, and measures composing it.
func Compose(ctx context.Context, dir string, k ComposedKey) (_ *Composed, err error) {
	s, err := newSite(ctx, dir, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	d, err := s.publish(ctx, content{files: k.Files, layers: k.Layers, size: tiny})
	if err != nil {
		return nil, err
	}
	encoded, err := d.Encode()
	if err != nil {
		return nil, err
	}
	t := task{Descriptor: string(encoded), Dir: dir}
	if t.Configuration, err = s.configure(""); err != nil {
		return nil, err
	}
	text, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), taskVariable+"="+string(text))
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("compose %v: %w: %s", k, err, said.String())
	}
	c := &Composed{}
	return c, json.Unmarshal(out.Bytes(), c)
}

// compose does it, in this process.
func (t task) compose(ctx context.Context) (_ *Composed, err error) {
	d, err := thin.Parse([]byte(t.Descriptor))
	if err != nil {
		return nil, err
	}
	n, err := newNode(t.Dir, t.Configuration)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	c := &Composed{}
	begin := time.Now()
	image, err := n.composer.Compose(ctx, []images.Layer{{Thin: d}})
	if err != nil {
		return nil, err
	}
	c.Took = time.Since(begin).Seconds()
	if c.CPU, err = processorTime(); err != nil {
		return nil, err
	}
	if c.Memory, err = peakMemory(); err != nil {
		return nil, err
	}
	if c.Catalogs, err = n.fetched(); err != nil {
		return nil, err
	}
	next, err := images.New(images.Config{
		Dir: filepath.Join(n.dir, "images"), Repositories: n.repositories, Index: objects.NewIndex([16]byte{1}),
	})
	if err != nil {
		return nil, err
	}
	defer next.Close()
	begin = time.Now()
	if _, err := next.Image(image.Key); err != nil {
		return nil, err
	}
	c.Opened = time.Since(begin).Seconds()
	for path, bytes := range map[string]*int64{
		image.Meta: &c.Metadata, filepath.Join(filepath.Dir(image.Meta), "objects"): &c.Table,
	} {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		*bytes = info.Size()
	}
	return c, nil
}

// processorTime is what this process has used of processors, in seconds.
func processorTime() (float64, error) {
	var used unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &used)
	return float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9, err
}

// peakMemory is the most that this process had resident, in bytes.
func peakMemory() (bytes int64, err error) {
	b, err := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			_, err = fmt.Sscan(rest, &bytes)
		}
	}
	return bytes << 10, err
}
