package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/thin"
)

// Files of a composed image's folder that an image may have.
const (
	profileFile  = "start-profile"          // as it is published
	recordedFile = "start-profile-recorded" // as it was recorded here
)

// Profile returns the start profile that an image's descriptor names: the one that was fetched for the image before, or
// else from the repository, at its newest revision. One that isn't what the descriptor says is an error.
func (c *Composer) Profile(ctx context.Context, key string, p *thin.Profile) (objects.Profile, error) {
	file := filepath.Join(c.cfg.Dir, key, profileFile)
	b, err := os.ReadFile(file)
	if err != nil || digestOf(b) != p.Digest {
		if b, _, err = c.fetchProfile(ctx, p); err != nil {
			return nil, fmt.Errorf("start profile cvmfs://%s%s: %w", p.FQRN, p.Path, err)
		}
		if err := durable.Replace(file, 0o600, b); err != nil { // the next time it is fetched again
			c.cfg.Log.Warn("a start profile can't be kept", "image", key, "err", err)
		}
	}
	return objects.ParseProfile(b)
}

// ProfileOf returns where the start profile lies that a chain's topmost descriptor with one names; nil if none does.
func ProfileOf(chain []Layer) *thin.Profile {
	for _, l := range slices.Backward(chain) {
		if l.Thin != nil && l.Thin.Profile != nil {
			return l.Thin.Profile
		}
	}
	return nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// fetchProfile reads a profile's file from its repository, and returns a revision that has it.
func (c *Composer) fetchProfile(ctx context.Context, p *thin.Profile) ([]byte, *client.Revision, error) {
	r, err := c.cfg.Repositories.Repository(p.FQRN)
	if err != nil {
		return nil, nil, err
	}
	v, err := r.Newest(ctx)
	if err != nil {
		return nil, nil, err
	}
	b, err := readProfile(ctx, v, p)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errOtherProfile) { // it may have been published since
		newer, unknown := r.Refresh(ctx)
		switch {
		case unknown != nil:
			return nil, nil, unknown
		case newer.Root != v.Root:
			v = newer
			b, err = readProfile(ctx, v, p)
		}
	}
	return b, v, err
}

// errOtherProfile means that another profile lies where one is looked for.
var errOtherProfile = errors.New("another one was published since: convert the image again")

// readProfile reads a profile's file at a revision.
func readProfile(ctx context.Context, v *client.Revision, p *thin.Profile) ([]byte, error) {
	e, err := v.Lookup(ctx, p.Path)
	if err != nil {
		return nil, err
	}
	if e.Size > objects.MaxProfile {
		return nil, fmt.Errorf("%d bytes, the limit is %d", e.Size, objects.MaxProfile)
	}
	in, err := v.Open(ctx, p.Path, e)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	b, err := io.ReadAll(in) // as many bytes as the entry says
	if err != nil {
		return nil, err
	}
	if got := digestOf(b); got != p.Digest {
		return nil, fmt.Errorf("its SHA-256 is %s, the image's descriptor wants %s: %w", got, p.Digest, errOtherProfile)
	}
	return b, nil
}

// RecordedProfile returns the start profile that was recorded of an image here; the error is fs.ErrNotExist if none
// was.
func (c *Composer) RecordedProfile(key string) (objects.Profile, error) {
	b, err := os.ReadFile(filepath.Join(c.cfg.Dir, key, recordedFile))
	if err != nil {
		return nil, err
	}
	return objects.ParseProfile(b)
}

// KeepProfile keeps a start profile that was recorded of an image.
func (c *Composer) KeepProfile(key string, p objects.Profile) error {
	return durable.Replace(filepath.Join(c.cfg.Dir, key, recordedFile), 0o600, p.Encode())
}
