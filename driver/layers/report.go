package layers

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/internal/hostfs"
)

// Metadata returns the folders of a layer under the names overlay2 gives them, and of a chain with a thin layer the
// composed image, what it was composed from, and how much of it is on disk. Like every question it changes nothing,
// neither on disk nor in memory.
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
			lower = append(lower, s.shown(s.current(), l.Image))
			s.describe(m, composer, l.Image)
		}
	}
	if len(lower) > 0 {
		m["LowerDir"] = strings.Join(lower, ":")
	}
	return m, nil
}

// describe says what is known of a composed image. Engines ask also where nobody will read it, so what fails is left
// out.
func (s *Store) describe(m map[string]string, composer Composer, key string) {
	m["Image"] = key
	image, err := composer.Describe(key)
	if err != nil {
		s.cfg.Log.Warn("a composed image can't be described", "image", key, "err", err)
		return
	}
	repositories := map[string]bool{}
	var folders []string
	for _, p := range image.Layers {
		repositories[p.FQRN+"@"+strconv.FormatUint(p.Revision, 10)] = true
		folders = append(folders, "cvmfs://"+p.FQRN+p.Path)
	}
	m["Repositories"] = strings.Join(slices.Sorted(maps.Keys(repositories)), " ")
	m["Folders"] = strings.Join(folders, " ")
	if s.cfg.Objects == nil {
		return
	}
	share, err := s.cfg.Objects.Local(key)
	if err != nil {
		s.cfg.Log.Warn("how much of a composed image is on disk isn't known", "image", key, "err", err)
		return
	}
	m["Local"] = local(share)
}

// local spells how much is on disk, in MB of a million bytes as the engine counts.
func local(s objects.Share) string {
	about := ""
	if s.Estimated {
		about = "about "
	}
	const mega = 1e6
	return fmt.Sprintf("%s%d of %d objects, %s%.1f of %.1f MB", about, s.Objects, s.Of, about, float64(s.Bytes)/mega,
		float64(s.OfBytes)/mega)
}

// Status returns what the engine shows as the driver's state: names and values.
func (s *Store) Status() [][2]string {
	repositories, quotas := "not initialised", "off"
	_, settings, err := s.ready()
	if err == nil {
		repositories = "all configured"
		if settings.Repositories != nil {
			repositories = strings.Join(settings.Repositories, " ")
		}
	}
	if s.quota.projects.enforced() == nil {
		quotas = "on"
	}
	rows := [][2]string{
		{"Backing Filesystem", fileSystem(s.cfg.Root)},
		{"Project quotas", quotas},
		{"View", s.current().String()},
		{"Repositories", repositories},
		{"Mounted layers", strconv.Itoa(len(s.openLayers()))},
	}
	if !settings.IDs.Empty() {
		rows = append(rows, [2]string{"User namespace", remapped(settings.IDs)})
	}
	return rows
}

// remapped says what userns-remap takes besides us: the engine makes the folders above ours for root alone, and
// containers whose root can't pass them end with "permission denied". The plugin can't reach these folders.
func remapped(ids user.IdentityMapping) string {
	uid, gid := ids.RootPair()
	return fmt.Sprintf("root is %d:%d; if containers fail with \"permission denied\": chmod 0711 <data-root>/%d.%d/plugins and plugins/<id>, on the host",
		uid, gid, uid, gid)
}

// fileSystem names the file system of a folder as the engine does.
func fileSystem(dir string) string {
	kind, err := hostfs.Kind(dir)
	if err != nil {
		return "unknown: " + err.Error()
	}
	return kind
}

// Users returns the open layers that read from a composed image, in order.
func (s *Store) Users(key string) (ids []string) {
	for id, o := range s.openLayers() {
		if o.Image == key {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Report collects the state, and changes nothing.
func (s *Store) Report() (status.Store, error) {
	composer, _, err := s.ready()
	if err != nil {
		return status.Store{}, err
	}
	ids, err := s.ids()
	if err != nil {
		return status.Store{}, err
	}
	r := status.Store{Layers: len(ids), Images: []status.Image{}, Mounts: []status.Mount{}}
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
		info := status.Image{Key: key}
		if image, err := composer.Describe(key); err != nil {
			info.Err = err.Error()
		} else {
			info.Objects, info.Size = image.Objects, image.Size
			for _, pin := range image.Layers {
				info.Layers = append(info.Layers, status.Pin(pin))
			}
		}
		r.Images = append(r.Images, info)
	}
	layers := s.openLayers()
	for _, id := range slices.Sorted(maps.Keys(layers)) {
		o := layers[id]
		r.Mounts = append(r.Mounts, status.Mount{
			Layer: id, Refs: o.Refs, Image: o.Image, Stale: o.Image != "" && o.Generation != s.cfg.Generation,
		})
	}
	return r, nil
}
