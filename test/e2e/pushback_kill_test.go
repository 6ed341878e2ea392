package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
)

// How far a push-back has got, as its service and the repository's server see it.
const (
	archived  = "archived"  // the status is asked for the first time
	sent      = "sent"      // the service has the archive
	waits     = "waits"     // the service is about to say that it publishes
	published = "published" // the service is about to say that it has published
	refreshed = "refreshed" // the repository is asked for its newest revision, which has the layer
)

// Whatever is killed wherever a commit has got to, the commit goes through, or the next try does, and nothing half-made
// is left.
func TestAPushBackOutlivesKills(t *testing.T) {
	for name, find := range of(engines(), "26.1") {
		t.Run("plugin on "+name, func(t *testing.T) {
			u := onStandWith(t, find(t), stand.Options{})
			plugin := u.plugin()
			defer func() {
				t.Logf("the plugin found that nobody sees its mounts, and was started anew: %d times",
					strings.Count(u.Engine.Log(), "start the plugin anew"))
			}()
			goOnAfterKills(u, []victim{
				// its supervisor starts it
				{"plugin", func() error { return u.killPlugin(plugin) }, func() error { return nil }},
				{
					"engine", func() error { return u.Engine.Kill(t.Context()) },
					func() error { return u.Start(t.Context()) },
				},
			})
		})
	}
	t.Run("snapshotter", func(t *testing.T) {
		u := onSnapshotter(t, engine.Stack29on21, stand.Options{})
		goOnAfterKills(u, u.victims())
	})
}

// killPlugin kills the plugin's server.
func (u user) killPlugin(id string) error {
	for pid, inner := range u.processes(id) {
		if inner != 1 {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				return err
			}
		}
	}
	return nil
}

// gate is between a node and the service, and between the node and the repository's server.
type gate struct {
	service, site http.Handler

	mu   sync.Mutex // guards the following
	at   string     // the step that do is called at, once; "": none
	do   func()
	done bool // the service has said that a layer is published
}

// arm has a function called at the next such step. It returns what reports whether that was reached, and waits until
// the function has returned: whoever asked may be gone before.
func (g *gate) arm(step string, do func()) (reached func() bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	returned := make(chan struct{})
	g.at, g.do, g.done = step, func() {
		defer close(returned)
		do()
	}, false
	return func() bool {
		g.mu.Lock()
		is := g.at == ""
		g.mu.Unlock()
		if is {
			<-returned
		}
		return is
	}
}

// reach is called at a step. Whoever asked gets no answer where that is what was waited for.
func (g *gate) reach(step string) {
	g.mu.Lock()
	g.done = g.done || step == published
	do := g.do
	is := g.at == step
	if is {
		g.at = ""
	}
	g.mu.Unlock()
	if is {
		do()
		panic(http.ErrAbortHandler) // net/http's way to close the connection without an answer
	}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/cvmfs/") {
		g.mu.Lock()
		done := g.done
		g.mu.Unlock()
		if done && path.Base(r.URL.Path) == ".cvmfspublished" {
			g.reach(refreshed)
		}
		g.site.ServeHTTP(w, r)
		return
	}
	asks := strings.HasPrefix(r.URL.Path, "/status/")
	if asks {
		g.reach(archived)
	}
	answer := httptest.NewRecorder()
	g.service.ServeHTTP(answer, r)
	said := answer.Body.String()
	switch {
	case r.Method == http.MethodPut && answer.Code < 300:
		g.reach(sent)
	case asks && strings.Contains(said, `"publishing"`):
		g.reach(waits)
	case asks && strings.Contains(said, `"done"`):
		g.reach(published)
	}
	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(answer.Code)
	fmt.Fprint(w, said) // whoever was killed doesn't read it
}

