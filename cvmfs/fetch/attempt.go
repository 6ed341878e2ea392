package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// outcome is how an attempt ended. The package comment says which leads to what.
type outcome int

const (
	delivered   outcome = iota
	stopped             // by the caller: its context ended, or its sink failed of itself
	missing             // the server answered 404
	corrupt             // the sink refused the body
	hostFault           // the server answered that it can't
	proxyFault          // the proxy answered that it can't
	short               // the body ended early
	broken              // the transfer ended with an error
	dead                // nothing moved for the route's timeout, or too little
	unreachable         // no connection
)

// String is the outcome in the log.
func (o outcome) String() string {
	return [...]string{
		"delivered", "stopped", "missing", "corrupt", "server fault", "proxy fault", "short", "broken", "dead",
		"unreachable",
	}[o]
}

// answer tells the outcomes by which the server, as it seems, said something of the file.
func (o outcome) answer() bool { return o == missing || o == corrupt || o == hostFault }

// transfer tells the outcomes for which there was no whole answer.
func (o outcome) transfer() bool { return o >= short }

// presumedProxy tells the outcomes that are laid at a proxy's door where there is one.
func (o outcome) presumedProxy() bool { return o >= proxyFault }

// hard tells the outcomes that cost time: they start a cool-down.
func (o outcome) hard() bool { return o >= dead }

// attempt makes one exchange on the route.
func (f *Fetcher) attempt(ctx context.Context, r route, s *slot, w *walk,
	sink func(io.Reader) error,
) (outcome, error) {
	defer s.leave()
	if err := context.Cause(ctx); err != nil {
		return stopped, fmt.Errorf("fetch %s: %w", w.path, err)
	}
	path := w.path
	if w.only != nil {
		path = strings.Replace(path, geoProxy, f.asks(r.proxy), 1)
	}
	u := r.server.url(path)
	e := &Error{Proxy: r.proxy.name}
	out, began := stopped, time.Now()
	defer func() {
		took := time.Since(began)
		r.server.ended(out, took)
		r.proxy.ended(out, took)
	}()
	switch {
	case r.proxy.err != nil:
		out, e.Err = unreachable, r.proxy.err
	case r.server.file:
		r.answered(0)
		out, e.Err = f.readFile(ctx, u.Path, w.request, sink)
	default:
		out, e.Status, e.Err = f.exchange(ctx, r, u, s, w, sink)
	}
	switch out {
	case delivered:
		return out, nil
	case stopped:
		if err := context.Cause(ctx); err != nil {
			return out, fmt.Errorf("fetch %s: %w", w.path, err)
		}
		return out, e.Err
	}
	e.URL = redact(u)
	f.log.Debug("attempt failed", slog.String("path", w.path), slog.String("server", r.server.name),
		slog.String("proxy", r.proxy.name), slog.String("outcome", out.String()),
		slog.Duration("after", time.Since(w.began)), slog.Any("err", e.Err))
	return out, e
}

// exchange sends a request and deals with the answer.
func (f *Fetcher) exchange(ctx context.Context, r route, u *url.URL, s *slot, w *walk,
	sink func(io.Reader) error,
) (outcome, int, error) {
	limited, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m := newMeter(r.proxy.timeout, f.cfg.LowSpeedLimit, cancel)
	defer m.timer.Stop()
	var remote net.Addr
	trace := &httptrace.ClientTrace{
		GotConn: func(c httptrace.GotConnInfo) {
			m.timer.Reset(r.proxy.timeout)
			remote = c.Conn.RemoteAddr()
			if c.Reused {
				s.proved(false)
			}
		},
		GotFirstResponseByte: func() { s.proved(true) },
	}
	req := (&http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{}}).
		WithContext(httptrace.WithClientTrace(limited, trace))
	f.setHeader(req.Header, w)
	resp, err := r.proxy.client.Do(req)
	m.timer.Stop()
	if err != nil {
		if ctx.Err() != nil {
			return stopped, 0, ctx.Err()
		}
		out, err := transferOutcome(limited, err)
		f.avoid(r, remote)
		return out, 0, err
	}
	defer resp.Body.Close()
	r.answered(time.Since(w.began))
	m.body = resp.Body
	defer func() { f.bytes.Add(m.total) }()
	want := http.StatusOK
	if w.request.Length > 0 {
		want = http.StatusPartialContent
	}
	if resp.StatusCode != want {
		limit := time.AfterFunc(r.proxy.timeout, func() { cancel(nil) }) // also where slow transfers are allowed
		defer limit.Stop()
		io.CopyN(io.Discard, m, 16<<10) // as much as keeps the connection usable: an error here changes nothing
		out, err := refusal(resp, r.proxy)
		return out, resp.StatusCode, err
	}
	m.whole = func() {
		s.leave() // the sink may have to fetch something else
		f.arrived(r, w)
	}
	out, err := m.deliver(ctx, limited, sink)
	if out.transfer() {
		f.avoid(r, remote)
	}
	return out, 0, err
}

// maxInfo is how long the header cvmfs-info may be, in bytes. Servers take no header of any length.
const maxInfo = 4 << 10

// setHeader says how a request is to be answered, and what it is for. What a publisher has chosen is in it only as
// escape leaves it: nothing of that ends a line.
func (f *Fetcher) setHeader(h http.Header, w *walk) {
	h.Set("User-Agent", f.cfg.UserAgent)
	if w.noCache {
		h.Set("Pragma", "no-cache")
		h.Set("Cache-Control", "no-cache")
	}
	if r := w.request; r.Length > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", r.Offset, r.Offset+r.Length-1))
	}
	if f.cfg.TellInfo && w.request.Info != "" {
		if info := escape(w.request.Info); len(info) <= maxInfo {
			h["cvmfs-info"] = []string{info} // spelt as the CernVM-FS client does
		}
	}
}

