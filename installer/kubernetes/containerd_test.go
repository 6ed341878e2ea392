package kubernetes

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"cvmfs-graphdriver/test/engine"
)

// dump returns what a containerd understands of a file, and its version.
func dump(t *testing.T, find func(context.Context, string) (*engine.Tools, error), main string) map[string]any {
	t.Helper()
	cache, err := engine.CacheDir()
	must(t, err)
	tools, err := find(t.Context(), cache)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skip(err)
	}
	must(t, err)
	cmd := exec.CommandContext(t.Context(), tools.Containerd(), "--config", main, "config", "dump")
	cmd.Env = tools.Environ()
	out, err := cmd.Output()
	must(t, err)
	var config map[string]any
	must(t, toml.Unmarshal(out, &config))
	return config
}

// at returns what is at a path below a value.
func at(value any, path ...string) any {
	for _, name := range path {
		table, _ := value.(map[string]any)
		value = table[name]
	}
	return value
}

// host is a flavour in a folder.
func host(t *testing.T, template string) (*flavour, *record) {
	t.Helper()
	dir := t.TempDir()
	rec, err := readRecord(filepath.Join(dir, "record"))
	must(t, err)
	return &flavour{dir: filepath.Join(dir, "containerd"), main: "config.toml", dropIns: "d", template: template}, rec
}

func told(t *testing.T, f *flavour, rec *record, version string, s Settings, want bool) {
	t.Helper()
	changed, err := f.tell(rec, version, &s)
	must(t, err)
	if changed != want {
		t.Errorf("%+v: changed %t, want %t", s, changed, want)
	}
}

// A containerd takes what it is told beside main files of any version, and forgets nothing of them.
func TestContainerdsTakeWhatTheyAreTold(t *testing.T) {
	const runtimes = "[plugins.%q.containerd.runtimes.kept]\nruntime_type = \"io.containerd.runc.v2\"\n"
	mains := map[string]string{
		"none":      "",
		"version 2": "version = 2\n" + strings.ReplaceAll(runtimes, "%q", `"io.containerd.grpc.v1.cri"`),
		"version 3": "version = 3\n" + strings.ReplaceAll(runtimes, "%q", `"io.containerd.cri.v1.runtime"`),
	}
	for version, stack := range map[string]engine.Stack{"2.1.9": engine.Stack29on21, "2.4.2": engine.Stack29on24} {
		for name, main := range mains {
			t.Run(version+", "+name, func(t *testing.T) {
				f, rec := host(t, "")
				if main != "" {
					must(t, os.MkdirAll(f.dir, 0o755))
					must(t, os.WriteFile(f.path(f.main), []byte(main), 0o644))
				}
				set := Settings{Default: true, RuntimeClass: "thin", SystemdCgroup: true}
				told(t, f, rec, version, set, true)
				told(t, f, rec, version, set, false)
				config := dump(t, stack.Find, f.path(f.main))
				runtimes := at(config, "plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes")
				if at(runtimes, "thin", "snapshotter") != "cvmfs" || at(runtimes, "thin", "options", "SystemdCgroup") != true ||
					main != "" && at(runtimes, "kept") == nil {
					t.Errorf("runtimes: %v", runtimes)
				}
				if got := at(config, "plugins", "io.containerd.cri.v1.images", "snapshotter"); got != "cvmfs" {
					t.Errorf("images are unpacked by %v", got)
				}
				told(t, f, rec, version, Settings{}, true) // on the way to being removed
				config = dump(t, stack.Find, f.path(f.main))
				if got := at(config, "plugins", "io.containerd.cri.v1.images", "snapshotter"); got != "overlayfs" {
					t.Errorf("then images are unpacked by %v", got)
				}
				if at(config, "proxy_plugins", "cvmfs") == nil {
					t.Error("what containers have their layers from isn't known any more")
				}
				d := disk{t, f.dir}
				must(t, rec.restore(nil, f.files()...))
				d.absent(f.dropIns)
				if main == "" {
					d.absent("")
				} else {
					d.holds(f.main, main)
				}
			})
		}
	}
}

// containerd 1 is told by its main file.
func TestContainerd1IsTold(t *testing.T) {
	f, rec := host(t, "")
	main := "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"native\" # theirs\n"
	must(t, os.MkdirAll(f.dir, 0o755))
	must(t, os.WriteFile(f.path(f.main), []byte(main), 0o644))
	told(t, f, rec, "1.7.24", Settings{Default: true}, true)
	cri := []string{"plugins", "io.containerd.grpc.v1.cri", "containerd", "snapshotter"}
	if got := at(dump(t, engine.Stack29on17.Find, f.path(f.main)), cri...); got != "cvmfs" {
		t.Errorf("images are unpacked by %v", got)
	}
	told(t, f, rec, "1.7.24", Settings{}, true)
	if got := at(dump(t, engine.Stack29on17.Find, f.path(f.main)), cri...); got != "native" {
		t.Errorf("then images are unpacked by %v", got)
	}
	must(t, rec.restore(nil, f.files()...))
	disk{t, f.dir}.holds(f.main, main)
	if _, err := f.tell(rec, "1.7.24", &Settings{RuntimeClass: "thin"}); err == nil {
		t.Error("it takes a runtime class")
	}
}

// k3s makes the main file of a template, and imports drop-ins if it is new enough.
func TestTemplatesImportDropIns(t *testing.T) {
	for name, c := range map[string]struct{ main, template, want, fails string }{
		"a new one": {main: "imports = [\"DIR/d/*.toml\"]\nversion = 3\n"},
		"an old one": {
			main: "version = 3\n", want: "imports = [\"DIR/d/*.toml\"]\n{{ template \"base\" . }}\n",
		},
		"one that imports": {
			main: "version = 3\n", template: "imports = [\"DIR/d/*.toml\"]\n{{ template \"base\" . }}\n# theirs",
			want: "imports = [\"DIR/d/*.toml\"]\n{{ template \"base\" . }}\n# theirs",
		},
		"one that doesn't": {
			main: "version = 3\n", template: "{{ template \"base\" . }}\n", want: "{{ template \"base\" . }}\n", fails: "in front of",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, rec := host(t, "config-v3.toml.tmpl")
			d := disk{t, f.dir}
			must(t, os.MkdirAll(f.dir, 0o755))
			here := strings.NewReplacer("DIR", f.dir).Replace
			d.others(f.main, here(c.main))
			if c.template != "" {
				d.others(f.template, here(c.template))
			}
			_, err := f.tell(rec, "2.1.9", &Settings{Default: true})
			if c.fails == "" && err != nil || c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)) {
				t.Fatal(err)
			}
			if c.want == "" {
				d.absent(f.template)
			} else {
				d.holds(f.template, here(c.want))
			}
			must(t, rec.restore(nil, f.files()...))
			d.absent(f.dropIns)
			if c.template == "" {
				d.absent(f.template)
			}
		})
	}
}
