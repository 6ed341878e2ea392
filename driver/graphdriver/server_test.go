package graphdriver_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/node/nodetest"
)

// engine speaks to a server as the Docker engine does.
type engine struct {
	t      testing.TB
	client *http.Client
	root   string
}

// noThin is a composer for tests without thin layers.
type noThin struct{ nodetest.Composer }

func (*noThin) Compose(context.Context, []images.Layer) (*images.Image, error) {
	return nil, errors.New("repository x.example.org is not configured")
}

func newEngine(t testing.TB) *engine {
	t.Helper()
	dir := t.TempDir()
	e := &engine{t: t, root: filepath.Join(dir, "m")}
	cfg := nodetest.Config(t, dir, &noThin{})
	cfg.Watch = nil // it takes longer than what it watches, and benchmarks use this
	n, err := node.Open(cfg)
	must(t, err)
	d, err := graphdriver.Open(graphdriver.Config{Node: n})
	must(t, err)
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	p := graphdriver.NewServer(graphdriver.ServerConfig{
		Driver: d, Control: control.NewHandler(ctx, control.Config{Node: n}),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	go func() { ended <- p.Serve(ctx, l) }()
	e.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	t.Cleanup(func() {
		e.client.CloseIdleConnections()
		cancel()
		if err := errors.Join(<-ended, d.Cleanup(), n.Close()); err != nil {
			t.Error(err)
		}
	})
	return e
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// post sends a request as engines do, without a content type.
func (e *engine) post(path string, body io.Reader) *http.Response {
	e.t.Helper()
	r, err := http.NewRequestWithContext(e.t.Context(), http.MethodPost, "http://plugin"+path, body)
	must(e.t, err)
	r.Header.Set("Accept", "application/vnd.docker.plugins.v1.2+json")
	resp, err := e.client.Do(r)
	must(e.t, err)
	e.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

type object = map[string]any

// call calls a method and gives its answer.
func (e *engine) call(method string, args object) object {
	e.t.Helper()
	b, err := json.Marshal(args)
	must(e.t, err)
	return e.answer(e.post("/GraphDriver."+method, bytes.NewReader(b)))
}

func (e *engine) answer(resp *http.Response) object {
	e.t.Helper()
	if got := resp.Header.Get("Content-Type"); got != "application/vnd.docker.plugins.v1.2+json" {
		e.t.Errorf("content type %q", got)
	}
	var a object
	must(e.t, json.NewDecoder(resp.Body).Decode(&a))
	return a
}

// ok calls a method that must succeed.
func (e *engine) ok(method string, args object) object {
	e.t.Helper()
	a := e.call(method, args)
	if a["Err"] != nil {
		e.t.Fatalf("%s %v: %v", method, args, a["Err"])
	}
	return a
}

// apply makes a read-only layer; the body is chunked, as the engine's.
func (e *engine) apply(id, parent string, archive []byte) object {
	e.t.Helper()
	e.ok("Create", object{"ID": id, "Parent": parent, "MountLabel": "", "StorageOpt": nil})
	return e.answer(e.post("/GraphDriver.ApplyDiff?id="+id+"&parent="+parent,
		struct{ io.Reader }{bytes.NewReader(archive)}))
}

// archiveOf makes an archive of files by name.
func archiveOf(t testing.TB, files ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		must(t, w.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1])), ModTime: time.Unix(1e9, 0)}))
		_, err := w.Write([]byte(f[1]))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func TestLifeOfAContainer(t *testing.T) {
	e := newEngine(t)
	e.ok("Init", object{"Home": "/mnt/cvmfs", "Opts": nil, "UIDMaps": nil, "GIDMaps": nil})
	if d := cmp.Diff(object{"Capabilities": object{"ReproducesExactDiffs": false}},
		e.ok("Capabilities", nil)); d != "" {
		t.Errorf("Capabilities: -want +got\n%s", d)
	}
	if d := cmp.Diff(object{"Size": 4.0}, e.apply("base", "", archiveOf(t, [2]string{"a", "base"}))); d != "" {
		t.Errorf("ApplyDiff: -want +got\n%s", d)
	}
	e.ok("CreateReadWrite", object{"ID": "c1-init", "Parent": "base"})
	e.ok("CreateReadWrite", object{"ID": "c1", "Parent": "c1-init"})
	dir, _ := e.ok("Get", object{"ID": "c1", "MountLabel": ""})["Dir"].(string)
	if dir != filepath.Join(e.root, "mnt", "c1") {
		t.Fatalf("Get gave %q", dir)
	}
	must(t, os.WriteFile(filepath.Join(dir, "b"), []byte("new"), 0o644))
	must(t, os.Remove(filepath.Join(dir, "a")))
	for _, c := range []struct {
		method string
		args   object
		want   object
	}{
		{"Exists", object{"ID": "c1"}, object{"Exists": true}},
		{"Exists", object{"ID": "c2"}, object{}},
		{
			"Changes",
			object{"ID": "c1", "Parent": "c1-init"},
			object{"Changes": []any{object{"Path": "/a", "Kind": 2.0}, object{"Path": "/b", "Kind": 1.0}}},
		},
		{"DiffSize", object{"ID": "c1", "Parent": "c1-init"}, object{"Size": 3.0}},
		{"GetMetadata", object{"ID": "c1"}, object{"Metadata": object{
			"MergedDir": dir, "UpperDir": e.root + "/layers/c1/graph/c1/diff", "WorkDir": e.root + "/layers/c1/work",
			"LowerDir": e.root + "/layers/c1-init/graph/c1-init/diff:" + e.root + "/layers/base/graph/base/diff",
		}}},
		{"Put", object{"ID": "c1"}, object{}},
	} {
		if d := cmp.Diff(c.want, e.call(c.method, c.args)); d != "" {
			t.Errorf("%s %v: -want +got\n%s", c.method, c.args, d)
		}
	}
	status, _ := json.Marshal(e.ok("Status", nil)["Status"])
	if !bytes.Contains(status, []byte(`["Backing Filesystem",`)) {
		t.Errorf("Status: %s", status)
	}
	e.ok("Remove", object{"ID": "c1"})
	e.ok("Cleanup", nil)
}

