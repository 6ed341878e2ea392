package containerd

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
)

const conf = "/etc/containerd/conf.d/cvmfs.toml"

// Main files as they are found, and what becomes of them: "+" lines are added, "-" lines are replaced by those behind.
func TestMainFilesAreEditedInPlace(t *testing.T) {
	for _, c := range []struct{ what, version, before, after string }{
		{"none on containerd 2", "2.1.9", "", "version = 3\nimports = [\"" + conf + "\"]\n"},
		{
			"Docker's packages", "2.1.9", "# licence\n\ndisabled_plugins = [\"cri\"] # no CRI\n\n#root = \"/r\"\n",
			"# licence\n\ndisabled_plugins = [\"cri\"] # no CRI\nimports = [\"" + conf + "\"]\n\n#root = \"/r\"\n",
		},
		{"a pattern", "2.1.9", "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n", "same"},
		{"a relative name", "2.1.9", "version = 3\nimports = ['conf.d/./cvmfs.toml']\n", "same"},
		{
			"a relative pattern, which not all follow", "2.1.9", "version = 3\nimports = ['conf.d/*.toml']\n",
			"version = 3\nimports = ['conf.d/*.toml', \"" + conf + "\"]\n",
		},
		{
			"a list with a comment", "2.4.0", "version = 3\nimports = [\n  'a.toml', # first\n]\n[debug]\n",
			"version = 3\nimports = [\n  'a.toml', \"" + conf + "\", # first\n]\n[debug]\n",
		},
		{"an empty list", "2.4.0", "imports = []\r\n", "imports = [\"" + conf + "\"]\r\n"},
		{
			"only tables", "2.1.9", "[debug]\n  level = 'info'",
			"imports = [\"" + conf + "\"]\n[debug]\n  level = 'info'",
		},
		{
			"Debian's on containerd 1", "1.7.24",
			"version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n" +
				"      bin_dir = \"/usr/lib/cni\"\n",
			"version = 2\nimports = [\"" + conf + "\"]\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n" +
				"    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n" +
				"\n[plugins.\"io.containerd.service.v1.diff-service\"]\n  default = [\"cvmfs-diff\",\"walking\"]\n" +
				"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"cvmfs\"\n" +
				"  disable_snapshot_annotations = false\n",
		},
		{
			"values that are replaced", "1.6.20",
			"version = 2\nimports = ['" + conf + "']\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\n" +
				"  snapshotter = \"overlayfs\" # the default\n\tdisable_snapshot_annotations=true\n",
			"version = 2\nimports = ['" + conf + "']\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\n" +
				"  snapshotter = \"cvmfs\" # the default\n\tdisable_snapshot_annotations=false\n",
		},
		{
			"dotted keys", "1.6.20",
			"version = 2\nimports = ['" + conf + "']\n[plugins.\"io.containerd.grpc.v1.cri\"]\ncontainerd.snapshotter = 'native'\n",
			"version = 2\nimports = ['" + conf + "']\n[plugins.\"io.containerd.grpc.v1.cri\"]\n" +
				"  containerd.disable_snapshot_annotations = false\ncontainerd.snapshotter = \"cvmfs\"\n",
		},
		{
			"a table in a line", "1.6.20",
			"version = 2\nimports = ['" + conf + "']\n[plugins]\n\"io.containerd.grpc.v1.cri\" = { containerd = {}, x = 1 }\n",
			"version = 2\nimports = ['" + conf + "']\n[plugins]\n\"io.containerd.grpc.v1.cri\" = { containerd = {" +
				" snapshotter = \"cvmfs\", disable_snapshot_annotations = false}, x = 1 }\n",
		},
		{
			"no version on containerd 1", "1.7.24", "imports = ['" + conf + "']\n[plugins.cri]\n",
			"imports = ['" + conf + "']\n[plugins.cri]\n\n[plugins.diff-service]\n  default = [\"cvmfs-diff\",\"walking\"]\n" +
				"\n[plugins.cri.containerd]\n  snapshotter = \"cvmfs\"\n  disable_snapshot_annotations = false\n",
		},
	} {
		t.Run(c.what, func(t *testing.T) {
			before := []byte(c.before)
			if c.before == "" {
				before = nil
			}
			after, err := Main(before, c.version, conf, options)
			must(t, err)
			if want := strings.ReplaceAll(c.after, "same", c.before); string(after) != want {
				t.Errorf("got:\n%s\nwant:\n%s", after, want)
			}
			again, err := Main(after, c.version, conf, options)
			must(t, err)
			if !bytes.Equal(again, after) {
				t.Errorf("edited again: %s", again)
			}
		})
	}
}

func TestChildrenAreRemovedFirst(t *testing.T) {
	all := []snapshots.Info{
		{Name: "base"},
		{Name: "container", Parent: "top"},
		{Name: "top", Parent: "base"},
		{Name: "other"},
		{Name: "orphan", Parent: "gone"},
	}
	seen := map[string]bool{}
	for _, info := range childrenFirst(all) {
		if seen[info.Parent] {
			t.Errorf("%s comes behind its parent", info.Name)
		}
		seen[info.Name] = true
	}
	if len(seen) != 5 {
		t.Errorf("%v", seen)
	}
}

func TestFilesThatCannotBeEditedAreLeftAlone(t *testing.T) {
	for main, says := range map[string]string{
		"version = 2\nimports = 1\n":        "no list",
		"version = 2\n[plugins\n":           "no TOML",
		"version = 2\n[[plugins]]\nx = 1\n": "by hand",
		"version = 2\nplugins = 3\n":        "by hand",
		"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\ncontainerd = 1\n": "by hand",
	} {
		if after, err := Main([]byte(main), "1.7.24", conf, options); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, %s", main, err, after)
		}
	}
}

// containerd 1 has in its own words what the edited file says, and nothing else has changed.
func TestContainerd1TakesTheEditedFile(t *testing.T) {
	for _, p := range programs(t) {
		if !first(p.version) {
			continue
		}
		dir := t.TempDir()
		file := filepath.Join(dir, "drop.toml")
		main, err := Main([]byte(mains[2]), p.version, file, options)
		must(t, err)
		must(t, os.WriteFile(file, []byte(dropIn(t, p.version, mains[2])), 0o644))
		must(t, os.WriteFile(filepath.Join(dir, "config.toml"), main, 0o644))
		got := p.understood(t, filepath.Join(dir, "config.toml"))
		cri := at(got, "plugins", "io.containerd.grpc.v1.cri")
		if at(cri, "containerd", "snapshotter") != "cvmfs" || at(cri, "sandbox_image") != "kept" ||
			at(cri, "containerd", "default_runtime_name") != "kept" || at(got, "proxy_plugins", "cvmfs") == nil {
			t.Errorf("%s: %v", p.version, cri)
		}
	}
}
