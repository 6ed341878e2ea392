package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/testutil"
)

var options = Options{
	Name: "cvmfs", Socket: "/run/cvmfs-snapshotter/cvmfs-snapshotter.sock", Root: "/var/lib/cvmfs-snapshotter",
	CRI: true, Mapped: true, Platform: "linux/amd64",
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// a containerd of a version, whose programs are fetched.
type program struct {
	version, path string
	env           []string
}

// programs returns a containerd of each kind there is.
func programs(t *testing.T) []program {
	t.Helper()
	cache, err := engine.CacheDir()
	must(t, err)
	var found []program
	for _, find := range []func(context.Context, string) (*engine.Tools, error){
		engine.Find, engine.Stack29on17.Find, engine.Stack29on21.Find, engine.Stack29on24.Find,
	} {
		tools, err := find(t.Context(), cache)
		if errors.Is(err, engine.ErrNotFetched) {
			t.Logf("one is left out: %v", err)
			continue
		}
		must(t, err)
		p := program{path: tools.Containerd(), env: tools.Environ()}
		p.version = strings.TrimPrefix(strings.Fields(p.run(t, "--version"))[2], "v")
		found = append(found, p)
	}
	if len(found) == 0 {
		t.Skip("there is no containerd")
	}
	return found
}

func (p program) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), p.path, args...)
	cmd.Env = p.env
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("containerd %s %q: %v: %s", p.version, args, err, &errOut)
	}
	return string(out)
}

// understood returns what containerd understands of a file.
func (p program) understood(t *testing.T, file string) map[string]any {
	t.Helper()
	var config map[string]any
	err := toml.Unmarshal([]byte(p.run(t, "--config", file, "config", "dump")), &config)
	must(t, err)
	return config
}

// at returns what is at a path below a value.
func at(value any, path ...string) any {
	for _, name := range path {
		table, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = table[name]
	}
	return value
}

// mains are main files by their version, of which nothing may be lost.
var mains = map[int]string{
	1: "imports = [\"drop.toml\"]\ndisabled_plugins = [\"cri\"]\n", // of Docker's packages
	2: `version = 2
imports = ["drop.toml"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "kept"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "kept"
    snapshotter = "overlayfs"
    disable_snapshot_annotations = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kept]
      runtime_type = "io.containerd.runc.v2"
`,
	3: `version = 3
imports = ["drop.toml"]
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  disable_snapshot_annotations = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "kept"
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "kept"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kept]
  runtime_type = "io.containerd.runc.v2"
`,
}

// containerd 2 takes all it is told from the drop-in, beside a main file of any version, and loses nothing of that.
func TestContainerd2TakesTheDropIn(t *testing.T) {
	for _, p := range programs(t) {
		if first(p.version) {
			continue
		}
		mains := map[int]string{
			1: mains[1],
			2: mains[2],
			3: mains[3],
			4: strings.Replace(mains[3], "version = 3", "version = 4", 1),
			// no table of runtimes
			-2: "version = 2\nimports = [\"drop.toml\"]\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n" +
				"snapshotter = \"native\"\n",
		}
		for file, main := range mains {
			if file == 4 && p.version < "2.4" {
				continue
			}
			t.Run(fmt.Sprintf("%s, version %d", p.version, file), func(t *testing.T) {
				got := p.imported(t, main, dropIn(t, p.version, main))
				proxies(t, got, []string{"[remap-ids]"}, "cvmfs", "cvmfs-diff")
				if asked := at(got, "plugins", "io.containerd.service.v1.diff-service", "default"); fmt.Sprint(
					asked) != "[cvmfs-diff walking]" {
					t.Errorf("differs: %v", asked)
				}
				images := at(got, "plugins", "io.containerd.cri.v1.images")
				if at(images, "snapshotter") != "cvmfs" || at(images, "disable_snapshot_annotations") != false {
					t.Errorf("images: %v", images)
				}
				if unpack := at(got, "plugins", "io.containerd.transfer.v1.local", "unpack_config"); fmt.Sprint(
					names(unpack)) != "[overlayfs cvmfs]" {
					t.Errorf("pulls unpack: %v", unpack)
				}
				if file < 2 {
					return
				}
				runtimes := at(got, "plugins", "io.containerd.cri.v1.runtime", "containerd")
				if at(images, "pinned_images", "sandbox") != "kept" || at(runtimes, "default_runtime_name") != "kept" ||
					at(runtimes, "runtimes", "kept") == nil {
					t.Errorf("lost: %v, %v", images, runtimes)
				}
			})
		}
	}
}

