package store

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/compose"
)

// Metadata gives the folders of a layer under the names overlay2 gives them, and what a thin layer was composed from.
func (s *Store) Metadata(id string) (map[string]string, error) {
	composer, _, err := s.ready()
	if err != nil {
		return nil, err
	}
	l, err := s.load(id)
	if err != nil {
		return nil, err
	}
	m := map[string]string{"UpperDir": s.diff(id), "WorkDir": s.dir(id, "work"), "MergedDir": s.target(id)}
	ids, base, err := s.ordinary(l.Parent)
	if err != nil {
		return nil, err
	}
	var lower []string
	for _, id := range ids {
		lower = append(lower, s.diff(id))
	}
	if l.Thin {
		base = id
	}
	if base != "" {
		if l, err = s.load(base); err != nil {
			return nil, err
		}
		if l.Image != "" {
			lower = append(lower, s.run("images", l.Image))
			m["Image"] = l.Image
			if image, err := composer.Image(l.Image); err == nil {
				m["Repositories"] = pins(image)
			}
		}
	}
	if len(lower) > 0 {
		m["LowerDir"] = strings.Join(lower, ":")
	}
	return m, nil
}

// pins names the repositories of an image and the revision each was composed from.
func pins(image *compose.Image) string {
	set := map[string]bool{}
	for _, p := range image.Layers {
		set[p.FQRN+"@"+strconv.FormatUint(p.Revision, 10)] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(set)), " ")
}

// Status gives what the engine shows as the driver's state: names and values.
func (s *Store) Status() [][2]string {
	repositories := "not initialised"
	if _, settings, err := s.ready(); err == nil {
		repositories = "all configured"
		if settings.Repositories != nil {
			repositories = strings.Join(settings.Repositories, " ")
		}
	}
	return [][2]string{
		{"Backing Filesystem", fileSystem(s.cfg.Root)},
		{"View", "erofs"},
		{"Repositories", repositories},
		{"Mounted layers", strconv.Itoa(len(s.openLayers()))},
	}
}

// fileSystem names the file system of a folder as the engine does.
func fileSystem(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "unknown: " + err.Error()
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC:
		return "extfs"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	}
	return fmt.Sprintf("0x%x", st.Type)
}

// Report is the state of the store for programs.
type Report struct {
	Layers int         `json:"layers"`
	Thin   int         `json:"thin_layers"`
	Images []ImageInfo `json:"images"`
	Mounts []MountInfo `json:"mounts"`
}

// ImageInfo is a composed image that layers name.
type ImageInfo struct {
	Key     string        `json:"key"`
	Objects int           `json:"objects"`
	Size    int64         `json:"size"` // plain bytes of all files
	Layers  []compose.Pin `json:"layers"`
	Err     string        `json:"error,omitempty"`
}

// MountInfo is an open layer.
type MountInfo struct {
	Layer string `json:"layer"`
	Refs  int    `json:"refs"`
	Image string `json:"image,omitempty"`
	Stale bool   `json:"stale,omitempty"` // hangs on a FUSE mount that has gone
}

// Report collects the state.
func (s *Store) Report() (Report, error) {
	composer, _, err := s.ready()
	if err != nil {
		return Report{}, err
	}
	ids, err := s.ids()
	if err != nil {
		return Report{}, err
	}
	r := Report{Layers: len(ids), Images: []ImageInfo{}, Mounts: []MountInfo{}}
	keys := map[string]bool{}
	for _, id := range ids {
		if l, err := s.load(id); err == nil && l.Thin {
			r.Thin++
			if l.Image != "" {
				keys[l.Image] = true
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		info := ImageInfo{Key: key}
		if image, err := composer.Image(key); err != nil {
			info.Err = err.Error()
		} else {
			info.Objects, info.Size, info.Layers = image.Objects, image.Size, image.Layers
		}
		r.Images = append(r.Images, info)
	}
	layers := s.openLayers()
	for _, id := range slices.Sorted(maps.Keys(layers)) {
		o := layers[id]
		r.Mounts = append(r.Mounts, MountInfo{
			Layer: id, Refs: o.Refs, Image: o.Image, Stale: o.Image != "" && o.Generation != s.cfg.Generation,
		})
	}
	return r, nil
}
