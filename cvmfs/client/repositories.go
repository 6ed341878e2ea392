package client

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/trust"
)

// Repositories opens repositories by name, as a host's configuration describes them, and keeps them. It is safe for
// concurrent use.
type Repositories struct {
	configDir string
	stateDir  string
	allowed   []string
	log       *slog.Logger
	options   []Option
	defaults  []byte

	mu   sync.Mutex // guards open
	open map[string]*opened
}

// opened is a repository with its configuration.
type opened struct {
	*Repository
	config *config.Config
}

// NewRepositories reads the configuration folder configDir (the host's /etc/cvmfs, wherever it lies) when a repository
// is first asked for, and keeps each repository's state in a folder of stateDir. Where allowed isn't empty, only these
// may be used. The options are for each of them.
func NewRepositories(configDir, stateDir string, allowed []string, log *slog.Logger, options ...Option) *Repositories {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Repositories{
		configDir: configDir, stateDir: stateDir, allowed: allowed, log: log,
		options: options, defaults: choose(options).defaults, open: map[string]*opened{},
	}
}

// Repository returns a repository. Errors: ErrNotAllowed; config.ErrNotConfigured, whose text says what to write where.
func (s *Repositories) Repository(fqrn string) (*Repository, error) {
	o, err := s.get(fqrn)
	if err != nil {
		return nil, err
	}
	return o.Repository, nil
}

// Fetcher returns what gets a repository's objects; it makes Repositories an objects.Sources.
func (s *Repositories) Fetcher(fqrn string) (*fetch.Fetcher, error) {
	o, err := s.get(fqrn)
	if err != nil {
		return nil, err
	}
	return o.Fetcher(), nil
}

// Opened returns what gets a repository's objects if it is in use already, without opening it.
func (s *Repositories) Opened(fqrn string) (*fetch.Fetcher, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[fqrn]
	if o == nil {
		return nil, false
	}
	return o.Fetcher(), true
}

// Config returns the configuration a repository was opened with.
func (s *Repositories) Config(fqrn string) (*config.Config, error) {
	o, err := s.get(fqrn)
	if err != nil {
		return nil, err
	}
	return o.config, nil
}

// Reload forgets all repositories: whoever asks next gets them with the configuration, keys and blacklists of that
// time. What was given out before goes on to work.
func (s *Repositories) Reload() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.open {
		o.Fetcher().Close()
	}
	clear(s.open)
}

func (s *Repositories) get(fqrn string) (*opened, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.open[fqrn]; o != nil {
		return o, nil
	}
	if err := s.permit(fqrn); err != nil {
		return nil, err
	}
	c, err := config.Folder{Dir: s.configDir, Defaults: s.defaults}.Load(fqrn)
	if err != nil {
		return nil, err
	}
	if c.FQRN != fqrn {
		return nil, fmt.Errorf("repository %q: give its full name, %s", fqrn, c.FQRN)
	}
	for _, w := range c.Warnings {
		s.log.Warn("configuration", "repo", fqrn, "note", w)
	}
	r, err := FromConfig(c, filepath.Join(s.stateDir, fqrn), s.log, s.options...)
	if err != nil {
		return nil, err
	}
	o := &opened{Repository: r, config: c}
	s.open[fqrn] = o
	return o, nil
}

// permit applies the list of allowed repositories.
func (s *Repositories) permit(fqrn string) error {
	if err := config.CheckFQRN(fqrn); err != nil {
		return err
	}
	if len(s.allowed) > 0 && !slices.Contains(s.allowed, fqrn) {
		return fmt.Errorf("repository %s: %w: the option cvmfs.repositories names %s", fqrn, ErrNotAllowed,
			strings.Join(s.allowed, ", "))
	}
	return nil
}

// Option says what of a repository the host's configuration doesn't.
type Option func(*choices)

type choices struct {
	userAgent string
	defaults  []byte
}

func choose(options []Option) (c choices) {
	for _, option := range options {
		option(&c)
	}
	return c
}

// WithUserAgent has requests say who asks: product and version, such as "cvmfs-graphdriver/1.0".
func WithUserAgent(agent string) Option { return func(c *choices) { c.userAgent = agent } }

// WithDefaults has [Repositories] read the text of a default.conf before the files of the configuration folder, which
// override it.
func WithDefaults(conf []byte) Option { return func(c *choices) { c.defaults = conf } }

// FromConfig makes a Repository of a configuration, reading its keys and blacklists. State is kept in dir.
func FromConfig(c *config.Config, dir string, log *slog.Logger, options ...Option) (*Repository, error) {
	keys, err := trust.LoadKeys(c.PublicKeys...)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", c.FQRN, err)
	}
	blacklist, err := trust.LoadBlacklist(c.Blacklists...)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", c.FQRN, err)
	}
	if log != nil {
		for _, line := range blacklist.Ignored() {
			log.Warn("blacklist: a line has no effect", "repo", c.FQRN, "line", line)
		}
	}
	servers := fetch.Config{
		Servers:         c.Servers,
		Proxies:         c.ProxyGroups,
		Timeout:         c.Timeout,
		TimeoutDirect:   c.TimeoutDirect,
		LowSpeedLimit:   c.LowSpeedLimit,
		MaxRetries:      c.MaxRetries,
		BackoffInit:     c.BackoffInit,
		BackoffMax:      c.BackoffMax,
		ProxyResetAfter: c.ProxyResetAfter,
		HostResetAfter:  c.HostResetAfter,
		FollowRedirects: c.FollowRedirects,
		UserAgent:       choose(options).userAgent,
		Log:             log,
	}
	fetcher, err := fetch.New(servers)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", c.FQRN, err)
	}
	return New(Config{
		FQRN:      c.FQRN,
		Fetcher:   fetcher,
		Keys:      keys,
		Blacklist: blacklist,
		Dir:       dir,
		Params:    c.Params,
		MaxTTL:    c.MaxTTL,
		Log:       log,
	})
}
