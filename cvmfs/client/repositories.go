package client

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
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

	opening sync.Mutex // held while a repository is opened, which may ask servers for the configuration repository

	mu      sync.Mutex // guards what follows
	open    map[string]*opened
	told    map[config.Finding]bool // since the last Reload
	reloads int
}

// opened is a repository with its configuration.
type opened struct {
	*Repository
	config *config.Config
}

// NewRepositories reads the host's configuration folder when a repository is first asked for. Where allowed isn't
// empty, only these may be used. Each repository is kept in a folder of its own below Options.Dir.
func NewRepositories(folder config.Folder, allowed []string, o Options) *Repositories {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.connections = &fetch.Connections{} // repositories have servers and proxies in common
	s := &Repositories{allowed: allowed, options: o, open: map[string]*opened{}, told: map[config.Finding]bool{}}
	s.folder = s.remote(folder)
	return s
}

// remote has a folder read the configuration repository, if it names one, unless it does already.
func (s *Repositories) remote(folder config.Folder) config.Folder {
	if folder.ConfigRepository == nil {
		folder.ConfigRepository = ConfigRepository(context.Background(), s.options)
	}
	return folder
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

// Queued returns how many requests wait for a connection to a server or proxy now.
func (s *Repositories) Queued() int { return s.options.connections.Queued() }

// Config returns the configuration a repository was opened with.
func (s *Repositories) Config(fqrn string) (*config.Config, error) {
	o, err := s.get(fqrn)
	if err != nil {
		return nil, err
	}
	return o.config, nil
}

// Reload forgets all repositories: whoever asks next gets them with the configuration, keys and blacklists of that
// time. What was given out before goes on to work. It returns the names of those it has forgotten.
func (s *Repositories) Reload() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.open {
		o.Fetcher().Close()
	}
	names := slices.Sorted(maps.Keys(s.open))
	clear(s.open)
	clear(s.told)
	s.reloads++
	return names
}

func (s *Repositories) get(name string) (*opened, error) {
	if o, _ := s.kept(name); o != nil {
		return o, nil
	}
	if err := s.permit(name); err != nil {
		return nil, err
	}
	s.opening.Lock()
	defer s.opening.Unlock()
	for {
		o, reloads := s.kept(name)
		if o != nil {
			return o, nil
		}
		o, err := s.load(name)
		if err != nil {
			return nil, err
		}
		if s.keep(name, o, reloads) {
			return o, nil
		}
		o.Fetcher().Close() // what it was opened with was changed in between
	}
}

// kept returns a repository if it is open, and how many times there was a Reload.
func (s *Repositories) kept(name string) (*opened, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[name], s.reloads
}

// keep keeps a repository, unless there was a Reload since it was being opened.
func (s *Repositories) keep(name string, o *opened, reloads int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reloads != reloads {
		return false
	}
	s.open[name] = o
	for _, f := range o.config.Findings {
		s.tell(name, f)
	}
	return true
}

func (s *Repositories) load(name string) (*opened, error) {
	c, err := s.folder.Load(name)
	if err != nil {
		return nil, err
	}
	if c.FQRN != name {
		return nil, fmt.Errorf("repository %q: give its full name, %s", name, c.FQRN)
	}
	options := s.options
	options.Dir = filepath.Join(options.Dir, name)
	r, err := Open(c, options)
	if err != nil {
		return nil, err
	}
	return &opened{Repository: r, config: c}, nil
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
