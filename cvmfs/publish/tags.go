package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/trust"
)

// ErrKeptTag refuses to change the tags that each publish sets.
var ErrKeptTag = errors.New("the publisher itself keeps this tag")

// Tags returns the tags of the newest revision's history. It needs no lock and writes nothing in the publisher's
// folder.
func (r *Repository) Tags(ctx context.Context) ([]history.Tag, error) {
	head, err := r.Head(ctx)
	if err != nil && !errors.Is(err, trust.ErrExpired) {
		return nil, err
	}
	tags, err := r.readTags(ctx, head)
	if err != nil {
		return nil, fmt.Errorf("tags of %s: %w", r.FQRN(), err)
	}
	return tags, nil
}

func (r *Repository) readTags(ctx context.Context, head *trust.Trusted) (tags []history.Tag, err error) {
	dir, err := os.MkdirTemp("", "cvmfs-tags-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	h, err := r.history(ctx, head.Manifest, filepath.Join(dir, "history"))
	if err != nil {
		return nil, err
	}
	return h.Tags, nil
}

// AddTag returns a name to the newest revision, or, unless of is "", to the one that tag names. The error is
// fs.ErrExist if the name is taken, and fs.ErrNotExist if there is no tag of.
func (r *Repository) AddTag(ctx context.Context, name, of, description string) error {
	err := r.editTags(ctx, func(tags *history.History, d *Draft) error {
		if kept(name) {
			return ErrKeptTag
		}
		if name == "" {
			return history.CheckName(name)
		}
		if err := newTag(tags, name); err != nil {
			return err
		}
		if of == "" {
			of = history.Trunk
		}
		tag, ok := tags.Find(of)
		if !ok {
			return fmt.Errorf("tag %.80q: %w: publish tag DIR list tells which there are", of, fs.ErrNotExist)
		}
		tag.Name, tag.Description, tag.Time = name, description, d.Now
		tags.Set(tag)
		return nil
	})
	if err != nil {
		return fmt.Errorf("add tag %.80q to %s: %w", name, r.FQRN(), err)
	}
	return nil
}

// RemoveTag takes a name away; what only it led to goes with the next garbage collection. The error is fs.ErrNotExist
// if there is no such tag.
func (r *Repository) RemoveTag(ctx context.Context, name string) error {
	err := r.editTags(ctx, func(tags *history.History, _ *Draft) error {
		if kept(name) {
			return ErrKeptTag
		}
		if !tags.Remove(name) {
			return fs.ErrNotExist
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove tag %.80q of %s: %w", name, r.FQRN(), err)
	}
	return nil
}

func kept(name string) bool { return name == history.Trunk || name == history.TrunkPrevious }

// editTags publishes other tags. The revision stays: it is the root catalog's, which stays too.
func (r *Repository) editTags(ctx context.Context, edit func(*history.History, *Draft) error) (err error) {
	unlock, err := r.Lock(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	d, err := r.Draft(ctx)
	if err != nil {
		return err
	}
	tags, err := d.Tags(ctx)
	if err != nil {
		return err
	}
	if err := edit(tags, d); err != nil {
		return err
	}
	m := *d.Head
	m.Published = d.Now
	return d.Publish(ctx, &m, tags)
}
