package receive

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"cvmfs-graphdriver/pushback/api"
)

// The bounds of requests.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	answerTimeout = time.Minute
	lastRequests  = 10 * time.Second // that are on their way when the service is ended
	maxHeader     = 16 << 10         // bytes
	strangers     = time.Minute      // between two lines in the log about tokens that aren't known
)

// serve answers requests until ctx ends, and then lets those that are on their way end. It closes the listener.
func (s *Service) serve(ctx context.Context, listener net.Listener) error {
	if s.c.Certificate != "" {
		listener = tls.NewListener(listener, &tls.Config{
			GetCertificate: s.certificate, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		})
	}
	server := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // strangers' handshakes, mostly
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastRequests)
	defer cancel()
	if server.Shutdown(last) != nil {
		return server.Close()
	}
	return nil
}

// handler answers all requests.
func (s *Service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.StatusPath+"{digest}", s.known(!s.c.OpenStatus, s.status))
	mux.HandleFunc("HEAD "+api.LayersPath+"{digest}", s.known(true, s.offset))
	mux.HandleFunc("PUT "+api.LayersPath+"{digest}", s.known(true, s.upload))
	mux.HandleFunc("POST /{$}", s.known(true, s.events))
	mux.HandleFunc("POST "+api.EventsPath, s.known(true, s.events))
	mux.HandleFunc("GET /metrics", s.known(true, func(w http.ResponseWriter, q *http.Request, _ string) {
		s.serveMetrics(w, q)
	}))
	return mux
}

// known lets nobody pass who isn't known, if needed, and gives requests bounds; an upload gives itself others.
func (s *Service) known(needed bool, to func(http.ResponseWriter, *http.Request, string)) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		control, end := http.NewResponseController(w), time.Now().Add(answerTimeout)
		if err := errors.Join(control.SetReadDeadline(end), control.SetWriteDeadline(end)); err != nil {
			s.log.Error("a request can't be bounded", "err", err)
			return
		}
		name, err := s.tokens.identify(q)
		unknown := errors.Is(err, errUnknownToken)
		if unknown {
			s.meet(q)
		}
		nobody := unknown || errors.Is(err, errNoToken)
		switch {
		case nobody && needed:
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		case err != nil && !nobody:
			s.log.Error("the tokens can't be read", "err", err)
			http.Error(w, "the service can't read its tokens", http.StatusServiceUnavailable)
			return
		}
		if digest := q.PathValue("digest"); digest != "" && !api.ValidDigest(digest) {
			http.Error(w, "want a digest: 64 lower-case hex digits", http.StatusBadRequest)
			return
		}
		to(w, q, name)
	}
}

// meet notes a request with a token that isn't known, as of a node whose token was changed here alone. Anybody may send
// any number of them.
func (s *Service) meet(q *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.stranger) > strangers {
		s.stranger = now
		s.log.Warn("a request has a token that isn't known", "from", q.RemoteAddr, "method", q.Method, "path", q.URL.Path)
	}
}

// status tells what became of a layer: as of 2017, or as JSON to who asks for that. Who has no token
// learns little: whether it is there, or why it failed.
func (s *Service) status(w http.ResponseWriter, q *http.Request, name string) {
	ctx, cancel := context.WithTimeout(q.Context(), askedTime)
	defer cancel()
	a := s.current(ctx, q.PathValue("digest"))
	if s.bucket != nil && (a.Status == api.Unknown || a.Status == api.Failed) {
		a = s.seek(ctx, a, s.keys(a.Digest, name, q.Header.Get(api.HeaderFolder)))
	}
	switch {
	case name != "":
		a.Repository = s.fqrn
		if _, err := s.c.rights(name); err != nil {
			a.Refusal = err.Error()
		}
	case a.Status != api.Failed:
		a = &api.Answer{Status: a.Status, Digest: a.Digest, URL: a.URL}
	}
	if strings.Contains(q.Header.Get("Accept"), "application/json") {
		reply(w, http.StatusOK, a)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	strings.NewReader(a.Text()).WriteTo(w) // who has gone asks again
}

// reply answers JSON.
func reply(w http.ResponseWriter, code int, a *api.Answer) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(a) // who has gone asks again
}

// events takes what a store tells. A node may tell of its own objects, too.
func (s *Service) events(w http.ResponseWriter, q *http.Request, name string) {
	if _, err := s.c.rights(name); err != nil && name != s.c.Events {
		http.Error(w, "this token may tell of no objects: name its owner by event_sender", http.StatusForbidden)
		return
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, q.Body, maxEvent))
	if err != nil {
		http.Error(w, "event: "+err.Error(), http.StatusBadRequest)
		return
	}
	if !strings.HasPrefix(strings.TrimSpace(string(b)), "{") {
		return // a store of 2017 that wants to know whether somebody listens: it starts only with an answer
	}
	all, err := parseEvents(b)
	if err != nil {
		s.log.Warn("an event isn't understood", "from", q.RemoteAddr, "err", err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, e := range all {
		s.told(e)
	}
}
