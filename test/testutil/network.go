package testutil

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/link"
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

// NewRelay opens a link with a round trip to an address (host and port). It ends with the test.
func NewRelay(t testing.TB, to string, trip time.Duration) *link.Relay {
	t.Helper()
	l := link.New(link.Speed{Trip: trip})
	r, err := l.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return r
}
