package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/cvmfs/trust"
)

// maxCertificate is the most plain bytes of a certificate object; real ones have less than two thousand.
const maxCertificate = 64 << 10

// Revision is a published state of a repository that was found trustworthy.
type Revision struct {
	FQRN        string
	Number      uint64
	Published   time.Time
	Root        hash.Digest   // the root catalog
	Certificate string        // fingerprints of who signed it, see trust.Certificate
	Expires     time.Time     // when the whitelist stops vouching for that certificate
	TTL         time.Duration // how long the publisher wants it to be taken for the newest
	History     hash.Digest   // the tags, see Tags; zero where there are none
	Metainfo    hash.Digest   // JSON about the repository; zero where there is none
	Collectable bool          // the publisher removes old revisions' objects

	repo *Repository
	root mount
}

// answer is what asking for the newest revision gave.
type answer struct {
	revision *Revision
	err      error
	at       time.Time // when it was complete
}

// Newest gets and verifies the newest revision the servers have, or the one that the configuration holds on to. Within
// ten seconds of an answer it gives that one again, and callers that ask while another does share its answer, be it an
// error.
//
// Errors: ErrRollback; those of package trust; fetch.ErrUnavailable and the like where no server could be reached.
func (r *Repository) Newest(ctx context.Context) (*Revision, error) {
	return r.ask(ctx, r.cfg.Fresh, 0)
}

// Refresh is Newest for a caller who misses something in the revision at hand: what it gives was asked for after the
// call. The servers are not asked more than once a second; it waits for that, for what is missing may have been
// published just now.
func (r *Repository) Refresh(ctx context.Context) (*Revision, error) {
	return r.ask(ctx, 0, min(r.cfg.Fresh, time.Second))
}

// ask returns the last answer if it is fresh, or asks when the pause since it is over.
func (r *Repository) ask(ctx context.Context, fresh, pause time.Duration) (*Revision, error) {
	asked := time.Now()
	select {
	case r.asking <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("newest revision of %s: %w", r.cfg.FQRN, context.Cause(ctx))
	}
	defer func() { <-r.asking }()
	if last := r.last; last.at.After(asked) || last.revision != nil && time.Since(last.at) < fresh {
		return last.revision, last.err
	}
	if r.last.revision != nil {
		select {
		case <-time.After(pause - time.Since(r.last.at)):
		case <-ctx.Done():
			return nil, fmt.Errorf("newest revision of %s: %w", r.cfg.FQRN, context.Cause(ctx))
		}
	}
	v, err := r.newest(ctx)
	if err != nil {
		err = fmt.Errorf("newest revision of %s: %w", r.cfg.FQRN, err)
	}
	if ctx.Err() == nil {
		r.last = answer{revision: v, err: err, at: time.Now()}
	}
	return v, err
}

func (r *Repository) newest(ctx context.Context) (*Revision, error) {
	seen, err := r.seen()
	if err != nil {
		return nil, err
	}
	t, err := r.manifest(ctx, seen)
	if err != nil {
		return nil, err
	}
	m := t.Manifest
	root, err := r.choose(ctx, m)
	if err != nil {
		return nil, err
	}
	v := &Revision{
		FQRN:        r.cfg.FQRN,
		Root:        root.digest,
		Certificate: t.Certificate.String(),
		Expires:     t.Expires,
		History:     m.History,
		Metainfo:    m.Metainfo,
		Collectable: m.GarbageCollectable,
		repo:        r,
		root:        root.mount,
	}
	if root.digest == m.Root {
		v.Published = m.Published
	}
	err = r.use(ctx, v.root, func(c *catalog.Catalog) error {
		if v.TTL = c.TTL(); r.cfg.MaxTTL > 0 {
			v.TTL = min(v.TTL, r.cfg.MaxTTL)
		}
		return v.holdsTo(c, root, r.cfg.Blacklist)
	})
	if err != nil {
		return nil, r.cfg.Fixed.unnamed(err)
	}
	now := state{root: m.Root, published: m.Published.Unix(), revision: m.Revision}
	if now != seen {
		if err := r.remember(now); err != nil {
			return nil, err
		}
		r.cfg.Log.Info("new revision", "revision", m.Revision, "published", m.Published, "root", m.Root.String())
	}
	return v, nil
}

// manifest gets .cvmfspublished from the first server whose copy is trustworthy and not older than what was seen.
func (r *Repository) manifest(ctx context.Context, seen state) (*trust.Trusted, error) {
	policy := trust.Policy{FQRN: r.cfg.FQRN, Keys: r.cfg.Keys, Blacklist: r.cfg.Blacklist, Now: r.cfg.Now()}
	var trusted *trust.Trusted
	var final error // no other manifest would help
	err := r.cfg.Fetcher.Get(ctx, manifest.FileName, func(body io.Reader) error {
		published, err := readAtMost(body, manifest.MaxSize)
		if err != nil {
			return err
		}
		from := &source{repo: r, policy: policy}
		trusted, err = policy.Verify(ctx, published, from)
		if err == nil {
			err = seen.mayBecome(trusted.Manifest)
		}
		switch {
		case err == nil:
			return nil
		case from.unavailable, from.unlisted, ctx.Err() != nil:
			final = err
			return errFinal
		}
		return fmt.Errorf("%w: %w", fetch.ErrBadData, err)
	})
	if final != nil {
		return nil, final
	}
	return trusted, missing(err)
}

