// Package link is a network in a process: TCP relays on loopback that are as slow as a link is, and count what passes.
//
// All relays of a link share its bandwidth, each way by itself, as the connections of one host do. A byte takes half of
// the round trip to the other end, and a connection begins with a whole one, as its handshake takes. What real networks
// have besides is missing: slow start, loss, congestion, and windows that are too small for the link.
package link

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Speed is what a link is like. The zero value is as fast as loopback.
type Speed struct {
	Rate int64         // bytes a second, each way; 0 for no limit
	Trip time.Duration // the round trip: there and back
}

// Count is what passed a relay.
type Count struct {
	Connections int
	Up, Down    int64 // bytes to the other end and from it, those of HTTP headers among them
}

// Sub is what passed since an earlier count.
func (c Count) Sub(earlier Count) Count {
	return Count{c.Connections - earlier.Connections, c.Up - earlier.Up, c.Down - earlier.Down}
}

// Link is a link. Close it.
type Link struct {
	speed    Speed
	up, down lane

	mu     sync.Mutex
	open   map[net.Conn]bool
	relays []*Relay
	closed bool
	served sync.WaitGroup
}

// New returns a link that leads nowhere yet.
func New(speed Speed) *Link {
	return &Link{speed: speed, up: lane{rate: speed.Rate}, down: lane{rate: speed.Rate}, open: map[net.Conn]bool{}}
}

// Relay is an address that leads over a link to another.
type Relay struct {
	Addr string // host and port, on loopback

	link        *Link
	to          string
	listener    net.Listener
	connections atomic.Int64
	up, down    atomic.Int64
}

// Open makes an address that leads to another one (host and port).
func (l *Link) Open(to string) (*Relay, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{Addr: listener.Addr().String(), link: l, to: to, listener: listener}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.Join(net.ErrClosed, listener.Close())
	}
	l.relays = append(l.relays, r)
	l.served.Go(r.serve)
	return r, nil
}

// Count gives what passed up to now.
func (r *Relay) Count() Count {
	return Count{int(r.connections.Load()), r.up.Load(), r.down.Load()}
}

// Close ends the link's relays and their connections.
func (l *Link) Close() error {
	l.mu.Lock()
	l.closed = true
	var failures []error
	for _, r := range l.relays {
		failures = append(failures, r.listener.Close())
	}
	for c := range l.open {
		c.Close() // what it still had to send is lost, as on any line that is cut
	}
	l.mu.Unlock()
	l.served.Wait()
	return errors.Join(failures...)
}

// hold has Close end a connection; it reports whether the link is still there. drop is its end.
func (l *Link) hold(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.open[c] = true
	return true
}

func (l *Link) drop(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, c)
	c.Close()
}

func (r *Relay) serve() {
	for {
		c, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.connections.Add(1)
		r.link.served.Go(func() { r.connect(c) })
	}
}

// connect carries a connection until both its ends have closed it.
func (r *Relay) connect(near net.Conn) {
	defer r.link.drop(near)
	if !r.link.hold(near) {
		return
	}
	time.Sleep(r.link.speed.Trip)
	far, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer r.link.drop(far)
	if !r.link.hold(far) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { r.carry(far, near, &r.link.up, &r.up) })
	both.Go(func() { r.carry(near, far, &r.link.down, &r.down) })
	both.Wait()
}

// Sizes of what is carried together, and of what may be on the way in a connection: 4 MiB, more than the links that are
// measured hold.
const (
	pieceSize = 16 << 10
	pieces    = 256
)

// piece is a part of what is on the way, due at the other end at a time.
type piece struct {
	bytes []byte
	due   time.Time
}

// carry passes on what it reads, by a lane of the link. Reading goes on while pieces are on the way.
func (r *Relay) carry(to, from net.Conn, lane *lane, count *atomic.Int64) {
	way := make(chan piece, pieces)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(way)
		for {
			b := make([]byte, pieceSize)
			n, err := from.Read(b)
			if n > 0 {
				count.Add(int64(n))
				sent := lane.send(n)
				pause(sent)
				way <- piece{b[:n], sent.Add(r.link.speed.Trip / 2)}
			}
			if err != nil {
				return
			}
		}
	})
	for p := range way {
		pause(p.due)
		if _, err := to.Write(p.bytes); err != nil {
			from.Close() // nobody wants the rest
			break
		}
	}
	for range way { // so that the reader ends
	}
	reader.Wait()
	if c, ok := to.(*net.TCPConn); ok {
		c.CloseWrite() // gone already: no matter
	}
}

// pause waits until then, or nearly so: each sleep costs processor time, of which a small machine has little. A lane is
// no faster for it, as it reckons by when pieces should have been sent.
func pause(until time.Time) {
	if d := time.Until(until); d > slack/8 {
		time.Sleep(d)
	}
}

// lane is one direction of a link.
type lane struct {
	rate int64
	mu   sync.Mutex
	free time.Time // when all that was given to it will have been sent
}

// slack is how much the lane makes up for being late: sleeps take longer than they are told to.
const slack = 2 * time.Millisecond

// send returns when so many bytes more have been sent.
func (l *lane) send(n int) time.Time {
	now := time.Now()
	if l.rate == 0 {
		return now
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if late := now.Add(-slack); l.free.Before(late) {
		l.free = late
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	return l.free
}
