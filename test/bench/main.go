// Command bench holds the storage driver against the engine's own overlay2, or the snapshotter against containerd's own
// overlayfs, on the same images in the same run: what counts are the ratios, for machines differ and are noisy.
//
// Two private engines run side by side, one with the engine's own, one with ours. Both get an image of twenty layers of
// small files and one of a large one; ours also runs its thin twin, whose layers the project's own publisher has
// put into a repository and whose files are all on the host. The operations are taken in turn, a round each, and the
// median of the rounds' ratios is printed.
//
// The program is its own workload: in the containers it walks and reads.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
)

func main() {
	engine.Main()
	if len(os.Args) > 1 && os.Args[1] == workload {
		work()
		return
	}
	var o stand.Options
	flag.StringVar(&o.Bundle, "bundle", "", "folder of the plugin bundle")
	flag.StringVar(&o.Snapshotter, "snapshotter", "", "the snapshotter's program, in the place of the plugin")
	flag.StringVar(&o.Testdata, "testdata", "testdata", "folder of the reference repositories and images")
	rounds := flag.Int("rounds", 5, "how often each operation is measured")
	files := flag.Int("files", 20000, "small files in the image")
	view := flag.String("view", "auto", "of thin images: erofs or fuse; auto is what the kernel can do")
	flag.Parse()
	if (o.Bundle == "") == (o.Snapshotter == "") || flag.NArg() > 0 || *rounds < 1 {
		fmt.Fprintln(os.Stderr, "bench: want -bundle FOLDER or -snapshotter FILE, and no argument")
		os.Exit(2)
	}
	o.Driver, o.Quiet = []string{"cvmfs.view=" + *view}, true
	if err := engine.Supported(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(3)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := run(ctx, o, *rounds, *files); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run sets up both engines, measures, and removes everything.
func run(ctx context.Context, o stand.Options, rounds, files int) (err error) {
	if o.Tools, err = tools(ctx, o.Snapshotter != ""); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cvmfs-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fmt.Fprintln(os.Stderr, "make the layers")
	content, err := makeLayers(files)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "start both engines")
	ours, peer, closeAll, err := start(ctx, o, dir)
	defer func() { err = errors.Join(err, closeAll()) }()
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "publish the layers and write the images")
	publisher := filepath.Join(dir, "publisher")
	if err := publishLayers(ctx, publisher, content); err != nil {
		return err
	}
	if err := ours.Serve(repository, filepath.Join(publisher, "www/cvmfs", repository),
		filepath.Join(publisher, "keys", repository+".pub")); err != nil {
		return err
	}
	archives, err := writeImages(dir, content)
	if err != nil {
		return err
	}
	b := &bench{
		peer: target{peer, ordinaryImage}, ordinary: target{ours.Engine, ordinaryImage},
		thin:     target{ours.Engine, thinImage},
		archives: archives, samples: map[string][][3]float64{},
	}
	fmt.Fprintln(os.Stderr, "fetch what the thin image is made of")
	if err := (target{ours.Engine, keptImage}).fetch(ctx, archives[keptImage]); err != nil {
		return err
	}
	for round := range rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, rounds)
		before := ours.Site.Count()
		if err := b.round(ctx); err != nil {
			return err
		}
		if fetched := ours.Site.Count().Sub(before); fetched.Bytes > mostFetched {
			return fmt.Errorf("round %d fetched %d bytes: not all of the thin image is on this host", round+1,
				fetched.Bytes)
		}
	}
	return b.print()
}

// tools returns the programs of the engines.
func tools(ctx context.Context, contained bool) (*engine.Tools, error) {
	cache, err := engine.CacheDir()
	if err != nil {
		return nil, err
	}
	if contained {
		return engine.Stack29on21.Find(ctx, cache)
	}
	return engine.Fetch(ctx, cache, os.Stderr)
}

