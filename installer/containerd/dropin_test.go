package containerd

import (
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
				got := p.imported(t, main, DropIn(p.version, max(file, -file), options))
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
		if !strings.Contains(DropIn(version, 2, with), `capabilities = ["remap-ids"]`) ||
			strings.Contains(DropIn(version, 2, without), "capabilities") {
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
	without := options
	without.CRI = false
	if !TellsCRI([]byte(DropIn("2.1.9", 3, options))) || TellsCRI([]byte(DropIn("2.1.9", 3, without))) {
		t.Error("it isn't told")
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
				got := p.imported(t, mains[file], DropIn(p.version, file, options))
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
