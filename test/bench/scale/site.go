package scale

import (
	"context"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
)

// Traffic is what was fetched: requests, and bytes of the answers' bodies.
type Traffic struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
}

// server is a web server on loopback that counts what is asked of it.
type server struct {
	addr            string
	http            http.Server
	requests, bytes atomic.Int64
}

func serve(h http.Handler) (*server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{addr: l.Addr().String()}
	s.http = http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.requests.Add(1)
			h.ServeHTTP(&counted{w, &s.bytes}, r)
		}),
	}
	go s.http.Serve(l) // ends with an error that says that it was closed
	return s, nil
}

func (s *server) close() error { return s.http.Close() }

func (s *server) count() Traffic { return Traffic{s.requests.Load(), s.bytes.Load()} }

// counted counts the bytes of an answer.
type counted struct {
	http.ResponseWriter
	bytes *atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.bytes.Add(int64(n))
	return n, err
}

// Proxies that nodes go through.
const (
	// Squid is Debian's squid with its usual settings: what many ask for before it is there, it asks for as often.
	Squid = "squid"
	// Collapsing is the same with collapsed_forwarding, so that it asks once.
	Collapsing = "squid, collapsed_forwarding"
	// Own is a proxy in this process that keeps all and asks once, where there is no squid.
	Own = "own"
)

// squidMemory has a squid keep all that is measured, as the cache of a site's does.
var squidMemory = []string{"cache_mem 512 MB", "maximum_object_size_in_memory 64 MB", "max_filedescriptors 16384"}

// startProxy starts a proxy of a kind, with its files below a folder.
func startProxy(ctx context.Context, kind, dir, server string) (addr string, stop func(), err error) {
	if kind == Own {
		p, err := newOwnProxy(server)
		if err != nil {
			return "", nil, err
		}
		return p.addr, func() { p.close() }, nil // all of it goes
	}
	cache, err := engine.CacheDir()
	if err != nil {
		return "", nil, err
	}
	squid, err := engine.FindSquid(ctx, cache)
	if err != nil {
		return "", nil, err
	}
	settings := squidMemory
	if kind == Collapsing {
		settings = append([]string{"collapsed_forwarding on"}, settings...)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr = l.Addr().String()
	if err := l.Close(); err != nil { // squid listens there
		return "", nil, err
	}
	dir, err = os.MkdirTemp(dir, "squid-")
	if err != nil {
		return "", nil, err
	}
	stop, err = squid.Start(ctx, dir, addr, settings...)
	return addr, stop, err
}

// ownProxy keeps every answer that may be kept, and asks once for what several want.
type ownProxy struct {
	*server
	to      *httputil.ReverseProxy
	asking  singleflight.Group
	answers sync.Map // by URL
}

func newOwnProxy(to string) (*ownProxy, error) {
	p := &ownProxy{to: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to})}
	var err error
	p.server, err = serve(p)
	return p, err
}

// answer is what a server said.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(code int) { a.code = code }

func (a *answer) Write(b []byte) (int, error) {
	a.body = append(a.body, b...)
	return len(b), nil
}

func (p *ownProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Range") != "" || r.Method != http.MethodGet || r.Header.Get("Cache-Control") == "no-cache" {
		p.to.ServeHTTP(w, r)
		return
	}
	key := r.URL.Path
	found, ok := p.answers.Load(key)
	if !ok {
		found, _, _ = p.asking.Do(key, func() (any, error) {
			if had, ok := p.answers.Load(key); ok { // since it was looked for
				return had, nil
			}
			a := &answer{code: http.StatusOK, header: http.Header{}}
			p.to.ServeHTTP(a, r.WithContext(context.WithoutCancel(r.Context())))
			if a.code == http.StatusOK {
				p.answers.Store(key, a)
			}
			return a, nil
		})
	}
	a := found.(*answer)
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.code)
	w.Write(a.body) // who has gone needs nothing
}

// site is a repository with one image, and where nodes find it.
type site struct {
	*publisher
	dir    string
	server *server
}

// newSite makes a site without an image.
func newSite(ctx context.Context, dir string, hollow bool) (*site, error) {
	p, err := newPublisher(ctx, dir, hollow)
	if err != nil {
		return nil, err
	}
	local, err := publish.Open(p.dir, publish.Options{})
	if err != nil {
		return nil, err
	}
	h, err := publish.NewServer(local)
	if err != nil {
		return nil, err
	}
	s := &site{publisher: p, dir: dir}
	s.server, err = serve(h)
	return s, err
}

func (s *site) close() error { return s.server.close() }

// configure writes the configuration of nodes that go through a proxy, "" for none, and returns its folder.
func (s *site) configure(proxy string) (string, error) {
	dir, err := os.MkdirTemp(s.dir, "config-")
	if err != nil {
		return "", err
	}
	var settings []string
	if proxy != "" {
		settings = append(settings, "CVMFS_HTTP_PROXY=http://"+proxy)
	}
	settings = append(settings, "CVMFS_TIMEOUT=60", "CVMFS_TIMEOUT_DIRECT=60") // the machine may be busy
	return dir, stand.Configure(dir, repository, "http://"+s.server.addr+"/cvmfs/"+repository, s.key(), settings...)
}
