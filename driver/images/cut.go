package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/thin"
)

// errStartFiles means that files which are cut for a start profile can't be had.
var errStartFiles = errors.New("files cut for the start profile")

// startFiles is the folder in which files of an image are published once more, cut into chunks that fit its start
// profile.
type startFiles struct {
	revision *client.Revision
	holder   hash.Digest // of the catalog that lists them
	fqrn     string
	path     string
}

// startFiles finds the folder that belongs to a start profile; nil if there is none, as for profiles that older
// programs have published.
func (c *Composer) startFiles(ctx context.Context, p *thin.Profile, parts []part) (*startFiles, error) {
	if p == nil {
		return nil, nil
	}
	for _, part := range parts {
		f := part.folder
		if f == nil || f.fqrn != p.FQRN {
			continue
		}
		e, err := f.revision.Lookup(ctx, p.Files())
		if errors.Is(err, fs.ErrNotExist) || err == nil && !e.IsDir() {
			return nil, nil
		}
		s := &startFiles{revision: f.revision, fqrn: p.FQRN, path: p.Files()}
		if err == nil {
			s.holder, err = f.revision.Holder(ctx, s.path)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errStartFiles, err)
		}
		return s, nil
	}
	return nil, nil
}

// cuts are recipes for content whose objects have other recipes in the layers.
type cuts struct {
	fqrn    string
	objects map[string]*objects.Object // by the name of the object in the layers
	isolate bool
	here    func(place string, size int64) bool // see Config.Here
}

// read returns what is cut.
func (s *startFiles) read(ctx context.Context) (*cuts, error) {
	nodes, err := s.revision.List(ctx, s.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errStartFiles, err)
	}
	c := &cuts{fqrn: s.fqrn, objects: map[string]*objects.Object{}}
	for _, n := range nodes {
		if !n.IsRegular() {
			continue
		}
		if o, err := objects.FromEntry(n.Entry, n.Path); err == nil && !o.External && len(o.Chunks) > 0 {
			c.objects[n.Name] = &o
		}
	}
	return c, nil
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
