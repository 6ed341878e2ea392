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
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/thin"
)

// ComposedKey says what is composed: images of so many files in so many layers, one after the other.
type ComposedKey struct {
	Files  int `json:"files"`
	Layers int `json:"layers"`
	Images int `json:"images,omitempty"` // 0: one
}

func (k ComposedKey) String() string {
	return fmt.Sprintf("%d × %d files in %d layers", k.Number(), k.Files, k.Layers)
}

// Number is how many images are composed.
func (k ComposedKey) Number() int { return max(k.Images, 1) }

// Compare orders keys: by images, files, then layers.
func (k ComposedKey) Compare(other ComposedKey) int {
	return cmp.Or(cmp.Compare(k.Number(), other.Number()), cmp.Compare(k.Files, other.Files),
		cmp.Compare(k.Layers, other.Layers))
}

// Composed is what composing images took, in a process of its own: all of them, or the last one where that is said.
type Composed struct {
	Took     float64 `json:"took"`     // seconds, with fetching the catalogs on loopback
	CPU      float64 `json:"cpu"`      // seconds of processors for that, which other work hardly changes
	Opened   float64 `json:"opened"`   // seconds until the last is in use in another life of the node
	Memory   int64   `json:"memory"`   // bytes, the most that were resident
	Held     int64   `json:"held"`     // bytes that are resident with all in use, when nothing is to be done
	Metadata int64   `json:"metadata"` // bytes of the last EROFS image
	Table    int64   `json:"table"`    // bytes of the table of its objects
	Catalogs Traffic `json:"catalogs"` // all that was fetched
}

// task is what a process of its own is to compose.
type task struct {
	Descriptors        []string
	Configuration, Dir string
}

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

// Compose publishes images of no content below a folder, and measures composing them.
func Compose(ctx context.Context, dir string, k ComposedKey) (_ *Composed, err error) {
	s, err := newSite(ctx, dir, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	t := task{Dir: dir}
	for n := range k.Number() {
		d, err := s.publish(ctx, content{files: k.Files, layers: k.Layers, size: tiny, seed: n})
		if err != nil {
			return nil, err
		}
		encoded, err := d.Encode()
		if err != nil {
			return nil, err
		}
		t.Descriptors = append(t.Descriptors, string(encoded))
	}
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
	n, err := newNode(t.Dir, t.Configuration)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	c := &Composed{}
	var image *images.Image
	var used []*images.Image // as containers have them
	begin := time.Now()
	for _, descriptor := range t.Descriptors {
		d, err := thin.Parse([]byte(descriptor))
		if err != nil {
			return nil, err
		}
		if image, err = n.compose(ctx, d); err != nil {
			return nil, err
		}
		used = append(used, image)
	}
	c.Took = time.Since(begin).Seconds()
	if c.CPU, err = processorTime(); err != nil {
		return nil, err
	}
	if c.Memory, err = memory("VmHWM"); err != nil {
		return nil, err
	}
	debug.FreeOSMemory() // which the runtime does by and by
	if c.Held, err = memory("VmRSS"); err != nil {
		return nil, err
	}
	runtime.KeepAlive(used)
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

// memory is what this process has resident, VmRSS, or the most that it had, VmHWM, in bytes.
func memory(which string) (bytes int64, err error) {
	b, err := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, which+":"); ok {
			_, err = fmt.Sscan(rest, &bytes)
		}
	}
	return bytes << 10, err
}
