package fusewire

import (
	"errors"
	"os"
)

// Session is a file system that this process has mounted and serves for as long as it is mounted: no other process
// takes it over.
type Session struct {
	dir    string
	device *os.File
	ended  chan struct{}
	err    error // of serving, once it has ended
}

// Open mounts the handler's tree on the folder dir and begins to serve it. The outcome of the handshake becomes
// cfg.Init.
func Open(dir string, h Handler, cfg Config) (*Session, error) {
	device, err := Mount(dir)
	if err != nil {
		return nil, err
	}
	if cfg.Init, err = Handshake(device, 0); err != nil {
		return nil, errors.Join(err, Unmount(dir), device.Close())
	}
	s := &Session{dir: dir, device: device, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		s.err = Serve(device, h, cfg)
	}()
	return s, nil
}

// Ended returns a channel that is closed when nothing is served any more, be it that somebody has unmounted it.
func (s *Session) Ended() <-chan struct{} { return s.ended }

// Close unmounts it, waits for the requests under way, whose contexts are cancelled, and returns what serving ended
// with. Where it can't be unmounted it is served on: the device is in use by its number, so it isn't closed.
func (s *Session) Close() error {
	if err := Unmount(s.dir); err != nil {
		return err
	}
	<-s.ended
	return errors.Join(s.err, s.device.Close())
}
