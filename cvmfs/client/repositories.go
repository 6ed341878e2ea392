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
	"cvmfs-graphdriver/cvmfs/fqrn"
)

// Repositories opens repositories by name, as a host's configuration describes them, and keeps them. It is safe for
// concurrent use.
type Repositories struct {
	folder  config.Folder
	allowed []string
	options Options

	mu   sync.Mutex // guards what follows
	open map[string]*opened
	told map[config.Finding]bool // since the last Reload
}

// opened is a repository with its configuration.
type opened struct {
	*Repository
	config *config.Config
}

// NewRepositories reads the host's configuration folder when a repository is first asked for. Where allowed isn't empty,
// only these may be used. Each repository is kept in a folder of its own below Options.Dir.
func NewRepositories(folder config.Folder, allowed []string, o Options) *Repositories {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Repositories{folder: folder, allowed: allowed, options: o, open: map[string]*opened{}, told: map[config.Finding]bool{}}
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
	clear(s.told)
}

func (s *Repositories) get(name string) (*opened, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.open[name]; o != nil {
		return o, nil
	}
	if err := s.permit(name); err != nil {
		return nil, err
	}
	c, err := s.folder.Load(name)
	if err != nil {
		return nil, err
	}
	if c.FQRN != name {
		return nil, fmt.Errorf("repository %q: give its full name, %s", name, c.FQRN)
	}
	for _, f := range c.Findings {
		s.tell(name, f)
	}
	options := s.options
	options.Dir = filepath.Join(options.Dir, name)
	r, err := Open(c, options)
	if err != nil {
		return nil, err
	}
	o := &opened{Repository: r, config: c}
	s.open[name] = o
	return o, nil
}

// tell logs a finding, once for all repositories whose files it is in.
func (s *Repositories) tell(name string, f config.Finding) {
	if !s.told[f] {
		s.told[f] = true
		s.options.Log.Warn("configuration", "repo", name, "kind", string(f.Kind), "note", f.String())
	}
}

// permit applies the list of allowed repositories.
func (s *Repositories) permit(name string) error {
	if err := fqrn.Check(name); err != nil {
		return err
	}
	if len(s.allowed) > 0 && !slices.Contains(s.allowed, name) {
		return fmt.Errorf("repository %s: %w: the option cvmfs.repositories names %s", name, ErrNotAllowed,
			strings.Join(s.allowed, ", "))
	}
	return nil
}
