package node

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/moby/sys/user"

	"cvmfs-graphdriver/driver/layers"
)

// Mapped is what a mount shows with mapped owners: ordinary layers, and a composed image if it has a key.
//
// Owners are mapped by mounts: the folder of the layers is mounted once for each mapping, with all layers, and a
// composed image once for each mapping it is shown with. A mapping is known by its name, by which the mounts are found
// again in another life. What FUSE shows can't be mounted with mapped owners, so package view shows it a second time.
type Mapped struct {
	IDs   user.IdentityMapping
	Image string // "" for none
}

// ErrNotMapped means that owners can't be mapped for single mounts on this host.
var ErrNotMapped = errors.New("owners can't be mapped here, which takes Linux 5.19 or newer")

// ownersName names a mapping; "" where nothing is mapped.
func ownersName(ids user.IdentityMapping) string {
	if ids.Empty() {
		return ""
	}
	sum := sha256.Sum256(fmt.Append(nil, ids.UIDMaps, ids.GIDMaps))
	return hex.EncodeToString(sum[:8])
}

// mappedName names a composed image with mapped owners: its key, where nothing is mapped.
func mappedName(key string, ids user.IdentityMapping) string {
	if ids.Empty() {
		return key
	}
	return key + "." + ownersName(ids)
}

// keyOf returns the key of a composed image by its name, or by one that shownAt makes of it.
func keyOf(name string) string {
	key, _, _ := strings.Cut(name, ".")
	return key
}

// tryMapped finds out whether this host shows mapped owners.
func (n *Node) tryMapped(by chosenView) error {
	if err := n.cfg.Kernel.ProbeMapped(n.Path("state"), by.view == ViewEROFS); err != nil {
		return fmt.Errorf("%w: %w", ErrNotMapped, err)
	}
	return nil
}

// lower returns the folders of the ordinary layers of a stack that are shown by their own.
func (n *Node) lower(c *configuration, stack *layers.Stack) (dirs []string, err error) {
	from, at := n.Path("layers"), n.Path("layers")
	if !stack.IDs.Empty() {
		if err := c.mapped(); err != nil {
			return nil, err
		}
		if len(stack.Lower) > 0 {
			if at, err = n.mountMapped(from, n.run("mapped", ownersName(stack.IDs)), stack.IDs); err != nil {
				return nil, err
			}
		}
	}
	for _, l := range stack.Lower {
		inside, err := filepath.Rel(from, l.Content)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, filepath.Join(at, inside))
	}
	return dirs, nil
}

// mountMapped mounts what a folder shows with mapped owners unless it is, and returns where.
func (n *Node) mountMapped(source, target string, ids user.IdentityMapping) (string, error) {
	return target, n.mountOnce(target, func() error { return n.cfg.Kernel.MountMapped(source, target, ids) })
}

// mapView has FUSE show an image with mapped owners, if any are.
func (n *Node) mapView(key string, ids user.IdentityMapping) error {
	if ids.Empty() {
		return nil
	}
	return n.view.Map(key, ownersName(ids), ids)
}

// mapViews has FUSE show what mounts show with mapped owners.
func (n *Node) mapViews(c *configuration) {
	mapped, err := c.face.Mapped()
	if err != nil {
		n.cfg.Log.Error("list what is shown with mapped owners", "err", err)
	}
	for _, m := range mapped {
		if m.Image == "" {
			continue
		}
		if err := n.mapView(m.Image, m.IDs); err != nil {
			n.cfg.Log.Error("containers can't read their image, whose owners are mapped", "image", m.Image, "err", err)
		}
	}
}