func TestDiffGivesTheArchive(t *testing.T) {
	e := newEngine(t)
	e.ok("Init", object{"Home": "/mnt/cvmfs"})
	e.apply("base", "", archiveOf(t, [2]string{"a", "a"}, [2]string{"b", "b"}))
	resp := e.post("/GraphDriver.Diff", strings.NewReader(`{"ID":"base","Parent":""}`))
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	e.apply("copy", "", b)
	for _, name := range []string{"a", "b"} {
		if got, err := os.ReadFile(filepath.Join(e.root, "layers/copy/graph/copy/diff", name)); err != nil ||
			string(got) != name {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestFailuresAreTextsInErr(t *testing.T) {
	e := newEngine(t)
	for _, c := range []struct {
		method string
		args   object
		want   string
	}{
		{"Get", object{"ID": "x"}, "not initialised"},
		{"Init", object{"Opts": []string{"nonsense=1"}}, `unknown storage option "nonsense"`},
		{"Init", object{}, ""},
		{"Create", object{"ID": "a", "Parent": "missing"}, "no such layer"},
		{"CreateReadWrite", object{"ID": "a", "StorageOpt": object{"size": "1G"}}, "size"},
		{"Create", object{"ID": "a/b"}, "layer id"},
		{"Get", object{"ID": "missing"}, "no such layer"},
		{"Remove", object{"ID": "../x"}, "layer id"},
		{"Put", object{"ID": "../x"}, "layer id"},
		{"GetMetadata", object{"ID": "missing"}, "no such layer"},
		{"Changes", object{"ID": "missing"}, "no such layer"},
		{"DiffSize", object{"ID": "missing"}, "no such layer"},
		{"Create", object{"ID": 7}, "read the engine's request"},
		{"Create", object{"ID": strings.Repeat("x", 2<<20)}, "read the engine's request"},
	} {
		got, _ := e.call(c.method, c.args)["Err"].(string)
		if !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%s: Err %q, want %q", c.method, got, c.want)
		}
	}
	resp := e.post("/GraphDriver.Diff", strings.NewReader(`{"ID":"missing"}`))
	if a := e.answer(resp); resp.StatusCode != http.StatusInternalServerError ||
		!strings.Contains(fmt.Sprint(a["Err"]), "no such layer") {
		t.Errorf("Diff of a missing layer: %d %v", resp.StatusCode, a)
	}
	resp = e.post("/GraphDriver.Diff", nil) // as engines repeat a call whose body they have sent already
	if a := e.answer(resp); resp.StatusCode != http.StatusInternalServerError ||
		!strings.Contains(fmt.Sprint(a["Err"]), "broke off") {
		t.Errorf("Diff repeated without its body: %d %v", resp.StatusCode, a)
	}
	resp = e.post("/GraphDriver.Nonsense", nil)
	if a := e.answer(resp); resp.StatusCode != http.StatusNotFound || a["Err"] == nil {
		t.Errorf("unknown method: %d %v", resp.StatusCode, a)
	}
}

func TestRefusedArchiveIsReadToItsEnd(t *testing.T) {
	e := newEngine(t)
	e.ok("Init", object{})
	e.apply("base", "", archiveOf(t))
	body := bytes.NewReader(archiveOf(t, [2]string{"a", strings.Repeat("x", 8<<20)}))
	a := e.answer(e.post("/GraphDriver.ApplyDiff?id=base&parent=", struct{ io.Reader }{body}))
	if !strings.Contains(fmt.Sprint(a["Err"]), "it has its content already") {
		t.Errorf("answer %v", a)
	}
	if body.Len() > 0 {
		t.Errorf("%d bytes were not taken: the engine sees a broken connection", body.Len())
	}
}

func TestEngineThatGoesAwayLeavesNoLayer(t *testing.T) {
	e := newEngine(t)
	e.ok("Init", object{})
	e.ok("Create", object{"ID": "base"})
	body, w := io.Pipe()
	go func() {
		_, _ = w.Write(archiveOf(t, [2]string{"a", strings.Repeat("x", 1<<20)})[:1<<19])
		w.CloseWithError(errors.New("killed"))
	}()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
		"http://plugin/GraphDriver.ApplyDiff?id=base&parent=", body)
	must(t, err)
	if resp, err := e.client.Do(r); err == nil {
		resp.Body.Close()
		t.Error("half an archive was taken")
	}
	// The engine repeats the call with what it has not sent yet.
	a := e.answer(e.post("/GraphDriver.ApplyDiff?id=base&parent=", strings.NewReader("")))
	if !strings.Contains(fmt.Sprint(a["Err"]), "broke off") {
		t.Errorf("answer %v", a)
	}
	if left, err := os.ReadDir(filepath.Join(e.root, "layers/base/graph/base/diff")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestFailingDiffCutsTheConnection(t *testing.T) {
	e := newEngine(t)
	e.ok("Init", object{})
	e.apply("base", "", archiveOf(t, [2]string{"big", strings.Repeat("x", 16<<20)}))
	resp := e.post("/GraphDriver.Diff", strings.NewReader(`{"ID":"base","Parent":""}`))
	_, err := io.ReadFull(resp.Body, make([]byte, 4096))
	must(t, err)
	must(t, os.Truncate(filepath.Join(e.root, "layers/base/graph/base/diff/big"), 4096))
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("a short archive ended like a whole one")
	}
}

func TestMethodsThatAreNotTheEngines(t *testing.T) {
	e := newEngine(t)
	var a object
	if must(t, json.NewDecoder(e.post("/CvmfsGraphDriver.Status", nil).Body).Decode(&a)); a["pid"] != float64(os.Getpid()) {
		t.Errorf("%v", a)
	}
	if d := cmp.Diff(object{"Implements": []any{"GraphDriver"}}, e.answer(e.post("/Plugin.Activate", nil))); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}
