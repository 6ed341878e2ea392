package fetch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cvmfs-graphdriver/test/testutil"
)

// getMany gets so many files, at most parallel at once, and returns how many failed.
func getMany(t testing.TB, f *Fetcher, n, parallel int) (failed int) {
	var wg sync.WaitGroup
	var bad atomic.Int64
	todo := make(chan int)
	for range parallel {
		wg.Go(func() {
			for i := range todo {
				if _, err := get(t.Context(), f, fmt.Sprint("data/", i)); err != nil {
					bad.Add(1)
					t.Log(err)
				}
			}
		})
	}
	for i := range n {
		todo <- i
	}
	close(todo)
	wg.Wait()
	return int(bad.Load())
}

// oneByOne serves one connection after the other, each for one request: as python's http.server, but for threads.
func oneByOne(t testing.TB, backlog int, work time.Duration) string {
	l := testutil.Listen(t, "127.0.0.1", backlog)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			answerOnce(c, work)
		}
	}()
	return "http://" + l.Addr().String()
}

func answerOnce(c net.Conn, work time.Duration) {
	defer c.Close()
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	time.Sleep(work)
	body := text(r.URL.Path)
	fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// A server that queues five connections and closes each after one answer is overrun by a few at once: what doesn't fit
// waits for a second or more.
func TestServerWithAShortQueueServesManyFiles(t *testing.T) {
	url := oneByOne(t, 5, 0)
	cfg := quick(url)
	cfg.Timeout, cfg.TimeoutDirect = 10*time.Second, 10*time.Second
	f := fetcher(t, cfg)
	start := time.Now()
	failed := getMany(t, f, 1376, 64)
	// Where connections are dropped it takes 20 s.
	t.Logf("%.2f s, %+v", time.Since(start).Seconds(), f.Stats())
	if failed > 0 {
		t.Errorf("%d failed", failed)
	}
	if st := f.Stats(); st.Failures > 0 {
		t.Errorf("%d attempts failed", st.Failures)
	}
}

// Where the way is long many connections are wanted.
func TestLongWayIsBridgedByManyConnections(t *testing.T) {
	const trip = 20 * time.Millisecond
	s := files(t)
	relay := testutil.NewRelay(t, s.URL[len("http://"):], trip)
	cfg := quick("http://" + relay.Addr)
	cfg.TimeoutDirect = 10 * time.Second
	f := fetcher(t, cfg)
	start := time.Now()
	if failed := getMany(t, f, 1376, 64); failed > 0 {
		t.Errorf("%d failed", failed)
	}
	n := relay.Count().Connections
	t.Logf("%.2f s, %d connections; one would take %v", time.Since(start).Seconds(), n, 1376*trip)
	if n > mostConnections+mostFresh || n < mostConnections/2 {
		t.Errorf("%d connections, want about %d", n, mostConnections)
	}
}

func TestConnectionsAreBoundedOverAllRepositories(t *testing.T) {
	t.Parallel()
	s := files(t)
	s.Set(testutil.Fault{Latency: 5 * time.Millisecond})
	shared := &Connections{}
	var wg sync.WaitGroup
	for range 4 {
		cfg := quick(s.URL)
		cfg.Connections, cfg.TimeoutDirect = shared, 10*time.Second
		f := fetcher(t, cfg)
		wg.Go(func() {
			if failed := getMany(t, f, 100, 50); failed > 0 {
				t.Errorf("%d failed", failed)
			}
		})
	}
	wg.Wait()
	if n := s.MostAtOnce(); n > mostConnections {
		t.Errorf("%d at once, want at most %d", n, mostConnections)
	}
}

// A server that answers those it has, and refuses further connections, is full and not dead.
func TestFullServerIsNotLeft(t *testing.T) {
	t.Parallel()
	full, other := files(t), files(t)
	cfg := quick(full.URL, other.URL)
	cfg.Connections = &Connections{}
	f := fetcher(t, cfg)
	mustGet(t, f, "first")
	f.Close() // so that the next needs a new connection
	refuse := 2
	f.proxies[0].client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string,
	) (net.Conn, error) {
		if refuse--; refuse >= 0 {
			l := cfg.Connections.lane(addr)
			l.mu.Lock()
			l.worked = time.Now() // somebody else's request is answered
			l.mu.Unlock()
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	mustGet(t, f, "second")
	if full.Requests("second") != 1 {
		t.Error("a server that was full for a moment was left")
	}
}

func TestFreshConnectionsShrinkAndGrow(t *testing.T) {
	t.Parallel()
	l := &lane{limit: startFresh}
	answer := func(n int) {
		for range n {
			s, _, err := l.enter(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.proved(true)
			s.leave()
		}
	}
	step := func(name string, want int) {
		t.Helper()
		if l.limit != want {
			t.Errorf("%s: limit %d, want %d", name, l.limit, want)
		}
	}
	l.connected(t.Context(), 100*time.Microsecond, nil)
	answer(50)
	step("a near server answers", startFresh)
	l.connected(t.Context(), time.Second, nil)
	step("a slow connect", startFresh/2)
	for range 5 {
		l.connected(t.Context(), 0, syscall.ECONNREFUSED)
	}
	step("refused ones", 1)
	answer(50)
	step("soon afterwards", 1)
	l.hold = time.Now().Add(-time.Second)
	answer(50)
	step("a while afterwards", startFresh)
	l.trip = 20 * time.Millisecond
	answer(50)
	step("a long way", mostFresh)
	if l.busy != 0 || l.fresh != 0 {
		t.Errorf("%d busy, %d fresh, want none", l.busy, l.fresh)
	}
}

func TestWaitForAConnectionEndsWithTheContext(t *testing.T) {
	t.Parallel()
	l := &lane{limit: 1}
	first, _, err := l.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := l.enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	first.leave()
	second, _, err := l.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second.leave()
	if l.busy != 0 || l.fresh != 0 || len(l.waiting) != 0 {
		t.Errorf("left behind: %+v", l)
	}
}

func TestThoseWhoLetOthersPassWaitBehindThem(t *testing.T) {
	t.Parallel()
	l := &lane{limit: 1}
	first, _, err := l.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	var group sync.WaitGroup
	wait := func(name string, ctx context.Context, n int) {
		group.Go(func() {
			s, _, err := l.enter(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			order = append(order, name) // one at a time: the next one enters when this one has left
			s.leave()
		})
		for len(waitingNow(l)) < n {
			time.Sleep(time.Millisecond)
		}
	}
	wait("patient", LetPass(t.Context()), 1)
	wait("patient too", LetPass(t.Context()), 2)
	wait("reader", t.Context(), 3)
	wait("reader too", t.Context(), 4)
	first.leave()
	group.Wait()
	if got, want := strings.Join(order, ", "), "reader, reader too, patient, patient too"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func waitingNow(l *lane) []*waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.waiting)
}
