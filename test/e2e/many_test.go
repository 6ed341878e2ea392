package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/internal/child"
	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// kept is what an image must keep on its way through an archive or a registry.
const kept = "{{.Id}} {{.RootFS.Layers}}"

func TestTwentyImagesAtOnce(t *testing.T) {
	u := onOwnStand(t)
	registry := u.registry()
	images := u.twenty()
	says := u.runAtOnce(images)
	is := map[string]string{} // by image: what it must keep
	for _, image := range images {
		is[image] = u.docker("image", "inspect", "--format", kept, image)
	}
	check := func(t *testing.T, prefix string) {
		t.Helper()
		for _, image := range images {
			got, err := u.Engine.Docker(t.Context(), "image", "inspect", "--format", kept, prefix+image)
			if err != nil || strings.TrimSpace(got) != is[image] {
				t.Errorf("%s was %s, is %s, %v", image, is[image], got, err)
			}
		}
		var names []string
		for _, image := range images {
			names = append(names, prefix+image)
		}
		if diff := cmp.Diff(says, u.runAtOnce(names)); diff != "" || slices.Contains(says, "") {
			t.Errorf("they say something else: %s", diff)
		}
	}
	archives, digests := t.TempDir(), map[string]string{}
	for _, image := range images {
		u.docker("tag", image, registry+image)
	}
	u.atOnce(len(images), func(i int) []string {
		return []string{"save", "--output", filepath.Join(archives, fmt.Sprint(i)), images[i]}
	})
	for i, said := range u.atOnce(len(images), func(i int) []string { return []string{"push", registry + images[i]} }) {
		digests[images[i]] = digest(t, said)
	}
	t.Run("prune", func(t *testing.T) { (user{t, u.Stand}).prunes() })
	t.Run("load", func(t *testing.T) {
		u.atOnce(len(images), func(i int) []string {
			return []string{"load", "--input", filepath.Join(archives, fmt.Sprint(i))}
		})
		check(t, "")
	})
	u.prunes()
	t.Run("pull", func(t *testing.T) {
		u.atOnce(len(images), func(i int) []string { return []string{"pull", registry + images[i]} })
		check(t, registry)
		for i, said := range u.atOnce(len(images),
			func(i int) []string { return []string{"push", registry + images[i]} }) {
			image := images[i]
			pulled := u.docker("image", "inspect", "--format", "{{.RepoDigests}}", registry+image)
			if again := digest(t, said); again != digests[image] || !strings.Contains(pulled, again) {
				t.Errorf("%s was pushed as %s, pulled as %s and pushed again as %s", image, digests[image], pulled,
					again)
			}
		}
	})
}

// digest finds the digest in what docker push says.
func digest(t *testing.T, said string) string {
	t.Helper()
	found := regexp.MustCompile(`digest: (sha256:[0-9a-f]{64})`).FindStringSubmatch(said)
	if found == nil {
		t.Fatalf("docker push tells no digest: %s", said)
	}
	return found[1]
}

// twenty makes twenty images of every mixture and gives their names.
func (u user) twenty() []string {
	u.Helper()
	u.load("tiny.tar")
	u.load("thin_tiny.tar")
	images := append(u.mixtures(), stand.Ordinary, stand.Thin)
	hello := filepath.Join(u.TempDir(), "hello")
	u.docker("cp", u.create(stand.Ordinary)+":/bin/hello", hello)
	program, err := os.ReadFile(hello)
	if err != nil {
		u.Fatal(err)
	}
	descriptor, err := os.ReadFile(testutil.Data(u, "images", "thin.json"))
	if err != nil {
		u.Fatal(err)
	}
	for i := len(images); i < 20; i++ {
		name, content := "bin/hello", program
		if i%2 == 0 {
			// Another descriptor of the same layers: its own layer in the engine, what it is composed of shared.
			name, content = "thin.json", bytes.Replace(descriptor, []byte("{"),
				fmt.Appendf(nil, "{ %q: \"%d\",", "comment", i), 1)
		}
		image := fmt.Sprintf("example/many:%d", i)
		u.importTar(image, map[string][]byte{name: content})
		images = append(images, image)
	}
	return images
}

// importTar makes an image of one layer with the files given, which runs /bin/hello.
func (u user) importTar(image string, files map[string][]byte) {
	u.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, content := range files {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))})
		if _, writeErr := w.Write(content); err != nil || writeErr != nil {
			u.Fatal(errors.Join(err, writeErr))
		}
	}
	if err := w.Close(); err != nil {
		u.Fatal(err)
	}
	cmd := u.Engine.Command(u.Context(), "import", "--change", `ENTRYPOINT ["/bin/hello"]`, "--change",
		"ENV GREETING=hello", "-", image)
	cmd.Stdin = &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		u.Fatalf("import %s: %v: %s", image, err, out)
	}
}

