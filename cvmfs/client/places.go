package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// Place is where a folder is in the catalogs.
type Place struct {
	Entry  *catalog.Entry // as Lookup returns it; nil if there is no such path
	Holder hash.Digest    // as Holder returns it
	Beside *catalog.Entry // of the path with the suffix that was asked for; nil if there is none
}

// Places looks many folders up at once, and for each the path that is called as it is with a suffix. Each catalog on
// the way is opened once. Those that begin at the folders themselves aren't asked for.
func (v *Revision) Places(ctx context.Context, paths []string, suffix string) ([]Place, error) {
	places := make([]Place, len(paths))
	all := make([]int, len(paths))
	for i, path := range paths {
		if err := checkPath(path); err != nil {
			return nil, v.lookUpError(path, err)
		}
		all[i] = i
	}
	s := &placing{revision: v, paths: paths, suffix: suffix, places: places}
	if err := s.in(ctx, v.root, all); err != nil {
		return nil, fmt.Errorf("look up %d folders in %s, revision %d: %w", len(paths), v.FQRN, v.Number, err)
	}
	return places, nil
}

// placing is one call of Places.
type placing struct {
	revision *Revision
	paths    []string
	suffix   string
	places   []Place
}

// in looks up those of the paths, by their numbers, that a catalog or one nested in it has.
func (s *placing) in(ctx context.Context, m mount, numbers []int) error {
	var below map[mount][]int
	err := s.revision.repo.use(ctx, m, func(c *catalog.Catalog) error {
		below = map[mount][]int{}
		for _, i := range numbers {
			n, ok, err := c.NestedFor(s.paths[i])
			switch nested := *mountFor(n); {
			case err != nil:
				return err
			case ok && n.Path != s.paths[i]:
				below[nested] = append(below[nested], i)
				continue
			case ok:
				s.places[i].Holder = n.Digest
			default:
				s.places[i].Holder = m.digest
			}
			if s.places[i].Entry, err = entryOrNil(c, s.paths[i]); err != nil {
				return err
			}
			if s.places[i].Beside, err = entryOrNil(c, s.paths[i]+s.suffix); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(downloadsAhead)
	for m, numbers := range below {
		group.Go(func() error { return s.in(ctx, m, numbers) })
	}
	return group.Wait()
}

func entryOrNil(c *catalog.Catalog, path string) (*catalog.Entry, error) {
	e, err := c.Lookup(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return e, err
}
