package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/internal/child"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/prometheus"
	"cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
)

// freePort is an address that nobody listens at.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// scrape asks for metrics until they come.
func scrape(t *testing.T, address string) string {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get("http://" + address + "/metrics")
		if err == nil {
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			must(t, err)
			return string(b)
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// initWith initialises the plugin with storage options.
func (p *instance) initWith(opts ...string) {
	p.t.Helper()
	p.ok("Init", object{"Home": "/mnt/x", "Opts": opts})
}

var started = regexp.MustCompile(`(?m)^process_start_time_seconds (\S+)$`)

// The port is served again by the server that follows a killed one, though the engine says nothing to it; and a port
// that is taken keeps no container from starting.
func TestMetricsComeBackWithTheServer(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	address := taken.Addr().String()
	p := start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
	p.initWith("cvmfs.metrics=" + address)
	p.thinContainer("c1")
	p.said.await(t, "metrics can't be served")
	if m := p.status().Metrics; m == nil || m.Address != address || !strings.Contains(m.Err, "in use") {
		t.Errorf("status tells %+v", m)
	}
	must(t, taken.Close())
	text := scrape(t, address)
	for _, line := range []string{"cvmfs_images 1", "cvmfs_mounts 1", `cvmfs_layers{kind="thin"} 1`} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
	must(t, syscall.Kill(p.status().PID, syscall.SIGKILL))
	for again := text; again == text || started.FindString(again) == started.FindString(text); {
		again = scrape(t, address)
	}
	p.initWith() // the engine's option was taken out
	if _, err := http.Get("http://" + address + "/metrics"); err == nil || p.status().Metrics != nil {
		t.Errorf("metrics are served that nobody wants: %+v", p.status().Metrics)
	}
}

// sight is what Prometheus sees: a repository at two servers, and containers of two images.
type sight struct {
	*instance
	repo    *publish.Repository
	servers [2]*testutil.Faulty
	pause   time.Duration // between reads of files
}

// filesOf is how many files an image has, by its name.
var filesOf = map[string]int{"analysis": 1200, "simulation": 600}

// newSight publishes images of so many files and starts the plugin with an option.
func newSight(t *testing.T, files map[string]int, option string) *sight {
	t.Helper()
	repo := publishtest.New(t, publish.Settings{FQRN: publishtest.FQRN})
	tx := publishtest.Begin(t, repo)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		var items []publishtest.Item
		noise := rand.NewChaCha8([32]byte([]byte(name + strings.Repeat(".", 32))[:32]))
		for i := range files[name] {
			content := make([]byte, 1000+noise.Uint64()%60_000)
			noise.Read(content) // can't fail
			items = append(items, publishtest.File(fmt.Sprintf("f%04d", i), string(content)))
		}
		publishtest.Ingest(t, tx, "/layers/"+name, publishtest.Pack(t, items...))
	}
	publishtest.Commit(t, tx)
	s := &sight{repo: repo}
	var urls []string
	for i := range s.servers {
		s.servers[i] = testutil.NewFaulty(t, http.FileServer(http.Dir(filepath.Join(repo.Dir(), "www"))))
		urls = append(urls, s.servers[i].URL+"/cvmfs/"+repo.FQRN())
	}
	config := t.TempDir()
	must(t, os.Mkdir(filepath.Join(config, "config.d"), 0o755))
	must(t, os.WriteFile(filepath.Join(config, "default.local"), []byte("CVMFS_HTTP_PROXY=DIRECT\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(config, "config.d", repo.FQRN()+".conf"), fmt.Appendf(nil,
		"CVMFS_SERVER_URL='%s'\nCVMFS_PUBLIC_KEY=%s\n", strings.Join(urls, ";"), repo.MasterKeyFile()), 0o644))
	s.instance = startConfigured(t, t.TempDir(), config)
	s.initWith(option)
	return s
}

// pull makes the layer of a thin image, as a pull does.
func (s *sight) pull(name string) {
	s.t.Helper()
	body := fmt.Sprintf(`{"version":"1.0","origin":"registry.example.org/%s:1","layers":[{"digest":"%064x","url":"cvmfs://%s/layers/%s"}]}`,
		name, len(name), publishtest.FQRN, name)
	if text := s.apply(name, "", archive(s.t, map[string]string{"thin.json": body})); text != "" {
		s.t.Fatal(text)
	}
}

// read has a new container read a part of its image's files.
func (s *sight) read(id, image string, from, to int) {
	s.t.Helper()
	dir := s.container(id, image)
	for i := from; i < to; i++ {
		if b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("f%04d", i))); err != nil || len(b) == 0 {
			s.t.Fatal(len(b), err)
		}
		time.Sleep(s.pause)
	}
}