// start starts an engine with ours, and one with its own, below a folder.
func start(ctx context.Context, o stand.Options, dir string) (
	ours *stand.Stand, peer *engine.Engine, closeAll func() error, err error,
) {
	build := stand.New
	if o.Snapshotter != "" {
		build = stand.NewSnapshotter
	}
	ours, err = build(ctx, o)
	if err != nil {
		return nil, nil, ours.Close, err
	}
	if o.Snapshotter != "" {
		o.Snapshotter = "" // containerd's own
		theirs, err := build(ctx, o)
		return ours, theirs.Engine, func() error { return errors.Join(ours.Close(), theirs.Close()) }, err
	}
	if err = os.Mkdir(filepath.Join(dir, "engine"), 0o711); err != nil {
		return nil, nil, ours.Close, err
	}
	if peer, err = engine.New(o.Tools, filepath.Join(dir, "engine")); err != nil {
		return nil, nil, ours.Close, err
	}
	err = peer.Start(ctx, map[string]any{"storage-driver": "overlay2"})
	return ours, peer, func() error { return errors.Join(ours.Close(), peer.Close()) }, err
}

// mostFetched is what loading the thin image may take, in bytes: manifest, whitelist, certificate.
const mostFetched = 64 << 10

// target is an image in an engine.
type target struct {
	engine *engine.Engine
	image  string
}

// bench collects, for each operation, a round's seconds of the engine's own driver, of the ordinary image on ours, and
// of the thin one.
type bench struct {
	peer, ordinary, thin target
	archives             map[string]string // image → archive
	order                []string
	samples              map[string][][3]float64
}

// round measures every operation once for each target.
func (b *bench) round(ctx context.Context) error {
	targets := []target{b.peer, b.ordinary, b.thin}
	results := map[string]*[3]float64{}
	record := func(name string, n int, seconds float64) {
		if results[name] == nil {
			results[name] = &[3]float64{}
			if b.samples[name] == nil {
				b.order = append(b.order, name)
			}
		}
		results[name][n] = seconds
	}
	for n, t := range targets {
		took, err := t.load(ctx, b.archives[t.image])
		if err != nil {
			return err
		}
		record("load (unpack 21 layers)", n, took)
	}
	for _, cycle := range []struct {
		name string
		do   func(target, context.Context) (float64, error)
	}{
		{"create + mount + unmount, 20 times", target.mounts},
		{"create + start + remove, 5 times", target.runs},
		{"commit of one file", target.commits},
		{"build of two steps", target.builds},
	} {
		for n, t := range targets {
			took, err := cycle.do(t, ctx)
			if err != nil {
				return err
			}
			record(cycle.name, n, took)
		}
	}
	for n, t := range targets {
		times, err := t.work(ctx)
		if err != nil {
			return err
		}
		for _, r := range times {
			record(r.Name, n, r.Seconds)
		}
	}
	for _, t := range targets {
		if err := t.remove(ctx); err != nil {
			return err
		}
	}
	for name, r := range results {
		b.samples[name] = append(b.samples[name], *r)
	}
	return nil
}

// fetch brings everything the image is made of to this host: what is measured afterwards is local.
func (t target) fetch(ctx context.Context, archive string) error {
	_, err := t.load(ctx, archive)
	if err == nil {
		_, err = t.engine.Docker(ctx, "run", "--rm", "--network", "none", t.image, workload, "all")
	}
	return err
}

// load loads an image's archive.
func (t target) load(ctx context.Context, archive string) (float64, error) {
	unix.Sync() // what others have written is not our time
	begin := time.Now()
	_, err := t.engine.Docker(ctx, "load", "--quiet", "--input", archive)
	return time.Since(begin).Seconds(), err
}

// mounts makes containers and asks for their root's attributes, which has the engine call Create, Get and Put of its
// driver and start nothing. It talks to the engine's API, without the client's own time; removing isn't counted.
func (t target) mounts(ctx context.Context) (float64, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", t.engine.Socket())
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial}}
	defer client.CloseIdleConnections()
	call := func(method, path, body string, answer any) error {
		request, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, strings.NewReader(body))
		if err != nil {
			return err
		}
		request.Header.Set("Content-Type", "application/json")
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode >= 300 {
			return fmt.Errorf("%s %s: %s", method, path, response.Status)
		}
		if answer == nil {
			return nil
		}
		return json.NewDecoder(response.Body).Decode(answer)
	}
	var took time.Duration
	for range 20 {
		begin := time.Now()
		var made struct{ ID string }
		err := call(http.MethodPost, "/containers/create", fmt.Sprintf("{%q: %q}", "Image", t.image), &made)
		if err == nil {
			err = call(http.MethodHead, "/containers/"+made.ID+"/archive?path=/", "", nil)
		}
		took += time.Since(begin)
		if err == nil {
			err = call(http.MethodDelete, "/containers/"+made.ID, "", nil)
		}
		if err != nil {
			return 0, err
		}
	}
	return took.Seconds(), nil
}

