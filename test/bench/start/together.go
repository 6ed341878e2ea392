package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/test/link"
)

// togetherKey says what is measured: so many containers of an image that the engine has, started at one time.
type togetherKey struct {
	Containers int    `json:"containers"`
	Engine     string `json:"engine"`
	Mode       string `json:"mode"`
}

func (k togetherKey) String() string {
	return fmt.Sprintf("%d containers, engine %s, %s", k.Containers, k.Engine, k.Mode)
}

// together is what they took.
type together struct {
	Took   float64 `json:"took"`             // seconds until the last one was ready and had ended
	CPU    float64 `json:"cpu,omitempty"`    // seconds of our daemon
	Memory int64   `json:"memory,omitempty"` // bytes, the largest that our daemon had up to then
}

// togetherModes are compared: the engine's own driver, and thin images.
var togetherModes = list{"overlay2", "thin"}

// togetherCells are those that are wanted, one engine and mode after the other.
func (o options) togetherCells() (keys []togetherKey, err error) {
	if len(o.grown.containers) == 0 {
		o.grown.containers = containerNumbers
	}
	several, err := numbers("containers", o.grown.containers)
	if err != nil {
		return nil, err
	}
	p, err := o.plan()
	if err != nil {
		return nil, err
	}
	for _, d := range p.doors {
		for _, m := range p.modes {
			if slices.Contains(togetherModes, m.name) {
				for _, n := range several {
					keys = append(keys, togetherKey{n, d.name, m.name})
				}
			}
		}
	}
	return keys, nil
}

// crowd is a node that has an image, and has run it.
type crowd struct {
	*node
	ref   string
	image sampleImage
}

// measureTogether starts containers on nodes without a link, several of one image.
func (o options) measureTogether(ctx context.Context, r *results, keys []togetherKey) error {
	return fillOnHosts(ctx, o, r, &r.Scale.Together, keys, hosts[togetherKey, together, *crowd]{
		same:    func(a, b togetherKey) bool { return a.Engine == b.Engine && a.Mode == b.Mode },
		open:    (*bench).crowd,
		measure: func(_ *bench, on *crowd, k togetherKey) (*together, error) { return on.start(ctx, k.Containers) },
	})
}

// crowd makes a node for containers of the small image.
func (b *bench) crowd(ctx context.Context, k togetherKey) (_ *crowd, err error) {
	p, err := options{images: list{quickImage}, engines: list{k.Engine}, modes: list{k.Mode}}.plan()
	if err != nil {
		return nil, err
	}
	image, door, mode := p.images[0], p.doors[0], p.modes[0]
	if err := b.prepare(ctx, image, mode.form); err != nil {
		return nil, err
	}
	o, err := b.standOptions(ctx, door)
	if err != nil {
		return nil, err
	}
	open := door.ours
	if mode.own {
		open = door.own
	}
	n, err := newNode(ctx, o, b.origin, link.Speed{}, open)
	if err != nil {
		return nil, err
	}
	c := &crowd{n, reference(n.registry.Addr, image.name, mode.form), image}
	if _, err = n.Engine.Docker(ctx, "pull", "--quiet", c.ref); err == nil {
		_, err = n.run(ctx, c.ref, image)
	}
	if err != nil {
		return nil, errors.Join(err, n.close())
	}
	return c, nil
}

// start starts so many containers at one time, and waits for their end.
func (c *crowd) start(ctx context.Context, containers int) (*together, error) {
	before, err := c.usage()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	var group errgroup.Group
	for range containers {
		group.Go(func() error {
			_, err := c.run(ctx, c.ref, c.image)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	m := &together{Took: time.Since(begin).Seconds()}
	after, err := c.usage()
	m.CPU, m.Memory = after.cpu-before.cpu, after.memory
	return m, err
}

// grownTogether says what containers that start at one time take.
func (r *results) grownTogether() string {
	t := newTable("engine", "containers", "overlay2", "thin", "thin ÷ overlay2", "processor time of our daemon",
		"its memory", "load")
	for _, d := range doors {
		for _, n := range r.containerNumbers() {
			own := find(r.Scale.Together, togetherKey{n, d.name, togetherModes[0]})
			ours := find(r.Scale.Together, togetherKey{n, d.name, togetherModes[1]})
			if ours == nil {
				continue
			}
			took, compared, loads := "", "", figure{ours.Load}
			if own != nil {
				took, loads = fmt.Sprintf("%.1f s", own.Measured.Took), append(loads, own.Load)
				if slices.Max(loads) <= mostApart*slices.Min(loads) {
					compared = ratio(ours.Measured.Took, own.Measured.Took)
				}
			}
			m := ours.Measured
			t.row(d.name, fmt.Sprint(n), took, fmt.Sprintf("%.1f s", m.Took), compared, fmt.Sprintf("%.1f s", m.CPU),
				megabytes(float64(m.Memory)), fmt.Sprintf("%.0f–%.0f", slices.Min(loads), slices.Max(loads)))
		}
	}
	return t.text()
}

// containerNumbers are those that were measured, in order.
func (r *results) containerNumbers() (numbers []int) {
	for _, c := range r.Scale.Together {
		numbers = append(numbers, c.Key.Containers)
	}
	slices.Sort(numbers)
	return slices.Compact(numbers)
}
