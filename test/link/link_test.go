package link

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// open makes a link to a server of a body, and returns the relay to it.
func open(t *testing.T, speed Speed, body []byte) *Relay {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write(body) // a client that went away is of no interest
	}))
	t.Cleanup(s.Close)
	l := New(speed)
	r, err := l.Open(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func get(t *testing.T, r *Relay) ([]byte, time.Duration) {
	t.Helper()
	begin := time.Now()
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b, time.Since(begin)
}

func TestALinkPassesAndCountsEverything(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	r := open(t, Speed{}, body)
	for range 2 {
		if b, _ := get(t, r); !bytes.Equal(b, body) {
			t.Errorf("got %d bytes, not those sent", len(b))
		}
	}
	c := r.Count()
	if c.Connections != 2 || c.Down < 2*int64(len(body)) || c.Down > 2*int64(len(body))+1000 || c.Up == 0 {
		t.Errorf("counted %+v of twice %d bytes", c, len(body))
	}
}

// What a link may not be is faster: that it is slower is the machine's doing.
func TestALinkIsNoFasterThanItsSpeed(t *testing.T) {
	const size = 1 << 20
	body := make([]byte, size)
	if _, took := get(t, open(t, Speed{Trip: 50 * time.Millisecond}, body[:1])); took < 100*time.Millisecond {
		t.Errorf("two round trips of 50 ms took %v", took)
	}
	if _, took := get(t, open(t, Speed{Rate: 4 * size}, body)); took < 250*time.Millisecond-slack {
		t.Errorf("a quarter of a second's bytes took %v", took)
	}
}

func TestConnectionsShareALane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lane{rate: 1000}
		time.Sleep(time.Hour) // long idle, which earns nothing but the slack
		begin := time.Now()
		for n := range 3 {
			want := time.Duration(n+1)*100*time.Millisecond - slack
			if got := l.send(100).Sub(begin); got != want {
				t.Errorf("piece %d is sent after %v, want %v", n, got, want)
			}
		}
	})
}

func TestALinkThatIsClosedCutsItsConnections(t *testing.T) {
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	l := New(Speed{})
	r, err := l.Open(far.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes over a closed link", n)
	}
	if _, err := l.Open(far.Addr().String()); err == nil {
		t.Error("a closed link was opened")
	}
}
