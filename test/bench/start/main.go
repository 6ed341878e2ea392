// Command start measures how long images take to start where nothing of them is: from `docker pull` until the
// program is ready. The images are made of Debian packages. Each is in a private registry as it is, and as a thin image
// with its layers in a private repository; links are TCP relays that delay and limit (package link).
//
// A cell of the results is an image on a link, on an engine, in a mode: on the engine's own driver, as an ordinary
// image on ours, as a thin one on ours. Each of its samples is a fresh engine with empty folders. The modes are taken
// in turn. What is in the file of results is not measured again.
//
// With -scale it measures what grows (package scale), into the same file.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/bench/scale"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
)

// options are what a run is asked for. Lists are of names; an empty one is all there are.
type options struct {
	stand                         stand.Options
	converter                     string
	images, links, engines, modes list
	view                          string
	rounds                        int
	force                         bool
	results                       string
	report                        string
	isQuick                       bool
	isScale                       bool
	grown                         grown
}

// list is a flag: names separated by commas.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(text string) error {
	*l = strings.Split(text, ",")
	return nil
}

func main() {
	engine.Main()
	scale.Main()
	o := options{stand: stand.Options{Quiet: true}}
	flag.StringVar(&o.stand.Bundle, "bundle", "", "`FOLDER` of the plugin bundle")
	flag.StringVar(&o.stand.Snapshotter, "snapshotter", "", "the `PROGRAM` cvmfs-snapshotter")
	flag.StringVar(&o.converter, "converter", "", "the `PROGRAM` docker2cvmfs")
	flag.StringVar(&o.stand.Testdata, "testdata", "testdata", "`FOLDER` of the reference repositories")
	flag.Var(&o.images, "images", "`NAMES` of images, as base,python; all but small by default")
	flag.Var(&o.links, "links", "`NAMES` of links: 1gbit-0.2ms, 100mbit-20ms, 50mbit-80ms, none; all by default")
	flag.Var(&o.engines, "engines", "`VERSIONS` of Docker: 20.10 is with the plugin, 29 with the snapshotter")
	flag.Var(&o.modes, "modes", "`NAMES` of modes: overlay2, ordinary, thin, profiled; all by default")
	flag.StringVar(&o.view, "view", "auto", "of thin images: erofs or fuse; auto is what the kernel can do")
	flag.IntVar(&o.rounds, "rounds", 3, "how many samples a cell has")
	flag.BoolVar(&o.force, "force", false, "measure again what is in the results")
	flag.StringVar(&o.results, "results", "results.json", "`FILE` of the results")
	flag.StringVar(&o.report, "report", "", "measure nothing: write the document and its pictures into a `FOLDER`")
	flag.BoolVar(&o.isQuick, "quick", false, "a small image alone, and an error if its start fetches too much")
	flag.BoolVar(&o.isScale, "scale", false, "measure what grows, and no single starts")
	flag.Var(&o.grown.nodes, "nodes", "`NUMBERS` of nodes that start an image through one proxy, as 1,10")
	flag.Var(&o.grown.proxies, "proxies", "`NAMES` of proxies between nodes and server: squid, collapsed, own")
	flag.Var(&o.grown.composed, "composed", "`SIZES` of images that are composed, as 10000x20: files and layers, and of more\n"+
		"than one, as 10000x20x3: images")
	flag.Var(&o.grown.containers, "containers", "`NUMBERS` of containers that are started at one time, as 1,8")
	flag.Var(&o.grown.hoard, "hoard", "`NUMBERS` of images that a host has, one after the other, as 1,5")
	flag.IntVar(&o.grown.atOnce, "at-once", 32, "how many nodes start at one time")
	flag.Parse()
	if o.isQuick {
		o = o.quick()
	}
	if o.report != "" {
		if err := report(o); err != nil {
			fmt.Fprintln(os.Stderr, "start:", err)
			os.Exit(1)
		}
		return
	}
	measure := run
	if o.isScale {
		measure = runScale
	}
	if o.stand.Bundle == "" || o.stand.Snapshotter == "" || o.converter == "" || flag.NArg() > 0 || o.rounds < 1 {
		fmt.Fprintln(os.Stderr, "start: want -bundle FOLDER -snapshotter PROGRAM -converter PROGRAM and no argument")
		os.Exit(2)
	}
	if err := engine.Supported(); err != nil {
		fmt.Fprintln(os.Stderr, "start:", err)
		os.Exit(3)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := measure(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "start:", err)
		os.Exit(1)
	}
}

