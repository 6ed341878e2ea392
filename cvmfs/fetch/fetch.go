package fetch

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config says where a repository's files come from. Zero durations and limits take the defaults named, those of the
// CernVM-FS client's packaged configuration; negative ones are none: no limit, no pause.
type Config struct {
	Servers []string // base URLs in order of preference: http, https or file; at least one
	// groups of URLs or "DIRECT", or Discover alone; none at all means DIRECT. http:// is added where no scheme is given
	Proxies         [][]string
	Auto            Auto          // how the group Discover is found
	Timeout         time.Duration // for connecting, and without progress, through a proxy; 5 s; none is 5 min
	TimeoutDirect   time.Duration // the same without a proxy; 10 s; none is 5 min
	LowSpeedLimit   int64         // bytes/s; 1024
	MaxRetries      int           // further attempts of one request after transfers failed; 0 is none
	BackoffInit     time.Duration // longest wait before the first retry, and the first cool-down; 2 s
	BackoffMax      time.Duration // no back-off and no cool-down is longer; 10 s
	ProxyResetAfter time.Duration // a failed proxy regains its place after this; 0: only when others fail
	HostResetAfter  time.Duration // a failed server regains its place after this; 0: only when others fail
	FollowRedirects bool          // up to four; otherwise a redirect is an error
	Names           Names         // how names become addresses
	Geo             Geo           // whether servers, and those of External, are sorted by geography
	MaxServers      int           // so many servers are used, after they are sorted; 0: all
	Shard           bool          // each file has its proxy of a group, so that together they hold more
	Persistent      bool          // servers that can't be reached are tried until the caller gives up
	Authorities     Authorities   // of https servers
	Connections     *Connections  // shared with other Fetchers; nil: not shared
	UserAgent       string        // product and version, as servers' logs have it; "" is cvmfs-graphdriver
	TellInfo        bool          // requests have the header cvmfs-info, with Request.Info
	External        *Config       // where external files come from; nil: from nowhere
	Log             *slog.Logger

	coolDown, coolDownMax time.Duration // of whoever didn't answer within its time
}

// Fetcher gets files of one repository. It is safe for concurrent use.
type Fetcher struct {
	cfg   Config
	log   *slog.Logger
	all   []*server // in the order of the configuration
	local []*proxy  // the one "proxy" of file servers
	names *names

	configured [][]*member        // groups of proxies in order of preference; nil: one that is to be found
	discovers  bool               // there is one to be found
	found      map[string]*member // what was found last

	authorities *x509.CertPool // nil: the system's

	external *Fetcher // nil: there is none

	locator *Fetcher      // whose servers are asked for the geographic order
	whoami  string        // the name of this host for the geographic order
	sorting chan struct{} // holds a token while somebody asks for that
	sorted  atomic.Bool   // there is an order, be it the configured one
	sortDue atomic.Int64  // when it is to be asked for, in Unix nanoseconds

	mu        sync.Mutex    // guards what follows, and the health of servers and proxies
	servers   []*server     // in order of preference
	proxies   []*proxy      // in order of preference; nil: not resolved yet
	due       time.Time     // when names of proxies are to be resolved again; zero: never
	resolving chan struct{} // closed when that is done; nil: nobody does it

	bytes, retries, refused atomic.Int64 // what no server's count has

	failovers struct{ servers, proxies atomic.Int64 }
}

// Stats count since the Fetcher was made.
type Stats struct {
	Requests    int64 // attempts made
	Bytes       int64 // body bytes received
	Failures    int64 // attempts that failed, for whatever reason but the caller's
	Retries     int64 // attempts made again on the same route
	NotFound    int64 // answers 404
	BadData     int64 // bodies that were short or that the caller refused
	Unavailable int64 // calls of Get that found no route to try
}

