package metrics

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/status"
)

// Path is where scrapes are answered.
const Path = "/metrics"

// Listen says where scrapes are answered, and to whom.
type Listen struct {
	Network string // "unix" or "tcp"; "" is nowhere
	Address string // a path, or an IP address and a port
	// files, read again when they are needed: whoever changes one need not tell
	Cert, Key string // of TLS; "" is none
	Token     string // what a scraper has to show as its bearer token; "" is nothing
}

// Config is what an Exporter works with.
type Config struct {
	Status func() status.Node
	Log    *slog.Logger

	Retry time.Duration // between attempts to listen; 0 is five seconds
}

// Exporter answers scrapes. It is safe for concurrent use.
type Exporter struct {
	cfg      Config
	scraping chan struct{} // holds a token for each scrape that was let in
	one      sync.Mutex    // held by the scrape that is answered

	setting sync.Mutex // held while the address is changed

	mu      sync.Mutex // guards what follows
	listen  Listen
	problem string // why scrapes aren't answered; "" if they are, or are about to be
	stop    func() // ends it and waits for that; nil: it doesn't listen
}

// mostScrapes are let in at once; they are answered one after another.
const mostScrapes = 4

// New makes an exporter, which answers nothing yet.
func New(cfg Config) *Exporter {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Retry == 0 {
		cfg.Retry = 5 * time.Second
	}
	return &Exporter{cfg: cfg, scraping: make(chan struct{}, mostScrapes)}
}

// Listen has scrapes answered at another address, or with the zero value at none. It returns at once. Where the address
// can't be had, that is logged and told by State, and tried again.
func (e *Exporter) Listen(l Listen) {
	e.setting.Lock()
	defer e.setting.Unlock()
	e.mu.Lock()
	same, stop := l == e.listen, e.stop
	e.mu.Unlock()
	if same {
		return
	}
	if stop != nil {
		stop()
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	e.mu.Lock()
	e.listen, e.problem, e.stop = l, "", func() {
		cancel()
		<-ended
	}
	e.mu.Unlock()
	go func() {
		defer close(ended)
		if l != (Listen{}) {
			e.serve(ctx, l)
		}
	}()
}

// Close ends answering.
func (e *Exporter) Close() { e.Listen(Listen{}) }

// State returns where scrapes are answered, and why not; nil if they aren't meant to be.
func (e *Exporter) State() *status.Metrics {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.listen == (Listen{}) {
		return nil
	}
	return &status.Metrics{Address: e.listen.Address, Err: e.problem}
}

// serve answers until ctx ends.
func (e *Exporter) serve(ctx context.Context, l Listen) {
	for ctx.Err() == nil {
		err := e.answer(ctx, l)
		if ctx.Err() != nil {
			return
		}
		e.tell(l, err)
		select {
		case <-ctx.Done():
		case <-time.After(e.cfg.Retry):
		}
	}
}

// tell notes why scrapes aren't answered at an address, and logs it if that is new; nil: they are. Of an address that
// another one has replaced it is of no interest.
func (e *Exporter) tell(l Listen, err error) {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	e.mu.Lock()
	known := problem == e.problem || l != e.listen
	if l == e.listen {
		e.problem = problem
	}
	e.mu.Unlock()
	if err != nil && !known {
		e.cfg.Log.Warn("metrics can't be served, which is tried again and hinders nothing else", "err", err)
	}
}

// answer listens and answers until ctx ends or something fails.
func (e *Exporter) answer(ctx context.Context, l Listen) error {
	server := &http.Server{
		Handler: e.handler(l), MaxHeaderBytes: 16 << 10,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute,
		ErrorLog:    slog.NewLogLogger(e.cfg.Log.Handler(), slog.LevelDebug), // strangers' handshakes, mostly
	}
	if _, err := l.token(); err != nil {
		return err
	}
	listener, err := l.open(ctx)
	if err != nil {
		return err
	}
	listener = limit(listener)
	if l.Cert != "" {
		if _, err := l.certificate(nil); err != nil {
			return errors.Join(err, listener.Close())
		}
		listener = tls.NewListener(listener,
			&tls.Config{GetCertificate: l.certificate, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	}
	e.tell(l, nil)
	e.cfg.Log.Info("metrics are served", "address", l.Address)
	defer context.AfterFunc(ctx, func() { server.Close() })() // its error is that of Serve
	return fmt.Errorf("serve metrics at %s: %w", l.Address, server.Serve(listener))
}

// open listens at the address. A socket that nobody answers at is a former process'.
func (l Listen) open(ctx context.Context) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, l.Network, l.Address)
	if l.Network == "unix" {
		if errors.Is(err, unix.EADDRINUSE) && l.dead(ctx) {
			if err = os.Remove(l.Address); err == nil || errors.Is(err, fs.ErrNotExist) {
				listener, err = config.Listen(ctx, l.Network, l.Address)
			}
		}
		if err == nil {
			if err = os.Chmod(l.Address, 0o600); err != nil {
				listener.Close() // the error that is told is the first one
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("serve metrics at %s: %w: set another address by cvmfs.metrics, or end who uses it",
			l.Address, err)
	}
	return listener, nil
}

// dead reports whether there is a socket at the address that nobody answers at.
func (l Listen) dead(ctx context.Context) bool {
	info, err := os.Lstat(l.Address)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", l.Address)
	if err == nil {
		err = c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

// certificate reads the certificate, as it is now.
func (l Listen) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(l.Cert, l.Key)
	if err != nil {
		return nil, fmt.Errorf("serve metrics at %s: certificate and key: %w", l.Address, err)
	}
	return &c, nil
}

// maxToken bounds a token in bytes: a header that is longer isn't read.
const maxToken = 4096

// token reads the token, as it is now; "" is none.
func (l Listen) token() (string, error) {
	if l.Token == "" {
		return "", nil
	}
	b, err := os.ReadFile(l.Token)
	token := strings.TrimSpace(string(b))
	if err == nil && (token == "" || len(token) > maxToken || strings.ContainsAny(token, "\r\n")) {
		err = fmt.Errorf("%s: want one line of at most %d characters", l.Token, maxToken)
	}
	if err != nil {
		return "", fmt.Errorf("serve metrics at %s: token: %w", l.Address, err)
	}
	return token, nil
}

// handler answers requests.
func (e *Exporter) handler(l Listen) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Path, func(w http.ResponseWriter, r *http.Request) {
		token, err := l.token()
		e.tell(l, err)
		if err != nil {
			http.Error(w, "the server can't read its token", http.StatusInternalServerError)
			return
		}
		shown := r.Header.Get("Authorization")
		if token != "" && subtle.ConstantTimeCompare([]byte(shown), []byte("Bearer "+token)) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "a bearer token is needed", http.StatusUnauthorized)
			return
		}
		e.scrape(w)
	})
	return mux
}

// scrape answers one.
func (e *Exporter) scrape(w http.ResponseWriter) {
	select {
	case e.scraping <- struct{}{}:
	default:
		http.Error(w, "too many scrapes at once", http.StatusServiceUnavailable)
		return
	}
	defer func() { <-e.scraping }()
	text := e.text()
	w.Header().Set("Content-Type", contentType)
	w.Write(text) // that a scraper has gone concerns nobody
}

// text returns what a scrape gets.
func (e *Exporter) text() []byte {
	e.one.Lock()
	defer e.one.Unlock()
	st := e.cfg.Status()
	var w writer
	for _, f := range Families() {
		w.write(&f, &st)
	}
	return w.Bytes()
}