// report writes the document of the results there are.
func report(o options) error {
	r, err := readResults(o.results)
	if err != nil {
		return err
	}
	return writeReport(r, o.report)
}

// bench is one run of the program.
type bench struct {
	options
	version string // of our programs
	cache   string
	work    string // folder that is removed at the end
	nodes   string // folder of the nodes' folders, likewise
	origin  *origin
	record  *results
	tools   map[string]*engine.Tools // by the engine's name
}

// run measures what the results lack.
func run(ctx context.Context, o options) (err error) {
	wanted, err := o.plan()
	if err != nil {
		return err
	}
	r, err := openResults(o.results)
	if err != nil {
		return err
	}
	b, err := newBench(ctx, o, r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for _, image := range wanted.images {
		if err := b.measure(ctx, image, wanted); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted; what was measured is in " + o.results)
			}
			return err
		}
	}
	if b.isQuick {
		return b.record.checkQuick()
	}
	return nil
}

// newBench makes what images are started from, without an image yet.
func newBench(ctx context.Context, o options, r *results) (_ *bench, err error) {
	b := &bench{options: o, record: r, tools: map[string]*engine.Tools{}}
	if b.version, err = bundleVersion(o.stand.Bundle); err != nil {
		return nil, err
	}
	if b.cache, err = engine.CacheDir(); err != nil {
		return nil, err
	}
	if b.work, err = os.MkdirTemp("", "cvmfs-start-"); err != nil {
		return nil, err
	}
	if b.nodes, err = newFarFolder(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.work))
	}
	if b.origin, err = newOrigin(ctx, b.work, o.converter); err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.work), os.RemoveAll(b.nodes))
	}
	return b, nil
}

func (b *bench) close() error {
	return errors.Join(b.origin.close(), os.RemoveAll(b.work), os.RemoveAll(b.nodes))
}

// plan is what a run is about.
type plan struct {
	images   []sampleImage
	networks []network
	doors    []door
	modes    []mode
}

// plan finds what the names mean.
func (o options) plan() (p plan, err error) {
	var failures [4]error
	p.images, failures[0] = choose("image", o.images, table, func(i sampleImage) string { return i.name })
	p.networks, failures[1] = choose("link", o.links, networks, func(n network) string { return n.name })
	p.doors, failures[2] = choose("engine", o.engines, doors, func(d door) string { return d.name })
	p.modes, failures[3] = choose("mode", o.modes, modes, func(m mode) string { return m.name })
	if len(o.images) == 0 {
		p.images = slices.DeleteFunc(p.images, func(i sampleImage) bool { return i.name == quickImage })
	}
	return p, errors.Join(failures[:]...)
}

// choose returns what is named, or all.
func choose[T any](what string, names list, all []T, name func(T) string) (chosen []T, err error) {
	if len(names) == 0 {
		return slices.Clone(all), nil
	}
	for _, wanted := range names {
		n := slices.IndexFunc(all, func(t T) bool { return name(t) == wanted })
		if n < 0 {
			var known []string
			for _, t := range all {
				known = append(known, name(t))
			}
			return nil, fmt.Errorf("there is no %s %q: want some of %s", what, wanted, strings.Join(known, ", "))
		}
		chosen = append(chosen, all[n])
	}
	return chosen, nil
}

// measure measures an image: round by round, each mode once a round.
func (b *bench) measure(ctx context.Context, image sampleImage, p plan) error {
	for _, network := range p.networks {
		for _, door := range p.doors {
			had := map[string]int{} // samples from before
			for _, mode := range p.modes {
				k := b.key(image, network, door, mode)
				if b.force {
					b.record.drop(k)
				}
				if c := b.record.cell(k); c != nil {
					had[mode.name] = len(c.Samples)
				}
			}
			for round := range b.rounds {
				for _, mode := range p.modes {
					if round < had[mode.name] {
						continue
					}
					if err := b.sample(ctx, image, network, door, mode); err != nil {
						return fmt.Errorf("%v: %w", b.key(image, network, door, mode), err)
					}
				}
			}
		}
	}
	return nil
}