// New makes a Fetcher. It makes no connection.
func New(cfg Config) (*Fetcher, error) {
	cfg.defaults()
	f := &Fetcher{
		cfg: cfg, log: cfg.Log, names: newNames(cfg.Names), sorting: make(chan struct{}, 1), whoami: randomName(),
	}
	for _, s := range cfg.Servers {
		srv, err := newServer(s)
		if err != nil {
			return nil, err
		}
		f.all = append(f.all, srv)
	}
	if len(f.all) == 0 {
		return nil, fmt.Errorf("fetch: no server: set CVMFS_SERVER_URL")
	}
	f.arrange(nil)
	f.sortBy(f)
	var err error
	if f.authorities, err = cfg.Authorities.pool(); err != nil {
		f.log.Warn("certificate authorities can't be read: https servers that need them will fail", slog.Any("err", err))
	}
	if err := f.setProxies(cfg.Proxies); err != nil {
		return nil, err
	}
	f.local = []*proxy{f.newProxy(&member{}, netip.Addr{})}
	if cfg.External != nil {
		if f.external, err = New(*cfg.External); err != nil {
			return nil, fmt.Errorf("external files: %w", err)
		}
		f.external.sortBy(f)
	}
	return f, nil
}

// longest is what no limit means for a wait for the network: curl's own limit for connecting.
const longest = 5 * time.Minute

