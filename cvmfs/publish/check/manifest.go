package check

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/cvmfs/trust"
)

// manifest verifies it as clients do. It is nil, and the problem reported, if it can't be believed.
func (c *checker) manifest(ctx context.Context) (*manifest.Manifest, error) {
	trusted, err := storage.ReadHead(ctx, c.from, trust.Policy{FQRN: c.o.FQRN, Keys: c.o.Keys, Now: c.o.Now})
	if errors.Is(err, trust.ErrExpired) && trusted != nil {
		c.problem(RuleWhitelist, trust.WhitelistFile, "%v", err)
		err = nil
	}
	switch {
	case errors.Is(err, trust.ErrSignature) || errors.Is(err, trust.ErrNotWhitelisted):
		c.problem(RuleSignature, manifest.FileName, "%v", err)
		return nil, nil
	case err != nil:
		return nil, c.flaw(RuleSignature, manifest.FileName, err)
	}
	return trusted.Manifest, nil
}

// maxMetainfo is the most plain bytes clients show of it.
const maxMetainfo = 64 << 10

func (c *checker) metainfo(ctx context.Context, m *manifest.Manifest) error {
	if m.Metainfo.IsZero() {
		return nil
	}
	at := m.Metainfo.Path(hash.Metainfo)
	text, err := storage.ReadObject(ctx, c.from, m.Metainfo, hash.Metainfo, hash.Zlib, maxMetainfo)
	if err != nil {
		return c.flaw(RuleMetainfo, at, err)
	}
	if err := json.Unmarshal(text, new(map[string]any)); err != nil {
		c.problem(RuleMetainfo, at, "it is no JSON object: %v", err)
	}
	return nil
}

func (c *checker) reflog(ctx context.Context, m *manifest.Manifest) error {
	raw, err := storage.ReadFile(ctx, c.from, history.ReflogFile, history.MaxSize)
	if errors.Is(err, fs.ErrNotExist) && m.Reflog.IsZero() && c.o.ReflogSum.IsZero() {
		return nil // old repositories have none
	}
	if err != nil {
		return c.flaw(RuleReflog, history.ReflogFile, err)
	}
	sums := []hash.Digest{m.Reflog, c.o.ReflogSum}
	if m.Reflog.IsZero() && c.o.ReflogSum.IsZero() {
		c.problem(RuleReflog, history.ReflogFile, "nobody says what its digest must be")
	}
	for i, whose := range []string{"the manifest", "the publisher"} {
		if want := sums[i]; !want.IsZero() && want.Algorithm.Digest(raw) != want {
			c.problem(
				RuleReflog,
				history.ReflogFile,
				"its digest is %v, %s says %v",
				want.Algorithm.Digest(raw),
				whose,
				want,
			)
		}
	}
	path := c.temp()
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return err
	}
	log, err := history.ReadReflog(path)
	if err = errors.Join(err, os.Remove(path)); err != nil {
		return c.flaw(RuleReflog, history.ReflogFile, err)
	}
	if log.FQRN != c.o.FQRN {
		c.problem(RuleReflog, history.ReflogFile, "it is that of %.80q", log.FQRN)
	}
	for _, ref := range history.Named(m) {
		if !log.Has(ref.Digest, ref.Kind) {
			c.problem(RuleReflog, history.ReflogFile, "it doesn't list the manifest's %v, %v", ref.Kind, ref.Digest)
		}
	}
	return nil
}

// altPaths looks for the links that stand in for objects where those are only served to who is authorised.
func (c *checker) altPaths(ctx context.Context, m *manifest.Manifest) error {
	if !m.AltPaths {
		return nil
	}
	for _, name := range []string{
		m.Root.String() + string(hash.Catalog),
		m.Certificate.String() + string(hash.Certificate),
	} {
		name = ".cvmfsalt-" + name
		f, err := c.from.Get(ctx, name) // not Stat: it is a link
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			if err := c.flaw(RuleAltPaths, name, err); err != nil {
				return err
			}
		}
	}
	return nil
}
