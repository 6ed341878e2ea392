//go:build guest

package kubernetes

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.yaml.in/yaml/v3"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/testutil"
)

const fqrn = "images.example.org"

// stand is a cluster with what its pods are made of.
type stand struct {
	*node
	t              *testing.T
	registry       *testutil.Registry
	ordinary, thin string // images, the same but for where their layers are
	settings       map[string]any
	text           string // the guide
}

// A cluster gets the snapshotter, keeps its pods while that is upgraded, and is brought back to how it was: by the
// manifests, for all pods, and by the chart, for those of a runtime class.
func TestClustersGetTheSnapshotter(t *testing.T) {
	s := newStand(t)
	was := s.state()
	for _, way := range []struct {
		name string
		life func(s *stand)
	}{{"manifests", (*stand).manifests}, {"chart", (*stand).chart}} {
		if !t.Run(way.name, s.in(way.life)) {
			break // the next one wants a node that is as it was
		}
		s.same("the node afterwards", s.state(), was)
	}
}

func (s *stand) in(do func(s *stand)) func(t *testing.T) {
	return func(t *testing.T) {
		inner := *s
		inner.t = t
		do(&inner)
	}
}

// versions are those of the programs: one, and what it is upgraded to.
var versions = []string{"1.0.0", "1.0.1"}

func newStand(t *testing.T) *stand {
	t.Helper()
	testutil.NeedRoot(t)
	s := &stand{t: t}
	up(t)
	s.registry = testutil.NewRegistry(t, "", "")
	s.ordinary = s.registry.Push(t, "tiny:1", withShell(t, "tiny.tar"), nil)
	s.thin = s.registry.Push(t, "thin_tiny:1", withShell(t, "thin_tiny.tar"), nil)
	files := map[string]any{
		"default.local":              "CVMFS_HTTP_PROXY=DIRECT\n",
		"config.d/" + fqrn + ".conf": "CVMFS_SERVER_URL=" + testutil.ServeReference(t, fqrn) + "\nCVMFS_PUBLIC_KEY=/etc/cvmfs/keys/" + fqrn + ".pub\n",
	}
	key, err := os.ReadFile(testutil.PublicKey(t, fqrn))
	must(t, err)
	files["keys/"+fqrn+".pub"] = string(key)
	s.settings = map[string]any{"cvmfs": files}
	guide, err := os.ReadFile(filepath.Join(testutil.Root(t), "docs/kubernetes.md"))
	must(t, err)
	s.text = string(guide)
	s.node = startCluster(t, s.registry.Push(t, "pause:1", pausing(t), nil))
	for _, version := range versions {
		s.build(version)
	}
	return s
}

// build makes what a release has for clusters, in the folder that is the node's /srv/test, and pushes its image.
func (s *stand) build(version string) {
	s.t.Helper()
	programs := s.t.TempDir()
	s.programs(filepath.Join(programs, runtime.GOARCH), version)
	s.goCommand("run", "./packaging/kubernetes", "-version", version, "-arch", runtime.GOARCH, "-programs", programs, "-output",
		s.dir, "-push", s.registry.Host+"/cvmfs-snapshotter")
}

// goCommand runs the go command in the source tree.
func (s *stand) goCommand(args ...string) {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), "go", args...)
	cmd.Dir = testutil.Root(s.t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "SOURCE_DATE_EPOCH=1700000000", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("go %v: %v: %s", args, err, out)
	}
}

