package config

import "fmt"

const quotaLimit = "CVMFS_QUOTA_LIMIT"

// leastQuota is the least limit of a cache, in bytes, as of the storage option cvmfs.cache-limit. The reference client
// has none, but evicts down to half of it; below it one file might be all there is room for, and the number is likely
// meant in another unit.
const leastQuota = 64 << 20

// Quota is the size that a cache is to have.
type Quota struct {
	Bytes int64 `json:"bytes"` // 0: as large as it gets
	Place Place `json:"place"` // where it is set
	// Unused is why the value doesn't count; "" for one that does. What a package sets is nobody's wish, and there is
	// one cache, which no single repository sizes.
	Unused string `json:"unused,omitempty"`
	// Odd is what is to be told of a value that counts as another one than it looks like; "" for most.
	Odd string `json:"odd,omitempty"`
}

// Quota returns the size of the cache that all repositories share. ok is false where no file sets one.
func (f Folder) Quota() (q Quota, ok bool, err error) {
	s := newShell(f.placed(), "")
	if err := s.defaults(); err != nil {
		return Quota{}, false, fmt.Errorf("configuration: %w", err)
	}
	s.common = s.params[quotaLimit]
	q, ok = (&settings{shell: s}).quota()
	return q, ok, nil
}

// quota reads the limit of the cache. It is a site's own wish in a file whose name ends in .local, or in what such a
// file sources; the others are those of packages.
func (s *settings) quota() (q Quota, ok bool) {
	v := s.shell.params[quotaLimit]
	if !v.set || v.value == "" {
		return Quota{}, false
	}
	n, whole := leading(v.value)
	q = Quota{Bytes: min(max(0, n), maxNumber) << 20, Place: v.at}
	switch {
	case v.at != s.shell.common.at || !s.shell.common.set:
		q.Unused = "there is one cache for all repositories: set it in default.local"
	case !v.local:
		q.Unused = "a package sets it, in a file that is not the site's own: set it in default.local"
	case n == 0 && !whole:
		q.Unused = "it is no number"
	}
	if few := 0 < q.Bytes && q.Bytes < leastQuota; few && q.Unused == "" {
		q.Odd = fmt.Sprintf("%.40q is taken as %d, the least: it is a number of MiB", v.value, leastQuota>>20)
		q.Bytes = leastQuota
	} else if !whole {
		q.Odd = fmt.Sprintf("%.40q is taken as %d: it is a number of MiB", v.value, n)
	}
	return q, true
}

// tellQuota tells of a limit that somebody wants and that has no effect, or another one than it looks like.
func (s *settings) tellQuota() {
	q, ok := s.quota()
	if q.Odd != "" {
		s.found = append(s.found, Finding{Kind: Odd, Place: q.Place, Parameter: quotaLimit, Text: q.Odd})
	}
	if v := s.shell.params[quotaLimit]; ok && q.Unused != "" && (v.local || byName[quotaLimit].changed(v.value)) {
		s.found = append(s.found, Finding{
			Kind: NotHonored, Place: q.Place, Parameter: quotaLimit, Text: "is set and has no effect here: " + q.Unused,
		})
	}
}
