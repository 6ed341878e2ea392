package scale

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/thin"
)

// NodesKey says what is measured: so many nodes that start one image, with its start profile or without, through a
// proxy that has nothing of it.
type NodesKey struct {
	Nodes   int    `json:"nodes"`
	Profile bool   `json:"profile"`
	Proxy   string `json:"proxy"`
}

func (k NodesKey) String() string {
	with := "without a profile"
	if k.Profile {
		with = "with its profile"
	}
	return fmt.Sprintf("%d nodes %s, %s", k.Nodes, with, k.Proxy)
}

// Compare orders keys: by proxies, profiles, numbers.
func (k NodesKey) Compare(other NodesKey) int {
	profile := func(k NodesKey) int {
		if k.Profile {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(k.Proxy, other.Proxy), profile(k)-profile(other), cmp.Compare(k.Nodes, other.Nodes))
}

// Nodes is what so many nodes did.
type Nodes struct {
	AtOnce int     `json:"at_once"` // nodes that start at one time
	Took   float64 `json:"took"`    // seconds
	Node   Traffic `json:"node"`    // of all nodes together, which is what arrives at the proxy
	Server Traffic `json:"server"`  // what arrives at the server
}

// The image that nodes start, and what a start reads of it: all files of a folder that all layers share.
var started = content{files: 2000, layers: 4, size: small}

// startReads is how many files a start reads.
var startReads = started.layers * folderSize / 2

// Starts are nodes that start an image. Close them.
type Starts struct {
	site              *site
	caches            string
	without, profiled *thin.Descriptor
	reads             []string // names of objects
}

// NewStarts publishes the image below a folder. The nodes' caches come into another one, which should be in memory.
func NewStarts(ctx context.Context, dir, caches string) (*Starts, error) {
	s := &Starts{caches: caches}
	var err error
	if s.site, err = newSite(ctx, dir, false); err != nil {
		return nil, err
	}
	if s.without, err = s.site.publish(ctx, started); err == nil {
		err = s.findReads(ctx)
	}
	if err == nil {
		s.profiled, err = s.site.attach(ctx, s.without, s.profile())
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close ends the site.
func (s *Starts) Close() error { return s.site.close() }

// findReads finds the objects that a start reads.
func (s *Starts) findReads(ctx context.Context) (err error) {
	configuration, err := s.site.configure("")
	if err != nil {
		return err
	}
	n, err := newNode(s.caches, configuration)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	r, err := n.repositories.Repository(repository)
	if err != nil {
		return err
	}
	v, err := r.Newest(ctx)
	if err != nil {
		return err
	}
	for layer, l := range s.without.Layers {
		for i := 0; i < folderSize; i += 2 {
			path := l.Path + "/" + started.file(layer, i)
			e, err := v.Lookup(ctx, path)
			if err != nil {
				return err
			}
			o, err := objects.FromEntry(e, path)
			if err != nil {
				return err
			}
			s.reads = append(s.reads, o.Name())
		}
	}
	return nil
}

// profile is the start profile of what a start reads.
func (s *Starts) profile() []byte {
	var p objects.Profile
	for _, name := range s.reads {
		n, err := objects.ParseName(name)
		if err != nil {
			panic(err) // an object's own name
		}
		p = append(p, objects.Read{Name: n})
	}
	return p.Encode()
}

// Measure has nodes start the image, so many of them at one time, each with an empty cache.
func (s *Starts) Measure(ctx context.Context, k NodesKey, atOnce int) (_ *Nodes, err error) {
	dir, err := os.MkdirTemp(s.site.dir, "cell-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	proxy, stop, err := startProxy(ctx, k.Proxy, dir, s.site.server.addr)
	if err != nil {
		return nil, err
	}
	defer stop()
	configuration, err := s.site.configure(proxy)
	if err != nil {
		return nil, err
	}
	d := s.without
	if k.Profile {
		d = s.profiled
	}
	m := &Nodes{AtOnce: min(atOnce, k.Nodes)}
	each := make([]Traffic, k.Nodes)
	before := s.site.server.count()
	begin := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range k.Nodes {
		group.Go(func() (err error) {
			n, err := newNode(s.caches, configuration)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, n.close()) }()
			if err := n.start(ctx, d, s.reads); err != nil {
				return fmt.Errorf("node %d: %w", i, err)
			}
			each[i], err = n.fetched()
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	m.Took = time.Since(begin).Seconds()
	after := s.site.server.count()
	m.Server = Traffic{after.Requests - before.Requests, after.Bytes - before.Bytes}
	for _, t := range each {
		m.Node.Requests += t.Requests
		m.Node.Bytes += t.Bytes
	}
	return m, nil
}
