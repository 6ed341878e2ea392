package graphdriver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/moby/sys/user"

	"cvmfs-graphdriver/driver/control"
)

const (
	contentType = "application/vnd.docker.plugins.v1.2+json"
	// maxRequest bounds a JSON request in bytes; the longest are userns-remap ranges and storage options.
	maxRequest = 1 << 20
	// drainTime is how long calls may go on after the server was told to end; the engine kills it after 10 s.
	drainTime = 7 * time.Second
)

// ServerConfig is what a Server works with.
type ServerConfig struct {
	Driver  *Driver
	Control http.Handler // answers the commands of package control
	Log     *slog.Logger
}

// Server answers the engine's calls.
type Server struct {
	cfg ServerConfig
	mux *http.ServeMux
}

// NewServer makes a server.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux()}
	for method, call := range map[string]call{
		"Init": s.init,
		"Capabilities": func(context.Context, *request) (answer, error) {
			return answer{Capabilities: &capabilities{}}, nil
		},
		"Create":          s.create,
		"CreateReadWrite": s.createReadWrite,
		"Remove": func(_ context.Context, r *request) (answer, error) {
			return answer{}, cfg.Driver.Remove(r.ID)
		},
		"Get": s.get,
		"Put": func(_ context.Context, r *request) (answer, error) { return answer{}, cfg.Driver.Put(r.ID) },
		"Exists": func(_ context.Context, r *request) (answer, error) {
			return answer{Exists: cfg.Driver.Exists(r.ID)}, nil
		},
		"Status": func(context.Context, *request) (answer, error) {
			return answer{Status: cfg.Driver.Status()}, nil
		},
		"GetMetadata": s.metadata,
		"Cleanup":     func(context.Context, *request) (answer, error) { return answer{}, cfg.Driver.Cleanup() },
		"Changes":     s.changes,
		"DiffSize":    s.diffSize,
	} {
		s.mux.Handle("POST /GraphDriver."+method, s.json(method, call))
	}
	s.mux.HandleFunc("POST /GraphDriver.Diff", s.diff)
	s.mux.HandleFunc("POST /GraphDriver.ApplyDiff", s.applyDiff)
	s.mux.HandleFunc("POST /Plugin.Activate", func(w http.ResponseWriter, _ *http.Request) {
		s.answer(w, http.StatusOK, map[string][]string{"Implements": {"GraphDriver"}})
	})
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, http.StatusNotFound,
			answer{Err: fmt.Sprintf("this driver has no method %.100q", r.Method+" "+r.URL.Path)})
	})
	return s
}

// ServeHTTP answers one call, or one command to the node.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, control.Prefix) && s.cfg.Control != nil {
		s.cfg.Control.ServeHTTP(w, r)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// Serve answers calls that come in on a listener until ctx ends; calls under way then have a few seconds to finish.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	h := &http.Server{
		Handler: s, ReadHeaderTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelError),
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve the engine: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if err := h.Shutdown(drain); err != nil {
		return fmt.Errorf("end calls under way: %w", errors.Join(err, h.Close()))
	}
	return nil
}

// request is what the engine sends: each method uses some of the fields.
type request struct {
	ID, Parent, MountLabel string
	StorageOpt             map[string]string
	Home                   string
	Opts                   []string
	UIDMaps, GIDMaps       []idMap
}

// idMap is a range of the engine's userns-remap.
type idMap struct {
	ContainerID int64 `json:"container_id"`
	HostID      int64 `json:"host_id"`
	Size        int64 `json:"size"`
}

func idMaps(maps []idMap) []user.IDMap {
	var m []user.IDMap
	for _, r := range maps {
		m = append(m, user.IDMap{ID: r.ContainerID, ParentID: r.HostID, Count: r.Size})
	}
	return m
}

// answer is what the engine gets: it looks at the fields of the method called.
type answer struct {
	Err          string            `json:",omitempty"`
	Dir          string            `json:",omitempty"`
	Exists       bool              `json:",omitempty"`
	Status       [][2]string       `json:",omitempty"`
	Changes      []change          `json:",omitempty"`
	Size         int64             `json:",omitempty"`
	Metadata     map[string]string `json:",omitempty"`
	Capabilities *capabilities     `json:",omitempty"`
}

// change is a changed path; Kind is 0 for modified, 1 for added, 2 for deleted.
type change struct {
	Path string
	Kind int
}

// capabilities of the driver: none, as its archives don't repeat those it was given byte for byte.
type capabilities struct{ ReproducesExactDiffs bool }

type call func(ctx context.Context, r *request) (answer, error)

