// Command demo shows thin images at work: it converts an image of Debian packages, putting its layers into a repository
// of its own, runs the image and its thin twin in Docker engines of its own, an old one with the plugin and the newest
// with the snapshotter, and tells what each said, how long it took and what the thin one fetched. Then a container of
// the thin image adds a file, and its commit is published. Nothing is installed and, the cache of packages aside,
// nothing is left.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the machine does not qualify.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/images"
	"cvmfs-graphdriver/test/stand"
)

func main() {
	engine.Main()
	d := demo{start: time.Now()}
	flag.StringVar(&d.options.Bundle, "bundle", "", "folder of the plugin bundle")
	flag.StringVar(&d.options.Snapshotter, "snapshotter", "", "the program cvmfs-snapshotter")
	flag.StringVar(&d.converter, "converter", "", "the program docker2cvmfs")
	flag.StringVar(&d.options.Testdata, "testdata", "testdata", "folder of the reference repositories and images")
	flag.Parse()
	if d.options.Bundle == "" || d.options.Snapshotter == "" || d.converter == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "demo: want -bundle FOLDER -snapshotter FILE -converter FILE and no argument")
		os.Exit(2)
	}
	if err := engine.Supported(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(3)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := d.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	start     time.Time
	converter string        // the program
	options   stand.Options // of all stands
	dir       string        // of the repository and the images
	grown     []result      // of running what was committed
	service   string        // address of what publishes layers of commits
}

// step reports what is done next and when, counted from the start.
func (d *demo) step(what string) { fmt.Printf("%6.1fs  %s\n", time.Since(d.start).Seconds(), what) }

// door is a way to run thin images.
type door struct {
	tools *engine.Tools
	open  func(context.Context, stand.Options) (*stand.Stand, error)
}

// doors returns the ways that are shown: with an engine that the user names, the plugin alone.
func (d *demo) doors(ctx context.Context, cache string) ([]door, error) {
	d.step("look for an engine that takes plugins")
	tools, err := engine.Fetch(ctx, cache, os.Stdout)
	list := []door{{tools, stand.New}}
	if err != nil || os.Getenv("ENGINE") != "" {
		return list, err
	}
	d.step("look for the newest engine")
	tools, err = engine.Stack29on21.Fetch(ctx, cache, os.Stdout)
	return append(list, door{tools, stand.NewSnapshotter}), err
}

// run does everything, and removes everything at the end.
func (d *demo) run(ctx context.Context) (err error) {
	d.options.Step = d.step
	// A service runs elsewhere.
	if d.options.Snapshotter, err = filepath.Abs(d.options.Snapshotter); err != nil {
		return err
	}
	cache, err := engine.CacheDir()
	if err != nil {
		return err
	}
	doors, err := d.doors(ctx, cache)
	if err != nil {
		return err
	}
	d.step("look for the image " + images.Debian)
	image, err := images.FetchDebian(ctx, cache, os.Stdout)
	if err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "cvmfs-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	if err := d.convert(ctx, image); err != nil {
		return orInterrupted(ctx, err)
	}
	end, err := d.receive()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	var runs []result
	for _, door := range doors {
		if runs, err = d.compare(ctx, door, runs); err != nil {
			return err
		}
	}
	d.step("done")
	return show(runs, d.grown)
}

// orInterrupted returns err, or what is the reason for all errors.
func orInterrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// The repository the image's layers go to, and the thin image.
const (
	repository = "layers.example.org"
	thinImage  = "example/thin_analysis:1"
)

func (d *demo) publisher() string          { return filepath.Join(d.dir, "publisher") }
func (d *demo) archive(name string) string { return filepath.Join(d.dir, name+".tar") }

// convert makes the thin image, and archives of both.
func (d *demo) convert(ctx context.Context, image *images.Image) error {
	d.step("create the repository " + repository)
	err := publish.Create(ctx, d.publisher(), publish.Settings{FQRN: repository}, publish.Options{})
	if err != nil {
		return err
	}
	d.step("convert " + image.Name + ": layers into the repository, thin image into a file")
	cmd := exec.CommandContext(ctx, d.converter, "make-thin", "--input-reference", "oci:"+image.Dir,
		"--output-reference", "docker-archive:"+d.archive("thin")+":"+thinImage, "--repository", repository, "--target",
		"native:"+d.publisher())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("convert %s: %w: %s", image.Name, err, out)
	}
	return image.WriteArchive(d.archive("ordinary"))
}

// result is what came of running one image.
type result struct {
	engine, driver, name string

	size         int64 // as the engine tells it, in bytes
	said         string
	took         time.Duration
	load, fetch  stand.Count
	fetchedAgain stand.Count
}

