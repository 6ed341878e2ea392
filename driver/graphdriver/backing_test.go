package graphdriver_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/node/nodetest"
	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/test/testutil"
)

// initOn initialises a driver whose layers are below dir, and gives what it says and shows.
func initOn(t *testing.T, dir string) (status map[string]string, err error) {
	t.Helper()
	cfg := nodetest.Config(t, dir, &nodetest.Composer{})
	cfg.Run = t.TempDir()
	n, err := node.Open(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, n.Close()) })
	d, err := graphdriver.Open(graphdriver.Config{Node: n})
	must(t, err)
	err = d.Init(graphdriver.InitArgs{})
	status = map[string]string{}
	for _, row := range d.Status() {
		status[row[0]] = row[1]
	}
	return status, err
}

// disk makes a file system in a file and mounts it.
func disk(t *testing.T, kind string, options ...string) string {
	t.Helper()
	testutil.NeedRoot(t)
	mkfs, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		t.Skipf("needs mkfs.%s to make a disk: %v", kind, err)
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 512<<20))
	if out, err := exec.CommandContext(t.Context(), mkfs, append(options, image)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", mkfs, err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("needs a loop device: %v\n%s", err, out)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func TestLayersOnTheFileSystemsOfServers(t *testing.T) {
	for kind, want := range map[string]string{"ext4": "extfs", "xfs": "xfs"} {
		if _, err := exec.LookPath("mkfs." + kind); err != nil && kind != "ext4" {
			t.Logf("not tried on %s: %v", kind, err)
			continue
		}
		status, err := initOn(t, disk(t, kind, "-q"))
		if err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if status["Backing Filesystem"] != want || status["Project quotas"] != "off" {
			t.Errorf("%s: status %v", kind, status)
		}
	}
}

func TestFileSystemWithoutTypesOfNamesIsRefused(t *testing.T) {
	_, err := initOn(t, disk(t, "ext4", "-q", "-O", "^filetype"))
	t.Log(err)
	if err == nil || !strings.Contains(err.Error(), "d_type") || !strings.Contains(err.Error(), "tune2fs -O filetype") {
		t.Errorf("%v", err)
	}
}

// An engine in a container whose data-root is in the container's own root.
func TestLayersOnAnOverlayAreRefused(t *testing.T) {
	testutil.NeedRoot(t)
	dir := t.TempDir()
	for _, name := range []string{"l", "u", "w", "m"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	var k overlayfs.Kernel
	outer := filepath.Join(dir, "m")
	must(t, k.Mount(outer, &overlayfs.Spec{
		Lower: []string{dir + "/l"}, Upper: dir + "/u",
		Work: dir + "/w",
	}))
	t.Cleanup(func() { must(t, k.Unmount(outer)) })
	status, err := initOn(t, outer)
	t.Log(err)
	if err == nil || !strings.Contains(err.Error(), "lies on an overlay itself") ||
		!strings.Contains(err.Error(), "volume") {
		t.Errorf("%v", err)
	}
	if status["Backing Filesystem"] != "overlayfs" {
		t.Errorf("status: %v", status)
	}
}

func TestLayersOnTmpfs(t *testing.T) {
	testutil.NeedRoot(t)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	if status, err := initOn(t, dir); err != nil || status["Backing Filesystem"] != "tmpfs" {
		t.Errorf("%v, %v", status, err)
	}
}

// One that was killed while it looked who sees its mounts has left something mounted, where the next one has to begin.
func TestAProbeOfAKilledPluginIsTakenOff(t *testing.T) {
	testutil.NeedRoot(t)
	dir := t.TempDir()
	probe := filepath.Join(dir, "m", ".new-1") // in the folder of all that is kept
	must(t, os.MkdirAll(probe, 0o700))
	must(t, unix.Mount("tmpfs", probe, "tmpfs", 0, "size=4k"))
	t.Cleanup(func() { unix.Unmount(probe, unix.MNT_DETACH) }) // it isn't mounted where all went well
	if _, err := initOn(t, dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(probe); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}

// A host whose disk was filled by others while the plugin was down comes up, and serves what is there.
func TestInitOnAFullDisk(t *testing.T) {
	dir := disk(t, "ext4", "-q", "-m", "0")
	r := newRigIn(t, dir)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "of before"}))
	must(t, r.node.Close())
	r.node = nil
	f, err := os.Create(filepath.Join(dir, "ballast"))
	must(t, err)
	for size := 1 << 20; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	must(t, f.Close())
	r.reopen()
	must(t, r.Init(graphdriver.InitArgs{Home: "/mnt/x"}))
	if b, err := os.ReadFile(filepath.Join(r.diff("base"), "a")); err != nil || string(b) != "of before" {
		t.Errorf("%q, %v", b, err)
	}
	must(t, os.Remove(f.Name()))
	r.apply("next", "base", tarOf(t, file{Name: "b"}))
}
