package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"cvmfs-graphdriver/test/bench/scale"
)

// grown says what is measured of what grows. Empty lists are all there are, and 0 is nothing.
type grown struct {
	nodes, proxies, composed, containers, hoard list
	atOnce                                      int
}

// What there is to measure.
var (
	nodeNumbers = []string{"1", "10", "100", "1000"}
	proxyKinds  = []string{"squid", "collapsed", "own"}
	imageSizes  = []string{
		"10000x1", "10000x20", "10000x125", "100000x1", "100000x20", "100000x125", "1000000x1", "1000000x20",
		"1000000x125", "100000x20x10",
	}
	containerNumbers = list{"1", "8", "64"}
	proxyNames       = map[string]string{"squid": scale.Squid, "collapsed": scale.Collapsing, "own": scale.Own}
)

// usualProxies are measured unless others are named.
var usualProxies = list{"squid", "collapsed"}

// cells are those that are wanted.
func (g grown) cells() (nodes []scale.NodesKey, composed []scale.ComposedKey, err error) {
	self := func(name string) string { return name }
	if len(g.proxies) == 0 {
		g.proxies = usualProxies
	}
	proxies, err := choose("proxy", g.proxies, proxyKinds, self)
	if err != nil {
		return nil, nil, err
	}
	if len(g.nodes) == 0 {
		g.nodes = nodeNumbers
	}
	several, err := numbers("nodes", g.nodes)
	if err != nil {
		return nil, nil, err
	}
	for _, n := range several {
		for _, proxy := range proxies {
			for _, profile := range []bool{false, true} {
				nodes = append(nodes, scale.NodesKey{Nodes: n, Profile: profile, Proxy: proxyNames[proxy]})
			}
		}
	}
	if len(g.composed) == 0 {
		g.composed = imageSizes
	}
	for _, text := range g.composed {
		if text == "0" {
			continue
		}
		k, err := parseComposed(text)
		if err != nil {
			return nil, nil, err
		}
		composed = append(composed, k)
	}
	return nodes, composed, nil
}

// parseComposed reads FILESxLAYERS, or FILESxLAYERSxIMAGES.
func parseComposed(text string) (k scale.ComposedKey, err error) {
	parts := strings.Split(text, "x")
	into := []*int{&k.Files, &k.Layers, &k.Images}
	if len(parts) < 2 || len(parts) > len(into) {
		err = errors.New("there are two or three numbers")
	}
	for i := 0; err == nil && i < len(parts); i++ {
		*into[i], err = strconv.Atoi(parts[i])
	}
	if err != nil || k.Layers < 1 || k.Files < k.Layers || k.Images < 0 {
		return k, fmt.Errorf("-composed %s: want files and layers, as 10000x20, or also images, as 10000x20x3", text)
	}
	if k.Images == 1 {
		k.Images = 0
	}
	return k, nil
}

// numbers are those of a flag, 0 left out.
func numbers(flag string, l list) (numbers []int, err error) {
	for _, text := range l {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("-%s %s: want numbers", flag, text)
		}
		if n > 0 {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

// runScale measures what the results lack of what grows.
func runScale(ctx context.Context, o options) (err error) {
	nodes, composed, err := o.grown.cells()
	if err != nil {
		return err
	}
	together, err := o.togetherCells()
	if err != nil {
		return err
	}
	hoards, err := o.hoardCells()
	if err != nil {
		return err
	}
	r, err := openResults(o.results)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "cvmfs-scale-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	err = o.measureComposing(ctx, r, work, composed)
	if err == nil {
		err = o.measureNodes(ctx, r, work, nodes)
	}
	if err == nil {
		err = o.measureTogether(ctx, r, together)
	}
	if err == nil {
		err = o.measureHoards(ctx, r, hoards)
	}
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted; what was measured is in " + o.results)
	}
	return err
}

// fill measures what some cells lack, one after the other, and writes each down.
func fill[K interface {
	comparable
	String() string
}, M any](o options, r *results, cells *[]*scaleCell[K, M], keys []K, measure func(K) (*M, error)) error {
	for _, k := range keys {
		c := find(*cells, k)
		if c != nil && !o.force {
			continue
		}
		taken := scaleCell[K, M]{Key: k, Time: time.Now().UTC().Truncate(time.Second)}
		var err error
		if taken.Load, err = load(); err != nil {
			return err
		}
		if taken.Measured, err = measure(k); err != nil {
			return fmt.Errorf("%v: %w", k, err)
		}
		if c == nil {
			*cells = append(*cells, &taken)
		} else {
			*c = taken
		}
		fmt.Fprintf(os.Stderr, "%v: %+v\n", k, *taken.Measured)
		if err := r.write(o.results); err != nil {
			return err
		}
	}
	return nil
}

// hosts says how cells are measured of which several are of one host.
type hosts[K, M any, H interface{ close() error }] struct {
	same    func(a, b K) bool // whether cells are of one host
	open    func(b *bench, ctx context.Context, k K) (H, error)
	measure func(b *bench, on H, k K) (*M, error)
}

// fillOnHosts is fill of cells that are measured on hosts, one after the other. What is prepared for them is prepared
// when the first is measured.
func fillOnHosts[K interface {
	comparable
	String() string
}, M any, H interface{ close() error }](
	ctx context.Context, o options, r *results, cells *[]*scaleCell[K, M], keys []K, h hosts[K, M, H],
) (err error) {
	var b *bench
	var on *H // nil: none is open
	var of K
	leave := func() error {
		if on == nil {
			return nil
		}
		host := *on
		on = nil
		return host.close()
	}
	defer func() {
		err = errors.Join(err, leave())
		if b != nil {
			err = errors.Join(err, b.close())
		}
	}()
	return fill(o, r, cells, keys, func(k K) (*M, error) {
		if b == nil {
			var err error
			if b, err = newBench(ctx, o, r); err != nil {
				return nil, err
			}
		}
		if on == nil || !h.same(of, k) {
			if err := leave(); err != nil {
				return nil, err
			}
			host, err := h.open(b, ctx, k)
			if err != nil {
				return nil, err
			}
			on, of = &host, k
		}
		return h.measure(b, *on, k)
	})
}

// measureComposing composes images, each published in a folder of its own.
func (o options) measureComposing(ctx context.Context, r *results, work string, keys []scale.ComposedKey) error {
	return fill(o, r, &r.Scale.Composed, keys, func(k scale.ComposedKey) (_ *scale.Composed, err error) {
		dir, err := os.MkdirTemp(work, "composed-")
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		return scale.Compose(ctx, dir, k)
	})
}

// memoryFolder is a file system in memory: nodes share no disk in reality.
const memoryFolder = "/dev/shm"

func (o options) measureNodes(ctx context.Context, r *results, work string, keys []scale.NodesKey) (err error) {
	caches, err := os.MkdirTemp(memoryFolder, "cvmfs-scale-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(caches)) }()
	var starts *scale.Starts
	defer func() {
		if starts != nil {
			err = errors.Join(err, starts.Close())
		}
	}()
	return fill(o, r, &r.Scale.Nodes, keys, func(k scale.NodesKey) (*scale.Nodes, error) {
		if starts == nil {
			var err error
			if starts, err = scale.NewStarts(ctx, work, caches); err != nil {
				return nil, err
			}
		}
		return starts.Measure(ctx, k, o.grown.atOnce)
	})
}
