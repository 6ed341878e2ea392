package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/fetch"
)

// Reloaded is what came of reading an open repository's configuration again.
type Reloaded struct {
	FQRN    string
	Changed []string // parameters whose value is another one, and files whose content is; it counts from now on
	Err     error    // why what the files say now can't be used: what counted before goes on to
}

// Reload reads the configuration of all open repositories again. What has changed counts for whatever is asked for from
// then on; what was given out before goes on to work. A configuration that can't be used, or that lacks the
// configuration repository which the former one had, leaves the former one in use. If it is no longer certain whom to
// trust (config.ErrTrust) then only objects are still fetched, of images that there are, and Repository has no
// revisions any more.
//
// The configuration repository's servers are asked again after some minutes, or with anew at once. Files that lie there
// as they did when they were read are read again only with anew. It is an error if ctx ends before all is read.
func (s *Repositories) Reload(ctx context.Context, anew bool) ([]Reloaded, error) {
	s.opening.Lock()
	defer s.opening.Unlock()
	if anew && s.getter != nil {
		s.getter.forget()
	}
	s.mu.Lock()
	names := slices.Sorted(maps.Keys(s.open))
	s.mu.Unlock()
	list := make([]Reloaded, len(names))
	for i, name := range names {
		list[i] = Reloaded{FQRN: name}
		list[i].Changed, list[i].Err = s.reload(ctx, name, anew)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("read the configuration of %s again: %w", name, context.Cause(ctx))
		}
	}
	return list, nil
}

func (s *Repositories) reload(ctx context.Context, name string, anew bool) (changed []string, err error) {
	former := s.kept(name)
	if !anew && s.brokenBy(former) == nil && former.seen.Same() && !s.getter.due() {
		return nil, nil
	}
	c, files, seen, err := s.read(ctx, name)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx) // which says nothing of the files
	}
	former.seen = seen
	if err == nil && lacks(c) && !lacks(former.config) {
		err = errors.New("the configuration repository can't be had any more")
	}
	if err == nil {
		if changed = differences(former, c, files); len(changed) == 0 {
			s.mend(name, former)
			return nil, nil
		}
		var o *opened
		if o, err = s.openAs(name, c, files, seen); err == nil {
			s.keep(name, o)
			s.options.Log.Info("the configuration has changed", "repo", name, "changed", strings.Join(changed, " "))
			return changed, nil
		}
	}
	s.spoil(name, former, err)
	return nil, err
}

// spoil records that what the files say now can't be used. The same reason is told once.
func (s *Repositories) spoil(name string, o *opened, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	told := o.broken != nil && o.broken.Error() == err.Error()
	o.broken = err
	if told {
		return
	}
	effect := "the former one goes on to count"
	if errors.Is(err, config.ErrTrust) {
		effect = "images that there are can be read; others can't be pulled"
	}
	s.options.Log.Warn("the changed configuration can't be used", "repo", name, "effect", effect, "err", err)
}

// mend records that the files say again what counts.
func (s *Repositories) mend(name string, o *opened) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.broken != nil {
		s.options.Log.Info("the configuration can be used again", "repo", name)
	}
	o.broken = nil
}

func (s *Repositories) brokenBy(o *opened) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return o.broken
}

// InUse is an open repository.
type InUse struct {
	Config  *config.Config // that counts
	Fetcher *fetch.Fetcher
	Since   time.Time // when it came to count
	Err     error     // why what the files say now can't be used
}

// InUse returns the open repositories, sorted by name. It opens none.
func (s *Repositories) InUse() (list []InUse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.open)) {
		o := s.open[name]
		list = append(list, InUse{o.config, o.Fetcher(), o.since, o.broken})
	}
	return list
}

// Close lets connections go that nobody uses. Reads that are under way, and later ones, go on to work.
func (s *Repositories) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, o := range s.open {
		o.Fetcher().Close()
	}
}

// lacks reports whether a configuration is without the configuration repository that it names.
func lacks(c *config.Config) bool {
	return slices.ContainsFunc(c.Findings, func(f config.Finding) bool { return f.Kind == config.Unread })
}

// differences names what a configuration says otherwise than the former one. Where parameters were set, and what is
// told of them, makes none.
func differences(former *opened, c *config.Config, files fingerprints) (changed []string) {
	was, is := former.config.Params, c.Params
	for name := range is {
		if v, ok := was[name]; !ok || v != is[name] {
			changed = append(changed, name)
		}
	}
	for name := range was {
		if _, ok := is[name]; !ok {
			changed = append(changed, name)
		}
	}
	for name := range files {
		if former.files[name] != files[name] {
			changed = append(changed, name)
		}
	}
	for name := range former.files {
		if _, ok := files[name]; !ok {
			changed = append(changed, name)
		}
	}
	slices.Sort(changed)
	if len(changed) == 0 && !reflect.DeepEqual(bare(former.config), bare(c)) {
		changed = []string{"(what parameters mean together)"} // such as whether a value came from the host
	}
	return changed
}

// bare is a configuration without what is only told of it.
func bare(c *config.Config) config.Config {
	b := *c
	b.Findings, b.Origins = nil, nil
	return b
}

// fingerprints are what the content of files is recognised by, by their names.
type fingerprints map[string]string

// maxNamed is how much of a file is looked at, in bytes.
const maxNamed = 16 << 20

// fingerprintsOf looks at the files that a configuration names: keys, blacklists, authorities. One that can't be read
// has its error.
func fingerprintsOf(c *config.Config, seen *config.Seen) fingerprints {
	files := fingerprints{}
	names := slices.Concat(c.PublicKeys, c.Blacklists)
	if n := c.Network; n.CertificateFile != "" {
		names = append(names, n.CertificateFile)
	}
	if dir := c.Network.CertificateDir; dir != "" {
		seen.Look(dir)
		entries, err := os.ReadDir(dir)
		if err != nil {
			files[dir] = err.Error()
		}
		for _, e := range entries {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	for _, name := range names {
		seen.Look(name)
		files[name] = fingerprint(name)
	}
	return files
}

func fingerprint(name string) string {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err.Error()
	}
	defer f.Close() // only read
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return fmt.Sprintf("no regular file, %v", err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxNamed)); err != nil {
		return err.Error()
	}
	return string(h.Sum(nil))
}
