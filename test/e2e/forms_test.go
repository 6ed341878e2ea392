package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	registryname "github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// newerTools returns the programs of the newer engine, or skips the test.
func newerTools(t *testing.T) *engine.Tools {
	t.Helper()
	tools(t) // the conditions of every test here, and the bundle
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	newer, err := engine.FindNewer(t.Context(), cache)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skipf("needs the Docker engine of Debian trixie: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return newer
}

// onMachine runs a script that sees what the engine sees and gives what it says.
func (u user) onMachine(script string) string {
	u.Helper()
	out, err := u.Engine.Inside(u.Context(), "/", script).CombinedOutput()
	if err != nil {
		u.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// switchTo restarts the engine with another storage driver.
func (u user) switchTo(driver string) {
	u.Helper()
	err := errors.Join(u.Engine.Stop(u.Context()), u.Engine.Start(u.Context(),
		map[string]any{"experimental": true, "storage-driver": driver}))
	if err != nil {
		u.Fatalf("with the storage driver %s: %v", driver, err)
	}
	u.same("the storage driver", u.docker("info", "--format", "{{.Driver}}"), driver)
}

// runsBoth loads an ordinary image and its thin twin, and runs them.
func (u user) runsBoth() {
	u.Helper()
	u.load("tiny.tar")
	u.load("thin_tiny.tar")
	ordinary, thin := u.run(stand.Ordinary), u.run(stand.Thin)
	if !strings.Contains(ordinary, "Tiny") || thin != ordinary {
		u.Errorf("the ordinary container says %q, the thin one %q", ordinary, thin)
	}
}

// configuredPlugin settles a plugin that isn't enabled yet on the stand's configuration and enables it.
func (u user) configuredPlugin(name string) {
	u.Helper()
	u.docker("plugin", "set", name, "cvmfs_ext_config.source="+u.Config, "minio_ext_config.source="+u.Config)
	u.docker("plugin", "enable", name)
}

// bundle runs `cvmfs-graphdriver bundle` with the arguments given, as users have the program.
func (u user) bundle(args ...string) {
	u.Helper()
	out, err := exec.CommandContext(u.Context(), filepath.Join(shared.dir, "bin/cvmfs-graphdriver"),
		append([]string{"bundle"}, args...)...).CombinedOutput()
	if err != nil {
		u.Fatalf("bundle %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// pushed pushes the bundle to a registry, checks that pulling it gives the archive that was built, and gives its name.
func (u user) pushed() string {
	u.Helper()
	ref, dir := u.registry()+"path/name:v1.2", u.TempDir()
	u.bundle("push", shared.archive(), ref)
	u.bundle("pull", "--output", dir, ref)
	pulled, err := os.ReadFile(filepath.Join(dir, filepath.Base(shared.archive())))
	if err != nil {
		u.Fatal(err)
	}
	if built, err := os.ReadFile(shared.archive()); err != nil || !bytes.Equal(pulled, built) {
		u.Errorf("what is pulled is another archive than the one that was built: %v", err)
	}
	return ref
}

// takesNoLists checks that the engine refuses a list with the plugin of a registry, which is why each architecture has
// a tag of its own.
func (u user) takesNoLists(plugin string) {
	u.Helper()
	from, err := registryname.ParseReference(plugin)
	if err != nil {
		u.Fatal(err)
	}
	image, err := remote.Image(from)
	if err != nil {
		u.Fatal(err)
	}
	list := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.DockerManifestList), mutate.IndexAddendum{
		Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
	})
	if err := remote.WriteIndex(from.Context().Tag("list"), list); err != nil {
		u.Fatal(err)
	}
	u.refuses("did not find plugin config for specified reference", "plugin", "install", "--grant-all-permissions",
		from.Context().Name()+":list")
}

func TestEveryFormInstallsAndEveryNameIsAStorageDriver(t *testing.T) {
	u := onPlainStand(t, tools(t), stand.Options{})

	// The folder, which docker plugin create takes.
	const fromFolder, fromArchive = "cvmfs/graphdriver", "my-graphdriver:latest"
	u.docker("plugin", "create", fromFolder, shared.bundle())
	u.noConfiguration(fromFolder, "")
	u.configuredPlugin(fromFolder)

	// A registry, with nothing but the command that users are given.
	ref := u.pushed()
	u.takesNoLists(ref)
	u.docker("plugin", "install", "--grant-all-permissions", ref)

	u.switchTo(fromFolder)
	u.runsBoth()
	u.switchTo(ref)
	u.takesSettings(ref)

	// The archive, unpacked. The engine doesn't create a plugin of what it has under another name.
	dir := u.TempDir()
	if out, err := exec.Command("tar", "--extract", "--gzip", "--file", shared.archive(), "--directory",
		dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	unpacked := filepath.Join(dir, filepath.Base(shared.bundle()))
	u.refuses("already exists", "plugin", "create", fromArchive, unpacked)
	u.docker("plugin", "disable", fromFolder)
	u.docker("plugin", "rm", fromFolder)
	u.docker("plugin", "create", fromArchive, unpacked)
	u.configuredPlugin(fromArchive)
	for _, driver := range []string{"my-graphdriver", fromArchive} {
		u.switchTo(driver)
		u.runsBoth()
	}
}

func TestThePluginOfARegistryWorksOnTheNewerEngine(t *testing.T) {
	u := onPlainStand(t, newerTools(t), stand.Options{})
	ref := u.pushed()
	u.takesNoLists(ref)
	u.docker("plugin", "install", "--grant-all-permissions", "--disable", ref)
	u.noConfiguration(ref, "failed to create task for container: ")
	u.docker("plugin", "enable", ref)
	u.switchTo(ref)
	u.takesSettings(ref)

	// What the engine itself pushes is a bundle, too.
	host, _, _ := strings.Cut(ref, "/")
	u.docker("plugin", "create", host+"/by/engine:1", shared.bundle())
	u.docker("plugin", "push", host+"/by/engine:1")
	u.bundle("pull", "--output", u.TempDir(), host+"/by/engine:1")
	u.refuses("already exists", "plugin", "create", "another", shared.bundle())
}

// noConfiguration checks what the engine says of a plugin that is enabled on a machine without /etc/cvmfs, whose place
// is then made.
func (u user) noConfiguration(name, begins string) {
	u.Helper()
	u.onMachine("rm -rf /etc/cvmfs")
	said, err := u.Engine.Docker(u.Context(), "plugin", "enable", name)
	want := "Error response from daemon: " + begins +
		"failed to create shim task: OCI runtime create failed: runc create failed: unable to start " +
		`container process: error during container init: error mounting "/etc/cvmfs" to rootfs at "/etc/cvmfs": stat /etc/cvmfs: no such file or directory: unknown`
	if err == nil || !strings.HasSuffix(err.Error(), want) {
		u.Errorf("enabled without /etc/cvmfs the engine says %q, %v, want\n%s", said, err, want)
	}
	// The remedy, as it is documented.
	u.docker("plugin", "set", name, "cvmfs_ext_config="+u.Config)
	u.docker("plugin", "enable", name)
	pid := strings.TrimSpace(u.onMachine(`for p in /proc/[0-9]*; do [ -d $p/root/minio_ext_config ] && basename $p; done | head -n 1`))
	folder := "/proc/" + pid + "/root/minio_ext_config"
	u.same("what is in the folder that isn't set", u.onMachine("ls -A "+folder), "")
	u.same("what can be made there", u.onMachine("touch "+folder+"/x 2>/dev/null || echo nothing"), "nothing\n")
	u.docker("plugin", "disable", name)
	u.docker("plugin", "set", name, "cvmfs_ext_config=/etc/cvmfs")
	u.onMachine("mkdir /etc/cvmfs")
}

// takesSettings checks, of a plugin that was enabled with an empty /etc/cvmfs and is the storage driver, that its
// settings take effect.
func (u user) takesSettings(name string) {
	u.Helper()
	u.load("tiny.tar")
	u.refuses("not configured on this host", "load", "--input", testutil.Data(u, "images", "thin_tiny.tar"))
	store := u.TempDir()
	if err := os.WriteFile(filepath.Join(store, "mark"), []byte("the other folder"), 0o644); err != nil {
		u.Fatal(err)
	}
	u.refuses("disable plugin before setting", "plugin", "set", name, "DEBUG=1")
	id := u.docker("plugin", "inspect", "--format", "{{.Id}}", name)
	u.same("the debug messages without DEBUG", debugLines(u.Engine.Log(), id), "")
	u.docker("plugin", "disable", "--force", name)
	u.docker("plugin", "set", name, "cvmfs_ext_config.source="+u.Config, "minio_ext_config.source="+store, "DEBUG=1")
	u.docker("plugin", "enable", name)
	u.switchTo(name)
	u.runsBoth()
	if !strings.Contains(u.onMachine("cat /proc/[0-9]*/root/minio_ext_config/mark 2>/dev/null || true"),
		"the other folder") {
		u.Error("the plugin's /minio_ext_config is not the folder that was set")
	}
	if debugLines(u.Engine.Log(), id) == "" {
		u.Error("with DEBUG=1 the plugin logs no debug messages")
	}
}

// debugLines are the debug messages of a plugin in an engine's log.
func debugLines(log, id string) string {
	var found strings.Builder
	for line := range strings.Lines(log) {
		if strings.Contains(line, "level=DEBUG") && strings.Contains(line, "plugin="+id) {
			found.WriteString(line)
		}
	}
	return found.String()
}
