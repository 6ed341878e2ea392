package stand

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Site is a web server on loopback that serves repositories, as http://127.0.0.1:PORT/cvmfs/FQRN/…, and counts.
type Site struct {
	Dir string // holds a folder for each repository

	address string
	server  *http.Server

	mu       sync.Mutex
	count    Count
	stalled  chan struct{} // closed when requests are to be answered again; nil when they are answered
	withheld string        // path of a file that is not given out, relative to Dir
}

// Count is what was asked of a site.
type Count struct {
	Requests int
	Objects  int   // requests for stored objects, catalogs among them
	Bytes    int64 // of answers' bodies
}

// Sub is what came since an earlier count.
func (c Count) Sub(earlier Count) Count {
	return Count{c.Requests - earlier.Requests, c.Objects - earlier.Objects, c.Bytes - earlier.Bytes}
}

// NewSite unpacks the archive of a repository into dir and serves it.
func NewSite(dir, archive string) (*Site, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if out, err := exec.Command("tar", "--extract", "--gzip", "--file", archive, "--directory",
		dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("unpack %s: %w: %s", archive, err, out)
	}
	s := &Site{Dir: dir, address: "127.0.0.1:0"}
	return s, s.Start()
}

// Start serves, at the address of before if there was one.
func (s *Site) Start() error {
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		return fmt.Errorf("serve the repository: %w", err)
	}
	s.address = listener.Addr().String()
	s.server = &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go func(server *http.Server) {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "the repository's server:", err)
		}
	}(s.server)
	return nil
}

// Stop closes the server: connections are refused until Start.
func (s *Site) Stop() error { return s.server.Close() }

// Stall makes requests wait, connected and unanswered, until the function it gives is called.
func (s *Site) Stall() (resume func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled = make(chan struct{})
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(s.stalled)
		s.stalled = nil
	}
}

// Withhold makes the site break connections that ask for one file, a path relative to Dir; "" ends that.
func (s *Site) Withhold(file string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.withheld = file
}

// Count gives what was asked up to now.
func (s *Site) Count() Count {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// URL is the address of a repository.
func (s *Site) URL(fqrn string) string { return "http://" + s.address + "/cvmfs/" + fqrn }

// ServeHTTP answers from the folder.
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.count.Requests++
	if strings.Contains(r.URL.Path, "/data/") {
		s.count.Objects++
	}
	stalled := s.stalled
	broken := s.withheld != "" && r.URL.Path == "/cvmfs/"+s.withheld
	s.mu.Unlock()
	if broken {
		panic(http.ErrAbortHandler) // net/http's way to close the connection without an answer
	}
	if stalled != nil {
		select {
		case <-stalled:
		case <-r.Context().Done():
		}
	}
	http.StripPrefix("/cvmfs/", http.FileServer(http.Dir(s.Dir))).ServeHTTP(&counter{w, s}, r)
}

// counter counts the bytes of an answer's body.
type counter struct {
	http.ResponseWriter
	site *Site
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.site.mu.Lock()
	defer c.site.mu.Unlock()
	c.site.count.Bytes += int64(n)
	return n, err
}

// Configure writes the client configuration for a repository into dir, the plugin's /etc/cvmfs. Waiting for a server is
// short: nothing is far on loopback.
func (s *Site) Configure(dir, fqrn, key string) error {
	return Configure(dir, fqrn, s.URL(fqrn), key, "CVMFS_TIMEOUT=2", "CVMFS_TIMEOUT_DIRECT=2", "CVMFS_MAX_RETRIES=1")
}

// Configure writes the client configuration for a repository at a URL into dir, a daemon's /etc/cvmfs, with the
// settings given besides.
func Configure(dir, fqrn, url, key string, settings ...string) error {
	public, err := os.ReadFile(key)
	if err != nil {
		return err
	}
	local := strings.Join(append([]string{"CVMFS_HTTP_PROXY=DIRECT"}, settings...), "\n") + "\n"
	files := map[string]string{
		"default.local": local,
		filepath.Join("config.d",
			fqrn+".conf"): fmt.Sprintf("CVMFS_SERVER_URL=%q\nCVMFS_PUBLIC_KEY=/etc/cvmfs/keys/%s.pub\n", url, fqrn),
		filepath.Join("keys", fqrn+".pub"): string(public),
	}
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}
