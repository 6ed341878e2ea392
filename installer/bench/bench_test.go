package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/pkg/stdcopy"

	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/installer"
)

const (
	ordinaryName = "registry.invalid/tiny:1"
	thinName     = "registry.invalid/thin/tiny:1"
)

// host is an engine behind a socket, and its node, as far as a comparison has to do with them. Containers say what the
// host is told, and end with a code, or don't end.
type host struct {
	t      *testing.T
	socket string

	mu         sync.Mutex
	images     map[string]bool
	ids        map[string]string        // of images, by name; of others it is made of the name
	containers map[string]chan struct{} // closed when it is removed
	removed    []string
	pulls      int
	requests   int64 // of the node
	named      int   // how often the node still tells of the thin image after its removal
	refuses    string
	says       string
	code       int64
	stays      bool
	restarts   bool   // of the node, with each pull
	meanwhile  string // image that somebody pulls when the first container of the other one is removed
	moves      bool   // each pull brings another image
}

func newHost(t *testing.T) *host {
	h := &host{
		t: t, socket: filepath.Join(t.TempDir(), "e"), images: map[string]bool{}, ids: map[string]string{},
		containers: map[string]chan struct{}{}, says: "hello\nready to serve\n",
	}
	l, err := net.Listen("unix", h.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return h
}

func (h *host) ImageKey(_ context.Context, image string) (string, error) {
	if image != thinName {
		return "", fmt.Errorf("%s is ordinary: %w", image, fs.ErrNotExist)
	}
	return "key", nil
}

func (h *host) State(context.Context) (st status.Node, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	st.PID = 7
	if h.restarts {
		st.PID += h.pulls
	}
	if h.images[thinName] || h.named > 0 {
		if !h.images[thinName] {
			h.named--
		}
		// As nodes do, it tells of repositories that images in use name, and counts on.
		st.Fetch = map[string]status.Fetch{"a.example.org": {Requests: h.requests, Bytes: 1000 * h.requests}}
		st.Store.Images = []status.Image{{Key: "key", Local: &status.Share{Bytes: 7}}}
	}
	return st, nil
}

func (h *host) id(name string) string { return cmp.Or(h.ids[name], "sha256:"+name) }

func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.41")
	path := strings.Trim(strings.TrimPrefix(r.URL.Path, "/v1.41"), "/")
	name := strings.TrimSuffix(strings.TrimPrefix(path, "images/"), "/json")
	id := strings.Split(path+"//", "/")[1]
	missing := func() { http.Error(w, `{"message":"no such thing"}`, http.StatusNotFound) }
	h.mu.Lock()
	defer h.mu.Unlock()
	switch what := r.Method + " " + path; {
	case path == "_ping":
	case path == "info":
		fmt.Fprint(w, `{"ServerVersion":"20.10.1","Driver":"cvmfs"}`)
	case what == "GET containers/json":
		fmt.Fprint(w, `[{"Id":"42","Names":["/somebody"]}]`)
	case what == "POST images/create":
		h.pulls++
		ref := r.URL.Query().Get("fromImage") + ":" + r.URL.Query().Get("tag")
		if h.refuses != "" {
			fmt.Fprintf(w, `{"errorDetail":{"message":%q},"error":%q}`, h.refuses, h.refuses)
			return
		}
		h.images[ref] = true
		if h.moves {
			h.ids[ref] = fmt.Sprint("sha256:", h.pulls)
		}
		if ref == thinName {
			h.requests += 5
		}
		fmt.Fprint(w, `{"id":"0123456789ab","status":"Pull complete"}`)
	case what == "GET images/json":
		var all []image.Summary
		for name := range h.images {
			all = append(all, image.Summary{ID: h.id(name)})
		}
		json.NewEncoder(w).Encode(all)
	case strings.HasPrefix(what, "GET images/"):
		if !h.images[name] {
			missing()
			return
		}
		json.NewEncoder(w).Encode(image.InspectResponse{ID: h.id(name), Size: 100, Os: "linux", Architecture: "amd64"})
	case strings.HasPrefix(what, "DELETE images/"):
		delete(h.images, name)
		fmt.Fprint(w, `[]`)
	case what == "POST containers/create":
		h.containers[r.URL.Query().Get("name")] = make(chan struct{})
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"Id":"1"}`)
	case strings.HasSuffix(path, "/attach"):
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			h.t.Error(err)
			return
		}
		fmt.Fprint(c, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		stdcopy.NewStdWriter(c, stdcopy.Stdout).Write([]byte(h.says))
		go func(gone chan struct{}, stays bool) {
			if stays {
				<-gone
			}
			c.Close()
		}(h.containers[id], h.stays)
	case strings.HasSuffix(path, "/wait"):
		gone, stays, code := h.containers[id], h.stays, h.code
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		h.mu.Unlock()
		if stays {
			<-gone
		}
		h.mu.Lock()
		json.NewEncoder(w).Encode(container.WaitResponse{StatusCode: code})
	case strings.HasSuffix(path, "/start"):
		w.WriteHeader(http.StatusNoContent)
	case strings.HasPrefix(what, "GET containers/"):
		var c container.InspectResponse
		c.ContainerJSONBase = &container.ContainerJSONBase{HostConfig: &container.HostConfig{}}
		c.NetworkSettings = &container.NetworkSettings{
			Networks: map[string]*network.EndpointSettings{"bridge": {IPAddress: "127.0.0.1"}},
		}
		json.NewEncoder(w).Encode(c)
	case strings.HasPrefix(what, "DELETE containers/"):
		if h.containers[id] == nil {
			missing()
			return
		}
		close(h.containers[id])
		delete(h.containers, id)
		h.removed = append(h.removed, id)
		if h.meanwhile != "" {
			h.images[h.meanwhile] = true
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		h.t.Errorf("asked for %s", what)
		missing()
	}
}

func (h *host) run(ctx context.Context, s Start) (*Result, error) {
	h.t.Helper()
	e, err := installer.Connect(h.socket)
	if err != nil {
		h.t.Fatal(err)
	}
	defer e.Close()
	if s.Within == 0 {
		s.Within = time.Minute
	}
	r, err := Run(ctx, Config{
		Engine: e, Node: h, Ordinary: ordinaryName, Thin: thinName, Rounds: 2, Start: s, Tell: func(string) {},
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.containers) > 0 {
		h.t.Errorf("containers are left: %v", h.containers)
	}
	return r, err
}

func (h *host) nothingLeft() {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.images) > 0 {
		h.t.Errorf("images are left: %v", h.images)
	}
}

func TestEachImageIsStartedInTurn(t *testing.T) {
	h := newHost(t)
	h.named = 3
	r, err := h.run(t.Context(), Start{})
	if err != nil {
		t.Fatal(err)
	}
	h.nothingLeft()
	var order []Form
	for _, s := range r.Samples {
		order = append(order, s.Form)
		if thin := s.Form == Thin; thin && (s.Requests != 5 || s.Fetched != 5000 || s.Shared != 7) ||
			!thin && (s.Requests != 0 || s.Shared != 0) || s.Pull <= 0 || s.First <= 0 || s.Warm <= 0 {
			t.Errorf("%+v", s)
		}
	}
	if want := []Form{Ordinary, Thin, Thin, Ordinary}; !slices.Equal(order, want) {
		t.Errorf("the order is %v, want %v", order, want)
	}
	if r.Images[Ordinary].Unknown == "" || r.Images[Ordinary].Size != 100 {
		t.Errorf("an image whose registry can't be asked: %+v", r.Images[Ordinary])
	}
	if len(h.removed) != 4*(1+warmRuns) {
		t.Errorf("%d containers were removed", len(h.removed))
	}
}

func TestAStartIsReadyByALineOrAPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	for name, c := range map[string]struct {
		stays bool
		code  int64
		start Start
		fails string
	}{
		"a line":                {true, 0, Start{Line: "ready"}, ""},
		"a port":                {true, 0, Start{Port: port, Network: "bridge"}, ""},
		"a port before a line":  {true, 0, Start{Port: port, Line: "never"}, ""},
		"its end":               {false, 0, Start{}, ""},
		"another exit code":     {false, 7, Start{}, `exit code 7 and said "hello\nready to serve"`},
		"no line":               {false, 0, Start{Line: "never"}, `without writing "never"`},
		"neither line nor end":  {true, 0, Start{Line: "never", Within: 50 * time.Millisecond}, "--until-line"},
		"the host's own port":   {true, 0, Start{Port: port, Network: "host"}, "something else answers"},
		"no end, and no reason": {true, 0, Start{Within: 50 * time.Millisecond}, "wasn't ready within 50ms"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.stays, h.code = c.stays, c.code
			_, err := h.run(t.Context(), c.start)
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%v, want %q", err, c.fails)
			}
			h.nothingLeft()
		})
	}
}

func TestWhatOthersHaveIsLeftAlone(t *testing.T) {
	h := newHost(t)
	h.images[thinName] = true
	if _, err := h.run(t.Context(), Start{}); err == nil || !strings.Contains(err.Error(), "somebody") {
		t.Errorf("an image of somebody's container: %v", err)
	}
	if !h.images[thinName] || h.pulls > 0 {
		t.Errorf("it is touched: %v, %d pulls", h.images, h.pulls)
	}
}

// An engine pulls nothing that it has by another name, and its name isn't all that goes when that is removed.
func TestWhatIsHereByAnotherNameStays(t *testing.T) {
	for _, name := range []string{ordinaryName, thinName} {
		h := newHost(t)
		h.images["other"] = true
		h.ids["other"], h.ids[name] = "sha256:1", "sha256:1"
		if _, err := h.run(t.Context(), Start{}); err == nil || !strings.Contains(err.Error(), "before, as sha256:1") {
			t.Errorf("%s: %v", name, err)
		}
		if !h.images["other"] || !h.images[name] {
			t.Errorf("%s: it is touched: %v", name, h.images)
		}
	}
}

func TestWhatIsPulledMeanwhileStays(t *testing.T) {
	h := newHost(t)
	h.meanwhile = ordinaryName
	if _, err := h.run(t.Context(), Start{}); err == nil || !strings.Contains(err.Error(), "somebody") {
		t.Error(err)
	}
	if !h.images[ordinaryName] || len(h.images) > 1 {
		t.Errorf("images are %v", h.images)
	}
}

func TestAMovedTagEndsAComparison(t *testing.T) {
	h := newHost(t)
	h.moves = true
	if _, err := h.run(t.Context(), Start{}); err == nil || !strings.Contains(err.Error(), "by its digest") {
		t.Error(err)
	}
	h.nothingLeft()
}

func TestARestartedNodeEndsAComparison(t *testing.T) {
	h := newHost(t)
	h.restarts = true
	if _, err := h.run(t.Context(), Start{}); err == nil || !strings.Contains(err.Error(), "started anew") {
		t.Error(err)
	}
	h.nothingLeft()
}

func TestALineIsFoundWhereverItIsCut(t *testing.T) {
	for _, c := range []struct {
		pieces []string
		want   bool
	}{
		{[]string{"x re", "a", "dy y"}, true},
		{[]string{"ready"}, true},
		{[]string{"rea\n", "dy\n"}, false},
		{[]string{strings.Repeat("\x00", 1<<20), "rready"}, true},
		{[]string{"ead", "y"}, false},
	} {
		o := newOutput("ready")
		s := &stream{o: o}
		for _, p := range c.pieces {
			if n, err := io.WriteString(s, p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
			if len(s.last) >= len("ready") || o.text.Len() > saidLimit {
				t.Errorf("%d bytes are kept to look in, %d to tell", len(s.last), o.text.Len())
			}
		}
		select {
		case <-o.seen:
			if !c.want {
				t.Errorf("%.20q is found", c.pieces)
			}
		default:
			if c.want {
				t.Errorf("%.20q isn't found", c.pieces)
			}
		}
	}
}

func TestAPullThatFailsIsExplained(t *testing.T) {
	h := newHost(t)
	h.refuses = "write /layer: no space left on device"
	if _, err := h.run(t.Context(), Start{}); err == nil || !strings.Contains(err.Error(), "make room") {
		t.Errorf("a full disk: %v", err)
	}
	h.nothingLeft()
}

func TestAnInterruptedComparisonLeavesNothing(t *testing.T) {
	h := newHost(t)
	h.stays = true
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			h.mu.Lock()
			running := len(h.containers) > 0
			h.mu.Unlock()
			if running {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if _, err := h.run(ctx, Start{}); !errors.Is(err, ErrInterrupted) {
		t.Error(err)
	}
	h.nothingLeft()
}
