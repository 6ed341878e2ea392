package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	maxRequest = 1 << 20          // bytes of a request
	maxCalls   = 32               // commands under way; more are refused
	readTime   = 30 * time.Second // how long a request may take to arrive
	// takeTime is how long whoever asked may take to read what the buffers don't hold. Then it counts as gone.
	takeTime = 30 * time.Second
)

// Config is what a Handler works with.
type Config struct {
	Node Node
	Log  *slog.Logger
}

// Handler answers the commands of a node, and 404 to all else.
type Handler struct {
	life  context.Context // of the node: tasks end with it
	log   *slog.Logger
	mux   *http.ServeMux
	calls chan struct{} // one for each command under way
}

// NewHandler makes a handler. Tasks under way end with ctx.
func NewHandler(ctx context.Context, cfg Config) *Handler {
	h := &Handler{life: ctx, log: cfg.Log, mux: http.NewServeMux(), calls: make(chan struct{}, maxCalls)}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.register(cfg.Node)
	h.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		h.refuse(w, http.StatusNotFound, fmt.Errorf("no command %.100q", r.Method+" "+r.URL.Path))
	})
	return h
}

// ServeHTTP answers one command.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case h.calls <- struct{}{}:
		defer func() { <-h.calls }()
		h.mux.ServeHTTP(w, r)
	default:
		h.refuse(w, http.StatusServiceUnavailable, fmt.Errorf("%d commands are under way already: try again later",
			maxCalls))
	}
}

// Serve answers commands at a socket of its own, which only root can open, until ctx ends. A socket that lies there is
// a former server's.
func (h *Handler) Serve(ctx context.Context, socket string) error {
	l, err := listen(ctx, socket)
	if err != nil {
		return fmt.Errorf("serve commands: %w", err)
	}
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: readTime, ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { server.Close() })() // its error is that of Serve
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve commands at %s: %w", socket, err)
	}
	return nil
}

func listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, err
	}
	switch info, err := os.Lstat(socket); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s exists and is no socket: move it away", socket)
	default:
		if err := os.Remove(socket); err != nil {
			return nil, err
		}
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// answer has a question answered by do.
func answer[Q, A any](h *Handler, q Question[Q, A], do func(Q) (A, error)) {
	h.mux.HandleFunc(Prefix+string(q), func(w http.ResponseWriter, r *http.Request) {
		request, ok := read[Q](h, w, r)
		if !ok {
			return
		}
		a, err := do(request)
		if err != nil {
			h.refuse(w, http.StatusInternalServerError, err)
			return
		}
		h.send(w, http.StatusOK, a)
	})
}

// perform has a task done by do, which may tell its progress until it returns, from wherever it likes. How often is its
// own choice: each is a line on its way to people.
func perform[Q, P, A any](h *Handler, t Task[Q, P, A], do func(context.Context, Q, func(P)) (A, error)) {
	h.mux.HandleFunc("POST "+Prefix+string(t), func(w http.ResponseWriter, r *http.Request) {
		request, ok := read[Q](h, w, r)
		if !ok {
			return
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		defer context.AfterFunc(h.life, func() { cancel(errEnds) })()
		began := time.Now()
		w.Header().Set("Content-Type", "application/x-ndjson")
		out := lines[P, A]{to: w, lost: cancel}
		a, err := do(ctx, request, func(p P) { out.write(line[P, A]{Progress: &p}) })
		if errors.Is(err, context.Canceled) {
			err = context.Cause(ctx)
		}
		took := time.Since(began)
		if err != nil {
			h.log.Info("command failed", "name", string(t), "took", took, "err", err) // whoever asked is told
			out.write(line[P, A]{Err: err.Error()})
			return
		}
		h.log.Info("command", "name", string(t), "took", took)
		out.write(line[P, A]{Answer: &a})
	})
}

// errEnds is why a task is given up.
var errEnds = errors.New("the node ends: try again when it runs again")

// read reads the request of a command, or refuses it.
func read[Q any](h *Handler, w http.ResponseWriter, r *http.Request) (request Q, ok bool) {
	control := http.NewResponseController(w)
	// Errors of deadlines: the connection has gone, which reading tells, too.
	_ = control.SetReadDeadline(time.Now().Add(readTime))
	// The whole body, as only then net/http sees the other side go.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	_ = control.SetReadDeadline(time.Time{})
	if err != nil {
		h.refuse(w, http.StatusRequestEntityTooLarge, fmt.Errorf("receive the request: %w", err))
		return request, false
	}
	if len(bytes.TrimSpace(body)) > 0 {
		d := json.NewDecoder(bytes.NewReader(body))
		d.DisallowUnknownFields()
		err = d.Decode(&request)
	}
	if err != nil {
		h.refuse(w, http.StatusBadRequest, fmt.Errorf("read the request: %w", err))
	}
	return request, err == nil
}

// refusal is the answer to a command that isn't done.
type refusal struct {
	Err string `json:"error"`
}

func (h *Handler) refuse(w http.ResponseWriter, status int, err error) {
	h.send(w, status, refusal{err.Error()})
}

// send sends a value.
func (h *Handler) send(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(takeTime)) // as in read
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		h.log.Debug("an answer wasn't taken", "err", err)
	}
}

// line is one line of what a task tells: one of the fields is set.
type line[P, A any] struct {
	Progress *P     `json:"progress,omitempty"`
	Answer   *A     `json:"answer,omitempty"`
	Err      string `json:"error,omitempty"`
}

// lines are what a task tells.
type lines[P, A any] struct {
	lost func(cause error) // called when nobody takes them

	mu sync.Mutex // guards to
	to http.ResponseWriter
}

func (l *lines[P, A]) write(what line[P, A]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	control := http.NewResponseController(l.to)
	_ = control.SetWriteDeadline(time.Now().Add(takeTime)) // as in read
	err := json.NewEncoder(l.to).Encode(what)
	if err == nil {
		err = control.Flush()
	}
	if err != nil {
		l.lost(fmt.Errorf("whoever asked has gone: %w", err))
	}
}
