package testutil

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// NameServer is a DNS server over UDP that knows some names. It is safe for concurrent use.
type NameServer struct {
	Addr string // host and port

	mu     sync.Mutex
	names  map[string][]netip.Addr
	silent int
	asked  int
}

// NewNameServer starts one. It ends with the test.
func NewNameServer(t testing.TB) *NameServer {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s := &NameServer{Addr: c.LocalAddr().String(), names: map[string][]netip.Addr{}}
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if a := s.answer(b[:n]); a != nil {
				c.WriteTo(a, from) // who asked asks again
			}
		}
	}()
	return s
}

// Set gives a name its addresses; without any the name is unknown.
func (s *NameServer) Set(name string, addrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name] = nil
	for _, a := range addrs {
		s.names[name] = append(s.names[name], netip.MustParseAddr(a))
	}
}

// Silence leaves the next n questions unanswered.
func (s *NameServer) Silence(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = n
}

// Asked is how many questions there were.
func (s *NameServer) Asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// answer makes a reply of a question (RFC 1035, section 4): its header and first question, and the addresses.
func (s *NameServer) answer(q []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked++; len(q) < 17 {
		return nil
	}
	if s.silent > 0 {
		s.silent--
		return nil
	}
	var labels []string
	i := 12
	for i < len(q) && q[i] != 0 {
		end := min(len(q), i+1+int(q[i]))
		labels = append(labels, string(q[i+1:end]))
		i = end
	}
	if i+5 > len(q) {
		return nil
	}
	kind := binary.BigEndian.Uint16(q[i+1:])
	addrs := s.names[strings.ToLower(strings.Join(labels, "."))]
	r := append([]byte(nil), q[:i+5]...)
	r[2], r[3] = 0x84|q[2]&1, 0x80 // an answer, with authority
	if addrs == nil {
		r[3] |= 3 // no such name
	}
	var n uint16
	for _, a := range addrs {
		if a.Is4() != (kind == 1) || kind != 1 && kind != 28 {
			continue
		}
		n++
		raw := a.AsSlice()
		r = append(r, 0xc0, 12) // the name of the question
		r = binary.BigEndian.AppendUint16(r, kind)
		r = append(r, 0, 1, 0, 0, 0, 0) // class, seconds to live
		r = binary.BigEndian.AppendUint16(r, uint16(len(raw)))
		r = append(r, raw...)
	}
	binary.BigEndian.PutUint16(r[6:], n)
	clear(r[8:12])
	return r
}
