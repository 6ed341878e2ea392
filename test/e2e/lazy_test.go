package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// lazy is a user of a snapshotter that looks for layers in a repository, and of a registry with an ordinary image whose
// layers the repository has.
type lazy struct {
	*converter
	registry *testutil.Registry
	image    string   // its name
	blobs    []string // paths of its layers in the registry
	want     string   // what it says
}

// newLazy returns one. The repository has the layers in our layout, or DUCC's.
func newLazy(t *testing.T, stack engine.Stack, layout string) *lazy {
	t.Helper()
	registry := testutil.NewRegistry(t, "", "")
	u := onSnapshotter(t, stack, stand.Options{
		Driver: []string{"cvmfs.lazy=" + layersFQRN},
		Pause:  registry.Push(t, "pause:1", pauseImage(t), nil),
	})
	l := &lazy{
		&converter{u, filepath.Join(t.TempDir(), "publisher")}, registry, registry.Host + "/example/ordinary:1", nil,
		u.run(stand.Ordinary, "/data/a.txt"),
	}
	err := publish.Create(t.Context(), l.publisher, publish.Settings{FQRN: layersFQRN}, publish.Options{})
	if err == nil {
		err = l.Serve(layersFQRN, filepath.Join(l.publisher, "www/cvmfs", layersFQRN),
			filepath.Join(l.publisher, "keys", layersFQRN+".pub"))
	}
	if err != nil {
		t.Fatal(err)
	}
	l.docker("tag", stand.Ordinary, l.image)
	l.docker("push", l.image)
	ref, err := name.ParseReference(l.image)
	if err != nil {
		t.Fatal(err)
	}
	pushed, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := pushed.Layers()
	if err != nil || len(layers) < 2 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	for _, layer := range layers {
		digest, err := layer.Digest()
		if err != nil {
			t.Fatal(err)
		}
		l.blobs = append(l.blobs, "/blobs/"+digest.String())
	}
	l.convert("make-thin", "--input-reference", "http://"+l.image, "--output-reference",
		"oci:"+filepath.Join(t.TempDir(), "thin"), "--repository", layersFQRN, "--layout", layout, "--target",
		"native:"+l.publisher)
	l.docker("image", "prune", "--all", "--force")
	l.eventually("no snapshot is left", func() error { return l.noSnapshots("moby") })
	return l
}

// fetched returns how many of the layers' blobs were asked for since a number of requests, by others than the
// snapshotter, which does so when nobody waits.
func (l *lazy) fetched(since int) (n int) {
	for _, r := range l.registry.Log()[since:] {
		for _, blob := range l.blobs {
			ours := strings.Contains(r.UserAgent(), "cvmfs-snapshotter")
			if r.Method == http.MethodGet && !ours && strings.HasSuffix(r.URL.Path, blob) {
				n++
			}
		}
	}
	return n
}

func TestOrdinaryImagesStartFromARepository(t *testing.T) {
	for _, c := range []struct {
		stack  engine.Stack
		layout string
	}{
		{engine.Stack29on21, "layers"},
		{engine.Stack29on17, "ducc"},
		{engine.Stack28on21, "layers"},
		{engine.Stack29on24, "layers"},
	} {
		t.Run(c.stack.String()+" "+c.layout, func(t *testing.T) {
			l := newLazy(t, c.stack, c.layout)
			before := len(l.registry.Log())
			l.docker("pull", l.image)
			l.same("what it says", l.run(l.image, "/data/a.txt"), l.want)
			if n := l.fetched(before); n != 0 {
				t.Errorf("docker asked for %d blobs", n)
			}
			l.canBeSaved()
			pod, container, err := l.Engine.RunInPod(t.Context(), engine.Pod{Name: "lazy", Image: l.image},
				"/bin/hello", "/data/a.txt")
			if err != nil {
				t.Fatal(err)
			}
			l.eventually("the pod's output is there", func() error {
				_, err := l.Engine.Crictl(t.Context(), "logs", container)
				return err
			})
			if n := l.fetched(before); n != 0 {
				t.Errorf("Kubernetes asked for %d blobs", n)
			}
			for _, args := range [][]string{{"stopp", pod}, {"rmp", pod}, {"rmi", "--all"}} {
				l.eventually(strings.Join(args, " "), func() error {
					_, err := l.Engine.Crictl(t.Context(), args...)
					return err
				})
			}
			built := l.withShell(l.image)
			l.same("what an image upon it says", l.run(built, "/data/a.txt"), l.want)
			l.docker("image", "prune", "--all", "--force")
			l.docker("builder", "prune", "--all", "--force")
			l.eventually("no snapshot is left", func() error { return l.noSnapshots("moby") })
		})
	}
}

// canBeSaved waits until an archive of the image has its layers.
func (l *lazy) canBeSaved() {
	l.Helper()
	archive := filepath.Join(l.TempDir(), "saved.tar")
	l.eventually("the image is saved with its layers", func() error {
		if _, err := l.Engine.Docker(l.Context(), "save", "--output", archive, l.image); err != nil {
			return err
		}
		saved, err := os.ReadFile(archive)
		if err != nil {
			return err
		}
		for _, blob := range l.blobs {
			if name := "blobs/sha256/" + strings.TrimPrefix(blob, "/blobs/sha256:"); !strings.Contains(string(saved), name) {
				return fmt.Errorf("%s is missing", name)
			}
		}
		return nil
	})
}

// A repository that doesn't answer, or is gone, is none: the image is downloaded.
func TestOrdinaryImagesAreDownloadedWhereNoRepositoryAnswers(t *testing.T) {
	for name, broken := range map[string]func(l *lazy){
		"down":    func(l *lazy) { l.must(l.Site.Stop()) },
		"stalled": func(l *lazy) { l.Cleanup(l.Site.Stall()) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLazy(t, engine.Stack29on21, "layers")
			broken(l)
			before := len(l.registry.Log())
			l.docker("pull", l.image)
			l.same("what it says", l.run(l.image, "/data/a.txt"), l.want)
			if n := l.fetched(before); n != len(l.blobs) {
				t.Errorf("%d blobs of %d were asked for", n, len(l.blobs))
			}
		})
	}
}
