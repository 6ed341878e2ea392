package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/installer/service"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/prometheus"
	"cvmfs-graphdriver/test/stand"
)

func TestAnOperatorSeesAndSteersThePlugin(t *testing.T) {
	u := onStandWith(t, tools(t), stand.Options{
		Driver: []string{"cvmfs.metrics=unix:/run/docker/plugins/metrics.sock"},
	})
	u.load("thin_tiny.tar")
	process, err := service.Find(t.Context(), "unix://"+u.Engine.Socket())
	if err != nil {
		t.Fatal(err)
	}
	id := u.docker("plugin", "inspect", "--format", "{{.ID}}", stand.Plugin)
	socket := filepath.Join(filepath.Dir(preflight.PluginSocket(process.PID, id)), "metrics.sock")
	operator{u, []string{"--host", "unix://" + u.Engine.Socket()}, socket}.works()
}

func TestAnOperatorSeesAndSteersTheSnapshotter(t *testing.T) {
	dir, err := os.MkdirTemp("", "metrics-") // named shorter than what the test is called
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	u := onSnapshotter(t, engine.Stack29on21, stand.Options{Driver: []string{"cvmfs.metrics=unix:" + socket}})
	u.docker("rmi", stand.Ordinary)
	control := filepath.Join(filepath.Dir(u.Snapshots()), "control.sock")
	operator{u, []string{"--socket", control, "--host", "unix://" + u.Engine.Socket()}, socket}.works()
}

// operator is somebody who looks after a host.
type operator struct {
	user
	flags   []string // that say which node is meant
	metrics string   // socket at which they are served
}

// graphdriver runs the host's program, and gives what it says and whether it did what was asked.
func (o operator) graphdriver(command string, args ...string) (said string, ok bool) {
	o.Helper()
	all := append(strings.Fields(command), o.flags...)
	out, err := exec.CommandContext(o.Context(), filepath.Join(shared.dir, "bin/cvmfs-graphdriver"),
		append(all, args...)...).CombinedOutput()
	return string(out), err == nil
}

// says runs the host's program, which must succeed, and checks what it says.
func (o operator) says(command string, args []string, want ...string) {
	o.Helper()
	said, ok := o.graphdriver(command, args...)
	for _, w := range want {
		if ok = ok && regexp.MustCompile(w).MatchString(said); !ok {
			o.Errorf("%s %q fails, or lacks %q:\n%s", command, args, w, said)
		}
	}
}

// works has a day in the life of a thin image go by.
func (o operator) works() {
	running := o.start(stand.Thin, "/data/a.txt")
	o.says("status", nil, `image +`+stand.Thin+`: \d+ objects, .* of images.example.org`, `on this host: .*[1-9]\d* of \d+ objects`)
	o.says("cache ls", nil, `(?m)^`+stand.Thin+` .*\d+% .* in use`)
	o.scrape()

	local := filepath.Join(o.Config, "default.local")
	text, err := os.ReadFile(local)
	if err == nil {
		text = []byte(strings.Replace(string(text), "DIRECT", `"http://127.0.0.1:9;DIRECT"`, 1))
		err = os.WriteFile(local, text, 0o644)
	}
	if err != nil {
		o.Fatal(err)
	}
	o.says("reload", nil, `images.example.org: .*CVMFS_HTTP_PROXY.* count from now on`)
	o.says("status", nil, `proxy http://127.0.0.1:9: `)

	o.says("cache prewarm", []string{stand.Thin}, `fetched +[1-9]\d* objects, `, `were here +[1-9]`)
	o.says("cache ls", nil, `(?m)^`+stand.Thin+` .* 100% `)
	o.says("cache verify", []string{stand.Thin}, `verified +[1-9]\d* objects, `, `damaged +0`)

	o.says("cache pin", []string{stand.Thin}, "")
	o.says("cache ls", nil, `in use, pinned`)
	o.says("cache pin", []string{"--remove", stand.Thin}, "")
	if said, ok := o.graphdriver("cache clean", "--image", stand.Thin); ok || !strings.Contains(said, "in use") {
		o.Errorf("an image in use is taken out of the cache: %s", said)
	}
	if said, err := running.end(); err != nil || said == "" {
		o.Errorf("the container: %q, %v", said, err)
	}
	if o.used() == 0 {
		o.Error("nothing is used before the image is removed")
	}
	o.docker("image", "prune", "--all", "--force")
	o.eventually("the cache has given back what the image needed", func() error {
		if n := o.used(); n > 0 {
			return fmt.Errorf("%d bytes are used", n)
		}
		return nil
	})
}

// used is how many bytes the cache holds.
func (o operator) used() int64 {
	o.Helper()
	said, ok := o.graphdriver("cache status", "--json")
	var st struct{ Used int64 }
	if err := json.Unmarshal([]byte(said), &st); err != nil || !ok {
		o.Fatalf("cache status: %v\n%s", err, said)
	}
	return st.Used
}

// scrape asks for metrics, which say that something was fetched and are Prometheus' text.
func (o operator) scrape() {
	o.Helper()
	folder, err := os.Open(filepath.Dir(o.metrics)) // the whole path may be too long for a socket's
	if err != nil {
		o.Fatal(err)
	}
	defer folder.Close()
	socket := fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), filepath.Base(o.metrics))
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://node/metrics")
	if err != nil {
		o.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || !regexp.MustCompile(`(?m)^cvmfs_objects_fetched_total [1-9]`).Match(text) ||
		!regexp.MustCompile(`(?m)^cvmfs_image_mounts\{.*\} [1-9]`).Match(text) {
		o.Errorf("%v:\n%s", err, text)
	}
	o.Run("promtool reads it", func(t *testing.T) {
		prometheus.Check(t, strings.NewReader(string(text)), "check", "metrics")
	})
}
