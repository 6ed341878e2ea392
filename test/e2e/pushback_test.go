package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/internal/child"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

// What a container adds to a thin image is published at its commit, and the image that comes of it is thin: here, and
// on another host, which has nothing of it.
func TestACommittedLayerIsPublished(t *testing.T) {
	plugin := func(find func(t *testing.T) *engine.Tools) func(t *testing.T) *stand.Stand {
		return func(t *testing.T) *stand.Stand {
			found := find(t)
			return own(t, func() (*stand.Stand, error) {
				return newStand(t.Context(), found, testutil.Data(t), stand.Options{})
			}).Stand
		}
	}
	for name, build := range of(map[string]func(t *testing.T) *stand.Stand{
		"plugin": plugin(tools), "plugin on the newer engine": plugin(newerTools),
		"snapshotter": func(t *testing.T) *stand.Stand {
			o := stand.Options{
				Tools: stackTools(t, engine.Stack29on21), Snapshotter: shared.snapshotter(), Testdata: testutil.Data(t),
			}
			return own(t, func() (*stand.Stand, error) { return stand.NewSnapshotter(t.Context(), o) }).Stand
		},
	}, "plugin", "snapshotter") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pushBack(user{t, build(t)}, build)
		})
	}
}

// pushes is a user whose commits are published.
type pushes struct {
	user
	publisher string // the publisher's folder
	address   string // of the service, as the node knows it
	listens   string // where the service listens, if that is elsewhere
	state     string // folder of the service
	service   *exec.Cmd
	said      testutil.Buffer // by it
}

const pushToken = "a-token-of-a-node-0123456789"

// newPushes makes the repository that commits are published in.
func newPushes(u user) *pushes {
	u.Helper()
	p := &pushes{user: u, publisher: filepath.Join(u.TempDir(), "publisher")}
	err := publish.Create(u.Context(), p.publisher, publish.Settings{FQRN: layersFQRN}, publish.Options{})
	if err != nil {
		u.Fatal(err)
	}
	p.serveIn(u)
	return p
}

func pushBack(u user, another func(t *testing.T) *stand.Stand) {
	u.load("thin_tiny.tar")
	p := newPushes(u)
	registry := testutil.NewRegistry(u.T, "", "")

	container := p.changed("changed")
	p.docker("commit", container, "example/before:1")
	if layers := p.thinLayers("example/before:1"); layers != nil {
		u.Errorf("without settings the commit gave a thin layer: %v", layers)
	}

	p.configure(10 * time.Second)
	if out, err := p.Engine.Docker(u.Context(), "commit", container, "example/refused:1"); err == nil {
		u.Errorf("nobody publishes, and the commit succeeds: %s", out)
	} else if !strings.Contains(err.Error(), "try again") {
		u.Errorf("the commit's error doesn't say what to do: %v", err)
	}
	if out, err := p.Engine.Docker(u.Context(), "image", "inspect", "example/refused:1"); err == nil {
		u.Errorf("a failed commit left an image: %s", out)
	}

	p.start()
	p.configure(time.Minute)
	p.docker("commit", container, "example/pushed:1")
	layers, base := p.thinLayers("example/pushed:1"), p.thinLayers(stand.Thin)
	if len(layers) != len(base)+1 || !slices.Equal(paths(layers[:len(base)]), paths(base)) {
		u.Fatalf("the layers are %v, want %v and one more, last", paths(layers), paths(base))
	}
	if last := layers[len(base)]; last.FQRN != layersFQRN || last.Path != "/layers/"+last.Digest || last.DiffID == "" {
		u.Errorf("the new layer is %+v", last)
	}
	want := p.tree(container)
	if diff := cmp.Diff(want, p.tree(p.create("example/pushed:1"))); diff != "" {
		u.Errorf("the committed image (-container +image):\n%s", diff)
	}
	p.docker("commit", container, "example/again:1")
	if again := p.thinLayers("example/again:1"); !slices.Equal(paths(again), paths(layers)) {
		u.Errorf("the second commit: %v", paths(again))
	}
	// The descriptor of what is below an ordinary layer would hide that.
	above := p.create("example/before:1")
	p.put(above, "/data/above", "above")
	p.docker("commit", "--change", `CMD ["later"]`, above, "example/mixed:1")
	if mixed := p.thinLayers("example/mixed:1"); mixed != nil {
		u.Errorf("on an ordinary layer: %v", paths(mixed))
	}

	p.makesThin(above, want)

	name := registry.Host + "/example/pushed:1"
	p.docker("tag", "example/pushed:1", name)
	p.docker("push", name)
	other := user{u.T, another(u.T)}
	p.serveIn(other)
	other.docker("pull", name)
	if diff := cmp.Diff(want, (&pushes{user: other}).tree(other.create(name))); diff != "" {
		u.Errorf("the image elsewhere (-container +image):\n%s", diff)
	}
}