// runs runs a container that does nothing, five times.
func (t target) runs(ctx context.Context) (float64, error) {
	begin := time.Now()
	for range 5 {
		if _, err := t.engine.Docker(ctx, "run", "--rm", "--network", "none", t.image, workload,
			"nothing"); err != nil {
			return 0, err
		}
	}
	return time.Since(begin).Seconds(), nil
}

// Names of the images that are made of a target's.
const (
	committed = "bench/committed"
	built     = "bench/built"
)

// commits commits a container with a file that is new.
func (t target) commits(ctx context.Context) (float64, error) {
	id, err := t.engine.Docker(ctx, "create", "--network", "none", t.image, workload, "nothing")
	if err != nil {
		return 0, err
	}
	if id, err = strings.TrimSpace(id), t.copyTo(ctx, strings.TrimSpace(id)); err != nil {
		return 0, err
	}
	begin := time.Now()
	_, err = t.engine.Docker(ctx, "commit", id, committed)
	took := time.Since(begin)
	_, removed := t.engine.Docker(ctx, "rm", id)
	return took.Seconds(), errors.Join(err, removed)
}

// copyTo copies a file into a container.
func (t target) copyTo(ctx context.Context, id string) error {
	dir, err := os.MkdirTemp("", "cvmfs-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // it is in the folder for temporary files
	if err := os.WriteFile(filepath.Join(dir, "new"), make([]byte, 1<<20), 0o600); err != nil {
		return err
	}
	_, err = t.engine.Docker(ctx, "cp", filepath.Join(dir, "new"), id+":/new")
	return err
}

// builds copies a file and runs a program that does nothing, without a cache.
func (t target) builds(ctx context.Context) (float64, error) {
	dir, err := os.MkdirTemp("", "cvmfs-bench-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir) // likewise
	steps := fmt.Sprintf("FROM %s\nCOPY Dockerfile /\nRUN [\"/bench\", %q, \"nothing\"]\n", t.image, workload)
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(steps), 0o600); err != nil {
		return 0, err
	}
	begin := time.Now()
	_, err = t.engine.Docker(ctx, "build", "--quiet", "--no-cache", "--network", "none", "--tag", built, dir)
	return time.Since(begin).Seconds(), err
}

// remove removes the target's image and what was made of it, and waits until it has gone.
func (t target) remove(ctx context.Context) error {
	for _, args := range [][]string{
		{"rmi", "--force", committed, built, t.image}, {"builder", "prune", "--all", "--force"},
	} {
		if _, err := t.engine.Docker(ctx, args...); err != nil {
			return err
		}
	}
	return t.gone(ctx)
}

// gone waits until containerd's collector, of an engine with one, has removed all that isn't needed.
func (t target) gone(ctx context.Context) error {
	if t.engine.Containerd == nil {
		return nil
	}
	for former := ""; ; time.Sleep(time.Second) {
		// Of the other targets' images some may be there: it is enough that nothing goes any more.
		now, err := t.engine.Ctr(ctx, "--namespace", "moby", "content", "ls", "--quiet")
		if err != nil || now == former {
			return err
		}
		former = now
	}
}

// work runs the workload in a fresh container, with no file of the image in memory.
func (t target) work(ctx context.Context) ([]timing, error) {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return nil, err
	}
	out, err := t.engine.Docker(ctx, "run", "--rm", "--network", "none", t.image, workload, "all")
	if err != nil {
		return nil, err
	}
	var times []timing
	return times, json.Unmarshal([]byte(out), &times)
}

// print shows medians: the engine's own driver's seconds, and the ratios to it.
func (b *bench) print() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "OPERATION\tTHE ENGINE'S OWN\tORDINARY ON OURS\tTHIN")
	for _, name := range b.order {
		s := b.samples[name]
		peer := median(s, func(r [3]float64) float64 { return r[0] })
		fmt.Fprintf(w, "%s\t%.4g s\t× %.2f\t× %.2f\n", name, peer,
			median(s, func(r [3]float64) float64 { return r[1] / r[0] }),
			median(s, func(r [3]float64) float64 { return r[2] / r[0] }))
	}
	return w.Flush()
}

func median(s [][3]float64, of func([3]float64) float64) float64 {
	var v []float64
	for _, r := range s {
		v = append(v, of(r))
	}
	slices.Sort(v)
	return v[len(v)/2]
}