// end ends the containers.
func (s *sight) end(ids ...string) {
	s.t.Helper()
	for _, id := range ids {
		s.ok("Put", object{"ID": id})
		s.ok("Remove", object{"ID": id})
		s.ok("Remove", object{"ID": id + "-init"})
	}
}

// watch starts Prometheus, which scrapes an address every second, and returns its URL.
func watch(t *testing.T, metrics string) string {
	t.Helper()
	program, err := prometheus.Find(prometheus.Server)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skip(err)
	}
	must(t, err)
	dir, address := t.TempDir(), freePort(t)
	config := filepath.Join(dir, "prometheus.yml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "scrape_configs:\n- job_name: cvmfs-graphdriver\n  scrape_interval: 1s\n"+
		"  scrape_timeout: 1s\n  static_configs: [{targets: ['%s'], labels: {instance: node7}}]\n", metrics), 0o644))
	cmd := exec.Command(program, "--config.file="+config, "--storage.tsdb.path="+dir+"/data",
		"--web.listen-address="+address, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	must(t, child.Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()                          // how is of no matter
	})
	return "http://" + address
}

// sees waits until Prometheus knows a metric.
func sees(t *testing.T, server, metric string, from time.Time) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		known, err := prometheus.Range(t.Context(), server, prometheus.Target{Expr: metric}, from, time.Now(),
			time.Second)
		must(t, err)
		if len(known) > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("Prometheus doesn't come to know %s", metric)
		}
	}
}

// pictureVariable names a PNG file to draw the dashboard into, of a run that takes some minutes:
//
//	CVMFS_PICTURE=$PWD/docs/images/dashboard.png go test ./cmd/cvmfs-graphdriver-plugin -run TheDashboardShows
const pictureVariable = "CVMFS_PICTURE"

// Every panel of the dashboard has something to show of a plugin whose containers read from servers, of which one
// fails for a while.
func TestTheDashboardShowsWhatThePluginDoes(t *testing.T) {
	metrics := freePort(t)
	server := watch(t, metrics)
	s := newSight(t, filesOf, "cvmfs.metrics="+metrics)
	picture := os.Getenv(pictureVariable)
	files := 100
	if picture != "" {
		files, s.pause = 600, 40*time.Millisecond
	}
	scrape(t, metrics) // it listens
	time.Sleep(3 * time.Second)
	from := time.Now()
	s.pull("analysis")
	s.read("a1", "analysis", 0, files)
	s.pull("simulation")
	s.read("a2", "analysis", 0, files/2)              // all local
	sees(t, server, "cvmfs_fetch_errors_total", from) // a counter that is new and grown at once shows no rate
	s.servers[0].Set(testutil.Fault{Status: http.StatusBadGateway})
	s.read("s1", "simulation", 0, files/2)
	s.read("s2", "simulation", files/2, files)
	s.end("s1", "s2")
	time.Sleep(5 * time.Second)
	d, err := prometheus.ReadDashboard(testutil.Root(t))
	must(t, err)
	for _, p := range d.Panels {
		shown := 0
		for _, target := range p.Targets {
			series, err := prometheus.Range(t.Context(), server, target, from, time.Now(), time.Second)
			must(t, err)
			shown += len(series)
		}
		if shown == 0 {
			t.Errorf("the panel %q is empty", p.Title)
		}
	}
	if picture != "" {
		must(t, os.MkdirAll(filepath.Dir(picture), 0o755))
		must(t, prometheus.Draw(t.Context(), t.Output(), server, d, from, time.Now(), picture))
	}
}
