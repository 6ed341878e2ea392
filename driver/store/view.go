package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/erofs"
)

// View is a way of showing composed images.
type View string

// The views. Both show the same; an overlay that is mounted keeps the one it was mounted with.
const (
	ViewEROFS View = "erofs" // the kernel mounts the image, and the overlay finds content in data-only layers
	ViewFUSE  View = "fuse"  // package view serves the image, content included, below Run/fuse/view
)

// chosen is the view in use, and why it was chosen.
type chosen struct {
	view    View
	stacked bool   // of erofs: overlays use the image by way of another overlay, see Shared
	why     string // "" where it is the best there is
}

// readView reads the option cvmfs.view.
func readView(s *Settings, value string) error {
	switch v := View(strings.TrimSpace(value)); v {
	case "auto":
		s.View = ""
	case ViewEROFS, ViewFUSE:
		s.View = v
	default:
		return fmt.Errorf("there is auto, %s and %s", ViewEROFS, ViewFUSE)
	}
	return nil
}

// choose finds the view for what the engine has set: the one it wants, or else the best that works here.
func (s *Store) choose(want View) (chosen, error) {
	if want == ViewFUSE {
		return chosen{view: ViewFUSE, why: "set by cvmfs.view"}, nil
	}
	err := s.tryEROFS(false)
	if err == nil {
		return chosen{view: ViewEROFS}, nil
	}
	if s.tryEROFS(true) == nil {
		return chosen{ViewEROFS, true, "by two overlays: " + err.Error()}, nil
	}
	if want == ViewEROFS {
		return chosen{}, fmt.Errorf("storage option cvmfs.view=erofs: %w; leave the option out, or set cvmfs.view=fuse", err)
	}
	s.cfg.Log.Info("composed images are served by FUSE", "because", err)
	return chosen{view: ViewFUSE, why: "erofs can't be used: " + err.Error()}, nil
}

// probed is the content of the file that tryEROFS reads.
const probed = "content from a data-only layer\n"

// tryEROFS mounts an image of one file as images of layers are, reads the file and changes its mode.
func (s *Store) tryEROFS(stacked bool) (err error) {
	dir, err := os.MkdirTemp(s.path("state"), ".probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what stays is removed by the next Open
	m, err := s.probe(dir, stacked)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, s.unmount(m.Target))
		if stacked {
			err = errors.Join(err, s.unmount(m.Shared.Target))
		}
		err = errors.Join(err, s.unmount(m.Image.Target))
	}()
	if err := s.cfg.Mounter.Mount(m); err != nil {
		return err
	}
	name := filepath.Join(m.Target, "file")
	if b, err := os.ReadFile(name); err != nil || string(b) != probed {
		return fmt.Errorf("overlayfs doesn't find content in data-only layers: read %q, %v", b, err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return err
	}
	if b, err := os.ReadFile(filepath.Join(m.Overlay.Upper, "file")); err != nil || string(b) != probed {
		return fmt.Errorf("overlayfs doesn't copy up content of data-only layers: read %q, %v", b, err)
	}
	return nil
}

// probe makes what tryEROFS mounts, in a folder.
func (s *Store) probe(dir string, stacked bool) (m Mount, err error) {
	for _, name := range []string{"upper", "work", "data", "data/objects"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return m, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "data/objects/file"), []byte(probed), 0o600); err != nil {
		return m, err
	}
	var image bytes.Buffer
	file := &erofs.Node{Mode: unix.S_IFREG | 0o644, Size: int64(len(probed)), Xattrs: []erofs.Xattr{
		{Name: "trusted.overlay.metacopy"}, {Name: "trusted.overlay.redirect", Value: []byte("/objects/file")},
	}}
	root := &erofs.Node{Mode: unix.S_IFDIR | 0o755, Children: []erofs.Child{{Name: "file", Node: file}}}
	if _, err := erofs.Write(&image, root, erofs.Options{}); err != nil {
		return m, err
	}
	source := filepath.Join(dir, "image")
	if err := os.WriteFile(source, image.Bytes(), 0o600); err != nil {
		return m, err
	}
	var targets [3]string
	for i := range targets {
		targets[i] = s.run("views", fmt.Sprintf("%s-%d", filepath.Base(dir), i))
	}
	if err := os.Mkdir(targets[0], 0o700); err != nil {
		return m, err
	}
	m = Mount{
		Target:  targets[0],
		Overlay: &Overlay{Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")},
		Image:   &ImageMount{Source: source, Target: targets[1]},
	}
	data := []string{filepath.Join(dir, "data")}
	if stacked {
		m.Shared = &Shared{Target: targets[2], Lower: targets[1:2], Data: data}
		m.Overlay.Lower = targets[2:]
	} else {
		m.Overlay.Lower, m.Overlay.Data = targets[1:2], data
	}
	return m, nil
}

// current gives the view in use.
func (s *Store) current() chosen {
	s.mu.RLock()
	defer s.mu.RUnlock()
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
