//go:build guest

package host

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/testutil"
)

const (
	fqrn    = "images.example.org"
	address = "127.0.0.1:8410" // of the repository's server, the same after a reboot
	sample  = "example/tiny:1" // testdata/images/tiny.tar, and the same as a thin image
	thin    = "example/thin_tiny:1"
	names   = "/etc/cvmfs"
)

// sh runs lines of bash, as root, and gives what they print. The first one that fails ends the test.
func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s\n%s", script, err, out, journal())
	}
	return strings.TrimSpace(string(out))
}

// command runs lines of bash as sh does, and leaves it to the test what their failure means.
func command(t *testing.T, script string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script).CombinedOutput()
	return string(out), err
}

// journal returns what the engine, containerd, the plugin and the snapshotter said last.
func journal() string {
	out, err := exec.Command("journalctl", "--no-pager", "--lines=80", "--unit=docker", "--unit=containerd",
		"--unit=cvmfs-snapshotter").CombinedOutput()
	return fmt.Sprintf("journal (%v):\n%s", err, out)
}

// want compares what lines of bash print.
func want(t *testing.T, script, wanted string) {
	t.Helper()
	if got := sh(t, script); got != wanted {
		t.Errorf("%s\ngives %q, want %q", script, got, wanted)
	}
}

// eventually waits until lines of bash print something.
func eventually(t *testing.T, script, wanted string) {
	t.Helper()
	var got string
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		out, err := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script).CombinedOutput()
		if got = fmt.Sprintf("%s (%v)", out, err); err == nil && strings.TrimSpace(string(out)) == wanted {
			return
		}
	}
	t.Fatalf("%s\ngives %s at last, want %q\n%s", script, got, wanted, journal())
}

// serve serves the reference repository.
func serve(t *testing.T) {
	t.Helper()
	dir := testutil.Repository(t, fqrn)
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.StripPrefix("/cvmfs/", http.FileServer(http.Dir(filepath.Dir(dir))))}
	go s.Serve(l) // it ends with the test
	t.Cleanup(func() { s.Close() })
}

// configure writes the host's CernVM-FS configuration, as an administrator does.
func configure(t *testing.T) {
	t.Helper()
	sh(t, fmt.Sprintf(`mkdir -p %[1]s/config.d %[1]s/keys
cp %[2]s %[1]s/keys/%[3]s.pub
echo CVMFS_HTTP_PROXY=DIRECT >%[1]s/default.local
printf 'CVMFS_SERVER_URL=http://%[4]s/cvmfs/@fqrn@\nCVMFS_PUBLIC_KEY=%[1]s/keys/%[3]s.pub\n' >%[1]s/config.d/%[3]s.conf`,
		names, testutil.PublicKey(t, fqrn), fqrn, address))
}

// programs is the folder with what was built: packages of two versions.
func programs(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("CVMFS_TEST_PROGRAMS")
	if dir == "" {
		t.Fatal("CVMFS_TEST_PROGRAMS names no folder of packages")
	}
	return dir
}