// json makes a handler of a method.
func (s *Server) json(method string, f call) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		began := time.Now()
		var a answer
		r, err := decode(w, hr)
		if err == nil {
			a, err = f(hr.Context(), r)
		}
		s.log(method, r.ID, began, err)
		if err != nil {
			a = answer{Err: err.Error()}
		}
		s.answer(w, http.StatusOK, a)
	})
}

// decode reads a request; methods without arguments come with an empty body.
func decode(w http.ResponseWriter, hr *http.Request) (*request, error) {
	r := &request{}
	err := json.NewDecoder(http.MaxBytesReader(w, hr.Body, maxRequest)).Decode(r)
	if err != nil && !errors.Is(err, io.EOF) {
		return r, fmt.Errorf("read the engine's request: %w", err)
	}
	return r, nil
}

func (s *Server) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.cfg.Log.Debug("the engine didn't take an answer", "err", err)
	}
}

func (s *Server) log(method, id string, began time.Time, err error) {
	if err != nil {
		s.cfg.Log.Error("call failed", "method", method, "layer", id, "err", err)
		return
	}
	s.cfg.Log.Debug("call", "method", method, "layer", id, "took", time.Since(began))
}

func (s *Server) init(_ context.Context, r *request) (answer, error) {
	return answer{}, s.cfg.Driver.Init(InitArgs{
		Home: r.Home, Opts: r.Opts, UIDMaps: idMaps(r.UIDMaps),
		GIDMaps: idMaps(r.GIDMaps),
	})
}

func (s *Server) create(_ context.Context, r *request) (answer, error) {
	return answer{}, s.cfg.Driver.Create(CreateArgs{ID: r.ID, Parent: r.Parent, StorageOpt: r.StorageOpt})
}

func (s *Server) createReadWrite(_ context.Context, r *request) (answer, error) {
	return answer{}, s.cfg.Driver.Create(CreateArgs{
		ID: r.ID, Parent: r.Parent, StorageOpt: r.StorageOpt,
		Writable: true,
	})
}

func (s *Server) get(ctx context.Context, r *request) (answer, error) {
	dir, err := s.cfg.Driver.Get(ctx, r.ID, r.MountLabel)
	return answer{Dir: dir}, err
}

func (s *Server) metadata(_ context.Context, r *request) (answer, error) {
	m, err := s.cfg.Driver.Metadata(r.ID)
	return answer{Metadata: m}, err
}

func (s *Server) changes(ctx context.Context, r *request) (answer, error) {
	list, err := s.cfg.Driver.Changes(ctx, r.ID, r.Parent)
	var a answer
	for _, c := range list {
		a.Changes = append(a.Changes, change{c.Path, int(c.Kind)})
	}
	return a, err
}

func (s *Server) diffSize(ctx context.Context, r *request) (answer, error) {
	size, err := s.cfg.Driver.DiffSize(ctx, r.ID, r.Parent)
	return answer{Size: size}, err
}

// applyDiff takes a layer's archive. The body is read to its end also where the call fails, for an engine that is still
// sending would take the answer for a broken connection and repeat the call.
func (s *Server) applyDiff(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	id, parent := r.URL.Query().Get("id"), r.URL.Query().Get("parent")
	size, err := s.cfg.Driver.ApplyDiff(r.Context(), id, parent, r.Body)
	s.log("ApplyDiff", id, began, err)
	a := answer{Size: size}
	if err != nil {
		a = answer{Err: err.Error()}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			s.cfg.Log.Debug("the engine didn't send the whole archive", "layer", id, "err", err)
		}
	}
	s.answer(w, http.StatusOK, a)
}

// diff returns a layer's archive.
func (s *Server) diff(w http.ResponseWriter, hr *http.Request) {
	began := time.Now()
	r, err := decode(w, hr)
	var archive io.ReadCloser
	switch {
	case err == nil && r.ID == "":
		err = errors.New("the engine repeats a Diff that broke off, without naming the layer: the plugin's log, some lines before this one, has the reason")
	case err == nil:
		archive, err = s.cfg.Driver.Diff(hr.Context(), r.ID, r.Parent)
	}
	if err != nil {
		s.log("Diff", r.ID, began, err)
		s.answer(w, http.StatusInternalServerError, answer{Err: err.Error()})
		return
	}
	defer archive.Close()
	w.Header().Set("Content-Type", "application/x-tar")
	_, err = io.Copy(w, archive)
	s.log("Diff", r.ID, began, err)
	if err != nil {
		panic(http.ErrAbortHandler) // the one way net/http has of cutting the connection
	}
}