// compare runs both images in an engine, and adds what came of it. Where a step fails the logs are kept.
func (d *demo) compare(ctx context.Context, door door, runs []result) ([]result, error) {
	o := d.options
	o.Tools = door.tools
	s, err := door.open(ctx, o)
	if err == nil {
		err = s.Serve(repository, filepath.Join(d.publisher(), "www/cvmfs", repository),
			filepath.Join(d.publisher(), "keys", repository+".pub"))
	}
	for _, image := range []struct{ name, file string }{{images.Debian, "ordinary"}, {thinImage, "thin"}} {
		if err != nil {
			break
		}
		d.step("load and run " + image.name)
		var r *result
		if r, err = d.try(ctx, s, image.name, d.archive(image.file)); err != nil {
			err = fmt.Errorf("load and run %s: %w", image.name, err)
			break
		}
		runs = append(runs, *r)
	}
	if err == nil {
		d.step("commit a container of " + thinImage + ", and run " + grownImage)
		if err = d.pushBack(ctx, s, runs[len(runs)-1].engine); err != nil {
			err = fmt.Errorf("commit and run %s: %w", grownImage, err)
		}
	}
	if err != nil && ctx.Err() == nil {
		err = errors.Join(err, keepLogs(s))
	}
	d.step("remove the engine")
	return runs, errors.Join(orInterrupted(ctx, err), s.Close())
}

// try loads an image and runs it twice.
func (d *demo) try(ctx context.Context, s *stand.Stand, name, file string) (*result, error) {
	said, err := s.Engine.Docker(ctx, "version", "--format", "{{.Server.Version}}")
	if err != nil {
		return nil, err
	}
	r := &result{engine: strings.TrimSpace(said), driver: s.Driver(), name: name}
	before := s.Site.Count()
	if _, err := s.Engine.Docker(ctx, "load", "--quiet", "--input", file); err != nil {
		return nil, err
	}
	loaded := s.Site.Count()
	begin := time.Now()
	said, err = s.Engine.Docker(ctx, "run", "--rm", "--network", "none", name)
	if err != nil {
		return nil, err
	}
	r.said, r.took = strings.TrimSpace(said), time.Since(begin)
	ran := s.Site.Count()
	if _, err := s.Engine.Docker(ctx, "run", "--rm", "--network", "none", name); err != nil {
		return nil, fmt.Errorf("a second time: %w", err)
	}
	r.load, r.fetch, r.fetchedAgain = loaded.Sub(before), ran.Sub(loaded), s.Site.Count().Sub(ran)
	if said, err = s.Engine.Docker(ctx, "image", "inspect", "--format", "{{.Size}}", name); err == nil {
		r.size, err = strconv.ParseInt(strings.TrimSpace(said), 10, 64)
	}
	return r, err
}

// show prints the results: of each engine the ordinary image, and then the thin one.
func show(runs, grown []result) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nDOCKER\tDRIVER\tIMAGE\tSAID\tFIRST RUN\tFETCHED TO LOAD\tTO RUN\tTO RUN AGAIN\n")
	for _, r := range runs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%q\t%.2f s\t%s\t%s\t%s\n", r.engine, r.driver, r.name, r.said, r.took.Seconds(),
			amount(r.load), amount(r.fetch), amount(r.fetchedAgain))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	ordinary, thin := runs[0], runs[1]
	fmt.Printf("\nThe image's files have %d bytes. Its thin twin fetched %d: %d of catalogs and signatures to be loaded, %d of files to run.\n",
		ordinary.size, thin.load.Bytes+thin.fetch.Bytes, thin.load.Bytes, thin.fetch.Bytes)
	for _, r := range grown {
		fmt.Printf("In Docker %s what a container had added was published when it was committed. To run %s: %s fetched.\n",
			r.engine, r.name, amount(r.fetch))
	}
	for _, r := range append(runs, grown...) {
		if r.said != ordinary.said {
			return fmt.Errorf("%s said %q in Docker %s: not the same", r.name, r.said, r.engine)
		}
	}
	return nil
}

func amount(c stand.Count) string {
	if c.Requests == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%d bytes, %d objects", c.Bytes, c.Objects)
}

// keepLogs saves the logs of an engine and a snapshotter from the removal and gives the error that says where they are.
func keepLogs(s *stand.Stand) error {
	if s.Engine == nil {
		return nil
	}
	text := s.Engine.Log()
	if s.Snapshotter != nil {
		text += "\nsnapshotter:\n" + s.Snapshotter.Log()
	}
	f, err := os.CreateTemp("", "cvmfs-graphdriver-demo-*.log")
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("keep the engine's log: %w", err)
	}
	return fmt.Errorf("the engine's log is %s", f.Name())
}
