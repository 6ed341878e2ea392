package containerd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

// specOf is how a container of an image with such a configuration is specified.
func specOf(t *testing.T, config v1.Config, trial Trial) *oci.Spec {
	t.Helper()
	var err error
	trial.Image, err = mutate.Config(empty.Image, config)
	must(t, err)
	options, err := trial.options("test-1")
	must(t, err)
	spec, err := oci.GenerateSpec(in(t.Context(), TestNamespace), nil, &containers.Container{ID: "test-1"}, options...)
	must(t, err)
	return spec
}

func TestAContainerMayDoNothingThatItNeedNot(t *testing.T) {
	s := specOf(t, v1.Config{Entrypoint: []string{"/hello", "hello"}}, Trial{Args: []string{"word"}})
	if got := strings.Join(s.Process.Args, " "); got != "/hello hello word" {
		t.Errorf("it runs %s", got)
	}
	caps := s.Process.Capabilities
	all := [][]string{caps.Bounding, caps.Effective, caps.Permitted, caps.Inheritable, caps.Ambient}
	if n := len(slices.Concat(all...)); n > 0 || !s.Process.NoNewPrivileges {
		t.Errorf("it has %d capabilities, and may get more privileges: %t", n, !s.Process.NoNewPrivileges)
	}
	var own []string
	for _, n := range s.Linux.Namespaces {
		own = append(own, string(n.Type)+n.Path)
	}
	for _, want := range []string{"network", "pid", "mount", "ipc", "uts"} {
		if !slices.Contains(own, want) {
			t.Errorf("it has no %s namespace of its own: %q", want, own)
		}
	}
	for _, m := range s.Mounts {
		if m.Type == "bind" || strings.HasPrefix(m.Source, "/") {
			t.Errorf("it has %s of the host", m.Source)
		}
	}
	if len(s.Linux.Devices) > 0 || s.Linux.Resources.Devices[0].Allow || len(s.Linux.MaskedPaths) == 0 {
		t.Errorf("it has devices, or sees all of /proc: %+v", s.Linux)
	}
	if filter := s.Linux.Seccomp; filter == nil || filter.DefaultAction != "SCMP_ACT_ERRNO" {
		t.Errorf("it may use every system call: %+v", filter)
	}
	if s.Linux.CgroupsPath != "/cvmfs-graphdriver-test-test-1" {
		t.Errorf("a control group would stay above %s", s.Linux.CgroupsPath)
	}
}

func TestAnImageRunsAsItSays(t *testing.T) {
	s := specOf(t, v1.Config{Cmd: []string{"/a", "b"}, User: "7:8", WorkingDir: "/w", Env: []string{"X=1"}},
		Trial{Capabilities: FileCapabilities()})
	p := s.Process
	if strings.Join(p.Args, " ") != "/a b" || p.User.UID != 7 || p.User.GID != 8 || p.Cwd != "/w" ||
		!slices.Contains(p.Env, "X=1") || !slices.Equal(p.Capabilities.Bounding, FileCapabilities()) {
		t.Errorf("%+v", p)
	}
	if _, err := (Trial{Image: empty.Image}).options("id"); err == nil {
		t.Error("an image without a command runs")
	}
}

// A FIFO would have the host wait for ever.
func TestUsersOfAnImageAreReadFromFilesOnly(t *testing.T) {
	testutil.NeedRoot(t) // it mounts
	ofFolder := func(dir string) error {
		c := &fakeContainerd{mounts: []*types.Mount{{Type: "bind", Source: dir, Options: []string{"rbind", "ro"}}}}
		container := &containers.Container{Snapshotter: "cvmfs"}
		return usersAreFiles(in(t.Context(), TestNamespace), c.connect(t).api, container, nil)
	}
	etc := filepath.Join(t.TempDir(), "etc")
	must(t, os.Mkdir(etc, 0o755))
	must(t, os.WriteFile(filepath.Join(etc, "passwd"), nil, 0o644))
	must(t, os.Symlink("passwd", filepath.Join(etc, "group")))
	must(t, ofFolder(filepath.Dir(etc)))
	must(t, os.Remove(filepath.Join(etc, "passwd")))
	must(t, unix.Mkfifo(filepath.Join(etc, "passwd"), 0o644))
	if err := ofFolder(filepath.Dir(etc)); err == nil || !strings.Contains(err.Error(), "by number") {
		t.Errorf("a FIFO: %v", err)
	}
}

