package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/trust"
	"cvmfs-graphdriver/internal/durable"
)

// What a configuration repository may be: real ones have some hundred files of a few lines.
const (
	configPath     = "/etc/cvmfs"
	maxConfigNodes = 10_000
	maxConfigFile  = 1 << 20 // bytes; a larger file is left out
	maxConfigBytes = 32 << 20

	configWait  = 20 * time.Second // for servers
	configFresh = 4 * time.Minute  // how long the newest revision is taken for that
	configRetry = time.Minute      // how long servers aren't asked again that gave none
	configLinks = 8                // links to follow from one
	configFiles = "files-"         // what a folder with a revision's files begins with, before its root catalog
)

// ConfigRepository returns what gets a configuration repository's files for [config.Folder]. They are kept in a folder
// of Options.Dir, so that they are there when no server answers. What is returned is safe for concurrent use.
func ConfigRepository(ctx context.Context, o Options) func(*config.Config) (string, error) {
	return newConfigGetter(o).with(ctx)
}

func newConfigGetter(o Options) *configGetter {
	return &configGetter{options: o, got: map[string]configAnswer{}}
}

type configGetter struct {
	options Options

	mu  sync.Mutex // held while servers are asked
	got map[string]configAnswer
}

type configAnswer struct {
	dir   string
	err   error
	until time.Time // then servers are asked again
}

// with is get with the context of its requests.
func (g *configGetter) with(ctx context.Context) func(*config.Config) (string, error) {
	return func(c *config.Config) (string, error) { return g.get(ctx, c) }
}

func (g *configGetter) get(ctx context.Context, c *config.Config) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if a, ok := g.got[c.FQRN]; ok && time.Now().Before(a.until) {
		return a.dir, a.err
	}
	dir, newest, err := g.ask(ctx, c)
	if ctx.Err() != nil {
		return "", context.Cause(ctx) // others are to ask
	}
	fresh := configRetry
	if newest {
		fresh = configFresh
	}
	g.got[c.FQRN] = configAnswer{dir, err, time.Now().Add(fresh)}
	return dir, err
}

// due reports whether servers are to be asked again.
func (g *configGetter) due() bool {
	if g == nil {
		return true // who else gets the files doesn't tell
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.got {
		if !time.Now().Before(a.until) {
			return true
		}
	}
	return false
}

// forget has servers asked again.
func (g *configGetter) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.got)
}

// ask gets the newest revision's files, or those that were gotten last where it can't be had. It is an error all the
// same if the servers have something that must no longer be trusted.
func (g *configGetter) ask(ctx context.Context, c *config.Config) (dir string, newest bool, err error) {
	o := g.options
	o.Dir = filepath.Join(o.Dir, "config-repository", c.FQRN)
	r, err := Open(c, o)
	if err != nil {
		return "", false, err
	}
	defer r.Fetcher().Close()
	ctx, cancel := context.WithTimeout(ctx, configWait)
	defer cancel()
	if dir, err = r.configFiles(ctx); err == nil {
		return dir, true, nil
	}
	for _, revoked := range []error{trust.ErrBlacklisted, trust.ErrNotWhitelisted, trust.ErrExpired} {
		if errors.Is(err, revoked) {
			return "", false, err
		}
	}
	if dir = r.keptConfig(); dir == "" {
		return "", false, err
	}
	r.cfg.Log.Warn("the configuration repository's last known files are used", "error", err)
	return dir, false, nil
}

// configFiles returns the folder with the newest revision's configuration.
func (r *Repository) configFiles(ctx context.Context) (string, error) {
	v, err := r.Newest(ctx)
	if err != nil {
		return "", err
	}
	name := configFiles + v.Root.String()
	dir := filepath.Join(r.cfg.Dir, name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	folder, err := durable.CreateFolder(r.cfg.Dir)
	if err != nil {
		return "", err
	}
	defer folder.Close() // what remains is swept by the next one
	if err := v.copyConfig(ctx, folder.Path()); err != nil {
		return "", err
	}
	if err := folder.New(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	r.sweepConfig(name)
	return dir, nil
}

// keptConfig returns the folder with the files that were gotten last; "" if there is none.
func (r *Repository) keptConfig() string {
	if seen, err := r.seen(); err == nil {
		dir := filepath.Join(r.cfg.Dir, configFiles+seen.root.String())
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	dirs, _ := filepath.Glob(filepath.Join(r.cfg.Dir, configFiles+"*")) // the pattern is good
	var latest string
	var at time.Time
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err == nil && info.ModTime().After(at) {
			latest, at = dir, info.ModTime()
		}
	}
	return latest
}

// sweepConfig removes the files of all revisions but one. What can't be removed is so the next time.
func (r *Repository) sweepConfig(but string) {
	entries, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		name := e.Name()
		former := strings.HasPrefix(name, configFiles) && name != but
		if former || durable.IsTemporary(name) && e.IsDir() {
			os.RemoveAll(filepath.Join(r.cfg.Dir, name))
		}
	}
}

// copyConfig copies the configuration into a folder, as folders and regular files. A link is what it leads to, if that
// is a regular file of the configuration, too; else it is left out.
func (v *Revision) copyConfig(ctx context.Context, dir string) error {
	nodes := map[string]*catalog.Entry{}
	var sorted []string
	err := v.Walk(ctx, configPath, func(n *Node) error {
		if len(nodes) >= maxConfigNodes {
			return fmt.Errorf("more than %d files below %s in %s", maxConfigNodes, configPath, v.FQRN)
		}
		nodes[n.Path] = n.Entry
		sorted = append(sorted, n.Path)
		return nil
	})
	if err != nil {
		return err
	}
	left := int64(maxConfigBytes)
	for _, name := range sorted {
		to := filepath.Join(dir, name)
		e := nodes[name]
		if e.IsDir() {
			if err := os.MkdirAll(to, 0o700); err != nil {
				return err
			}
			continue
		}
		at, e := v.target(nodes, name)
		if e == nil || e.Size > maxConfigFile {
			v.repo.cfg.Log.Debug("a file of the configuration repository is left out", "path", name)
			continue
		}
		if left -= e.Size; left < 0 {
			return fmt.Errorf("more than %d bytes below %s in %s", int64(maxConfigBytes), configPath, v.FQRN)
		}
		if err := v.copyFile(ctx, at, e, to); err != nil {
			return err
		}
	}
	return nil
}

// target is the regular file that a name leads to, and its path; nil for none of the nodes.
func (v *Revision) target(nodes map[string]*catalog.Entry, name string) (at string, e *catalog.Entry) {
	for range configLinks {
		e := nodes[name]
		switch {
		case e == nil || e.IsDir():
			return "", nil
		case e.IsRegular():
			return name, e
		case e.Target == "":
			return "", nil
		}
		to := v.repo.Expand(e.Target)
		if inside, ok := strings.CutPrefix(to, "/cvmfs/"+v.FQRN+"/"); ok {
			name = path.Join("/", inside)
		} else if path.IsAbs(to) {
			return "", nil
		} else {
			name = path.Join(path.Dir(name), to)
		}
	}
	return "", nil
}

func (v *Revision) copyFile(ctx context.Context, at string, e *catalog.Entry, to string) error {
	from, err := v.Open(ctx, at, e)
	if err != nil {
		return err
	}
	defer from.Close() // only read
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}
