package testutil

import (
	"cmp"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fault says how a Faulty server misbehaves. The zero value is no fault. Several may be combined.
type Fault struct {
	Path    string        // only requests whose path contains this; "" is all
	Times   int           // only so many requests; 0 is all
	Each    int           // only each so manieth request of all; 0 is each
	Latency time.Duration // before anything is answered
	Refuse  bool          // the connection is closed without an answer
	Status  int           // answered instead of the file
	Body    string        // of that answer; "": the status's name
	Header  http.Header   // added to the answer
	Silent  bool          // no answer at all, till the client goes away
	// the body stops after so many bytes, till the client goes away; < 0: at once, after the header
	Stall int64
	Cut   int64  // the connection is closed after so many bytes of the body; < 0: at once, after the header
	Flip  bool   // the lowest bit of the body's last byte is wrong
	Extra string // follows the body
	// the body never ends, of no announced length
	Endless bool
	Bytes   int           // the body comes in pieces of so many bytes …
	Every   time.Duration // … with such a pause after each
	Cached  bool          // a broken cache: a request that says Cache-Control: no-cache is answered properly
}

// Faulty is an HTTP server that does what a Fault says, and counts. It is safe for concurrent use.
type Faulty struct {
	URL string

	handler http.Handler
	server  *httptest.Server
	mu      sync.Mutex
	faults  []Fault
	log     []*http.Request
	now, at int // requests under way: present, most
	gone    chan struct{}
	closing sync.Once
}

// NewFaulty serves what h does. It closes with the test.
func NewFaulty(t testing.TB, h http.Handler) *Faulty { return NewFaultyAt(t, "127.0.0.1:0", h) }

// NewFaultyAt does it at an address, host and port.
func NewFaultyAt(t testing.TB, addr string, h http.Handler) *Faulty {
	t.Helper()
	s := &Faulty{handler: h, gone: make(chan struct{})}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: s}}
	s.server.Start()
	s.URL = s.server.URL
	t.Cleanup(s.Close)
	return s
}

// Close ends the server at once, so that nobody can connect to it any more.
func (s *Faulty) Close() {
	s.closing.Do(func() {
		close(s.gone)
		s.server.CloseClientConnections()
		s.server.Close()
	})
}

// Set replaces the faults. Of several the first that fits a request applies.
func (s *Faulty) Set(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = faults
}

// Requests counts the requests whose path contains the text, from the start.
func (s *Faulty) Requests(path string) int {
	n := 0
	for _, r := range s.Log() {
		if strings.Contains(r.URL.Path, path) {
			n++
		}
	}
	return n
}

// Log returns the requests so far, in order. Their bodies are gone.
func (s *Faulty) Log() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*http.Request(nil), s.log...)
}

// MostAtOnce is the largest number of requests that were under way at once.
func (s *Faulty) MostAtOnce() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

// ServeHTTP answers one request.
func (s *Faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := s.begin(r)
	defer s.end()
	maps.Copy(w.Header(), f.Header)
	switch {
	case f.Latency > 0 && !s.pause(r, f.Latency):
		return
	case f.Refuse:
		panic(http.ErrAbortHandler)
	case f.Silent:
		s.hang(r)
		return
	case f.Endless:
		for r.Context().Err() == nil {
			w.Write(make([]byte, 32<<10)) // a client that has gone is no matter
		}
		return
	case f.Status != 0:
		http.Error(w, cmp.Or(f.Body, http.StatusText(f.Status)), f.Status)
		return
	case f.Stall == 0 && f.Cut == 0 && !f.Flip && f.Extra == "" && f.Bytes == 0:
		s.handler.ServeHTTP(w, r)
		return
	}
	s.spoil(w, r, f)
}

// begin notes a request and gives the fault it meets.
func (s *Faulty) begin(r *http.Request) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, r)
	s.now++
	s.at = max(s.at, s.now)
	for i, f := range s.faults {
		if !strings.Contains(r.URL.Path, f.Path) || f.Times < 0 ||
			f.Each > 0 && len(s.log)%f.Each != 0 || f.Cached && r.Header.Get("Cache-Control") == "no-cache" {
			continue
		}
		if f.Times > 0 {
			if s.faults[i].Times--; s.faults[i].Times == 0 {
				s.faults[i].Times = -1 // used up
			}
		}
		return f
	}
	return Fault{}
}

func (s *Faulty) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now--
}

// spoil answers with a body that is not what the handler made.
func (s *Faulty) spoil(w http.ResponseWriter, r *http.Request, f Fault) {
	rec := httptest.NewRecorder()
	s.handler.ServeHTTP(rec, r)
	body := append([]byte(nil), rec.Body.Bytes()...)
	if f.Flip && len(body) > 0 {
		body[len(body)-1] ^= 1
	}
	body = append(body, f.Extra...)
	maps.Copy(w.Header(), rec.Result().Header)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(rec.Code)
	flush := http.NewResponseController(w)
	write := func(b []byte) {
		w.Write(b) // a client that has gone is no matter
		flush.Flush()
	}
	switch {
	case f.Stall != 0:
		write(body[:min(int64(len(body)), max(0, f.Stall))])
		s.hang(r)
	case f.Cut != 0:
		write(body[:min(int64(len(body)), max(0, f.Cut))])
		panic(http.ErrAbortHandler)
	case f.Bytes > 0:
		for len(body) > 0 {
			n := min(len(body), f.Bytes)
			write(body[:n])
			if body = body[n:]; !s.pause(r, f.Every) {
				return
			}
		}
	default:
		write(body)
	}
}

// pause waits, unless client or server goes.
func (s *Faulty) pause(r *http.Request, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
	case <-s.gone:
	}
	return false
}

// hang waits till client or server goes.
func (s *Faulty) hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-s.gone:
	}
}
