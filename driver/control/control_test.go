package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/driver/status"
)

// node is one whose answers are fixed.
type node struct {
	Cache
	Thinner
}

func (node) Status() status.Node { return status.Node{Version: "1.2", PID: 7} }

func (node) Names(context.Context) (status.Names, error) {
	return status.Names{Known: true, Images: []status.Name{{Key: "k", Namespace: "moby", Name: "a:1"}}}, nil
}

func (node) Reload(context.Context) (status.Reload, error) {
	return status.Reload{Repositories: []status.Reloaded{{FQRN: "a.example.org"}}}, nil
}

// counted asks to count to a number.
type counted struct{ To int }

const count Task[counted, int, string] = "Count"

// register adds a task for tests: it counts, and waits for its end when it is asked to count to none.
func register(h *Handler, ended chan<- error) {
	perform(h, count, func(ctx context.Context, q counted, tell func(int)) (string, error) {
		for n := range q.To {
			tell(n + 1)
		}
		switch {
		case q.To < 0:
			return "", errors.New("it can't be counted backwards")
		case q.To == 0:
			tell(0)
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return "", ctx.Err()
		}
		return "done", nil
	})
}

// serve serves a handler at a socket whose path is longer than that of a socket may be.
func serve(t *testing.T, h http.Handler) *Client {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	l, err := net.Listen("unix", "node.sock")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return NewClient(filepath.Join(dir, "node.sock"))
}

func TestCommandsAreAnswered(t *testing.T) {
	h := NewHandler(t.Context(), Config{Node: node{}})
	c := serve(t, h)
	got, err := Status.Ask(t.Context(), c, None{})
	if diff := cmp.Diff(node{}.Status(), got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	reloaded, err := Reload.Do(t.Context(), c, None{}, nil)
	if err != nil || len(reloaded.Repositories) != 1 {
		t.Errorf("%v, %v", reloaded, err)
	}
	names, err := Names.Do(t.Context(), c, None{}, nil)
	if err != nil || len(names.Images) != 1 || names.Images[0].Name != "a:1" {
		t.Errorf("%v, %v", names, err)
	}
	// As programs of other makes ask: any method, no body, one value of JSON.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://node/CvmfsGraphDriver.Status", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var told map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&told); err != nil || told["version"] != "1.2" {
		t.Errorf("%v, %v", told, err)
	}
}

func TestTaskTellsItsProgressAndItsEnd(t *testing.T) {
	h := NewHandler(t.Context(), Config{Node: node{}})
	register(h, nil)
	c := serve(t, h)
	var told []int
	got, err := count.Do(t.Context(), c, counted{3}, func(n int) { told = append(told, n) })
	if diff := cmp.Diff([]int{1, 2, 3}, told); got != "done" || err != nil || diff != "" {
		t.Errorf("%q, %v, progress %s", got, err, diff)
	}
	if _, err := count.Do(t.Context(), c, counted{-1}, nil); err == nil || err.Error() != "it can't be counted backwards" {
		t.Errorf("a task that fails: %v", err)
	}
}

func TestTaskEndsWithWhoeverAsked(t *testing.T) {
	ended := make(chan error, 1)
	h := NewHandler(t.Context(), Config{Node: node{}})
	register(h, ended)
	c := serve(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := count.Do(ctx, c, counted{}, func(int) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("asked: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the task goes on")
	}
}

func TestTaskEndsWithTheNode(t *testing.T) {
	life, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	h := NewHandler(life, Config{Node: node{}})
	register(h, ended)
	_, err := count.Do(t.Context(), serve(t, h), counted{}, func(int) { end() })
	if err == nil || err.Error() != errEnds.Error() || !errors.Is(<-ended, errEnds) {
		t.Errorf("asked: %v", err)
	}
}

func TestTaskThatBreaksOffIsNoSuccess(t *testing.T) {
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"progress":1}`+"\n")
	}))
	if got, err := count.Do(t.Context(), c, counted{1}, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNodeRefusesWhatItDoesNotKnow(t *testing.T) {
	h := NewHandler(t.Context(), Config{Node: node{}})
	register(h, nil)
	c := serve(t, h)
	if _, err := Question[None, None]("Newer").Ask(t.Context(), c, None{}); !errors.Is(err, ErrUnknown) {
		t.Errorf("a command: %v", err)
	}
	type newer struct {
		To   int
		Only string
	}
	if _, err := Task[newer, int, string](count).Do(t.Context(), c, newer{1, "x"}, nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("a field: %v", err)
	}
	long := newer{1, strings.Repeat("x", maxRequest)}
	_, err := Task[newer, int, string](count).Do(t.Context(), c, long, nil)
	if err == nil || errors.Is(err, ErrUnknown) {
		t.Errorf("a request that is too long: %v", err)
	}
	if _, err := Question[counted, string](count).Ask(t.Context(), serve(t, http.NotFoundHandler()),
		counted{1}); !errors.Is(err, ErrUnknown) {
		t.Errorf("a server without commands: %v", err)
	}
}

func TestNodeThatIsNotThereIsNamed(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	if _, err := Status.Ask(t.Context(), NewClient(socket), None{}); !errors.Is(err, ErrSilent) ||
		!strings.Contains(err.Error(), socket) {
		t.Errorf("%v", err)
	}
}

func TestCommandsUnderWayAreBounded(t *testing.T) {
	ended := make(chan error, maxCalls)
	h := NewHandler(t.Context(), Config{Node: node{}})
	register(h, ended)
	c := serve(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begun := make(chan int, maxCalls)
	for range maxCalls {
		go count.Do(ctx, c, counted{}, func(n int) { begun <- n })
	}
	for range maxCalls {
		<-begun
	}
	if _, err := Status.Ask(t.Context(), c, None{}); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("one more: %v", err)
	}
	cancel()
	for range maxCalls {
		<-ended
	}
}
