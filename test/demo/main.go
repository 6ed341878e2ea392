// Command demo shows the storage driver at work: it converts an image of Debian packages, putting its layers into a
// repository of its own, runs the image and its thin twin in a Docker engine of its own, and tells what each said, how
// long it took and what the thin one fetched. Nothing is installed and, the cache of packages aside, nothing is left.
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
	bundle := flag.String("bundle", "", "folder of the plugin bundle")
	converter := flag.String("converter", "", "the program docker2cvmfs")
	testdata := flag.String("testdata", "testdata", "folder of the reference repositories and images")
	flag.Parse()
	if *bundle == "" || *converter == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "demo: want -bundle FOLDER -converter FILE and no argument")
		os.Exit(2)
	}
	if err := engine.Supported(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(3)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	d := demo{start: time.Now()}
	if err := d.run(ctx, *bundle, *converter, *testdata); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	start time.Time
	stand *stand.Stand
	dir   string // of the repository and the images
}

// step reports what is done next and when, counted from the start.
func (d *demo) step(what string) { fmt.Printf("%6.1fs  %s\n", time.Since(d.start).Seconds(), what) }

// run does everything, and removes everything at the end. Where a step fails the engine's log is kept.
func (d *demo) run(ctx context.Context, bundle, converter, testdata string) (err error) {
	d.step("look for an engine")
	cache, err := engine.CacheDir()
	if err != nil {
		return err
	}
	tools, err := engine.Fetch(ctx, cache, os.Stdout)
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
	d.stand, err = stand.New(ctx, stand.Options{Tools: tools, Bundle: bundle, Testdata: testdata, Step: d.step})
	var runs []result
	if err == nil {
		runs, err = d.convertAndCompare(ctx, converter, image)
	}
	switch {
	case ctx.Err() != nil:
		err = errors.New("interrupted")
	case err != nil:
		err = errors.Join(err, d.keepLog())
	}
	d.step("remove everything")
	if err := errors.Join(err, d.stand.Close()); err != nil {
		return err
	}
	d.step("done")
	return show(runs)
}

// result is what came of running one image.
type result struct {
	name         string
	size         int64 // of the ordinary image's files, in bytes
	said         string
	took         time.Duration
	load, fetch  stand.Count
	fetchedAgain stand.Count
}

// The repository the image's layers go to, and the thin image.
const (
	repository = "layers.example.org"
	thinImage  = "example/thin_analysis:1"
)

// convertAndCompare makes the thin image and runs both.
func (d *demo) convertAndCompare(ctx context.Context, converter string, image *images.Image) ([]result, error) {
	d.step("create the repository " + repository)
	publisher := filepath.Join(d.dir, "publisher")
	err := publish.Create(ctx, publisher, publish.Settings{FQRN: repository}, publish.Options{})
	if err == nil {
		err = d.stand.Serve(repository, filepath.Join(publisher, "www/cvmfs", repository),
			filepath.Join(publisher, "keys", repository+".pub"))
	}
	if err != nil {
		return nil, err
	}
	d.step("convert " + image.Name + ": layers into the repository, thin image into a file")
	ordinary, thin := filepath.Join(d.dir, "ordinary.tar"), filepath.Join(d.dir, "thin.tar")
	cmd := exec.CommandContext(ctx, converter, "make-thin", "--input-reference", "oci:"+image.Dir,
		"--output-reference", "docker-archive:"+thin+":"+thinImage, "--repository", repository, "--target",
		"native:"+publisher)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("convert %s: %w: %s", image.Name, err, out)
	}
	if err := image.WriteArchive(ordinary); err != nil {
		return nil, err
	}
	var runs []result
	for _, image := range []struct{ name, file string }{{images.Debian, ordinary}, {thinImage, thin}} {
		d.step("load and run " + image.name)
		r, err := d.try(ctx, image.name, image.file)
		if err != nil {
			return nil, fmt.Errorf("load and run %s: %w", image.name, err)
		}
		runs = append(runs, *r)
	}
	size, err := d.stand.Engine.Docker(ctx, "image", "inspect", "--format", "{{.Size}}", images.Debian)
	if err != nil {
		return nil, err
	}
	runs[0].size, err = strconv.ParseInt(strings.TrimSpace(size), 10, 64)
	return runs, err
}

// try loads an image and runs it twice.
func (d *demo) try(ctx context.Context, name, file string) (*result, error) {
	r := &result{name: name}
	before := d.stand.Site.Count()
	if _, err := d.stand.Engine.Docker(ctx, "load", "--quiet", "--input", file); err != nil {
		return nil, err
	}
	loaded := d.stand.Site.Count()
	begin := time.Now()
	said, err := d.stand.Engine.Docker(ctx, "run", "--rm", "--network", "none", name)
	if err != nil {
		return nil, err
	}
	r.said, r.took = strings.TrimSpace(said), time.Since(begin)
	ran := d.stand.Site.Count()
	if _, err := d.stand.Engine.Docker(ctx, "run", "--rm", "--network", "none", name); err != nil {
		return nil, fmt.Errorf("a second time: %w", err)
	}
	r.load, r.fetch, r.fetchedAgain = loaded.Sub(before), ran.Sub(loaded), d.stand.Site.Count().Sub(ran)
	return r, nil
}

// show prints the results.
func show(runs []result) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nIMAGE\tSAID\tFIRST RUN\tFETCHED TO LOAD\tTO RUN\tTO RUN AGAIN\n")
	for _, r := range runs {
		fmt.Fprintf(w, "%s\t%q\t%.2f s\t%s\t%s\t%s\n", r.name, r.said, r.took.Seconds(), amount(r.load),
			amount(r.fetch), amount(r.fetchedAgain))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	ordinary, thin := runs[0], runs[1]
	fmt.Printf("\nThe image's files have %d bytes. Its thin twin fetched %d: %d of catalogs and signatures to be loaded, %d of files to run.\n",
		ordinary.size, thin.load.Bytes+thin.fetch.Bytes, thin.load.Bytes, thin.fetch.Bytes)
	if thin.said != ordinary.said {
		return fmt.Errorf("the two containers did not say the same")
	}
	return nil
}

func amount(c stand.Count) string {
	if c.Requests == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%d bytes, %d objects", c.Bytes, c.Objects)
}

// keepLog saves the engine's log from the removal and gives the error that says where it is.
func (d *demo) keepLog() error {
	if d.stand.Engine == nil {
		return nil
	}
	f, err := os.CreateTemp("", "cvmfs-graphdriver-demo-*.log")
	if err != nil {
		return fmt.Errorf("keep the engine's log: %w", err)
	}
	_, err = f.WriteString(d.stand.Engine.Log())
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keep the engine's log: %w", err)
	}
	return fmt.Errorf("the engine's log is %s", f.Name())
}