// busybox returns a static program of many names, for images that have hardly any.
func busybox(t *testing.T) string {
	t.Helper()
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	name, err := engine.FindProgram(cache, "busybox")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// wrapRunc keeps the engine from losing what a short-lived container says; see the script.
func wrapRunc(t *testing.T) {
	t.Helper()
	script := engine.RuncScript("/usr/sbin/runc", "/var/run/docker.pid")
	if err := os.WriteFile("/usr/local/sbin/runc", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// load loads the sample and its thin twin.
func load(t *testing.T) {
	t.Helper()
	for _, name := range []string{"tiny.tar", "thin_tiny.tar"} {
		sh(t, "docker load --quiet --input "+testutil.Data(t, "images", name))
	}
}

// stays starts a container of the thin image that stays, of that name.
func stays(t *testing.T) {
	t.Helper()
	sh(t, "docker run --detach --name stays --restart always --network none --volume "+busybox(t)+
		":/busybox:ro --entrypoint /busybox "+thin+" sleep 1000000")
}

// grows commits the container that stays, builds an image on the thin one, and runs both. The images go again.
func grows(t *testing.T) {
	t.Helper()
	sh(t, "docker exec stays /busybox sh -c 'echo new >/new'")
	sh(t, "docker commit stays committed")
	want(t, "docker run --rm --network none --volume "+busybox(t)+
		":/busybox:ro --entrypoint /busybox committed cat /new /data/a.txt", "new\na is back")
	sh(t, fmt.Sprintf(`context=$(mktemp --directory)
cp %s $context/busybox
cat >$context/Dockerfile <<'EOF'
FROM %s
COPY busybox /busybox
RUN ["/busybox", "sh", "-c", "/busybox rm /data/a.txt && echo built >/built"]
EOF
DOCKER_BUILDKIT=0 docker build --network none --tag built $context
rm -r $context`, busybox(t), thin))
	run := "docker run --rm --network none --entrypoint /busybox built "
	want(t, run+"cat /built", "built")
	want(t, run+"sh -c 'test -e /data/a.txt || echo gone'", "gone")
	sh(t, "docker rmi committed built")
}

// left prints the files that have a word in their name, but for logs, empty state and the test's own.
func left(t *testing.T, word string) string {
	t.Helper()
	return "find / -xdev -path /proc -prune -o -name '*" + word + "*' -print | grep -v -e ^/run -e ^/var/lib/" + word +
		"$ -e ^" + testutil.Root(t) + " -e ^/var/log || true"
}

// reads prints a file of the thin image in a container that stays.
const reads = "docker exec stays /busybox cat /data/a.txt"

const driver = "docker info --format '{{.Driver}}'"

// alike checks that the thin image says what the ordinary one says, and that the engine confines both.
func alike(t *testing.T) {
	t.Helper()
	run := "docker run --rm --network none "
	if ordinary := sh(t, run+sample); ordinary == "" {
		t.Error("the ordinary container says nothing")
	} else {
		want(t, run+thin, ordinary)
	}
	for _, image := range []string{sample, thin} {
		want(t, run+image+" /proc/self/attr/current", "docker-default (enforce)")
	}
}

// The first life of a machine: installed, crashed, restarted, upgraded.
func TestInstalledCrashedAndUpgraded(t *testing.T) {
	serve(t)
	wrapRunc(t)
	eventually(t, driver, "overlay2")
	sh(t, "test ! -e /etc/docker/daemon.json")

	dir := programs(t)
	sh(t, "dpkg --install "+dir+"/1.0.0/*.deb")
	configure(t)
	sh(t, "cvmfs-graphdriver install --dry-run")
	said := sh(t, "cvmfs-graphdriver install --yes")
	if !strings.Contains(said, "the engine runs on cvmfs-graphdriver") {
		t.Error(said)
	}
	want(t, driver, "cvmfs-graphdriver")
	load(t)
	alike(t)

	// Doctor finds nothing, and expects the view that is in use.
	said = sh(t, "cvmfs-graphdriver doctor")
	if view := sh(t, "docker info --format '{{range .DriverStatus}}{{if eq (index . 0) \"View\"}}{{index . 1}}{{end}}{{end}}'"); !strings.Contains(said, "by "+view) ||
		testutil.ViewWords(view) != testutil.KnownView() {
		t.Errorf("the view is %q, known is %q, and doctor says\n%s", view, testutil.KnownView(), said)
	}

	// A container that is to outlive everything.
	stays(t)
	const content = "a is back"
	want(t, reads, content)
	grows(t)

	// systemd brings a killed engine back, and the engine its plugin.
	sh(t, "systemctl kill --kill-whom=main --signal=KILL docker")
	eventually(t, driver, "cvmfs-graphdriver")
	eventually(t, reads, content)
	alike(t)
	sh(t, "systemctl restart docker")
	want(t, driver, "cvmfs-graphdriver")
	eventually(t, reads, content)
	alike(t)

	// A new package brings programs and a bundle; upgrade puts it to use.
	sh(t, "dpkg --install "+dir+"/2.0.0/*.deb")
	want(t, driver, "cvmfs-graphdriver")
	sh(t, "cvmfs-graphdriver upgrade --yes")
	if said := sh(t, "cvmfs-graphdriver status"); !strings.Contains(said, "2.0.0") {
		t.Error(said)
	}
	eventually(t, reads, content)
	alike(t)
	want(t, "systemctl --failed --no-legend", "")
}

// The second life: what was there is there, and goes.
func TestRebootedAndUninstalled(t *testing.T) {
	serve(t)
	eventually(t, driver, "cvmfs-graphdriver")
	eventually(t, "docker inspect --format '{{.State.Running}}' stays", "true")
	want(t, reads, "a is back")
	alike(t)
	sh(t, "docker rm --force stays")
	sh(t, "cvmfs-graphdriver uninstall --yes --purge")
	want(t, driver, "overlay2")
	want(t, "docker plugin ls --quiet", "")
	want(t, "test -e /etc/docker/daemon.json && cat /etc/docker/daemon.json || echo none", "none")
	sh(t, "dpkg --purge cvmfs-graphdriver")
	want(t, left(t, "cvmfs-graphdriver"), "")
	want(t, "systemctl --failed --no-legend", "")
	sh(t, "systemctl restart docker")
	want(t, driver, "overlay2")
}
