package layers

import (
	"fmt"

	"cvmfs-graphdriver/driver/options"
	"cvmfs-graphdriver/internal/overlayfs"
)

// View is a way of showing composed images.
type View string

// The views. Both show the same; an overlay that is mounted keeps the one it was mounted with.
const (
	ViewEROFS View = options.EROFS // the kernel mounts the image, and the overlay finds content in data-only layers
	ViewFUSE  View = options.FUSE  // package view serves the image, content included, below Run/fuse/view
)

// chosen is the view in use, and why it was chosen.
type chosen struct {
	view    View
	stacked bool   // of erofs: overlays use the image by way of another overlay, see Shared
	why     string // "" where it is the best there is
}

// choose finds the view for what the engine has set: the one it wants, or else the best that works here.
func (s *Store) choose(want View) (chosen, error) {
	if want == ViewFUSE {
		return chosen{view: ViewFUSE, why: "set by cvmfs.view"}, nil
	}
	support, err := s.cfg.Mounter.Probe(s.path("state"))
	if err != nil { // nothing was tried; FUSE is mounted already
		support.EROFS = overlayfs.Tried(fmt.Errorf("it wasn't tried what the kernel mounts: %w", err))
	}
	switch way, why := support.Way(); {
	case way == overlayfs.ByOne:
		return chosen{view: ViewEROFS}, nil
	case way == overlayfs.ByTwo:
		return chosen{ViewEROFS, true, "by two overlays: " + why}, nil
	case want == ViewEROFS:
		return chosen{}, fmt.Errorf("storage option cvmfs.view=erofs: %s; leave the option out, or set cvmfs.view=fuse",
			why)
	default:
		s.cfg.Log.Info("composed images are served by FUSE", "because", why)
		return chosen{view: ViewFUSE, why: "erofs can't be used: " + why}, nil
	}
}

// current returns the view in use.
func (s *Store) current() chosen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.showing
}

// shown is the folder that shows a composed image.
func (s *Store) shown(by chosen, key string) string {
	switch {
	case by.view == ViewFUSE:
		return s.run("shared", key+".fuse")
	case by.stacked:
		return s.run("shared", key+".erofs")
	}
	return s.run("images", key)
}

// String spells the view for people.
func (c chosen) String() string {
	if c.why == "" {
		return string(c.view)
	}
	return fmt.Sprintf("%s (%s)", c.view, c.why)
}
