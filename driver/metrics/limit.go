package metrics

import (
	"net"
	"sync"
)

// mostConnections are held at once, so that who may connect can't take the descriptors that containers' reads need.
const mostConnections = 64

// limited is a listener that closes what is more than its connections may be at once.
type limited struct {
	net.Listener
	room chan struct{} // one for each connection
}

func limit(l net.Listener) net.Listener { return &limited{l, make(chan struct{}, mostConnections)} }

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.room <- struct{}{}:
			return &connection{c, sync.OnceFunc(func() { <-l.room })}, nil
		default:
			c.Close() // nothing was sent
		}
	}
}

// connection leaves room for another one when it is closed.
type connection struct {
	net.Conn
	leave func()
}

func (c *connection) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
