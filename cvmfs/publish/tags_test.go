package publish_test

import (
	"errors"
	"io/fs"
	"testing"

	"cvmfs-graphdriver/cvmfs/history"
	. "cvmfs-graphdriver/cvmfs/publish"
	. "cvmfs-graphdriver/test/publishtest"
)

func tagNames(t testing.TB, r *Repository) map[string]history.Tag {
	t.Helper()
	tags, err := r.Tags(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]history.Tag{}
	for _, tag := range tags {
		byName[tag.Name] = tag
	}
	return byName
}

// publishFile publishes a revision with one more file.
func publishFile(t testing.TB, r *Repository, path string) *Summary {
	t.Helper()
	tx := Begin(t, r)
	if err := tx.WriteFile(t.Context(), path, []byte(path), 0o644); err != nil {
		t.Fatal(err)
	}
	return Commit(t, tx)
}

func TestTagsAreAddedAndRemovedAndPublishingGoesOn(t *testing.T) {
	r := New(t, Small(Settings{}))
	first := publishFile(t, r, "/first")
	if err := r.AddTag(t.Context(), "one", "", "the first"); err != nil {
		t.Fatal(err)
	}
	second := publishFile(t, r, "/second")
	if err := r.AddTag(t.Context(), "two", "", ""); err != nil {
		t.Fatal(err)
	}
	if err := r.AddTag(t.Context(), "also-one", "one", ""); err != nil {
		t.Fatal(err)
	}
	tags := tagNames(t, r)
	for name, want := range map[string]*Summary{
		"one": first, "also-one": first, "two": second, "trunk": second,
		"trunk-previous": first,
	} {
		if got := tags[name]; got.Root != want.Root || got.Revision != want.Revision {
			t.Errorf("tag %s is revision %d, %v, want %d, %v", name, got.Revision, got.Root, want.Revision, want.Root)
		}
	}
	if tags["one"].Description != "the first" {
		t.Errorf("description %q", tags["one"].Description)
	}
	if err := r.RemoveTag(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if tags = tagNames(t, r); tags["one"].Name != "" || tags["also-one"].Name == "" {
		t.Errorf("after removal: %v", tags)
	}
	// A client reads what is published now, and a transaction finds the reflog it expects.
	if got := Newest(t, r).Root; got != second.Root {
		t.Errorf("clients read %v, want %v", got, second.Root)
	}
	if third := publishFile(t, r, "/third"); third.Revision != second.Revision+1 {
		t.Errorf("next revision %d", third.Revision)
	}
}

func TestTagsThatCannotBeChangedAreRefused(t *testing.T) {
	r := New(t, Small(Settings{}))
	if err := r.AddTag(t.Context(), "taken", "", ""); err != nil {
		t.Fatal(err)
	}
	before, err := r.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"add trunk":             {r.AddTag(t.Context(), "trunk", "", ""), ErrKeptTag},
		"add trunk-previous":    {r.AddTag(t.Context(), "trunk-previous", "", ""), ErrKeptTag},
		"remove trunk":          {r.RemoveTag(t.Context(), "trunk"), ErrKeptTag},
		"remove trunk-previous": {r.RemoveTag(t.Context(), "trunk-previous"), ErrKeptTag},
		"remove none":           {r.RemoveTag(t.Context(), "none"), fs.ErrNotExist},
		"add taken":             {r.AddTag(t.Context(), "taken", "", ""), fs.ErrExist},
		"add of none":           {r.AddTag(t.Context(), "new", "none", ""), fs.ErrNotExist},
		"no name":               {r.AddTag(t.Context(), "", "", ""), history.ErrInvalid},
		"bad name":              {r.AddTag(t.Context(), "a b", "", ""), history.ErrInvalid},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
	}
	after, err := r.Head(t.Context())
	if err != nil || after.Manifest.History != before.Manifest.History {
		t.Errorf("refusals published tags: %v", err)
	}
	unlock, err := r.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := r.AddTag(t.Context(), "new", "", ""); !errors.Is(err, ErrLocked) {
		t.Errorf("while locked: %v", err)
	}
	if _, err := r.Tags(t.Context()); err != nil {
		t.Errorf("tags are not to be read while locked: %v", err)
	}
}