// makesThin makes a thin image of one with two ordinary layers on the thin one, of which one is published already.
func (p *pushes) makesThin(above string, want map[string]file) {
	p.Helper()
	out, err := p.graphdriver("thin", "example/mixed:1")
	if err != nil {
		p.Fatalf("thin: %v: %s", err, out)
	}
	layers, base := p.thinLayers("example/mixed:1-thin"), p.thinLayers(stand.Thin)
	if len(layers) != len(base)+2 || !slices.Equal(paths(layers[:len(base)]), paths(base)) {
		p.Fatalf("the layers are %v, want %v and two more", paths(layers), paths(base))
	}
	if says := p.docker("image", "inspect", "--format", "{{len .RootFS.Layers}} {{.Config.Cmd}}",
		"example/mixed:1-thin"); says != "1 [later]" {
		p.Errorf("the thin image has other layers or another configuration: %s", says)
	}
	grown := maps.Clone(want)
	grown["/data/above"] = p.tree(above)["/data/above"]
	if diff := cmp.Diff(grown, p.tree(p.create("example/mixed:1-thin"))); diff != "" {
		p.Errorf("the thin image (-container +image):\n%s", diff)
	}
	p.load("tiny.tar")
	for image, want := range map[string]string{
		"example/mixed:1-thin": "a thin image already", "example/none:1": "no image", stand.Ordinary: "make-thin",
	} {
		if out, err := p.graphdriver("thin", "--tag", "example/x:1", image); err == nil || !strings.Contains(out, want) {
			p.Errorf("thin %s: %v: %s, want %q", image, err, out, want)
		}
	}
}

// graphdriver runs the host's program, and gives what it says.
func (p *pushes) graphdriver(command string, args ...string) (string, error) {
	p.Helper()
	flags := []string{command, "--host", "unix://" + p.Engine.Socket()}
	if p.Snapshotter != nil {
		flags = append(flags, "--socket", filepath.Join(filepath.Dir(p.Snapshots()), "control.sock"))
	}
	out, err := exec.CommandContext(p.Context(), filepath.Join(shared.dir, "bin/cvmfs-graphdriver"),
		append(flags, args...)...).CombinedOutput()
	return string(out), err
}

// serveIn has a stand know the repository.
func (p *pushes) serveIn(u user) {
	p.Helper()
	err := u.Serve(layersFQRN, filepath.Join(p.publisher, "www/cvmfs", layersFQRN),
		filepath.Join(p.publisher, "keys", layersFQRN+".pub"))
	if err != nil {
		p.Fatal(err)
	}
}

// configure has the node push layers back, and wait so long.
func (p *pushes) configure(wait time.Duration) {
	p.Helper()
	if p.address == "" {
		p.address = testutil.ClosedAddress(p.T, "127.0.0.1")
	}
	text := fmt.Sprintf(`{"CvmfsRepo": %q, "PublishStatusURL": "http://%s/status", "Token": %q, "Wait": %q}`,
		layersFQRN, p.address, pushToken, wait)
	if err := os.WriteFile(filepath.Join(p.Config, "config.json"), []byte(text), 0o600); err != nil {
		p.Fatal(err)
	}
}

