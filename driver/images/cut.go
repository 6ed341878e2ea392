package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/cvmfs/pack"
	"cvmfs-graphdriver/thin"
)

// startPatience is how long an image waits for what belongs to its start profile: it can do without.
const startPatience = 10 * time.Second

// errStart means that what belongs to a start profile can't be had.
var errStart = errors.New("start profile")

// start is what belongs to the start profile of an image. The zero value is that of an image without one.
type start struct {
	profile []byte // its file
	cuts    *cuts  // nil: no files are cut for it
	packs   []objects.Pack
}

// start fetches what belongs to a start profile, which may be nil.
func (c *Composer) start(ctx context.Context, p *thin.Profile) (s start, err error) {
	if p == nil {
		return s, nil
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	b, v, err := c.fetchProfile(ctx, p)
	if err == nil {
		s.profile = b
		s.cuts, s.packs, err = c.readFiles(ctx, v, p)
	}
	if err != nil {
		return start{}, fmt.Errorf("%w cvmfs://%s%s: %w", errStart, p.FQRN, p.Path, err)
	}
	return s, nil
}

// cuts are recipes for content whose objects have other recipes in the layers.
type cuts struct {
	fqrn    string
	objects map[string]*objects.Object // by the name of the object in the layers
	isolate bool
	here    func(place string, size int64) bool // see Config.Here
}

// readFiles returns the files that are cut for a start profile, at a revision that has the profile, and packs of what
// it names; none where a publisher leaves it to somebody else how files are cut.
func (c *Composer) readFiles(ctx context.Context, v *client.Revision, p *thin.Profile) (*cuts, []objects.Pack, error) {
	nodes, err := v.List(ctx, p.Files())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var packs []objects.Pack
	made := &cuts{fqrn: p.FQRN, objects: map[string]*objects.Object{}, isolate: c.cfg.Isolate, here: c.cfg.Here}
	for _, n := range nodes {
		if !n.IsRegular() {
			continue
		}
		o, err := objects.FromEntry(n.Entry, n.Path)
		if err != nil || o.External {
			continue
		}
		if first, is := pack.Number(n.Name); is && len(o.Chunks) == 0 && o.Compression == hash.None {
			packs = append(packs, objects.Pack{FQRN: p.FQRN, First: first, Stored: o.Stored()[0]})
		} else if len(o.Chunks) > 0 {
			made.objects[n.Name] = &o
		}
	}
	return made, packs, nil
}

// apply has a file be made of the chunks that fit the start profile, unless all of its content is here.
func (c *cuts) apply(n *node) {
	if c == nil || n.object == nil || n.repo != c.fqrn {
		return
	}
	place := strings.TrimPrefix(n.redirect, objectsFolder)
	name := path.Base(place)
	if c.isolate {
		name = name[:strings.LastIndexByte(name, '.')] // the rest says whose it is
	}
	cut := c.objects[name]
	if cut == nil || cut.Size != n.object.Size || c.here != nil && c.here(place, n.object.Size) {
		return
	}
	o := *cut
	o.File = n.object.File
	n.object, n.redirect = &o, objectsFolder+o.PlaceIn(c.fqrn, c.isolate)
}
