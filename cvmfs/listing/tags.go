package listing

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"

	"cvmfs-graphdriver/cvmfs/history"
)

// Tags are the names that a publisher has given to revisions, the newest revision first.
type Tags struct {
	FQRN     string   `json:"fqrn"`
	Tags     []Tag    `json:"tags"`
	Branches []Branch `json:"branches"` // without the main one
}

// Tag names a revision.
type Tag struct {
	Name        string    `json:"name"`
	Revision    uint64    `json:"revision"`
	Time        time.Time `json:"time"`
	Root        string    `json:"root_hash"`
	Size        int64     `json:"size"` // plain bytes of the root catalog; 0: unknown
	Branch      string    `json:"branch"`
	Description string    `json:"description"`
}

// Branch is a line of revisions.
type Branch struct {
	Name            string `json:"name"`
	Parent          string `json:"parent"`
	InitialRevision uint64 `json:"initial_revision"`
}

// TagsOf sorts what a history says.
func TagsOf(h *history.History) *Tags {
	all := &Tags{FQRN: h.FQRN, Tags: []Tag{}, Branches: []Branch{}}
	for _, t := range h.Tags {
		all.Tags = append(all.Tags, Tag{t.Name, t.Revision, t.Time, t.Root.String(), t.Size, t.Branch, t.Description})
	}
	slices.SortFunc(all.Tags, func(a, b Tag) int {
		return cmp.Or(cmp.Compare(b.Revision, a.Revision), b.Time.Compare(a.Time), cmp.Compare(a.Name, b.Name))
	})
	for _, b := range h.Branches {
		if b.Name != "" {
			all.Branches = append(all.Branches, Branch(b))
		}
	}
	return all
}

// Write writes a line for each tag and branch.
func (t *Tags) Write(w io.Writer) error {
	for _, tag := range t.Tags {
		_, err := fmt.Fprintf(w, "%-24s %8d  %s  %s%s  %s\n", Quote(tag.Name), tag.Revision, tag.Time.Format(time.RFC3339),
			tag.Root, onBranch(tag.Branch), Quote(tag.Description))
		if err != nil {
			return err
		}
	}
	for _, b := range t.Branches {
		_, err := fmt.Fprintf(w, "branch %s from revision %d%s\n", Quote(b.Name), b.InitialRevision, onBranch(b.Parent))
		if err != nil {
			return err
		}
	}
	return nil
}

func onBranch(name string) string {
	if name == "" {
		return ""
	}
	return "  of " + Quote(name)
}