// Where the kernel shows no mapped owners nothing is promised.
func TestDropInsPromiseMappedOwnersWhereTheyAreShown(t *testing.T) {
	with, without := options, options
	without.Mapped = false
	for _, version := range []string{"1.6.20", "1.7.24", "2.1.9", "2.4.2"} {
		can, err := DropIn(version, nil, with)
		must(t, err)
		cannot, err := DropIn(version, nil, without)
		must(t, err)
		if !strings.Contains(can, `capabilities = ["remap-ids"]`) || strings.Contains(cannot, "capabilities") {
			t.Error(version)
		}
	}
}

// What is told of a folder that isn't there yet is what the kernel says of the file system it will be on.
func TestKernelsDecideOnMappedOwners(t *testing.T) {
	testutil.NeedRoot(t)
	dir := t.TempDir()
	var kernel overlayfs.Kernel
	want := kernel.ProbeMapped(dir, testutil.KnownView() == "erofs") == nil
	if got := Maps(filepath.Join(dir, "not", "yet")); got != want {
		t.Errorf("Maps: %v, want %v", got, want)
	}
}

func TestDropInsTellOfKubernetes(t *testing.T) {
	for _, told := range []bool{true, false} {
		o := options
		o.CRI = told
		text, err := DropIn("2.1.9", []byte("version = 3\n"), o)
		must(t, err)
		if TellsCRI([]byte(text)) != told {
			t.Errorf("it says otherwise than %v", told)
		}
	}
}

// containerd 1 takes the proxies from the drop-in, and leaves the main file's tables alone.
func TestContainerd1TakesTheDropIn(t *testing.T) {
	for _, p := range programs(t) {
		if !first(p.version) {
			continue
		}
		for _, file := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, version %d", p.version, file), func(t *testing.T) {
				got := p.imported(t, mains[file], dropIn(t, p.version, mains[file]))
				want := []string{"cvmfs"}
				if p.version >= "1.7" { // older ones end with a panic when they read of a differ
					want = append(want, "cvmfs-diff")
				}
				proxies(t, got, []string{"[remap-ids]", "<nil>"}, want...)
				cri := at(got, "plugins", "io.containerd.grpc.v1.cri")
				if file == 2 && (at(cri, "sandbox_image") != "kept" || at(cri, "containerd", "snapshotter") != "overlayfs") {
					t.Errorf("%v", cri)
				}
			})
		}
	}
}

// own are lists of an administrator's, by the versions of main files.
var own = map[int]string{
	1: "imports = [\"drop.toml\"]\n[plugins.diff-service]\ndefault = [\"theirs\", \"walking\"]\n",
	3: `version = 3
imports = ["drop.toml"]
[plugins."io.containerd.service.v1.diff-service"]
  default = ["theirs", "walking"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/arm64"
  snapshotter = "native"
  differ = "theirs"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "cvmfs"
`,
}

// Lists that a main file has lose nothing to those of the snapshotter, which take their places.
func TestListsOfTheMainFileAreKept(t *testing.T) {
	for _, p := range programs(t) {
		if !differs(p.version) {
			continue
		}
		text := own[3]
		if first(p.version) {
			text = own[1]
		}
		const file = "/conf.d/drop.toml" // which imported puts beside the main file
		main, err := Main([]byte(text), p.version, file, options)
		must(t, err)
		again, err := Main(main, p.version, file, options)
		must(t, err)
		main = bytes.ReplaceAll(again, []byte(", \""+file+"\""), nil)
		got := p.imported(t, string(main), dropIn(t, p.version, string(again)))
		differs := at(got, "plugins", "io.containerd.service.v1.diff-service", "default")
		if fmt.Sprint(differs) != "[cvmfs-diff theirs walking]" {
			t.Errorf("%s: differs: %v", p.version, differs)
		}
		if first(p.version) {
			continue
		}
		unpack, _ := at(got, "plugins", "io.containerd.transfer.v1.local", "unpack_config").([]any)
		if fmt.Sprint(names(unpack)) != "[native cvmfs]" || at(unpack[0], "platform") != "linux/arm64" ||
			at(unpack[0], "differ") != "theirs" {
			t.Errorf("%s: pulls unpack: %v", p.version, unpack)
		}
	}
}