var errFinal = errors.New("final")

// readAtMost reads a small text whole.
func readAtMost(body io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%w: more than %d bytes", fetch.ErrBadData, limit)
	}
	return b, err
}

// source gets what a manifest must be judged by.
type source struct {
	repo   *Repository
	policy trust.Policy
	// For a reason that isn't the manifest's there is no certificate, or no list.
	unavailable, unlisted bool
}

// Certificate implements trust.Source. A certificate nobody has is the fault of the manifest that names it.
func (s *source) Certificate(ctx context.Context, d hash.Digest) ([]byte, error) {
	var b objects.Buffer
	err := objects.Download(ctx, s.repo.cfg.Fetcher, d, hash.Certificate, hash.Zlib, maxCertificate, &b)
	s.unavailable = err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fetch.ErrBadData)
	return b.Bytes(), missing(err)
}

// Whitelist implements trust.Source. It gives the list of the first server whose list is valid.
func (s *source) Whitelist(ctx context.Context) ([]byte, error) {
	var raw []byte
	err := s.repo.cfg.Fetcher.Get(ctx, trust.WhitelistFile, func(body io.Reader) error {
		var err error
		if raw, err = readAtMost(body, trust.MaxLetter); err != nil {
			return err
		}
		if _, err = trust.VerifyWhitelist(s.policy.FQRN, raw, s.policy.Keys, s.policy.Now); err != nil {
			return fmt.Errorf("%w: %w", fetch.ErrBadData, err)
		}
		return nil
	})
	s.unlisted = err != nil
	return raw, missing(err)
}

// state is the newest revision that was seen. The zero value: none yet.
type state struct {
	root      hash.Digest
	published int64 // Unix time
	revision  uint64
}

// mayBecome refuses a manifest older than what was seen, by either of its clocks.
func (s state) mayBecome(m *manifest.Manifest) error {
	if m.Revision < s.revision {
		return fmt.Errorf("%w: revision %d, but %d was seen here before", ErrRollback, m.Revision, s.revision)
	}
	if m.Published.Unix() < s.published {
		return fmt.Errorf("%w: published %s, but here something published %s was seen before", ErrRollback,
			m.Published.Format(time.RFC3339), time.Unix(s.published, 0).UTC().Format(time.RFC3339))
	}
	return nil
}

// String is the form of the reference client's file cvmfschecksum.<fqrn>: digest, T and time, R and revision.
func (s state) String() string {
	return fmt.Sprintf("%vT%dR%d\n", s.root, s.published, s.revision)
}

func parseState(text string) (s state, err error) {
	text, ended := strings.CutSuffix(text, "\n")
	root, rest, hasT := strings.Cut(text, "T")
	published, revision, hasR := strings.Cut(rest, "R")
	if !ended || !hasT || !hasR {
		return state{}, fmt.Errorf("%.80q isn't DIGEST T TIME R REVISION", text)
	}
	if s.root, err = hash.Parse(root); err != nil {
		return state{}, err
	}
	if s.published, err = strconv.ParseInt(published, 10, 64); err != nil {
		return state{}, err
	}
	s.revision, err = strconv.ParseUint(revision, 10, 64)
	return s, err
}

func (r *Repository) stateFile() string { return filepath.Join(r.cfg.Dir, "newest") }

// seen reads what was remembered. A file that can't be read is an error and not the same as none: it would be the way
// around the protection.
func (r *Repository) seen() (state, error) {
	text, err := os.ReadFile(r.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("newest state seen: %w", err)
	}
	s, err := parseState(string(text))
	if err != nil {
		return state{}, fmt.Errorf("newest state seen, in %s: %w (removing the file makes this host accept older revisions)", r.stateFile(), err)
	}
	return s, nil
}

func (r *Repository) remember(s state) error {
	f, err := os.CreateTemp(r.temporary(), "newest-")
	if err != nil {
		return fmt.Errorf("remember the newest state: %w", err)
	}
	_, err = f.WriteString(s.String())
	if err := keep(f, r.stateFile(), err); err != nil {
		return fmt.Errorf("remember the newest state: %w", err)
	}
	return nil
}

// keep returns a complete temporary file its name, or removes it where an error came before. After a crash either the
// old or the new content stands under the name, whole.
func keep(f *os.File, name string, err error) error {
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name()) // what remains is removed when it's old
	}
	return err
}
