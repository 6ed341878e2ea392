package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/fqrn"
)

// Repositories opens repositories by name, as a host's configuration describes them, and keeps them. It is safe for
// concurrent use.
type Repositories struct {
	folder  config.Folder
	getter  *configGetter // of the configuration repository; nil where the folder has its own
	allowed []string
	options Options

	opening sync.Mutex // held while a repository is opened, which may ask servers for the configuration repository

	mu     sync.Mutex // guards what follows
	open   map[string]*opened
	told   map[config.Finding]bool
	closed bool
}

// opened is a repository with its configuration.
type opened struct {
	*Repository
	config *config.Config
	files  fingerprints // of what the configuration names
	since  time.Time    // when this configuration was read
	seen   *config.Seen // when the files were read last; Repositories.opening guards it
	broken error        // why one that was read later can't be used; Repositories.mu guards it
}

// NewRepositories reads the host's configuration folder when a repository is first asked for. Where allowed isn't
// empty, only these may be used. Each repository is kept in a folder of its own below Options.Dir.
func NewRepositories(folder config.Folder, allowed []string, o Options) *Repositories {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.connections = &fetch.Connections{} // repositories have servers and proxies in common
	s := &Repositories{
		folder: folder, allowed: allowed, options: o, open: map[string]*opened{}, told: map[config.Finding]bool{},
	}
	if folder.ConfigRepository == nil {
		s.getter = newConfigGetter(o)
	}
	return s
}

// Repository returns a repository, to have its revisions. Errors: ErrNotAllowed; config.ErrNotConfigured, whose text
// says what to write where; config.ErrTrust, also of an open repository whose files have changed since.
func (s *Repositories) Repository(fqrn string) (*Repository, error) {
	o, err := s.get(fqrn)
	if err != nil {
		return nil, err
	}
	if err := s.brokenBy(o); errors.Is(err, config.ErrTrust) {
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

func (s *Repositories) get(name string) (*opened, error) {
	if o := s.kept(name); o != nil {
		return o, nil
	}
	if err := s.permit(name); err != nil {
		return nil, err
	}
	s.opening.Lock()
	defer s.opening.Unlock()
	if o := s.kept(name); o != nil {
		return o, nil
	}
	c, files, seen, err := s.read(context.Background(), name)
	if err != nil {
		return nil, err
	}
	o, err := s.openAs(name, c, files, seen)
	if err != nil {
		return nil, err
	}
	s.keep(name, o)
	return o, nil
}

// kept returns a repository if it is open.
func (s *Repositories) kept(name string) *opened {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[name]
}

// keep keeps a repository, and lets the one go that was kept.
func (s *Repositories) keep(name string, o *opened) {
	s.mu.Lock()
	defer s.mu.Unlock()
	former := s.open[name]
	s.open[name] = o
	for _, f := range o.config.Findings {
		s.tell(name, f)
	}
	switch {
	case s.closed:
		o.Fetcher().Close()
	case former != nil:
		former.Fetcher().Close()
	}
}

// read reads the configuration of a repository. What was seen is returned with an error, too.
func (s *Repositories) read(ctx context.Context, name string) (*config.Config, fingerprints, *config.Seen, error) {
	folder := s.folder
	folder.Seen = &config.Seen{}
	if s.getter != nil {
		folder.ConfigRepository = s.getter.with(ctx)
	}
	c, err := folder.Load(name)
	if err != nil {
		return nil, nil, folder.Seen, err
	}
	if c.FQRN != name {
		return nil, nil, folder.Seen, fmt.Errorf("repository %q: give its full name, %s", name, c.FQRN)
	}
	return c, fingerprintsOf(c, folder.Seen), folder.Seen, nil
}

// openAs opens a repository as a configuration says.
func (s *Repositories) openAs(name string, c *config.Config, files fingerprints, seen *config.Seen) (*opened, error) {
	options := s.options
	options.Dir = filepath.Join(options.Dir, name)
	r, err := Open(c, options)
	if err != nil {
		return nil, err
	}
	return &opened{Repository: r, config: c, files: files, seen: seen, since: time.Now()}, nil
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
