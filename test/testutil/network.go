package testutil

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Listen listens on an address with a backlog of so many connections, which the standard library doesn't let one
// choose. What exceeds it is dropped, and clients repeat it after a second.
func Listen(t testing.TB, ip string, backlog int) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if ctl := raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), backlog) }); ctl != nil || err != nil {
		t.Fatal(ctl, err)
	}
	return l
}

// ClosedAddress is an address, host and port, that refuses connections.
func ClosedAddress(t testing.TB, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// LostAddress is an address to which connecting never ends, as behind a firewall that drops packets.
func LostAddress(t testing.TB) string {
	t.Helper()
	addr := Listen(t, "127.0.0.1", 0).Addr().String()
	for range 8 { // until its queue is full
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("a full queue still takes connections")
	return ""
}

// Relay is a TCP relay that adds latency: each direction holds every byte back for half of the round trip, and a
// connection begins with a whole one, as its handshake takes.
type Relay struct {
	Addr string // host and port

	to   string
	trip time.Duration
	n    atomic.Int64
}

// Accepted is how many connections there were.
func (r *Relay) Accepted() int { return int(r.n.Load()) }

// NewRelay relays to an address (host and port). It ends with the test.
func NewRelay(t testing.TB, to string, trip time.Duration) *Relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{Addr: l.Addr().String(), to: to, trip: trip}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.n.Add(1)
			go r.serve(c)
		}
	}()
	t.Cleanup(func() { l.Close() })
	return r
}

func (r *Relay) serve(c net.Conn) {
	defer c.Close()
	time.Sleep(r.trip)
	s, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer s.Close()
	done := make(chan struct{}, 2)
	for _, ends := range [][2]net.Conn{{c, s}, {s, c}} {
		go func() {
			r.copy(ends[1], ends[0])
			ends[1].(*net.TCPConn).CloseWrite() // gone already: no matter
			done <- struct{}{}
		}()
	}
	<-done
	<-done
}

// copy passes on what it reads, half a round trip later. Reading goes on meanwhile.
func (r *Relay) copy(to io.Writer, from io.Reader) {
	type piece struct {
		bytes []byte
		due   time.Time
	}
	pieces := make(chan piece, 1024)
	go func() {
		defer close(pieces)
		for {
			b := make([]byte, 32<<10)
			n, err := from.Read(b)
			if n > 0 {
				pieces <- piece{b[:n], time.Now().Add(r.trip / 2)}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.bytes); err != nil {
			break
		}
	}
	for range pieces { // so that the reader ends
	}
}