// avoid has the next connection to a server go to another of its addresses, if it has one.
func (f *Fetcher) avoid(r route, addr net.Addr) {
	tcp, ok := addr.(*net.TCPAddr)
	if ok && r.proxy.direct() && f.names.failed(r.server.base.Hostname(), tcp.AddrPort().Addr().Unmap()) {
		r.proxy.client.CloseIdleConnections()
	}
}

// deliver runs the sink and tells whose fault its failure is.
func (m *meter) deliver(ctx, limited context.Context, sink func(io.Reader) error) (outcome, error) {
	err := sink(m)
	switch {
	case err == nil && m.err == nil:
		return delivered, nil
	case ctx.Err() != nil:
		return stopped, ctx.Err()
	case errors.Is(m.err, io.ErrUnexpectedEOF):
		return short, errShort
	case m.err != nil:
		return transferOutcome(limited, m.err)
	case errors.Is(err, ErrBadData):
		return corrupt, err
	}
	return stopped, err
}

// transferOutcome classifies an error of the transport's.
func transferOutcome(limited context.Context, err error) (outcome, error) {
	err = cause(err)
	if slow := context.Cause(limited); slow != nil {
		return dead, slow
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == "dial" || op.Op == "proxyconnect") {
		return unreachable, err
	}
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
		return dead, err
	}
	return broken, err
}

// refusal classifies an answer other than 200.
func refusal(resp *http.Response, p *proxy) (outcome, error) {
	err := errors.New(strings.ToLower(http.StatusText(resp.StatusCode)))
	code := resp.StatusCode
	if code == http.StatusOK {
		return hostFault, errors.New("it gives the whole file instead of a part")
	}
	other := proxyFault
	if p.direct() {
		other = hostFault
	}
	switch squid, status := resp.Header.Get("X-Squid-Error"), resp.Header.Get("Proxy-Status"); {
	case squid != "":
		return other, fmt.Errorf("%w (squid: %.80q)", err, squid)
	case strings.Contains(status, "error="):
		return other, fmt.Errorf("%w (proxy: %.80q)", err, status)
	case code == http.StatusNotFound:
		return missing, errMissing
	case code >= 500, code == http.StatusBadRequest, code == http.StatusTooManyRequests:
		return hostFault, err
	case code >= 300 && code < 400:
		return other, fmt.Errorf("%w: redirects are not followed (CVMFS_FOLLOW_REDIRECTS=yes allows them)", err)
	}
	return other, err
}

// readFile is an exchange with a folder.
func (f *Fetcher) readFile(ctx context.Context, name string, r Request, sink func(io.Reader) error) (outcome, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a fifo must not hold us
	if errors.Is(err, fs.ErrNotExist) {
		return missing, errMissing
	}
	if err != nil {
		return hostFault, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return hostFault, errors.Join(errors.New("not a regular file"), err)
	}
	m := &meter{body: file, file: true}
	if r.Length > 0 {
		m.body = io.NewSectionReader(file, r.Offset, r.Length)
	}
	err = sink(m)
	f.bytes.Add(m.total)
	switch {
	case err == nil && m.err == nil:
		return delivered, nil
	case ctx.Err() != nil:
		return stopped, ctx.Err()
	case m.err != nil:
		return hostFault, m.err
	case errors.Is(err, ErrBadData):
		return corrupt, err
	}
	return stopped, err
}

// meter is a body that ends with an error when it comes too slowly. Only time spent waiting for the network counts, not
// what the reader does in between.
type meter struct {
	body  io.Reader
	file  bool   // no limits
	whole func() // called at the body's end; may be nil
	err   error
	total int64

	timer  *time.Timer // cancels the exchange when nothing at all arrives for a window; at first, for three
	cancel context.CancelCauseFunc
	window time.Duration
	limit  int64         // bytes that must arrive in a window
	spent  time.Duration // of the present window
	n      int64         // bytes in the present window
}

func newMeter(window time.Duration, bytesPerSecond int64, cancel context.CancelCauseFunc) *meter {
	m := &meter{window: window, cancel: cancel}
	if bytesPerSecond > 0 {
		m.limit = int64(max(1, window.Seconds()*float64(bytesPerSecond)))
	}
	// Connecting has limits of its own, one for each of its steps; this is for what falls between them.
	m.timer = time.AfterFunc(3*window,
		func() { cancel(fmt.Errorf("%w: no answer, or none that went on, within %v", errSlow, window)) })
	return m
}

func (m *meter) Read(p []byte) (int, error) {
	if m.file {
		n, err := m.body.Read(p)
		return m.record(n, err)
	}
	start := time.Now()
	m.timer.Reset(m.window)
	n, err := m.body.Read(p)
	m.timer.Stop()
	m.spent += time.Since(start)
	m.n += int64(n)
	if m.spent >= m.window {
		if m.n < m.limit && err == nil {
			err = fmt.Errorf("%w: %d bytes in %v", errSlow, m.n, m.spent.Round(time.Millisecond))
			m.cancel(err)
		}
		m.spent, m.n = 0, 0
	}
	return m.record(n, err)
}

func (m *meter) record(n int, err error) (int, error) {
	m.total += int64(n)
	switch {
	case err == nil:
	case !errors.Is(err, io.EOF):
		m.err = err
	case m.whole != nil:
		m.whole()
		m.whole = nil
	}
	return n, err
}