// start starts the service, which ends with the test.
func (p *pushes) start() {
	p.Helper()
	p.state = filepath.Join(p.TempDir(), "state")
	dir := filepath.Dir(p.state)
	text := fmt.Sprintf("version: 1\ntarget: native:%s\nlisten: %s\ntokens: %s\nstate: %s\n", p.publisher, p.address,
		filepath.Join(dir, "tokens"), p.state)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "receive.yaml"), []byte(text), 0o600),
		os.WriteFile(filepath.Join(dir, "tokens"), []byte("node7 "+pushToken+"\n"), 0o600)); err != nil {
		p.Fatal(err)
	}
	p.listens = p.address
	if err := p.launch(); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() {
		if err := p.service.Process.Signal(syscall.SIGTERM); err != nil {
			p.Error(err)
		}
		if err := p.service.Wait(); err != nil || p.Failed() {
			p.Logf("the service: %v: %s", err, &p.said)
		}
	})
	p.eventually("the service answers", func() error {
		answer, err := http.Get("http://" + p.listens + "/status/" + strings.Repeat("0", 64))
		if err == nil {
			err = answer.Body.Close()
		}
		return err
	})
}

// launch starts the service's program.
func (p *pushes) launch() error {
	p.service = exec.Command(shared.converter(), "receive", filepath.Join(filepath.Dir(p.state), "receive.yaml"))
	p.service.Stdout, p.service.Stderr = &p.said, &p.said
	return child.Start(p.service)
}

// kill kills it.
func (p *pushes) kill() error {
	if err := p.service.Process.Kill(); err != nil {
		return err
	}
	_ = p.service.Wait() // it was killed
	return nil
}

// changed makes a container of the thin image that has done of everything a little.
func (p *pushes) changed(name string) string {
	p.Helper()
	container := p.docker("create", "--network", "none", "--name", name, "--entrypoint", "/busybox", stand.Thin, "sh", "-ec", `
		cd /
		/busybox rm data/a.txt
		echo more >> data/b.txt
		/busybox rm -r opt/old
		/busybox mkdir opt/old
		echo only > opt/old/only
		echo new > new
		/busybox ln new hard
		/busybox ln -s new soft
		/busybox chown 5:6 etc/passwd
		/busybox chmod 600 data/owned
		/busybox rm srv/dir-becomes-file
		/busybox mkdir -p srv/dir-becomes-file/deep
		echo x > srv/dir-becomes-file/deep/x
		/busybox mv data/blob data/moved`)
	p.removeLater("rm", container)
	p.docker("cp", p.program("busybox"), container+":/busybox")
	p.docker("start", "--attach", container)
	return container
}

// tree lists a container's files, but for those that engines put into each.
func (p *pushes) tree(container string) map[string]file {
	p.Helper()
	files := p.export(container)
	for name := range files {
		switch path.Dir(name) {
		case "/", "/dev", "/proc", "/sys":
			if name != "/new" && name != "/hard" && name != "/soft" {
				delete(files, name)
			}
		}
		if slices.Contains([]string{"/etc", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab"}, name) ||
			strings.HasPrefix(name, "/dev/") {
			delete(files, name)
		}
	}
	return files
}

// thinLayers returns the layers of the descriptor in an image's topmost layer; nil if that is an ordinary one.
func (p *pushes) thinLayers(image string) []thin.Layer {
	p.Helper()
	archive := filepath.Join(p.TempDir(), "saved.tar")
	p.docker("save", "--output", archive, image)
	f, err := os.Open(archive)
	if err != nil {
		p.Fatal(err)
	}
	defer f.Close()
	content := map[string][]byte{}
	testutil.Untar(p.T, f, func(h *tar.Header, b []byte) { content[h.Name] = b })
	var manifest []struct{ Layers []string }
	if err := json.Unmarshal(content["manifest.json"], &manifest); err != nil {
		p.Fatal(err)
	}
	layers := manifest[0].Layers
	top, err := compression.DecompressStream(bytes.NewReader(content[layers[len(layers)-1]]))
	if err != nil {
		p.Fatal(err)
	}
	defer top.Close()
	r := tar.NewReader(top)
	h, err := r.Next()
	if err != nil || path.Clean(h.Name) != thin.FileName {
		return nil
	}
	b, err := io.ReadAll(r)
	if err != nil {
		p.Fatal(err)
	}
	d, err := thin.Parse(b)
	if err != nil {
		p.Fatal(err)
	}
	return d.Layers
}

func paths(layers []thin.Layer) (list []string) {
	for _, l := range layers {
		list = append(list, l.URL())
	}
	return list
}
