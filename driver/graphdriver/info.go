package graphdriver

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"

	"cvmfs-graphdriver/cvmfs/objects"
)

// Metadata returns the folders of a layer under the names overlay2 gives them, and of a chain with a thin layer the
// composed image, what it was composed from, and how much of it is on disk. Like every question it changes nothing,
// neither on disk nor in memory.
func (d *Driver) Metadata(id string) (map[string]string, error) {
	if err := d.ready(); err != nil {
		return nil, err
	}
	stack, err := d.layers.Describe(id)
	if err != nil {
		return nil, err
	}
	m := map[string]string{"UpperDir": stack.Upper, "WorkDir": stack.Work, "MergedDir": d.mountPoint(id)}
	var lower []string
	for _, l := range stack.Lower {
		lower = append(lower, l.Content)
	}
	if stack.Image != "" {
		lower = append(lower, d.describe(m, stack.Image))
	}
	if len(lower) > 0 {
		m["LowerDir"] = strings.Join(lower, ":")
	}
	return m, nil
}

// describe says what is known of a composed image, and returns the folder that shows it. Engines ask also where nobody
// will read it, so what fails is left out.
func (d *Driver) describe(m map[string]string, key string) (shown string) {
	m["Image"] = key
	image, shown, err := d.node.Image(key)
	if err != nil {
		d.cfg.Log.Warn("a composed image can't be described", "image", key, "err", err)
		return shown
	}
	repositories := map[string]bool{}
	var folders []string
	for _, p := range image.Layers {
		repositories[p.FQRN+"@"+strconv.FormatUint(p.Revision, 10)] = true
		folders = append(folders, "cvmfs://"+p.FQRN+p.Path)
	}
	m["Repositories"] = strings.Join(slices.Sorted(maps.Keys(repositories)), " ")
	m["Folders"] = strings.Join(folders, " ")
	share, err := d.cfg.Objects.Local(key)
	if err != nil {
		d.cfg.Log.Warn("how much of a composed image is on disk isn't known", "image", key, "err", err)
		return shown
	}
	m["Local"] = local(share)
	return shown
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
func (d *Driver) Status() [][2]string {
	repositories, quotas := "not initialised", "off"
	settings, err := d.node.Settings()
	if err == nil {
		repositories = "all configured"
		if settings.Repositories != nil {
			repositories = strings.Join(settings.Repositories, " ")
		}
	}
	if d.layers.Quotas() {
		quotas = "on"
	}
	rows := [][2]string{
		{"Backing Filesystem", d.layers.FileSystem()},
		{"Project quotas", quotas},
		{"View", d.node.ViewInUse()},
		{"Repositories", repositories},
		{"Mounted layers", strconv.Itoa(len(d.openLayers()))},
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
