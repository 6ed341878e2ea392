package listing

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/fetch"
)

// Info is what is known of a repository and of those who serve it.
type Info struct {
	FQRN        string    `json:"fqrn"`
	Revision    uint64    `json:"revision"`
	Published   time.Time `json:"published"`
	Root        string    `json:"root_hash"`
	TTL         float64   `json:"ttl"`         // seconds
	Certificate string    `json:"certificate"` // SHA-1 fingerprint
	Expires     time.Time `json:"whitelist_expires"`
	History     string    `json:"history_hash,omitempty"`
	Metainfo    string    `json:"metainfo_hash,omitempty"`
	Collectable bool      `json:"garbage_collectable"`
	Counts      Counts    `json:"content"`
	Servers     []Member  `json:"servers"`
	Proxies     []Member  `json:"proxies"`
}

// Counts are the publisher's own counters.
type Counts struct {
	Catalogs int64 `json:"catalogs"`
	Files    int64 `json:"files"`
	Folders  int64 `json:"folders"` // a mount counts in both of its catalogs
	Symlinks int64 `json:"symbolic_links"`
	Special  int64 `json:"special_files"`
	Bytes    int64 `json:"bytes"` // plain ones of all names; hard links count each
	Chunked  int64 `json:"chunked_files"`
	Chunks   int64 `json:"chunks"`
	External int64 `json:"external_files"`
}

func countsOf(c catalog.Counters) Counts {
	return Counts{
		Catalogs: c.Nested + 1, Files: c.Regular, Folders: c.Dir, Symlinks: c.Symlink, Special: c.Special,
		Bytes: c.FileSize, Chunked: c.Chunked, Chunks: c.Chunks, External: c.External,
	}
}

// String writes the counters for people.
func (c Counts) String() string {
	return fmt.Sprintf("%d files of %d bytes, %d folders, %d symbolic links, %d catalogs", c.Files, c.Bytes, c.Folders,
		c.Symlinks, c.Catalogs)
}

// Member is a server or a proxy as it was found.
type Member struct {
	Name     string  `json:"name"`
	Answers  int64   `json:"answers"`
	Failures int64   `json:"failures"`
	Wait     float64 `json:"seconds"` // from a request to its answer's header, on average
	Error    string  `json:"error,omitempty"`
}

func members(found []fetch.Member) []Member {
	all := []Member{}
	for _, m := range found {
		shown := Member{Name: m.Name, Answers: m.Answers, Failures: m.Failures, Wait: m.Wait.Seconds()}
		if m.Err != nil {
			shown.Error = m.Err.Error()
		}
		all = append(all, shown)
	}
	return all
}

// InfoOf tells of a repository's revision, which has just been asked for.
func InfoOf(ctx context.Context, r *client.Repository, v *client.Revision) (*Info, error) {
	root, err := v.Stat(ctx, "")
	if err != nil {
		return nil, err
	}
	servers, proxies := r.Fetcher().Members()
	certificate, _, _ := strings.Cut(v.Certificate, " ")
	return &Info{
		FQRN: v.FQRN, Revision: v.Number, Published: v.Published, Root: v.Root.String(), TTL: v.TTL.Seconds(),
		Certificate: certificate, Expires: v.Expires, History: v.History.String(), Metainfo: v.Metainfo.String(),
		Collectable: v.Collectable, Counts: countsOf(root.Statistics),
		Servers: members(servers), Proxies: members(proxies),
	}, nil
}

// Write writes it for people.
func (i *Info) Write(w io.Writer) error {
	t := table{}
	t.line("repository", "%s", i.FQRN)
	t.line("revision", "%d, published %s", i.Revision, i.Published.Format(time.RFC3339))
	t.line("root hash", "%s", i.Root)
	t.line("TTL", "%.0f s", i.TTL)
	t.line("certificate", "%s", i.Certificate)
	t.line("whitelist", "good until %s", i.Expires.Format(time.RFC3339))
	t.line("content", "%s", i.Counts)
	for _, side := range []struct {
		name    string
		members []Member
	}{{"server", i.Servers}, {"proxy", i.Proxies}} {
		for _, m := range side.members {
			t.line(side.name, "%s", m)
		}
	}
	return t.write(w)
}

// String writes a member for people.
func (m Member) String() string {
	if m.Answers == 0 && m.Error == "" {
		return m.Name + ": not used"
	}
	text := fmt.Sprintf("%s: %d answers", m.Name, m.Answers)
	if m.Answers > 0 {
		text += fmt.Sprintf(" after %.1f ms on average", m.Wait*1000)
	}
	if m.Failures > 0 {
		text += fmt.Sprintf(", %d failures", m.Failures)
	}
	if m.Error != "" {
		text += ", not in order: " + m.Error
	}
	return text
}

// WriteIndented writes a value as JSON for people and programs.
func WriteIndented(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
