package convert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/thin"
)

// errNoRecorder means that a start profile is wanted, and nobody can record one.
var errNoRecorder = errors.New("no start profile can be recorded here")

// profile has the thin image name the start profile that is published with it: the job's, or the one that is there of
// the same image.
func (c *Converter) profile(p *plan, old *state) error {
	switch {
	case p.job.Profile != nil:
		sum := sha256.Sum256(p.job.Profile)
		p.profile, p.state.Profile = p.job.Profile, hex.EncodeToString(sum[:])
	case old == nil || old.Profile == "" || old.Manifest != p.state.Manifest:
		return nil
	default:
		p.state.Profile = old.Profile
	}
	p.descriptor.Profile = &thin.Profile{
		FQRN: c.Sink.FQRN(), Path: metadataOf(p.image) + "/" + profileName, Digest: p.state.Profile,
	}
	return p.build()
}

func writeProfile(ctx context.Context, tx sink.Transaction, p *plan) error {
	if p.profile == nil {
		return nil
	}
	if err := tx.WriteFile(ctx, metadataOf(p.image)+"/"+profileName, p.profile); err != nil {
		return fmt.Errorf("start profile: %w", err)
	}
	return nil
}

// convertRecorded records the start of an image that was converted, and converts it again with that.
func (c *Converter) convertRecorded(ctx context.Context, p *plan) (*Summary, error) {
	if c.Recorder == nil {
		return &p.summary, errNoRecorder
	}
	c.emit(Event{Action: Recording, Image: p.state.Image})
	profile, err := c.Recorder(ctx, p.image, p.descriptor)
	if err != nil {
		return &p.summary, fmt.Errorf("the image was converted without a start profile: %w", err)
	}
	job := p.job
	job.Profile, job.Record = profile, false
	again, err := c.convert(ctx, job)
	if again != nil {
		p.summary.ThinDigest, p.summary.Unchanged = again.ThinDigest, false
	}
	return &p.summary, err
}
