package pushback

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
	"cvmfs-graphdriver/pushback/api"
	"cvmfs-graphdriver/test/testutil"
)

const repo = "layers.example.org"

// service is one that publishes: what it says of a layer, one answer after the other, the last one for ever.
type service struct {
	mu      sync.Mutex
	says    []string
	asked   int
	puts    int
	byStore bool // it learns of layers from the store
	refuses int  // status code of uploads
	why     string
	took    map[string][]byte
}

func (s *service) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	digest := q.URL.Path[strings.LastIndexByte(q.URL.Path, '/')+1:]
	switch {
	case strings.HasPrefix(q.URL.Path, "/status/"):
		s.asked++
		say := s.says[0]
		if len(s.says) > 1 && (s.byStore || len(s.took) > 0) {
			s.says = s.says[1:]
		}
		if strings.HasPrefix(say, "{") {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, say, digest)
			return
		}
		io.WriteString(w, say)
	case q.Method == http.MethodHead:
		w.WriteHeader(http.StatusNotFound)
	case s.refuses != 0:
		w.WriteHeader(s.refuses)
		io.WriteString(w, s.why)
	default:
		s.puts++
		s.took[digest], _ = io.ReadAll(q.Body)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"status":"publishing","digest":%q}`, digest)
	}
}

// rig is a node, a service and a store.
type rig struct {
	*testing.T
	service  *service
	store    *s3test.Store
	pusher   *Pusher
	settings *Settings
	dir      string
	log      testutil.Buffer
}

func newRig(t *testing.T, says ...string) *rig {
	t.Helper()
	r := &rig{T: t, store: s3test.NewStore(t), dir: t.TempDir()}
	r.service = &service{says: says, took: map[string][]byte{}}
	server := httptest.NewServer(r.service)
	t.Cleanup(server.Close)
	r.settings = settingsOf("", server.URL+"/status")
	var err error
	if r.pusher, err = New(r.dir, slog.New(slog.NewTextHandler(&r.log, nil))); err != nil {
		t.Fatal(err)
	}
	return r
}

// settingsOf are a node's, with a store at an address if that isn't "".
func settingsOf(store, status string) *Settings {
	return &Settings{
		Host: store, AccessKey: s3test.AccessKey, AccessSecret: s3test.SecretKey, Bucket: s3test.Bucket,
		Region: "us-east-1", CvmfsRepo: repo, PublishStatusURL: status, Wait: Duration(20 * time.Second), node: "node7",
		PathStyle: true, Prefix: "node7",
	}
}

// withStore has layers sent to the store.
func (r *rig) withStore() *rig {
	r.settings.Host, r.service.byStore = strings.TrimPrefix(r.store.URL, "http://"), true
	return r
}

func layer(t *testing.T, content string) *bytes.Reader {
	t.Helper()
	l, err := layerOf(content)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// layerOf returns the archive of a file with that content, of none if that is "".
func layerOf(content string) (*bytes.Reader, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if content != "" {
		if err := w.WriteHeader(&tar.Header{Name: "f", Size: int64(len(content)), Mode: 0o644}); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return bytes.NewReader(b.Bytes()), nil
}

func (r *rig) push(content string) (*Published, error) {
	r.Helper()
	p, err := r.pusher.Push(r.Context(), r.settings, layer(r.T, content), "registry.example.org/x:1")
	if err == nil {
		r.Cleanup(func() { p.Close() })
	}
	return p, err
}

// kept lists what is in the folder of archives.
func (r *rig) kept() []string {
	r.Helper()
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		r.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestALayerGoesThroughTheStore(t *testing.T) {
	r := newRig(t, "unknown", "publishing", "publishing", "done").withStore()
	p, err := r.push("hello")
	if err != nil {
		t.Fatal(err)
	}
	if want := "cvmfs://" + repo + "/layers/" + p.Digest; p.URL != want {
		t.Errorf("at %s, want %s", p.URL, want)
	}
	o, ok := r.store.Objects["node7/"+p.Digest]
	if !ok || int64(len(o.Content)) != p.Size {
		t.Fatalf("the store has %v", r.store.Keys())
	}
	for name, want := range map[string]string{
		"Content-Type": api.ContentType, "X-Amz-Meta-Node": "node7", "X-Amz-Meta-Diff-Id": p.DiffID,
		"X-Amz-Meta-Image": "registry.example.org/x:1",
	} {
		if got := o.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if left := r.kept(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestALayerGoesToTheService(t *testing.T) {
	const done = `{"status":"done","digest":%q,"url":"cvmfs://layers.example.org/.layers/aa/x/layerfs","revision":7}`
	r := newRig(t, "unknown", "publishing", done)
	p, err := r.push("hello")
	if err != nil || p.URL != "cvmfs://layers.example.org/.layers/aa/x/layerfs" {
		t.Fatalf("%+v, %v", p, err)
	}
	if len(r.service.took[p.Digest]) != int(p.Size) {
		t.Errorf("it took %d of %d bytes", len(r.service.took[p.Digest]), p.Size)
	}
}

// What a descriptor says of its origin is anybody's text.
func TestAnyOriginIsSent(t *testing.T) {
	r := newRig(t, "unknown", "done").withStore()
	origin := "a\r\nX-Amz-Meta-Node: other\x00é" + strings.Repeat("x", 5000)
	p, err := r.pusher.Push(t.Context(), r.settings, layer(t, "hello"), origin)
	if err != nil {
		t.Fatal(err)
	}
	h := r.store.Objects["node7/"+p.Digest].Header
	if h.Get("X-Amz-Meta-Node") != "node7" || !strings.HasPrefix(h.Get("X-Amz-Meta-Image"), "a??X-Amz") {
		t.Errorf("%q, %q", h.Get("X-Amz-Meta-Node"), h.Get("X-Amz-Meta-Image"))
	}
}

func TestAPublishedLayerIsNotSent(t *testing.T) {
	r := newRig(t, "done").withStore()
	p, err := r.push("hello")
	if err != nil || len(r.store.Objects) != 0 || r.service.asked != 1 {
		t.Errorf("%+v, %v; the store has %v after %d questions", p, err, r.store.Keys(), r.service.asked)
	}
	again, err := r.push("hello")
	if err != nil || again.Digest != p.Digest || again.URL != p.URL {
		t.Errorf("equal layers: %+v and %+v, %v", p, again, err)
	}
}

func TestAnEmptyLayerIsNoLayer(t *testing.T) {
	r := newRig(t, "unknown")
	if _, err := r.push(""); !errors.Is(err, ErrEmpty) || len(r.kept()) != 0 || r.service.asked != 0 {
		t.Errorf("%v, left %v", err, r.kept())
	}
}

// Whatever fails is told, nothing is left of the archive, and the next try goes through.
func TestFailuresLeaveNothing(t *testing.T) {
	const elsewhere = `{"status":"done","digest":%q,"url":"cvmfs://other.example.org/layers/x"}`
	for name, c := range map[string]struct {
		says []string
		set  func(r *rig)
		want string
	}{
		"the service refuses it":     {[]string{"unknown", "failed: too large"}, func(*rig) {}, "too large"},
		"it lies":                    {[]string{"unknown", elsewhere}, func(*rig) {}, "isn't in CvmfsRepo"},
		"it talks nonsense for good": {[]string{"unknown", "<html>"}, func(r *rig) { r.settings.Wait = Duration(2 * time.Second) }, "isn't published after 2s"},
		"nobody publishes it":        {[]string{"publishing"}, func(r *rig) { r.settings.Wait = Duration(2 * time.Second) }, "the service says: publishing"},
		"the service takes nothing": {[]string{"unknown"}, func(r *rig) {
			r.settings.Host, r.service.refuses = "", http.StatusForbidden
		}, "403"},
		"wrong credentials": {[]string{"unknown"}, func(r *rig) { r.settings.AccessKey = "wrong" }, "bucket"},
		"no such bucket":    {[]string{"unknown"}, func(r *rig) { r.settings.Bucket = "gone" }, "bucket"},
		"the store is down": {[]string{"unknown"}, func(r *rig) {
			r.settings.Host, r.settings.Wait = testutil.ClosedAddress(t, "127.0.0.1"), Duration(2*time.Second)
		}, "bucket"},
		"the service is down": {[]string{"unknown"}, func(r *rig) {
			r.settings.PublishStatusURL = "http://" + testutil.ClosedAddress(t, "127.0.0.1") + "/status"
			r.settings.Wait = Duration(2 * time.Second)
		}, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, c.says...).withStore()
			was := *r.settings
			c.set(r)
			_, err := r.push("hello")
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), s3test.SecretKey) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			if left := r.kept(); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
			r.settings, r.service.refuses, r.service.says = &was, 0, []string{"unknown", "done"}
			if _, err := r.push("hello"); err != nil {
				t.Errorf("the next try: %v", err)
			}
		})
	}
}

// Equal layers that are pushed at once are sent once.
func TestEqualLayersAreSentOnce(t *testing.T) {
	r := newRig(t, "unknown", "publishing", "done")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := r.push("hello"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if r.service.puts != 1 {
		t.Errorf("%d uploads", r.service.puts)
	}
}

func TestAFullDiskIsToldAndLeavesNothing(t *testing.T) {
	r := newRig(t, "unknown")
	r.dir = testutil.SmallDisk(t, "1m")
	r.pusher.dir = r.dir
	_, err := r.pusher.Push(t.Context(), r.settings, io.MultiReader(layer(t, "x"), newNoise(4<<20)), "")
	if err == nil || !strings.Contains(err.Error(), "no space left") || len(r.kept()) != 0 {
		t.Errorf("%v, left %v", err, r.kept())
	}
}

// newNoise returns bytes that can't be compressed.
func newNoise(n int64) io.Reader {
	state := uint64(1)
	return io.LimitReader(readerFunc(func(p []byte) (int, error) {
		for i := range p {
			state = state*6364136223846793005 + 1442695040888963407
			p[i] = byte(state >> 56)
		}
		return len(p), nil
	}), n)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A commit that is given up ends at once.
func TestWaitingEndsWithTheCall(t *testing.T) {
	r := newRig(t, "publishing").withStore()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(500*time.Millisecond, cancel)
	_, err := r.pusher.Push(ctx, r.settings, layer(t, "hello"), "")
	if !errors.Is(err, context.Canceled) || len(r.kept()) != 0 {
		t.Errorf("%v, left %v", err, r.kept())
	}
}

// What lies there was left by a kill, or by a version that gave archives names.
func TestArchivesThatWereLeftGo(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "new-1", "", 0o600)
	write(t, dir, strings.Repeat("a", 64), "", 0o600)
	if _, err := New(dir, slog.Default()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestThePublishedArchiveCanBeRead(t *testing.T) {
	r := newRig(t, "done")
	p, err := r.push("hello")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		archive, err := p.Archive()
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := got.ReadFrom(archive); err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		if _, err := want.ReadFrom(layer(t, "hello")); err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Errorf("%d bytes, %v", got.Len(), err)
		}
	}
}

func TestStoreAndServiceAreTried(t *testing.T) {
	r := newRig(t, "unknown").withStore()
	if err := r.settings.Try(t.Context()); err != nil {
		t.Error(err)
	}
	r.settings.Bucket = "gone"
	if err := r.settings.Try(t.Context()); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Error(err)
	}
}

// A service may find that a layer which it had when it was to be sent was removed.
func TestALayerThatTheServiceForgetsIsSentAgain(t *testing.T) {
	say := func(status string) string { return `{"status":"` + status + `","digest":%q}` }
	r := newRig(t, say("publishing"), say("publishing"), say("unknown"), say("unknown"), say("publishing"), say("done"))
	r.service.byStore = true // it goes on without being sent anything
	if _, err := r.push("hello"); err != nil {
		t.Fatal(err)
	}
	if r.service.puts != 1 {
		t.Errorf("it is sent %d times", r.service.puts)
	}
}

func TestAServiceThatForgetsAllIsNotSentALayerForEver(t *testing.T) {
	r := newRig(t, `{"status":"unknown","digest":%q}`)
	if _, err := r.push("hello"); !errors.Is(err, errForgotten) || r.service.puts != 2 {
		t.Errorf("%v, after %d times", err, r.service.puts)
	}
}

// However many wait for one another, none waits longer than one would.
func TestEqualCommitsWaitNoLongerThanOne(t *testing.T) {
	r := newRig(t, "publishing")
	r.settings.Wait = Duration(time.Second)
	began := time.Now()
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			if _, err := r.push("content"); err == nil || !strings.Contains(err.Error(), "isn't published after") {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took >= 5*time.Second { // one after the other they would take 6 s
		t.Errorf("they took %v", took)
	}
}

// A service of 2017 learns of an object by an event alone, which it may have missed.
func TestALayerThatAServiceOf2017HasMissedIsPutAgain(t *testing.T) {
	for says, again := range map[string]bool{"unknown": true, `{"status":"unknown","digest":%q}`: false} {
		r := newRig(t, says).withStore()
		r.settings.Wait = Duration(200 * time.Millisecond)
		put := false
		for range 2 {
			if _, err := r.push("hello"); err == nil || !strings.Contains(err.Error(), "try again") {
				t.Errorf("%q: %v", says, err)
			}
			for _, key := range r.store.Keys() {
				o := r.store.Objects[key]
				put = o.Header.Get("X-Amz-Meta-Node") != ""
				r.store.Set(key, o.Content, nil) // one that is put again has its metadata
			}
		}
		if put != again {
			t.Errorf("%q: put again: %v", says, put)
		}
	}
}

// Waiting for it would end after all of the time, with the layer published where nobody looks for it.
func TestAServiceForOthersIsSentNothing(t *testing.T) {
	for name, c := range map[string]struct {
		says, want string
		store      bool
	}{
		"another repository": {`{"status":"done","digest":%q,"repository":"other.example.org"}`, "CvmfsRepo", true},
		"another node":       {`{"status":"unknown","digest":%q,"refusal":"node7 may send no layers"}`, "may send no", false},
	} {
		r := newRig(t, c.says)
		if c.store {
			r.withStore()
		}
		if err := r.settings.Try(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := r.push("hello"); err == nil || !strings.Contains(err.Error(), c.want) || r.service.puts > 0 ||
			len(r.kept()) > 0 {
			t.Errorf("%s: %v, %d layers sent, %q is left", name, err, r.service.puts, r.kept())
		}
	}
	r := newRig(t, `{"status":"unknown","digest":%q,"repository":"`+repo+`"}`)
	if err := r.settings.Try(t.Context()); err != nil {
		t.Error(err)
	}
}

// What a service says is shown to people, and may be anything: what it was sent, too.
func TestWhatAServiceSaysIsNoSecretAndNoOrder(t *testing.T) {
	const token = "a-token-of-a-node-0123456789"
	for name, r := range map[string]*rig{
		"of a status": newRig(t, "failed: no \x1b[2J "+token), "of an upload": newRig(t, "unknown"),
	} {
		r.settings.Token, r.service.refuses, r.service.why = token, http.StatusForbidden, "no \x1b[2J "+token
		_, err := r.push("hello")
		if err == nil || !strings.Contains(err.Error(), "no  [2J (secret)") || strings.ContainsAny(err.Error(), "\x1b") ||
			strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(r.log.String(), token) {
			t.Errorf("%s: the log has it: %s", name, &r.log)
		}
	}
}

// An address that isn't the layer's is told, and what is waited for is logged: both without what the service was sent.
func TestWhatAServiceRepeatsIsNotTold(t *testing.T) {
	const token = "a-token-of-a-node-0123456789"
	r := newRig(t, "unknown", `{"status":"publishing","digest":%q,"reason":"waits for `+token+`"}`,
		`{"status":"done","digest":%q,"url":"cvmfs://other.example.org/`+token+`"}`)
	r.settings.Token, r.pusher.tellEvery = token, 0
	_, err := r.push("hello")
	if err == nil || !strings.Contains(err.Error(), "(secret)") || strings.Contains(err.Error(), token) {
		t.Error(err)
	}
	if log := r.log.String(); !strings.Contains(log, "waits for (secret)") || strings.Contains(log, token) {
		t.Errorf("the log: %s", log)
	}
}

// A commit that waits for an equal one can be given up.
func TestWaitingForAnEqualLayerEndsWithTheCall(t *testing.T) {
	r := newRig(t, "publishing")
	sent, err := r.pusher.begin(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.pusher.begin(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	sent()
	if sent, err = r.pusher.begin(ctx, "x"); err != nil {
		t.Error(err)
	} else {
		sent()
	}
}

// What failed is in the store, and not what was sent, and the service says so until it has seen what is put there now.
func TestALayerThatHasFailedIsSentAgain(t *testing.T) {
	r := newRig(t, "failed: another digest", "failed: another digest", "failed: another digest", "publishing", "done").withStore()
	p, err := r.push("hello")
	if err != nil {
		t.Fatal(err)
	}
	key := "node7/" + p.Digest
	r.store.Set(key, make([]byte, p.Size), nil)
	r.service.says = []string{"failed: another digest", "failed: another digest", "done"}
	if _, err := r.push("hello"); err != nil {
		t.Error(err)
	}
	if o := r.store.Objects[key]; bytes.Equal(o.Content, make([]byte, p.Size)) {
		t.Error("the store has what it had")
	}
	r.service.says = []string{"failed: another digest", "publishing", "failed: another digest"}
	if _, err := r.push("hello"); err == nil || !strings.Contains(err.Error(), "refuses it: another digest") {
		t.Errorf("it failed again: %v", err)
	}
	delete(r.store.Objects, key)
	r.service.says = []string{"failed: rejected by somebody"}
	if _, err := r.push("hello"); err == nil || !strings.Contains(err.Error(), "rejected by somebody") ||
		len(r.store.Objects) != 0 {
		t.Errorf("a person has rejected it: %v; the store has %v", err, r.store.Keys())
	}
}

// A store that dies at any request costs that try, and no more: what it took before, or not, is found by the next one.
func TestAStoreThatDiesAtAnyStepIsSentToAgain(t *testing.T) {
	for name, step := range map[string]struct {
		method string
		after  bool // it dies when the request is done, before it has answered
	}{
		"asked": {http.MethodHead, false}, "put": {http.MethodPut, false}, "has it": {http.MethodPut, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "unknown", "unknown", "done").withStore()
			var dead atomic.Bool
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				if dead.Load() || q.Method == step.method {
					if !dead.Swap(true) && step.after {
						r.store.ServeHTTP(httptest.NewRecorder(), q)
					}
					panic(http.ErrAbortHandler) // net/http's way to close the connection without an answer
				}
				r.store.ServeHTTP(w, q)
			}))
			t.Cleanup(front.Close)
			r.settings.Host, r.settings.Wait = strings.TrimPrefix(front.URL, "http://"), Duration(2*time.Second)
			_, err := r.push("hello")
			if err == nil || !strings.Contains(err.Error(), "send it to the bucket") {
				t.Fatal(err)
			}
			if left := r.kept(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if had := len(r.store.Keys()); (had > 0) != step.after {
				t.Errorf("the store has %d objects", had)
			}
			dead.Store(false)
			step.method, r.settings.Wait = "", Duration(time.Minute)
			p, err := r.push("hello")
			if err != nil {
				t.Fatal(err)
			}
			if o := r.store.Objects["node7/"+p.Digest]; int64(len(o.Content)) != p.Size {
				t.Errorf("the store has %d of %d bytes", len(o.Content), p.Size)
			}
		})
	}
}

// Layers that are sent at once have the same settings. The race detector finds what is shared.
func TestSettingsAreSharedByLayersThatAreSentAtOnce(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "done")
	}))
	defer server.Close()
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	s := settingsOf("", server.URL+"/status")
	s.tls = &tls.Config{RootCAs: pool}
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			c, err := s.service()
			if err == nil {
				_, err = c.Status(t.Context(), strings.Repeat("a", 64))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	asking.Wait()
}

// What sending may take isn't waited for once all is sent: the container is paused meanwhile.
func TestALargeLayerIsWaitedForNoLonger(t *testing.T) {
	r := newRig(t, "unknown", "publishing").withStore()
	r.settings.Wait = Duration(time.Second)
	content := make([]byte, 1<<20)
	rand.Read(content) // it never fails
	began := time.Now()
	_, err := r.push(string(content))
	if err == nil || !strings.Contains(err.Error(), "isn't published after 1s") {
		t.Error(err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("it took %v", took)
	}
}

// What is refused at once for the cause of the time before never is in another state when a node asks.
func TestWhatIsRefusedAgainIsNotWaitedFor(t *testing.T) {
	const failed = `{"status":"failed","digest":%%q,"reason":"too large","since":"2026-01-31T12:00:0%dZ"}`
	one, two := fmt.Sprintf(failed, 1), fmt.Sprintf(failed, 2)
	r := newRig(t, one, one, one, two).withStore()
	began := time.Now()
	if _, err := r.push("hello"); err == nil || !strings.Contains(err.Error(), "refuses it: too large") {
		t.Error(err)
	}
	if took := time.Since(began); took < time.Second || took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}
