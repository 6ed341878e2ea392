package registry

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// busy answers the first requests with a status and a header, and then with what was sent.
type busy struct {
	status, times int
	header        map[string]string
	asked         int
	bodies        []string
}

func (b *busy) RoundTrip(r *http.Request) (*http.Response, error) {
	sent := ""
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		sent = string(body)
	}
	b.asked++
	b.bodies = append(b.bodies, sent)
	w := httptest.NewRecorder()
	for k, v := range b.header {
		w.Header().Set(k, v)
	}
	if b.asked <= b.times {
		w.WriteHeader(b.status)
	}
	return w.Result(), nil
}

func TestLaterIsHeeded(t *testing.T) {
	day := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for what, c := range map[string]struct {
		status int
		header map[string]string
		asked  int
		least  time.Duration
	}{
		"429 with seconds": {429, map[string]string{"Retry-After": "1"}, 3, 2 * time.Second},
		"429 at once":      {429, map[string]string{"Retry-After": "0"}, 3, 300 * time.Millisecond},
		"429 with a time": {
			429,
			map[string]string{
				"Retry-After": day.Add(time.Second).Format(http.TimeFormat),
				"Date":        day.Format(http.TimeFormat),
			},
			3, 2 * time.Second,
		},
		"429 with a time gone by": {
			429,
			map[string]string{"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"},
			3,
			300 * time.Millisecond,
		},
		"429 without a time": {429, nil, 3, 3 * time.Second},
		"429 with nonsense":  {429, map[string]string{"Retry-After": "soon"}, 3, 3 * time.Second},
		"503 with seconds":   {503, map[string]string{"Retry-After": "1"}, 3, 2 * time.Second},
		"503 without":        {503, nil, 1, 0},
		"429 much later":     {429, map[string]string{"Retry-After": "3600"}, 1, 0},
		"429 later than anyone says": {
			429,
			map[string]string{"Retry-After": "99999999999999999999"},
			3,
			3 * time.Second,
		},
		"404 with seconds": {404, map[string]string{"Retry-After": "1"}, 1, 0},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b := &busy{status: c.status, times: 2, header: c.header}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://r.example.org/v2/",
				strings.NewReader("sent"))
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			answer, err := patient{b, patience}.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			took := time.Since(begin)
			if b.asked != c.asked || took < c.least || (answer.StatusCode == http.StatusOK) != (c.asked == 3) {
				t.Errorf("asked %d times, want %d; %v, want %v; status %d", b.asked, c.asked, took, c.least,
					answer.StatusCode)
			}
			for _, body := range b.bodies {
				if body != "sent" {
					t.Errorf("sent %q", body)
				}
			}
		})
	}
}

func TestPatienceEnds(t *testing.T) {
	b := &busy{status: 429, times: 1 << 30, header: map[string]string{"Retry-After": "0"}}
	r := httptest.NewRequest(http.MethodGet, "https://r.example.org/v2/", nil)
	answer, err := patient{b, time.Second}.RoundTrip(r)
	if err != nil || answer.StatusCode != http.StatusTooManyRequests || b.asked > 5 {
		t.Errorf("%d times, %v, %v", b.asked, answer, err)
	}
	unseen, err := http.NewRequest(http.MethodPut, "https://r.example.org/v2/",
		io.MultiReader(strings.NewReader("once")))
	if err != nil {
		t.Fatal(err)
	}
	b = &busy{status: 429, times: 1}
	if answer, err := (patient{b, time.Minute}).RoundTrip(unseen); err != nil ||
		answer.StatusCode != http.StatusTooManyRequests || b.asked != 1 {
		t.Errorf("what can't be read again was sent %d times: %v", b.asked, err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("interrupted"))
	defer cancel()
	b = &busy{status: 429, times: 1, header: map[string]string{"Retry-After": "100"}}
	if _, err := (patient{b, time.Hour}).RoundTrip(r.WithContext(ctx)); err == nil || err.Error() != "interrupted" {
		t.Errorf("%v", err)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	var made atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request,
	) {
		io.WriteString(w, "{}")
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			made.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	ask := func(o Options) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := o.Transport().RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
	}
	var kept Connections
	for range 5 {
		ask(Options{Connections: &kept})
	}
	if n := made.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	ask(Options{Connections: &kept, Insecure: true}) // what wasn't checked is not used for what is
	ask(Options{Connections: &kept})
	if n := made.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}
