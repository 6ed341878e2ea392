package node

import (
	"fmt"
	"os"
	"strings"

	"cvmfs-graphdriver/internal/fusewire"
	"cvmfs-graphdriver/internal/overlayfs"
)

// View is a way of showing composed images.
type View string

// The views. Both show the same; an overlay that is mounted keeps the one it was mounted with.
const (
	ViewEROFS View = "erofs" // the kernel mounts the image, and the overlay finds content in data-only layers
	ViewFUSE  View = "fuse"  // package view serves the image, content included, below Run/fuse/view
)

// chosenView is the view in use, and why it was chosen.
type chosenView struct {
	view    View
	stacked bool   // of erofs: overlays use the image by way of a shared overlay
	why     string // "" where it is the best there is
}

// choose finds the view for what the settings say: the one they want, or else the best that works here.
func (n *Node) choose(want View) (chosenView, error) {
	if want == ViewFUSE {
		return chosenView{view: ViewFUSE, why: "set by cvmfs.view"}, nil
	}
	support, err := n.cfg.Kernel.Probe(n.Path("state"))
	if err != nil { // nothing was tried; FUSE is mounted already
		support.EROFS = overlayfs.Tried(fmt.Errorf("it wasn't tried what the kernel mounts: %w", err))
	}
	switch way, why := support.Way(); {
	case way == overlayfs.ByOne:
		return chosenView{view: ViewEROFS}, nil
	case way == overlayfs.ByTwo:
		return chosenView{ViewEROFS, true, "by two overlays: " + why}, nil
	case want == ViewEROFS:
		return chosenView{}, fmt.Errorf("storage option cvmfs.view=erofs: %s; leave the option out, or set cvmfs.view=fuse",
			why)
	default:
		n.cfg.Log.Info("composed images are served by FUSE", "because", why)
		return chosenView{view: ViewFUSE, why: "erofs can't be used: " + why}, nil
	}
}

// How far the kernel reads ahead on the FUSE mount, KiB. Where it serves but what isn't here, little: more would have
// content fetched that nobody reads (ADR 38). Where it serves all files, as far as on others.
const (
	readsLittle = 16
	readsUsual  = 128
)

// readAhead sets how far the kernel reads ahead, for a view. It returns how many bytes around a page are asked for
// besides those that a start profile was recorded with.
func (n *Node) readAhead(v View) (around int64) {
	kib := max(readsLittle, os.Getpagesize()>>10)
	if v == ViewFUSE && !n.cfg.Recorder {
		kib = readsUsual
	}
	if err := fusewire.SetReadAhead(n.run("fuse"), kib); err != nil {
		n.cfg.Log.Debug("the kernel reads ahead as it did", "err", err)
		kib = readsUsual
	}
	if kib == readsUsual {
		return readsUsual << 10 / 2
	}
	return 0
}

// ViewInUse spells the view for people, and why it was chosen; before Configure it is "".
func (n *Node) ViewInUse() string {
	c, err := n.configured()
	if err != nil {
		return ""
	}
	if c.view.why == "" {
		return string(c.view.view)
	}
	return fmt.Sprintf("%s (%s)", c.view.view, c.view.why)
}

// Names of shared overlays end with the view that they stand on.
const (
	fuseSuffix  = ".fuse"
	erofsSuffix = ".erofs"
)

// shownAt is the folder that shows a composed image: by its key, or with mapped owners by its key and their name.
func (n *Node) shownAt(by chosenView, name string) string {
	switch {
	case by.view == ViewFUSE:
		return n.run("shared", name+fuseSuffix)
	case by.stacked:
		return n.run("shared", name+erofsSuffix)
	}
	return n.run("images", name)
}

// shownName returns the name that shownAt was given, of an entry of the folder.
func shownName(entry string) string {
	return strings.TrimSuffix(strings.TrimSuffix(entry, fuseSuffix), erofsSuffix)
}
