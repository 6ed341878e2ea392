package images

import (
	"context"
	"errors"
	"path"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/erofs"
)

// maxNesting bounds how many folders deep Find looks.
const maxNesting = 1024

// Find returns the first file of an image, in the order of its folders, whose content is an object; "" if none is. It
// reads the image's metadata up to there, some milliseconds for ten thousand files.
func (c *Composer) Find(ctx context.Context, key string, object objects.Ref) (string, error) {
	image, err := c.Describe(key)
	if err != nil {
		return "", err
	}
	r, err := erofs.OpenReader(image.Meta)
	if err != nil {
		return "", err
	}
	f := &finder{Reader: r, redirect: "/objects/" + object.Path()}
	root, err := c.filesOf(r)
	if err != nil {
		return "", err
	}
	if err := f.folder(ctx, root, "/", 0); err != nil && !errors.Is(err, errFound) {
		return "", err
	}
	return f.name, nil
}

// filesOf returns the folder of an image that its files are below.
func (c *Composer) filesOf(r *erofs.Reader) (nid uint64, err error) {
	if !c.cfg.Nested {
		return r.Root(), nil
	}
	nid, found, err := r.Lookup(r.Root(), []byte(Folder))
	if err == nil && !found {
		err = erofs.ErrCorrupt
	}
	return nid, err
}

var errFound = errors.New("found")

// finder looks for the file with a redirect.
type finder struct {
	*erofs.Reader
	redirect string
	name     string // once it is found
}

func (f *finder) folder(ctx context.Context, nid uint64, name string, depth int) (err error) {
	if depth > maxNesting {
		return erofs.ErrCorrupt
	}
	visited := f.ReadDir(nid, 2, func(child string, nid uint64) bool { // 0 and 1 are "." and ".."
		if err = ctx.Err(); err == nil {
			err = f.entry(ctx, nid, path.Join(name, child), depth)
		}
		return err == nil
	})
	return errors.Join(err, visited)
}

func (f *finder) entry(ctx context.Context, nid uint64, name string, depth int) error {
	i, err := f.Inode(nid)
	if err != nil {
		return err
	}
	switch i.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return f.folder(ctx, nid, name, depth+1)
	case unix.S_IFREG:
		redirect, _, err := f.Xattr(nid, "trusted.overlay.redirect")
		if err != nil {
			return err
		}
		if string(redirect) == f.redirect {
			f.name = name
			return errFound
		}
	}
	return nil
}