// atOnce runs the docker command as often as it is told, all at the same time; all must succeed. It gives what they
// say.
func (u user) atOnce(n int, args func(i int) []string) []string {
	u.Helper()
	said, failures := make([]string, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { said[i], failures[i] = u.Engine.Docker(u.Context(), args(i)...) })
	}
	all.Wait()
	if err := errors.Join(failures...); err != nil {
		u.Fatal(err)
	}
	return said
}

// runAtOnce runs a container of each image and gives what they say.
func (u user) runAtOnce(images []string) []string {
	u.Helper()
	return u.atOnce(len(images),
		func(i int) []string { return []string{"run", "--rm", "--network", "none", images[i]} })
}

// prunes removes everything with docker's prune commands and checks that it is gone from the disk.
func (u user) prunes() {
	u.Helper()
	container := u.docker("create", "--network", "none", stand.Ordinary, "/data/a.txt")
	u.docker("container", "prune", "--force")
	u.refuses(container, "start", container)
	u.docker("image", "prune", "--force")
	if u.docker("images", "--quiet", stand.Thin) == "" {
		u.Error("docker image prune took an image that has a name")
	}
	u.docker("image", "prune", "--force", "--all")
	u.same("the images left", u.docker("images", "--quiet"), "")
	u.docker("system", "prune", "--force", "--all", "--volumes")
	layers, err := filepath.Glob(u.onHost(rootfs.PropagatedMount + "/layers/*"))
	if err != nil || len(layers) > 0 {
		u.Errorf("layers left: %v, %v", layers, err)
	}
}

// registry serves a registry on loopback during the test and gives what the names of its images begin with.
func (u user) registry() string {
	u.Helper()
	program, dir := u.program("docker-registry"), u.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		u.Fatal(err)
	}
	address := free.Addr().String()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: %q}\n", dir, address)
	file := filepath.Join(dir, "config.yml")
	if err := errors.Join(free.Close(), os.WriteFile(file, []byte(config), 0o644)); err != nil {
		u.Fatal(err)
	}
	var log bytes.Buffer
	server := exec.Command(program, "serve", file)
	server.Stdout, server.Stderr = &log, &log
	if err := child.Start(server); err != nil {
		u.Fatal(err)
	}
	u.Cleanup(func() {
		if err := server.Process.Kill(); err != nil {
			u.Error(err)
		}
		server.Wait() // killed, so that its error says nothing
		if u.Failed() {
			u.Logf("the registry's log:\n%s", log.String())
		}
	})
	u.eventually("the registry answers", func() error {
		request, err := http.NewRequestWithContext(u.Context(), http.MethodGet, "http://"+address+"/v2/", nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		return response.Body.Close()
	})
	return address + "/"
}

func TestSixtyFourContainersStartAtOnceFromAThinImage(t *testing.T) {
	u := onOwnStand(t)
	u.load("thin_tiny.tar")
	ids := u.atOnce(64, func(int) []string {
		return []string{"run", "--detach", "--network", "none", "--interactive", stand.Thin, "/dev/stdin"}
	})
	for i := range ids {
		ids[i] = strings.TrimSpace(ids[i])
	}
	states := strings.Fields(u.docker(append([]string{"inspect", "--format", "{{.State.Status}}"}, ids...)...))
	if running := slices.DeleteFunc(states, func(s string) bool { return s != "running" }); len(running) != 64 {
		t.Errorf("%d containers run, want 64", len(running))
	}
	u.refuses("conflict", "rmi", stand.Thin)
	u.refuses("conflict", "rmi", "--force", u.docker("images", "--quiet", stand.Thin))
	said := u.atOnce(64, func(i int) []string {
		return []string{"exec", ids[i], "/bin/hello", "/data/a.txt", "/data/b-again.txt"}
	})
	for i, text := range said {
		if text != said[0] || !strings.HasPrefix(text, "a is back\n") {
			t.Errorf("container %d says %q", i, text)
		}
	}
	u.docker(append([]string{"rm", "--force"}, ids...)...)
	if status := u.docker("info", "--format", "{{.DriverStatus}}"); !strings.Contains(status, "[Mounted layers 0]") {
		t.Errorf("with no container left the driver's state is %s, want no mounted layer", status)
	}
	u.docker("rmi", stand.Thin)
}
