package installer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/docker/api/types"

	"cvmfs-graphdriver/driver/options"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/rootfs"
)

// knob is a setting that a plugin has.
type knob struct{ name, field, value string }

// knobs are the settings of a plugin, with their values in its config.json; of none, those of this program's plugin.
func knobs(p *types.Plugin) (all []knob) {
	if p == nil {
		ours := rootfs.PluginConfig(rootfs.Build{})
		for _, m := range ours.Mounts {
			all = append(all, knob{m.Name, "source", m.Source})
		}
		for _, d := range ours.Linux.Devices {
			all = append(all, knob{d.Name, "path", d.Path})
		}
		for _, e := range ours.Env {
			all = append(all, knob{e.Name, "value", e.Value})
		}
		return all
	}
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	for _, m := range p.Config.Mounts {
		all = append(all, knob{m.Name, "source", text(m.Source)})
	}
	for _, d := range p.Config.Linux.Devices {
		all = append(all, knob{d.Name, "path", text(d.Path)})
	}
	for _, e := range p.Config.Env {
		all = append(all, knob{e.Name, "value", text(e.Value)})
	}
	return all
}

// check refuses wishes with which the engine or the plugin would not start, before anything is changed; p is the plugin
// that there is, nil for none. A setting without a value gets that of the plugin's config.json.
func (w *Wishes) check(p *types.Plugin) error {
	for _, o := range w.StorageOpts {
		if err := options.Check(o); err != nil && !daemonjson.TakesBack(o) {
			return err
		}
	}
	known := knobs(p)
	w.Settings = slices.Clone(w.Settings)
	for i, s := range w.Settings {
		key, value, _ := strings.Cut(s, "=")
		name, field, _ := strings.Cut(key, ".")
		at := slices.IndexFunc(known, func(k knob) bool { return k.name == name && (field == "" || k.field == field) })
		if at < 0 {
			var names []string
			for _, k := range known {
				names = append(names, k.name)
			}
			return fmt.Errorf("unknown setting %q: the plugin has %s", key, strings.Join(names, ", "))
		}
		k := known[at]
		if value == "" {
			value = k.value
			w.Settings[i] = key + "=" + value
		}
		if err := w.checkValue(k, value); err != nil {
			return fmt.Errorf("setting %s=%s: %w", key, value, err)
		}
	}
	return nil
}

func (w *Wishes) checkValue(k knob, value string) error {
	switch {
	case k.name == "DEBUG":
		if !slices.Contains([]string{"0", "1", "true", "false", "yes", "no"}, strings.ToLower(value)) {
			return errors.New("want 0 or 1")
		}
	case k.field == "value" || value == k.value || slices.Contains(w.Folders, value):
	case !filepath.IsAbs(value):
		return errors.New("want an absolute path")
	default:
		info, err := os.Stat(value)
		if err != nil {
			return err
		}
		if k.field == "source" && !info.IsDir() {
			return fmt.Errorf("%s is no folder", value)
		}
	}
	return nil
}