func (b *bench) key(image sampleImage, network network, door door, mode mode) key {
	return mode.key(image.name, network, door.name, b.view)
}

// sample takes one sample and writes it down.
func (b *bench) sample(ctx context.Context, image sampleImage, network network, door door, mode mode) (err error) {
	if err := b.describe(ctx, image); err != nil {
		return err
	}
	if err := b.prepare(ctx, image, mode.form); err != nil {
		return err
	}
	o, err := b.standOptions(ctx, door)
	if err != nil {
		return err
	}
	open := door.ours
	if mode.own {
		open = door.own
	}
	taken := sample{Time: time.Now().UTC().Truncate(time.Second), Version: b.version}
	if taken.Load, err = load(); err != nil {
		return err
	}
	n, err := newNode(ctx, o, b.origin, network.speed, open)
	if err != nil {
		return err
	}
	if err := n.start(ctx, image, mode.form, &taken); err != nil {
		if ctx.Err() == nil {
			err = errors.Join(err, keepLog(n))
		}
		return errors.Join(err, n.close())
	}
	if err := n.close(); err != nil {
		return err
	}
	k := b.key(image, network, door, mode)
	fmt.Fprintf(os.Stderr, "%v: pull %.2f s, run %.2f s, warm %.2f s, fetched %.1f MB (registry) and %.1f MB (site)\n",
		k, taken.Pull, taken.Run, taken.Warm, mega(taken.Registry.Bytes), mega(taken.Site.Bytes))
	b.record.add(k, taken)
	return b.record.write(b.results)
}

func mega(n int64) float64 { return float64(n) / 1e6 }

// standOptions are those of an engine's nodes.
func (b *bench) standOptions(ctx context.Context, door door) (o stand.Options, err error) {
	o = b.stand
	o.Driver = []string{"cvmfs.view=" + b.view}
	o.Dir = b.nodes
	if b.tools[door.name] == nil {
		if b.tools[door.name], err = door.tools(ctx, b.cache, os.Stderr); err != nil {
			return o, err
		}
	}
	o.Tools = b.tools[door.name]
	return o, nil
}

// prepare has an image at the origin, in a form.
func (b *bench) prepare(ctx context.Context, image sampleImage, f form) error {
	if b.origin.image(image.name, f) != nil {
		return nil
	}
	if f == profiled {
		if err := b.prepare(ctx, image, thin); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "prepare %s as %s image\n", image.name, f)
	content, err := image.make(ctx, b.cache, b.work, os.Stderr)
	if err != nil {
		return err
	}
	return b.origin.publish(ctx, image, content, f)
}

// describe has an image's facts in the results. They don't change: the image is made of what is in the cache folder.
func (b *bench) describe(ctx context.Context, image sampleImage) error {
	if _, known := b.record.Images[image.name]; known {
		return nil
	}
	if err := b.prepare(ctx, image, ordinary); err != nil {
		return err
	}
	o, err := b.standOptions(ctx, doors[0])
	if err != nil {
		return err
	}
	facts, err := measureImage(ctx, o, b.origin, image)
	if err != nil {
		return fmt.Errorf("measure the image: %w", err)
	}
	b.record.Images[image.name] = facts
	return b.record.write(b.results)
}

// keepLog saves what a node's programs said and gives the error that says where.
func keepLog(n *node) error {
	f, err := os.CreateTemp("", "cvmfs-start-*.log")
	if err == nil {
		_, err = f.WriteString(n.logs())
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("keep the node's log: %w", err)
	}
	return fmt.Errorf("the node's log is %s", f.Name())
}

// bundleVersion is the version of the plugin in a bundle.
func bundleVersion(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "rootfs/usr/share/cvmfs-graphdriver/build.json"))
	if err != nil {
		return "", err
	}
	var build struct{ Version string }
	return build.Version, json.Unmarshal(b, &build)
}