// What containerd, shims and runc say, and what is to be done about it.
func TestErrorsEndWithWhatToDo(t *testing.T) {
	for _, c := range []struct{ said, want string }{
		{`start shim: exec: "containerd-shim-runc-v2": executable file not found in $PATH`, "install containerd anew"},
		{`runtime "io.containerd.runc.v2" binary not installed "containerd-shim-runc-v2"`, "install containerd anew"},
		{`retrieve OCI runtime error: exec: "runc": executable file not found in $PATH`, "runc is not in"},
		{`write /var/lib/containerd/x: no space left on device`, "make room"},
		{`unable to apply cgroup configuration: mkdir /sys/fs/cgroup/x: read-only file system`, "control group"},
		{`unable to start container process: apply apparmor profile: no such file`, "AppArmor"},
		{`unpack the test image with the snapshotter cvmfs: connection refused`, "journalctl -u cvmfs-snapshotter"},
		{`context canceled`, ""},
	} {
		said, want := c.said, c.want
		err := explain(errors.New(said))
		text, _ := strings.CutPrefix(err.Error(), said)
		if !strings.Contains(text, want) || (want == "") != (text == "") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if explain(nil) != nil || !errors.Is(explain(context.Canceled), context.Canceled) {
		t.Error("it is another error then")
	}
}

func TestTheBeginningOfWhatIsSaidIsKept(t *testing.T) {
	var o output
	for range 3 {
		if n, err := o.Write([]byte(strings.Repeat("x", saidLimit/2+1))); n != saidLimit/2+1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if len(o.String()) != saidLimit {
		t.Errorf("%d bytes", len(o.String()))
	}
}

// Somebody may have pulled an image into the namespace, to look why one doesn't run. It would be in the way for ever.
func TestTheNamespaceOfTestsGoesWithAllThatIsInIt(t *testing.T) {
	f := &fakeContainerd{
		containers: map[string][]*containersapi.Container{TestNamespace: {}, "k8s.io": {}},
		images:     map[string]bool{"docker.io/library/debugging:1": true},
		leases:     map[string]bool{TestNamespace: true},
	}
	must(t, f.connect(t).Clear(t.Context()))
	if _, there := f.containers[TestNamespace]; there || len(f.containers) != 1 {
		t.Errorf("namespaces are %v", f.containers)
	}
}

// containerd leaves the folder in which it had those of a namespace's containers.
func TestTheFoldersOfTheNamespaceOfTestsGo(t *testing.T) {
	const tasks = "io.containerd.runtime.v2.task"
	root := t.TempDir()
	f := &fakeContainerd{
		containers: map[string][]*containersapi.Container{},
		plugins: []*introspectionapi.Plugin{
			{Type: "io.containerd.snapshotter.v1", ID: "cvmfs", Exports: map[string]string{"root": "/elsewhere"}},
			{
				Type: "io.containerd.content.v1", ID: "content",
				Exports: map[string]string{"root": filepath.Join(root, "io.containerd.content.v1.content")},
			},
		},
	}
	c := f.connect(t)
	left := []string{
		filepath.Join(root, tasks, TestNamespace), filepath.Join(filepath.Dir(c.socket), tasks, TestNamespace),
	}
	stay := filepath.Join(root, tasks, "moby")
	for _, dir := range append(left, stay) {
		must(t, os.MkdirAll(dir, 0o755))
	}
	must(t, c.Clear(t.Context()))
	for _, dir := range left {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	must(t, os.MkdirAll(filepath.Join(left[0], "container"), 0o755))
	must(t, c.Clear(t.Context())) // it isn't empty: somebody else's, or of a kill
	for _, dir := range []string{stay, left[0]} {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
}