// withShell returns a reference image with some of busybox's commands.
func withShell(t *testing.T, archive string) v1.Image {
	t.Helper()
	cache, err := engine.CacheDir()
	must(t, err)
	program, err := engine.FindProgram(cache, "busybox")
	must(t, err)
	busybox, err := os.ReadFile(program)
	must(t, err)
	files := []tar.Header{{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Linkname: string(busybox)}}
	for _, name := range []string{"sh", "cat", "sleep", "find", "md5sum", "xargs", "sort"} {
		files = append(files, tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"})
	}
	image, err := tarball.ImageFromPath(testutil.Data(t, "images", archive), nil)
	if err == nil {
		layer := static.NewLayer(testutil.Tar(t, files...), types.DockerUncompressedLayer)
		image, err = mutate.AppendLayers(image, layer)
	}
	must(t, err)
	return image
}

// pausing returns an image that does nothing until it is stopped.
func pausing(t *testing.T) v1.Image {
	t.Helper()
	image := withShell(t, "tiny.tar")
	config, err := image.ConfigFile()
	must(t, err)
	config.Config.Entrypoint, config.Config.Cmd = []string{"/bin/sh", "-c", "sleep 100000"}, nil
	image, err = mutate.Config(image, config.Config)
	must(t, err)
	return image
}

// guide runs what the guide has below a heading, on the node, in the words of this cluster, and gives what it prints.
func (s *stand) guide(heading string) string {
	s.t.Helper()
	_, section, found := strings.Cut(s.text, "\n"+heading+"\n")
	section, _, _ = strings.Cut(section, "\n#")
	block := regexp.MustCompile("(?s)```sh\n(.*?)```").FindStringSubmatch(section)
	if !found || block == nil {
		s.t.Fatalf("the guide has no lines below %q", heading)
	}
	script := strings.NewReplacer("registry.example.org/", s.registry.Host+"/").Replace(block[1])
	s.t.Logf("%s\n%s", heading, script)
	return s.sh(s.t, script)
}

// manifest changes the settings in the manifests of a version, as an administrator does.
func (s *stand) manifest(version string, change map[string]any) {
	s.t.Helper()
	name := filepath.Join(s.dir, "cvmfs-snapshotter-"+version+".yaml")
	text, err := os.ReadFile(name)
	must(s.t, err)
	lines := regexp.MustCompile(`(?m)^    (\w+): .*$`)
	_, data, found := strings.Cut(string(text), "node.yaml: |\n")
	if !found {
		s.t.Fatalf("%s has no settings", name)
	}
	data, _, _ = strings.Cut(data, "\n---\n")
	changed := lines.ReplaceAllStringFunc(data, func(line string) string {
		key := lines.FindStringSubmatch(line)[1]
		value, asked := change[key]
		if !asked {
			return line
		}
		encoded, err := json.Marshal(value)
		must(s.t, err)
		return fmt.Sprintf("    %s: %s", key, encoded)
	})
	must(s.t, os.WriteFile(name, []byte(strings.Replace(string(text), data, changed, 1)), 0o644))
}

// run starts a pod that reads all there is in its image again and again, and ends if that ever fails.
func (s *stand) run(name, image, class string) {
	s.t.Helper()
	spec := map[string]any{
		"hostNetwork": true, "terminationGracePeriodSeconds": 0, "restartPolicy": "Never",
		"containers": []any{map[string]any{"name": "main", "image": image, "command": []string{
			"/bin/sh", "-c", `all() { find /data -type f | sort | xargs md5sum; }
all >/first || exit 1
n=0
while all >/again; do
	[ "$(cat /again)" = "$(cat /first)" ] || exit 2
	n=$((n + 1)); echo $n >/rounds; sleep 0.1
done; exit 3`,
		}}},
	}
	if class != "" {
		spec["runtimeClassName"] = class
	}
	text, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name}, "spec": spec,
	})
	must(s.t, err)
	s.write(s.t, "/srv/test/pod.yaml", string(text))
	s.sh(s.t, "kubectl apply --filename /srv/test/pod.yaml")
	s.until(s.t, 2*time.Minute, "kubectl exec "+name+" -- cat /rounds >/dev/null; echo ok", "ok")
}

// running checks that a pod has read on without an error, for some rounds more.
func (s *stand) running(name string) {
	s.t.Helper()
	rounds := s.sh(s.t, "kubectl exec "+name+" -- cat /rounds")
	s.until(s.t, time.Minute, fmt.Sprintf("test $(kubectl exec %s -- cat /rounds) -gt $((%s + 3)); echo on", name, rounds), "on")
	s.same("the pod "+name, s.sh(s.t, "kubectl get pod "+name+" --output "+
		"'jsonpath={.status.phase} {.status.containerStatuses[0].restartCount}'"), "Running 0")
}

// snapshotterOf returns the snapshotter of a pod's container.
func (s *stand) snapshotterOf(name string) string {
	s.t.Helper()
	return s.sh(s.t, "id=$(kubectl get pod "+name+" --output 'jsonpath={.status.containerStatuses[0].containerID}'); "+
		"ctr --namespace k8s.io containers info ${id#containerd://} | grep '\"Snapshotter\"' | cut -d '\"' -f 4")
}

