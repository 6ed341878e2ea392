package convert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/thin"
)

// errNoRecorder means that a start profile is wanted, and nobody can record one.
var errNoRecorder = errors.New("no start profile can be recorded here")

// profile has the thin image name the start profile that is published of the same image, unless the job has another
// one, which is to be published.
func (c *Converter) profile(p *plan, old *state) error {
	if p.job.Profile != nil {
		p.state.Given = sha256Of(p.job.Profile)
	}
	there := old != nil && old.Profile != "" && old.Manifest == p.state.Manifest
	switch {
	case p.job.Profile != nil && (!there || c.Force || old.Given != p.state.Given):
		p.profile = p.job.Profile
		return nil
	case !there:
		return nil
	}
	p.state.Given = old.Given
	return c.names(p, old.Profile)
}

// names has the thin image name its start profile, which has a digest.
func (c *Converter) names(p *plan, digest string) error {
	p.state.Profile = digest
	p.descriptor.Profile = c.profileAt(p, digest)
	return p.build()
}

// profileAt is where the start profile lies that has a digest.
func (c *Converter) profileAt(p *plan, digest string) *thin.Profile {
	return &thin.Profile{FQRN: c.Sink.FQRN(), Path: metadataOf(p.image) + "/" + profileName, Digest: digest}
}

func sha256Of(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// writeProfile publishes the job's start profile, and files of the image cut into chunks that fit it. What is published
// of another profile goes.
func (c *Converter) writeProfile(ctx context.Context, tx sink.Transaction, p *plan, old *state) error {
	at := c.profileAt(p, p.state.Profile)
	if p.profile != nil {
		b, err := c.cut(ctx, tx, p)
		if err == nil {
			err = tx.WriteFile(ctx, at.Path, b)
		}
		if err == nil {
			err = c.names(p, sha256Of(b))
		}
		if err != nil {
			return fmt.Errorf("start profile: %w", err)
		}
		at = p.descriptor.Profile
	} else if at.Digest == "" && old != nil && old.Profile != "" {
		if err := tx.Remove(ctx, at.Path); err != nil {
			return err
		}
	}
	return removeOthers(ctx, tx, at)
}

// removeOthers removes files that were cut for other profiles of the image.
func removeOthers(ctx context.Context, tx sink.Transaction, keep *thin.Profile) error {
	all, err := tx.List(ctx, keep.AllFiles())
	for _, e := range all {
		if err == nil && e.Name != keep.Digest {
			err = tx.Remove(ctx, keep.AllFiles()+"/"+e.Name)
		}
	}
	return err
}

// cut publishes files that have the content of the image's, in chunks of what the start reads and of what it doesn't,
// and packs of what it reads. It returns the profile that names these.
func (c *Converter) cut(ctx context.Context, tx sink.Transaction, p *plan) ([]byte, error) {
	profile, err := objects.ParseProfile(p.profile)
	if err != nil {
		return nil, err
	}
	published := p.profile
	cuts, read := profile.Cuts(), map[string]objects.Object{}
	named := map[string]bool{}
	for _, r := range profile {
		named[r.Name.String()] = true
	}
	err = tx.Recut(ctx, p.state.Layers, func(e *catalog.Entry) (string, []int64) {
		o, err := objects.FromEntry(e, "")
		if err != nil { // external, or damaged: nodes will say
			return "", nil
		}
		name := o.Name()
		if named[name] {
			read[name] = o
		}
		return name, cuts.Of(&o)
	}, func(made map[string]catalog.Entry) (sink.CutFolder, error) {
		names, err := renamed(made, read)
		renamed := profile.Renamed(names)
		published = renamed.Encode()
		return sink.CutFolder{
			Path: c.profileAt(p, sha256Of(published)).Files(), Packs: renamed.Packs(read),
		}, err
	})
	return published, err
}

// renamed returns the names of the objects that files are, by those that they had, and adds these objects to those that
// are read.
func renamed(made map[string]catalog.Entry, read map[string]objects.Object) (map[objects.Name]objects.Name, error) {
	names := map[objects.Name]objects.Name{}
	for name, e := range made {
		was, err := objects.ParseName(name)
		if err != nil {
			return nil, err
		}
		o, err := objects.FromEntry(&e, "")
		if err != nil {
			return nil, err
		}
		if names[was], err = objects.ParseName(o.Name()); err != nil {
			return nil, err
		}
		read[o.Name()] = o
	}
	return names, nil
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
