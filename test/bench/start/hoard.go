package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cvmfs-graphdriver/test/link"
)

// hoardKey says what is measured: a host that has pulled and run the first so many images of the table.
type hoardKey struct {
	Images int    `json:"images"`
	Engine string `json:"engine"`
	Mode   string `json:"mode"`
}

func (k hoardKey) String() string {
	return fmt.Sprintf("%d images on one host, engine %s, %s", k.Images, k.Engine, k.Mode)
}

// hoard is what that took.
type hoard struct {
	Disk    int64 `json:"disk"`    // bytes by which the folders of engine and driver have grown
	Fetched int64 `json:"fetched"` // bytes, by registry and repository
}

// hoardNumbers are after how many images one looks.
var hoardNumbers = list{"1", "5", "10"}

// hoardCells are those that are wanted, of one engine and mode after the other, growing.
func (o options) hoardCells() (keys []hoardKey, err error) {
	if len(o.grown.hoard) == 0 {
		o.grown.hoard = hoardNumbers
	}
	several, err := numbers("hoard", o.grown.hoard)
	if err != nil {
		return nil, err
	}
	slices.Sort(several)
	p, err := o.plan()
	if err != nil {
		return nil, err
	}
	for _, d := range p.doors {
		for _, m := range p.modes {
			if m.name == string(ordinary) {
				continue // as overlay2
			}
			for _, n := range several {
				if n > len(p.images) {
					return nil, fmt.Errorf("-hoard %d: there are %d images", n, len(p.images))
				}
				keys = append(keys, hoardKey{n, d.name, m.name})
			}
		}
	}
	return keys, nil
}

// hoarder is a host that gets one image after the other.
type hoarder struct {
	*node
	mode  mode
	empty int64 // bytes of its folders at first
	has   int   // images
}

// measureHoards has hosts without a link pull and run images, one after the other.
func (o options) measureHoards(ctx context.Context, r *results, keys []hoardKey) error {
	p, err := o.plan()
	if err != nil {
		return err
	}
	return fillOnHosts(ctx, o, r, &r.Scale.Hoards, keys, hosts[hoardKey, hoard, *hoarder]{
		same: func(a, b hoardKey) bool { return a.Engine == b.Engine && a.Mode == b.Mode },
		open: (*bench).hoarder,
		measure: func(b *bench, on *hoarder, k hoardKey) (*hoard, error) {
			for ; on.has < k.Images; on.has++ {
				if err := on.add(ctx, b, p.images[on.has]); err != nil {
					return nil, err
				}
			}
			full, err := diskUsage(on.Dir())
			return &hoard{full - on.empty, on.registry.Count().Down + on.site.Count().Down}, err
		},
	})
}

// add has the host pull and run an image.
func (h *hoarder) add(ctx context.Context, b *bench, image sampleImage) error {
	if err := b.prepare(ctx, image, h.mode.form); err != nil {
		return err
	}
	ref := reference(h.registry.Addr, image.name, h.mode.form)
	_, err := h.Engine.Docker(ctx, "pull", "--quiet", ref)
	if err == nil {
		_, err = h.run(ctx, ref, image)
	}
	return err
}

// hoarder makes a host that has no image yet.
func (b *bench) hoarder(ctx context.Context, k hoardKey) (*hoarder, error) {
	p, err := options{engines: list{k.Engine}, modes: list{k.Mode}}.plan()
	if err != nil {
		return nil, err
	}
	h := &hoarder{mode: p.modes[0]}
	o, err := b.standOptions(ctx, p.doors[0])
	if err != nil {
		return nil, err
	}
	open := p.doors[0].ours
	if h.mode.own {
		open = p.doors[0].own
	}
	if h.node, err = newNode(ctx, o, b.origin, link.Speed{}, open); err != nil {
		return nil, err
	}
	if h.empty, err = diskUsage(h.Dir()); err != nil {
		return nil, errors.Join(err, h.node.close())
	}
	return h, nil
}

// grownHoards says what disk images take together.
func (r *results) grownHoards() string {
	t := newTable("engine", "images", "disk, overlay2", "thin", "profiled", "fetched, overlay2", "thin", "profiled")
	var several []int
	for _, c := range r.Scale.Hoards {
		several = append(several, c.Key.Images)
	}
	slices.Sort(several)
	for _, d := range doors {
		for _, n := range slices.Compact(slices.Clone(several)) {
			row, some := []string{d.name, fmt.Sprint(n)}, false
			for _, of := range []func(*hoard) int64{
				func(h *hoard) int64 { return h.Disk }, func(h *hoard) int64 { return h.Fetched },
			} {
				for _, mode := range []string{"overlay2", string(thin), string(profiled)} {
					cell := ""
					if c := find(r.Scale.Hoards, hoardKey{n, d.name, mode}); c != nil {
						cell, some = megabytes(float64(of(c.Measured))), true
					}
					row = append(row, cell)
				}
			}
			if some {
				t.row(row...)
			}
		}
	}
	return t.text()
}
