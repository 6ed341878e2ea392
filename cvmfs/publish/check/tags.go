package check

import (
	"context"
	"strings"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/publish/storage"
)

// rootCheck is a revision to be walked.
type rootCheck struct {
	digest hash.Digest
	size   int64 // plain bytes; 0: unknown
	head   *manifest.Manifest
}

// history checks the tags and gives the root catalogs to walk, the newest first.
func (c *checker) history(ctx context.Context, m *manifest.Manifest) ([]rootCheck, error) {
	roots := []rootCheck{{m.Root, m.RootSize, m}}
	if m.History.IsZero() {
		return roots, nil
	}
	at := m.History.Path(hash.History)
	h, err := storage.ReadHistory(ctx, c.from, m.History, c.temp())
	if err != nil {
		return roots, c.flaw(RuleHistory, at, err)
	}
	if h.FQRN != c.o.FQRN {
		c.problem(RuleHistory, at, "it is that of %.80q", h.FQRN)
	}
	c.branches(at, h)
	if trunk, ok := h.Find(history.Trunk); ok && (trunk.Root != m.Root || trunk.Revision != m.Revision) {
		c.problem(RuleHistory, at, "trunk is revision %d, %v, and not the manifest's", trunk.Revision, trunk.Root)
	}
	sizes := map[hash.Digest]int64{m.Root: m.RootSize}
	for _, tag := range h.Tags {
		if err := history.CheckName(tag.Name); err != nil {
			c.problem(RuleHistory, at, "%v", err)
		}
		if tag.Revision > m.Revision {
			c.problem(RuleHistory, at, "tag %.80s is of revision %d, newer than the newest, %d", tag.Name, tag.Revision,
				m.Revision)
		}
		size, seen := sizes[tag.Root]
		if seen && size != 0 && tag.Size != 0 && size != tag.Size {
			c.problem(RuleSize, at, "tag %.80s says that %v has %d bytes, others say %d", tag.Name, tag.Root, tag.Size,
				size)
		}
		if !seen {
			sizes[tag.Root] = tag.Size
			roots = append(roots, rootCheck{tag.Root, tag.Size, nil})
		}
	}
	return roots, nil
}

// branches checks what the reference asks of branches: each that is there has a tag, and reaches back to it.
func (c *checker) branches(at string, h *history.History) {
	first := map[string]uint64{}
	for _, b := range h.Branches {
		first[b.Name] = b.InitialRevision
		if strings.Trim(b.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@/") != "" {
			c.problem(RuleHistory, at, "%.80q is no branch's name", b.Name)
		}
	}
	used := map[string]bool{}
	for _, tag := range h.Tags {
		used[tag.Branch] = true
		initial, known := first[tag.Branch]
		if h.Branches != nil && (!known || tag.Revision < initial) {
			c.problem(RuleHistory, at, "tag %.80s of revision %d is on no branch %.80q that reaches back to it",
				tag.Name, tag.Revision, tag.Branch)
		}
	}
	if h.Branches != nil && len(used) != len(first) {
		c.problem(RuleHistory, at, "%d branches, of which %d have a tag", len(first), len(used))
	}
}
