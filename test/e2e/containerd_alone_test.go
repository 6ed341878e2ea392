package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// With these in its environment, the tests' program runs an image by a containerd, and is killed meanwhile.
const (
	trialVariable      = "E2E_TRIAL_SOCKET"
	trialImageVariable = "E2E_TRIAL_IMAGE"
)

// try runs the image in an archive by the containerd of a socket.
func try(socket, archive string) error {
	image, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		return err
	}
	c, err := containerd.Connect(socket)
	if err != nil {
		return err
	}
	_, _, err = c.Run(context.Background(), stand.Snapshotter, containerd.Trial{Name: archive, Image: image})
	return err
}

// Where no engine of Docker's is told of the snapshotter, containerd runs the images, and keeps nothing of them:
// neither after a failure, nor when the user ends it, nor once the next run has followed one that was killed.
func TestContainerdAloneRunsImages(t *testing.T) {
	for _, stack := range []engine.Stack{engine.Stack29on21, engine.Stack29on17, engine.Stack29on24} {
		t.Run(stack.Containerd, func(t *testing.T) { runsAlone(t, stack) })
	}
}

func runsAlone(t *testing.T, stack engine.Stack) {
	o := stand.Options{Tools: stackTools(t, stack), Testdata: testutil.Data(t)}
	t.Parallel()
	m := &machine{user: own(t, func() (*stand.Stand, error) { return stand.NewSnapshotter(t.Context(), o) })}
	m.dir = filepath.Dir(m.Snapshots())
	registry := testutil.NewRegistry(t, "", "")
	pushed := func(archive string) string {
		image, err := tarball.ImageFromPath(testutil.Data(t, "images", archive), nil)
		if err != nil {
			t.Fatal(err)
		}
		return registry.Push(t, archive+":1", image, authn.Anonymous)
	}
	ordinary, thin := pushed("tiny.tar"), pushed("thin_tiny.tar")
	i, w := m.installer(t)
	i.Engine, i.Service, w.File, w.Images.Thin = nil, nil, "", ordinary
	before := m.containerdHas()
	err := i.InstallSnapshotter(t.Context(), w)
	if !errors.As(err, new(*installer.RolledBackError)) || !strings.Contains(err.Error(), "no thin image") {
		t.Errorf("an ordinary image as the thin one: %v", err)
	}
	m.same("what containerd has then", m.containerdHas(), before)
	var told []string
	tell := i.Tell
	i.Tell = func(e installer.Event) {
		if tell(e); e.Outcome != installer.Begins && e.Outcome != installer.Told {
			told = append(told, e.Step+" "+string(e.Outcome))
		}
	}
	w.Images.Thin = ""
	if err := i.InstallSnapshotter(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	m.documented("\npreflight ", told, false)
	m.same("what containerd has then", m.containerdHas(), before)
	m.killed()
	images := installer.Images{Ordinary: ordinary, Thin: thin}
	if err := i.TestSnapshotter(t.Context(), images); err != nil {
		t.Error(err)
	}
	m.same("what containerd has after a test", m.containerdHas(), before)
	ctx, end := context.WithCancel(t.Context())
	i.Tell = func(e installer.Event) {
		if tell(e); e.Outcome == installer.Begins {
			time.AfterFunc(time.Second, end) // whenever that is
		}
	}
	if err := i.TestSnapshotter(ctx, installer.Images{Ordinary: m.pause()}); !errors.Is(err, context.Canceled) {
		t.Errorf("the user ended it: %v", err)
	}
	m.eventually("containerd has what it had", func() error { // it may have been about to make the container
		if has := m.containerdHas(); has != before {
			return fmt.Errorf("it has %s", has)
		}
		return nil
	})
	m.killed()
	if err := i.UninstallSnapshotter(t.Context(), installer.SnapshotterLeave{}); err != nil {
		t.Error(err)
	}
	m.same("what containerd has at last", m.containerdHas(), before)
}

// pause pushes an image that does nothing until it is ended, and gives its name.
func (m *machine) pause() string {
	return testutil.NewRegistry(m.T, "", "").Push(m.T, "pause:1", pauseImage(m.T), authn.Anonymous)
}

// killed has a container run that somebody runs who is killed.
func (m *machine) killed() {
	m.Helper()
	archive := filepath.Join(m.TempDir(), "pause.tar")
	if err := tarball.WriteToFile(archive, nil, pauseImage(m.T)); err != nil {
		m.Fatal(err)
	}
	socket := m.Engine.Containerd.Socket()
	cmd := exec.CommandContext(m.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), trialVariable+"="+socket, trialImageVariable+"="+archive)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		m.Fatal(err)
	}
	m.eventually("its container runs", func() error {
		out, err := m.Engine.Ctr(m.Context(), "--namespace", containerd.TestNamespace, "tasks", "ls")
		if err == nil && !strings.Contains(out, "RUNNING") {
			err = errors.New(out)
		}
		return err
	})
	_ = cmd.Process.Kill() // Wait tells
	if err := cmd.Wait(); err == nil {
		m.Error("it has ended by itself")
	}
}

// containerdHas lists what is in a containerd: its namespaces, content and tasks, and what is beside its socket.
func (m *machine) containerdHas() string {
	m.Helper()
	namespaces, err := m.Engine.Ctr(m.Context(), "namespaces", "ls", "--quiet")
	if err != nil {
		m.Fatal(err)
	}
	// An engine makes its own when it comes to it.
	has := []string{strings.ReplaceAll(namespaces, "moby\n", "")}
	for _, pattern := range []string{
		m.Engine.Containerd.Root() + "/io.containerd.content.v1.content/*/*/*",
		m.Engine.Containerd.Root() + "/../state/io.containerd.runtime.v2.task/*/*",
		m.Engine.Containerd.Root() + "/io.containerd.runtime.v2.task/" + containerd.TestNamespace + "*",
		filepath.Dir(m.Engine.Containerd.Socket()) + "/" + containerd.TestNamespace + "*",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			m.Fatal(err)
		}
		has = append(has, fmt.Sprint(found))
	}
	return strings.Join(has, "\n")
}