func goOnAfterKills(u user, victims []victim) {
	u.load("thin_tiny.tar")
	p := newPushes(u)
	p.configure(time.Minute) // which chooses the service's address
	p.start()
	g := p.through()
	victims = append(victims, victim{"service", p.kill, p.launch})
	base := p.thinLayers(stand.Thin)
	for _, step := range []string{archived, sent, waits, published, refreshed} {
		for _, v := range victims {
			if !u.Run(step+", "+v.name, func(t *testing.T) {
				p := &pushes{user: user{t, u.Stand}, state: p.state}
				name := "example/" + strings.NewReplacer("'", "", " ", "-").Replace(step+"-"+v.name) + ":1"
				container := p.create(stand.Thin, "/data/new")
				p.put(container, "/data/new", name)
				reached := g.arm(step, func() {
					if err := v.kill(); err != nil {
						t.Error(err)
					}
					if v.name == "service" { // what waits for it goes on when it is back
						if err := v.start(); err != nil {
							t.Error(err)
						}
					}
				})
				_, err := p.Engine.Docker(t.Context(), "commit", container, name)
				t.Logf("the commit: %v", err)
				if !reached() {
					t.Fatal("the step wasn't reached")
				}
				if v.name != "service" {
					// An engine that can't share the folder with the plugin panics, and systemd starts it anew: ADR 36.
					p.eventually("the "+v.name+" starts", v.start)
				} else if err != nil {
					t.Errorf("the service was back at once, and the commit fails: %v", err)
				}
				if err != nil {
					p.eventually("the next try goes through", func() error {
						_, err := p.Engine.Docker(t.Context(), "commit", container, name)
						return err
					})
				}
				layers := p.thinLayers(name)
				if len(layers) != len(base)+1 || !slices.Equal(paths(layers[:len(base)]), paths(base)) {
					t.Fatalf("the layers are %v, want %v and one more", paths(layers), paths(base))
				}
				p.says(name, name)
				p.leftNothing()
			}) {
				return
			}
		}
	}
	if out, err := exec.Command(shared.converter(), "publish", "check", p.publisher).CombinedOutput(); err != nil {
		u.Errorf("the repository isn't sound: %v: %s", err, out)
	}
}

// through has the node speak to service and repository through a gate.
func (p *pushes) through() *gate {
	p.Helper()
	service := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: p.address})
	service.ErrorLog = nil
	g := &gate{service: service, site: p.Site}
	server := httptest.NewServer(g)
	p.Cleanup(server.Close)
	file := filepath.Join(p.Config, "config.d", layersFQRN+".conf")
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte(strings.ReplaceAll(string(text), p.Site.URL(layersFQRN),
			server.URL+"/cvmfs/"+layersFQRN)), 0o644)
	}
	if err != nil {
		p.Fatal(err)
	}
	p.address = strings.TrimPrefix(server.URL, "http://")
	p.configure(time.Minute)
	return g
}

// says fails the test if a container of an image doesn't say something. It may have to be run again: of the ends of
// those that end before an engine listens to a new containerd it never hears.
func (p *pushes) says(image, want string) {
	p.Helper()
	var got string
	var err error
	for range 3 {
		ctx, cancel := context.WithTimeout(p.Context(), time.Minute)
		got, err = p.Engine.Docker(ctx, "run", "--rm", "--network", "none", image)
		cancel()
		if err == nil || !errors.Is(err, context.DeadlineExceeded) {
			break
		}
		p.Logf("once more: %v", err)
	}
	if err != nil || !strings.Contains(got, want) {
		p.Errorf("the image says %q, %v, want %q", got, err, want)
	}
}

// leftNothing looks for archives on their way that were left, here and at the service.
func (p *pushes) leftNothing() {
	p.Helper()
	folders := []string{filepath.Join(p.state, "incoming")}
	for _, pattern := range []string{
		filepath.Join(p.Engine.Data(), "plugins/*/propagated-mount/push-back"),
		filepath.Join(p.Snapshots(), "push-back"),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			p.Fatal(err)
		}
		folders = append(folders, found...)
	}
	if len(folders) < 2 {
		p.Errorf("the node's folder of archives isn't found: %v", folders)
	}
	for _, folder := range folders {
		if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
			p.Errorf("left in %s: %v, %v", folder, left, err)
		}
	}
}
