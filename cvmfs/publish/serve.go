package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/cvmfs/trust"
)

// What caches may keep, in seconds, as reference servers say it: an object never changes, the few other files do.
const (
	objectCaching  = "public, max-age=259200, immutable"
	mutableCaching = "public, max-age=61"
)

// The bounds of the small server: a client that says nothing is sent away.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	lastRequests  = 10 * time.Second // that are on their way when it is ended
)

var (
	servedObject = regexp.MustCompile(`^data/[0-9a-f]{2}/[0-9a-f]{38}(-[a-z0-9]{1,16})?[A-Z]?$`)
	servedOther  = map[string]string{ // with their types
		manifest.FileName: "application/x-cvmfs", trust.WhitelistFile: "application/x-cvmfs",
		history.ReflogFile: "application/octet-stream",
		replicaFile:        "text/plain; charset=utf-8", ".cvmfs_status.json": "application/json",
	}
)

// Server serves the repository of a publisher's folder at /cvmfs/FQRN/: what readers ask for, and nothing else that
// lies there. It is for trying out; a web server does the same better.
type Server struct {
	prefix string
	root   *os.Root // nothing outside is reached, by no symbolic link either
}

// NewServer serves a repository whose storage is local.
func NewServer(r *Repository) (*Server, error) {
	local, ok := r.storage.(*storage.Local)
	if !ok {
		return nil, fmt.Errorf("serve %s: %v is served by whoever runs that storage", r.FQRN(), r.storage)
	}
	root, err := os.OpenRoot(local.Dir())
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", r.FQRN(), err)
	}
	return &Server{prefix: "/cvmfs/" + r.FQRN() + "/", root: root}, nil
}

// Close gives the folder back.
func (s *Server) Close() error { return s.root.Close() }

// Serve answers requests until ctx ends, and then lets those that are on their way end. It closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{Handler: s, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastRequests)
	defer cancel()
	if server.Shutdown(last) != nil {
		return server.Close()
	}
	return nil
}

// ServeHTTP answers GET and HEAD, conditional ones and ranges of objects too.
func (s *Server) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if q.Method != http.MethodGet && q.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	name, ok := strings.CutPrefix(q.URL.Path, s.prefix)
	kind, caching := servedOther[name], mutableCaching
	if servedObject.MatchString(name) {
		kind, caching = "application/octet-stream", objectCaching
	}
	if !ok || kind == "" {
		http.NotFound(w, q)
		return
	}
	f, err := s.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		http.NotFound(w, q)
		return
	}
	if err != nil {
		http.Error(w, "can't be read", http.StatusInternalServerError)
		return
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", caching)
	h.Set("ETag", f.tag)
	http.ServeContent(w, q, "", f.modified, f.File)
}

// servedFile is an open file, which stays what it is when another takes its name.
type servedFile struct {
	*os.File
	modified time.Time
	tag      string
}

func (s *Server) open(name string) (*servedFile, error) {
	if info, err := s.root.Lstat(name); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fs.ErrNotExist // before it is opened: a fifo would wait
	}
	f, err := s.root.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	tag := fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size())
	if strings.HasPrefix(name, storage.DataFolder+"/") {
		tag = fmt.Sprintf("%q", filepath.Base(name))
	}
	return &servedFile{f, info.ModTime(), tag}, nil
}