// A main file is tried from another folder, whatever its imports are relative to.
func TestImportsAreFoundFromElsewhere(t *testing.T) {
	main := "version = 2\nimports = [ 'conf.d/*.toml', # ours\n \"/abs.toml\" ]\n[debug]\n  level = 'info'\n"
	got, err := Elsewhere([]byte(main), "/etc/containerd")
	must(t, err)
	want := "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\",\"/abs.toml\"]\n[debug]\n  level = 'info'\n"
	if string(got) != want {
		t.Errorf("%s", got)
	}
	for _, p := range programs(t) {
		home := t.TempDir()
		must(t, os.WriteFile(filepath.Join(home, "site.toml"), []byte("root = '/site'\n"), 0o644))
		main, err := Elsewhere([]byte("imports = ['site.toml', 'drop.toml']\n"), home)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(home, "drop.toml"), nil, 0o644))
		if got := p.imported(t, string(main), ""); at(got, "root") != "/site" {
			t.Errorf("%s: %v", p.version, at(got, "root"))
		}
	}
}

// Patterns that a containerd doesn't follow bring no drop-in.
func TestImportsAreWhatContainerdFollows(t *testing.T) {
	for _, p := range programs(t) {
		for _, imports := range []string{"'conf.d/*.toml'", "'conf.d/./drop.toml'", "'conf.d/drop.toml'"} {
			dir := t.TempDir()
			file := filepath.Join(dir, "conf.d", "drop.toml")
			main, err := Main([]byte("version = 2\nimports = ["+imports+"]\n"), p.version, file, options)
			must(t, err)
			must(t, os.Mkdir(filepath.Dir(file), 0o755))
			must(t, os.WriteFile(file, []byte(dropIn(t, p.version, string(main))), 0o644))
			must(t, os.WriteFile(filepath.Join(dir, "config.toml"), main, 0o644))
			if at(p.understood(t, filepath.Join(dir, "config.toml")), "proxy_plugins", "cvmfs") == nil {
				t.Errorf("%s: %s: it isn't read", p.version, imports)
			}
		}
	}
}

// dropIn is the drop-in for a main file.
func dropIn(t *testing.T, version, main string) string {
	t.Helper()
	text, err := DropIn(version, []byte(main), options)
	must(t, err)
	return text
}

// imported returns what containerd understands of a main file that imports a drop-in.
func (p program) imported(t *testing.T, main, dropIn string) map[string]any {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "config.toml"), []byte(main), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "drop.toml"), []byte(dropIn), 0o644))
	return p.understood(t, filepath.Join(dir, "config.toml"))
}

// proxies asserts which of the snapshotter and its differ are known.
func proxies(t *testing.T, config map[string]any, capabilities []string, want ...string) {
	t.Helper()
	types := map[string]string{"cvmfs": "snapshot", "cvmfs-diff": "diff"}
	all, _ := at(config, "proxy_plugins").(map[string]any)
	if len(all) != len(want) {
		t.Errorf("proxies: %v", all)
	}
	for _, name := range want {
		p := all[name]
		if at(p, "type") != types[name] || at(p, "address") != options.Socket {
			t.Errorf("%s: %v", name, p)
		}
		if said := fmt.Sprint(at(p, "capabilities")); types[name] == "snapshot" && !slices.Contains(capabilities, said) {
			t.Errorf("%s: capabilities: %s", name, said)
		}
	}
}

// names are the snapshotters of a list of tables.
func names(list any) (names []any) {
	tables, _ := list.([]any)
	for _, t := range tables {
		names = append(names, at(t, "snapshotter"))
	}
	return names
}