// state is what the node has of the snapshotter, and the files that may be changed for it.
func (s *stand) state() string {
	s.t.Helper()
	return s.sh(s.t, `find /etc /opt /usr/local -type f -print0 | sort -z | xargs -0 sha256sum
ls /opt /var/lib | grep cvmfs || true
ls -d /run/cvmfs-snapshotter || true
systemctl list-unit-files --no-legend | grep cvmfs || true
grep -c cvmfs /proc/mounts || true`)
}

func (s *stand) same(what, got, want string) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

const mainPID = "systemctl show --property MainPID --value "

func (s *stand) manifests() {
	s.manifest(versions[0], s.settings)
	s.guide("## Install by kubectl")
	s.same("the snapshotter", s.sh(s.t, "systemctl is-active cvmfs-snapshotter; systemctl is-enabled cvmfs-snapshotter"),
		"active\nenabled")
	s.run("ordinary", s.ordinary, "")
	s.run("thin", s.thin, "")
	s.same("the snapshotter of a pod", s.snapshotterOf("thin"), "cvmfs")
	s.same("what both read", s.sh(s.t, "kubectl exec thin -- cat /first"), s.sh(s.t, "kubectl exec ordinary -- cat /first"))
	s.imageFileSystem()
	s.upgrade(func() {
		s.manifest(versions[1], s.settings)
		s.guide("## Upgrade by kubectl")
	})
	s.run("second", s.thin, "")

	removed := map[string]any{"state": "removed"}
	maps.Copy(removed, s.settings)
	s.manifest(versions[1], removed)
	s.sh(s.t, "sed -i 's/maxUnavailable: .*/maxUnavailable: 100%/' cvmfs-snapshotter-"+versions[1]+".yaml")
	began := time.Now()
	s.guide("### By kubectl: let new pods do without")
	s.until(s.t, time.Minute, "kubectl --namespace kube-system logs daemonset/cvmfs-snapshotter | grep --only-matching "+
		"'is in use' | tail -1", "is in use")
	s.running("thin") // what is in use isn't taken away
	s.sh(s.t, "kubectl delete pod ordinary thin second --wait")
	s.run("plain", s.ordinary, "")
	s.same("the snapshotter of a pod", s.snapshotterOf("plain"), "overlayfs")
	s.guide("### By kubectl: replace the node's own pods")
	s.t.Logf("removed in %v", time.Since(began).Round(time.Second))
	s.guide("### By kubectl: remove the rest")
	s.running("plain")
	s.sh(s.t, "kubectl delete pod plain --wait")
}

// imageFileSystem checks what kubelet knows of the file system that images lie on.
func (s *stand) imageFileSystem() {
	s.t.Helper()
	s.until(s.t, time.Minute, `crictl imagefsinfo | grep --only-matching '/var/lib/cvmfs-snapshotter' | head -1`,
		"/var/lib/cvmfs-snapshotter")
	var summary struct {
		Node struct {
			Runtime struct {
				ImageFS struct{ CapacityBytes, UsedBytes, AvailableBytes int64 }
			}
		}
	}
	eventually(s.t, time.Minute, func() error {
		text, err := s.try(s.t.Context(), "kubectl get --raw /api/v1/nodes/node/proxy/stats/summary")
		if err == nil {
			err = json.Unmarshal([]byte(text), &summary)
		}
		fs := summary.Node.Runtime.ImageFS
		if err == nil && (fs.CapacityBytes == 0 || fs.UsedBytes == 0 || fs.AvailableBytes == 0) {
			err = fmt.Errorf("kubelet knows of images %+v", fs)
		}
		return err
	})
	s.t.Logf("the file system of images: %+v", summary.Node.Runtime.ImageFS)
}

// upgrade upgrades the snapshotter below running pods, which notice nothing; containerd isn't restarted.
func (s *stand) upgrade(do func()) {
	s.t.Helper()
	before, containerd := s.sh(s.t, mainPID+"cvmfs-snapshotter"), s.sh(s.t, mainPID+"containerd")
	began := time.Now()
	do()
	s.t.Logf("upgraded in %v", time.Since(began).Round(time.Second))
	if after := s.sh(s.t, mainPID+"cvmfs-snapshotter"); after == before || after == "0" {
		s.t.Errorf("the snapshotter's process is %s, and was %s", after, before)
	}
	s.same("containerd's process", s.sh(s.t, mainPID+"containerd"), containerd)
	s.same("the version", s.sh(s.t, "/proc/$("+mainPID+"cvmfs-snapshotter)/exe version | grep -c "+versions[1]), "1")
	s.running("thin")
}