func (c *Config) defaults() {
	setDefault(&c.Timeout, 5*time.Second, longest)
	setDefault(&c.TimeoutDirect, 10*time.Second, longest)
	setDefault(&c.LowSpeedLimit, 1024, 0)
	setDefault(&c.BackoffMax, 10*time.Second, 0)
	setDefault(&c.BackoffInit, min(2*time.Second, c.BackoffMax), 0)
	c.BackoffInit = min(c.BackoffInit, c.BackoffMax)
	// Who doesn't answer isn't asked for each file, even where retries are to have no pause.
	c.coolDown = cmp.Or(c.BackoffInit, time.Second)
	c.coolDownMax = max(c.BackoffMax, c.coolDown)
	if c.UserAgent == "" {
		c.UserAgent = "cvmfs-graphdriver"
	}
	if c.Connections == nil {
		c.Connections = &Connections{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// setDefault replaces what isn't set, and what is negative by none.
func setDefault[T time.Duration | int64](v *T, d, none T) {
	switch {
	case *v == 0:
		*v = d
	case *v < 0:
		*v = none
	}
}

// lane is the connections that a route uses; nil: none.
func (f *Fetcher) lane(r route) *lane {
	switch {
	case r.server.file, r.proxy.err != nil:
		return nil
	case r.proxy.direct():
		return f.cfg.Connections.lane(net.JoinHostPort(r.server.base.Hostname(), port(r.server.base)))
	}
	return f.cfg.Connections.lane(r.proxy.addr)
}

// server is one base URL.
type server struct {
	health
	count
	base *url.URL
	name string // the base URL as it may be printed
	file bool
}

func newServer(spec string) (*server, error) {
	u, err := url.Parse(strings.TrimRight(spec, "/"))
	if err != nil {
		return nil, fmt.Errorf("fetch: server URL %s: %w", hideCredentials(spec), cause(err))
	}
	s := &server{base: u, name: redact(u), file: u.Scheme == "file"}
	switch {
	case u.Scheme != "http" && u.Scheme != "https" && !s.file:
		return nil, fmt.Errorf("fetch: server URL %s: want http://, https:// or file://", s.name)
	case s.file && (u.Host != "" || u.Path == ""), !s.file && u.Host == "":
		return nil, fmt.Errorf("fetch: server URL %s: want http://HOST/PATH or file:///PATH", s.name)
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("fetch: server URL %s: must have no ? and no #", s.name)
	}
	return s, nil
}

// url is the address of path on the server.
func (s *server) url(path string) *url.URL {
	u := *s.base
	u.RawPath = u.EscapedPath() + "/" + escape(path)
	u.Path += "/" + path
	return &u
}

// Get gets the file path (relative to the servers' base URLs) and hands its body to sink. When an attempt fails
// half-way, sink is called afresh with the body of the next. It must read to the end of the body. An error of sink's
// that wraps ErrBadData makes Get ask again, first once past all caches and then other servers; any other error of
// sink's ends Get and is returned as it is.
//
// Errors: fs.ErrNotExist when all servers answered 404; ErrUnavailable when none delivered and at least one could not
// be asked; ErrBadData when a server sent nothing better; context errors. The details are in values of type *Error.
func (f *Fetcher) Get(ctx context.Context, path string, sink func(io.Reader) error) error {
	return f.Do(ctx, Request{Path: path}, sink)
}

// Request says what is to be fetched.
type Request struct {
	Path string // relative to the servers' base URLs
	Info string // what it is for, where Config.TellInfo has servers told
	// Offset and Length are which bytes of the file; Length 0 is all.
	Offset, Length int64
}

// Do is Get for a part of a file, or for one whose purpose is known. Bytes a server doesn't give by themselves are an
// error of that server.
func (f *Fetcher) Do(ctx context.Context, r Request, sink func(io.Reader) error) error {
	path := r.Path
	if !inside(path) {
		return fmt.Errorf("fetch %.200q: not a path inside a repository", path)
	}
	if err := f.resolve(ctx); err != nil {
		return fmt.Errorf("fetch %s: %w", path, err)
	}
	if time.Now().UnixNano() >= f.sortDue.Load() {
		if err := f.sort(ctx); err != nil {
			return fmt.Errorf("fetch %s: %w", path, err)
		}
	}
	return f.walk(ctx, &walk{path: path, request: r}, sink)
}

// inside reports whether a path leads to a file below a server's base URL. Its names are any bytes, as a repository's
// are.
func inside(path string) bool {
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." {
			return false
		}
	}
	return strings.IndexByte(path, 0) < 0
}

// ErrNoExternal means that no server of external files is known.
var ErrNoExternal = errors.New("it is external, outside the repository's object store, and no server of external " +
	"files is configured: set CVMFS_EXTERNAL_URL")

// External is where external files come from.
func (f *Fetcher) External() (*Fetcher, error) {
	if f.external == nil {
		return nil, ErrNoExternal
	}
	return f.external, nil
}

// walk tries routes until one delivers or none is left.
func (f *Fetcher) walk(ctx context.Context, w *walk, sink func(io.Reader) error) error {
	for {
		t, ok := f.next(w)
		if !ok {
			more, err := f.again(ctx, w)
			if err != nil {
				return err
			}
			if !more {
				err := f.giveUp(w)
				if !f.persists(w, err) {
					return err
				}
				if err := f.startAgain(ctx, w); err != nil {
					return err
				}
			}
			continue
		}
		s, waited, err := f.lane(t.route).enter(ctx)
		if err != nil || waited && !f.still(t, w) {
			s.leave()
			f.settle(t, w, stopped, nil)
			if err != nil {
				return fmt.Errorf("fetch %s: %w", w.path, err)
			}
			continue
		}
		out, err := f.settled(ctx, t, s, w, sink)
		if out == delivered || out == stopped {
			return err
		}
	}
}

// settled tries a route and records how that went, also where the sink panics: a probe must not be held for ever.
func (f *Fetcher) settled(ctx context.Context, t trial, s *slot, w *walk, sink func(io.Reader) error) (out outcome,
	err error,
) {
	out = stopped
	defer func() { f.settle(t, w, out, err) }()
	return f.try(ctx, t, s, w, sink)
}

// Stats returns the counters, those of external files included.
func (f *Fetcher) Stats() Stats {
	st := Stats{Bytes: f.bytes.Load(), Retries: f.retries.Load(), Unavailable: f.refused.Load()}
	if f.external != nil {
		e := f.external.Stats()
		st.Bytes, st.Retries, st.Unavailable = st.Bytes+e.Bytes, st.Retries+e.Retries, st.Unavailable+e.Unavailable
	}
	for _, s := range f.everyServer() {
		st.Requests += s.attempts()
		st.Failures += s.failures()
		st.NotFound += s.outcomes[missing].Load()
		st.BadData += s.outcomes[short].Load() + s.outcomes[corrupt].Load()
	}
	return st
}

// Close closes idle connections. Calls of Get that are under way, and later ones, go on to work.
func (f *Fetcher) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range append(f.local, f.proxies...) {
		if p.client != nil {
			p.client.CloseIdleConnections()
		}
	}
	if f.external != nil {
		f.external.Close()
	}
}

// escape encodes a path as the CernVM-FS client does: caches on the way know files by the encoded form.
func escape(path string) string {
	first := 0
	for first < len(path) && plain(path[first]) {
		first++
	}
	if first == len(path) { // as those of objects are
		return path
	}
	var b strings.Builder
	b.WriteString(path[:first])
	for i := first; i < len(path); i++ {
		if c := path[i]; plain(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// plain reports whether a byte of a path stays as it is.
func plain(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' ||
		strings.IndexByte("/:.@+-_~[],", c) >= 0
}
