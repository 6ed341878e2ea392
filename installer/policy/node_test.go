package policy

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/rootfs"
)

// engineWith is an engine that has one plugin, p.
func engineWith(t *testing.T, p types.Plugin) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "e")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		switch {
		case strings.HasSuffix(r.URL.Path, "/plugins/"+p.Name+"/json"):
			json.NewEncoder(w).Encode(p)
		case !strings.HasSuffix(r.URL.Path, "/_ping"):
			http.Error(w, `{"message":"no such thing"}`, http.StatusNotFound)
		}
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return "unix://" + socket
}

func TestNodeOfThePluginIsFound(t *testing.T) {
	ours := types.Plugin{ID: strings.Repeat("4", 64), Name: "ours", Enabled: true}
	ours.Config.Entrypoint = []string{rootfs.Program}
	disabled, other := ours, ours
	disabled.Enabled = false
	other.Config.Entrypoint = []string{"/bin/other"}
	none := t.TempDir() + "/none"
	for _, c := range []struct {
		plugin types.Plugin
		name   string
		says   string
	}{
		{ours, "ours", ""},
		{ours, "another", "no plugin another"},
		{disabled, "ours", "docker plugin enable ours"},
		{other, "ours", "not this project's"},
	} {
		h, err := Find(t.Context(), Request{Host: engineWith(t, c.plugin), Name: c.name, NodeSocket: none})
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.Nodes(t.Context())
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
		h.Close()
	}
	h, err := Find(t.Context(), Request{Host: "tcp://192.0.2.1:1", Name: "ours", NodeSocket: t.TempDir() + "/none"})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.Nodes(t.Context()); !errors.As(err, new(UsageError)) {
		t.Errorf("an engine elsewhere: %v", err)
	}
	h.Socket = "/s"
	if _, err := h.Nodes(t.Context()); err != nil {
		t.Errorf("a socket that is named: %v", err)
	}
}

// snapshotter is a node that knows the names of its images.
type snapshotter struct {
	control.Cache
	control.Thinner
	names status.Names
}

func (snapshotter) Status() status.Node                            { return status.Node{} }
func (snapshotter) Reload(context.Context) (status.Reload, error)  { return status.Reload{}, nil }
func (s snapshotter) Names(context.Context) (status.Names, error)  { return s.names, nil }
func (snapshotter) CacheStatus() (s control.CacheState, err error) { return s, nil }

func serve(t *testing.T, n control.Node) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "n")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- control.NewHandler(ctx, control.Config{Node: n}).Serve(ctx, socket) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for !preflight.Answers(t.Context(), control.NewClient(socket)) {
		time.Sleep(time.Millisecond)
	}
	return socket
}

func TestTheSnapshotterIsFoundWithAndWithoutAnEngine(t *testing.T) {
	socket := serve(t, snapshotter{})
	ours := types.Plugin{ID: strings.Repeat("4", 64), Name: "ours", Enabled: true}
	ours.Config.Entrypoint = []string{rootfs.Program}
	for engine, want := range map[string]string{
		"unix://" + t.TempDir() + "/none": "the snapshotter at " + socket,
		engineWith(t, ours):               "the snapshotter at " + socket + ", the plugin ours",
	} {
		h, err := Find(t.Context(), Request{Host: engine, Name: "ours", NodeSocket: socket})
		if err != nil {
			t.Fatal(err)
		}
		nodes, err := h.Nodes(t.Context())
		var titles []string
		for _, n := range nodes {
			titles = append(titles, n.Title)
		}
		if err != nil || strings.Join(titles, ", ") != want {
			t.Errorf("%s: %q, %v", engine, titles, err)
		}
		h.Close()
	}
}

func TestImagesOfContainerdAreNamed(t *testing.T) {
	one, two, three := strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)
	index, chain := "sha256:1234"+strings.Repeat("0", 60), "sha256:56789abcdef0"+strings.Repeat("0", 52)
	node := Node{Client: control.NewClient(serve(t, snapshotter{names: status.Names{Known: true, Images: []status.Name{
		{Key: one, Namespace: "moby", Name: "docker.io/library/python:3", IDs: []string{index}},
		{Key: one, Namespace: "moby-1000.1000", Name: "registry.example.org:5000/python:3"},
		{Key: two, Namespace: "k8s.io", Name: "docker.io/library/python:3"},
		{Key: two, Namespace: "k8s.io", Name: "docker.io/library/other:latest"},
		{Key: three, Namespace: "default", Snapshot: "default/9/" + chain},
	}}}))}
	names, err := node.ImageNames(t.Context())
	want := map[string][]string{
		one:   {"python:3", "registry.example.org:5000/python:3"},
		two:   {"docker.io/library/other:latest (k8s.io)", "docker.io/library/python:3 (k8s.io)"},
		three: {"snapshot sha256:56789abcdef0 (default)"},
	}
	if diff := cmp.Diff(want, names); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	for image, want := range map[string]string{
		"registry.example.org:5000/python:3": one, "1234": one, index: one, "other": two,
		"docker.io/library/python:3 (k8s.io)": two, chain: three, "default/9/" + chain: three, three: three,
		"snapshot sha256:56789abcdef0 (default)": three, strings.Repeat("d", 64): strings.Repeat("d", 64),
	} {
		if got, err := node.ImageKey(t.Context(), image); got != want || err != nil {
			t.Errorf("%s: %s, %v", image, got, err)
		}
	}
	for image, want := range map[string]string{"python:3": "2 composed images", "none": "pull it", "123": "pull it"} {
		if _, err := node.ImageKey(t.Context(), image); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", image, err)
		}
	}
}
