package engine

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/test/testutil"
)

// builtIn is containerd's own snapshotter.
var builtIn = Snapshotter{Name: "overlayfs"}

// settings make an engine take a snapshotter.
func settings(snapshotter string) map[string]any {
	return map[string]any{
		"features": map[string]bool{"containerd-snapshotter": true}, "storage-driver": snapshotter,
	}
}

func TestAnEngineUsesAContainerdOfItsOwnAndLeavesTheMachineAsItWas(t *testing.T) {
	for _, stack := range []Stack{Stack29on21, Stack29on17} {
		t.Run(stack.String(), func(t *testing.T) {
			leavesTheMachine(t, func(t *testing.T) { useContainerd(t, stack) })
		})
	}
}

func useContainerd(t *testing.T, stack Stack) {
	e := NewFor(t, stack.Find)
	ctx := t.Context()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd: %s\nengine: %s", e.Containerd.Log(), e.Log())
		}
	})
	image := withShell(t)
	registry := testutil.NewRegistry(t, "", "")
	name := registry.Push(t, "tiny:1", image, nil)
	if err := e.Containerd.Configure(ctx, builtIn, registry.Push(t, "pause:1", pause(t, image), nil)); err != nil {
		t.Fatal(err)
	}
	if err := e.Containerd.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(ctx, settings(builtIn.Name)); err != nil {
		t.Fatal(err)
	}
	docker := func(buildkit bool, args ...string) string {
		t.Helper()
		cmd := e.Command(ctx, args...)
		if buildkit {
			cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=1")
		}
		out, err := output(ctx, strings.Join(args, " "), cmd)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	docker(false, "pull", name)
	want := docker(false, "run", "--rm", "--network", "none", name, "/data/a.txt")
	context := t.TempDir()
	if err := os.WriteFile(filepath.Join(context, "Dockerfile"),
		fmt.Appendf(nil, "FROM %s\nRUN cat /data/a.txt >/data/copy\n", name), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, buildkit := range []bool{false, true} {
		as := fmt.Sprintf("built:%v", buildkit)
		docker(buildkit, "build", "--network", "none", "--tag", as, context)
		if got := docker(false, "run", "--rm", "--network", "none", as, "/data/copy"); got != want || want == "" {
			t.Errorf("BuildKit %v: what was built says %q, want %q", buildkit, got, want)
		}
	}
	if got := docker(false, "info", "--format", "{{.Driver}} {{.DriverStatus}}"); !strings.Contains(got, "overlayfs") ||
		!strings.Contains(got, "io.containerd.snapshotter.v1") {
		t.Errorf("the engine's images aren't in containerd: %s", got)
	}
	for who, kill := range map[string]func() error{
		"engine":     func() error { return e.Kill(ctx) },
		"containerd": func() error { return e.Containerd.Kill(ctx) },
	} {
		if err := kill(); err != nil {
			t.Fatalf("kill the %s: %v", who, err)
		}
	}
	if err := e.Containerd.Start(ctx); err != nil {
		t.Fatalf("after a kill: %v", err)
	}
	if err := e.Start(ctx, settings(builtIn.Name)); err != nil {
		t.Fatalf("after a kill: %v", err)
	}
	if got := docker(false, "run", "--rm", "--network", "none", name, "/data/a.txt"); got != want {
		t.Errorf("after a kill a container says %q, want %q", got, want)
	}
	podRuns(t, e, name)
	if err := e.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := e.Containerd.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

// withShell returns the reference image with some of busybox's commands.
func withShell(t *testing.T) v1.Image {
	t.Helper()
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	program, err := FindProgram(cache, "busybox")
	if err != nil {
		t.Skipf("needs busybox: %v", err)
	}
	busybox, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	files := []tar.Header{{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Linkname: string(busybox)}}
	for _, name := range []string{"sh", "cat", "sleep"} {
		files = append(files, tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"})
	}
	image, err := tarball.ImageFromPath(testutil.Data(t, "images", "tiny.tar"), nil)
	if err == nil {
		image, err = mutate.AppendLayers(image,
			static.NewLayer(testutil.Tar(t, files...), types.DockerUncompressedLayer))
	}
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// pause returns an image that does nothing until it is stopped, as that of a pod's namespaces.
func pause(t *testing.T, of v1.Image) v1.Image {
	t.Helper()
	config, err := of.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.Config.Entrypoint, config.Config.Cmd = []string{"/bin/sh", "-c", "sleep 100000"}, nil
	paused, err := mutate.Config(of, config.Config)
	if err != nil {
		t.Fatal(err)
	}
	return paused
}

func podRuns(t *testing.T, e *Engine, image string) {
	t.Helper()
	pod, container, err := e.RunInPod(t.Context(), Pod{Name: "tiny", Image: image}, "/bin/sh", "-c", "echo said; sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := e.Crictl(t.Context(), "exec", container, "cat", "/data/a.txt"); err != nil || got == "" {
		t.Errorf("in a pod a file has %q, %v", got, err)
	}
	for _, args := range [][]string{{"stats"}, {"stopp", pod}, {"rmp", pod}} {
		if _, err := e.Crictl(t.Context(), args...); err != nil {
			t.Error(err)
		}
	}
}
