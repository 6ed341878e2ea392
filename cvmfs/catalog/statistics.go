package catalog

import (
	"database/sql/driver"
	"fmt"
	"math"
	"strings"
)

// Counters say how much is in a catalog, or in several together.
type Counters struct {
	Regular      int64 // regular files, chunked and external ones included
	Symlink      int64
	Special      int64 // devices, fifos, sockets
	Dir          int64 // folders; a mount's folder counts in both of its catalogs
	Nested       int64 // catalogs hanging directly below
	Chunked      int64 // regular files in chunks
	Chunks       int64
	FileSize     int64 // plain bytes of regular files; each name of a hard link counts
	ChunkedSize  int64 // of these, of files in chunks
	Xattr        int64 // rows with extended attributes
	External     int64
	ExternalSize int64
}

// Statistics are the counters a catalog keeps.
type Statistics struct {
	Self    Counters // its own rows
	Subtree Counters // all catalogs below, itself not included
}

// Total is what the catalog adds to its parent's Subtree.
func (s Statistics) Total() Counters { return s.Self.Add(s.Subtree) }

// counter is one of the fields of Counters and its name in the database.
type counter struct {
	name  string
	field func(*Counters) *int64
}

// counterNames are in the order publishers write them.
var counterNames = [...]counter{
	{"regular", func(c *Counters) *int64 { return &c.Regular }},
	{"symlink", func(c *Counters) *int64 { return &c.Symlink }},
	{"special", func(c *Counters) *int64 { return &c.Special }},
	{"dir", func(c *Counters) *int64 { return &c.Dir }},
	{"nested", func(c *Counters) *int64 { return &c.Nested }},
	{"chunked", func(c *Counters) *int64 { return &c.Chunked }},
	{"chunks", func(c *Counters) *int64 { return &c.Chunks }},
	{"file_size", func(c *Counters) *int64 { return &c.FileSize }},
	{"chunked_size", func(c *Counters) *int64 { return &c.ChunkedSize }},
	{"xattr", func(c *Counters) *int64 { return &c.Xattr }},
	{"external", func(c *Counters) *int64 { return &c.External }},
	{"external_file_size", func(c *Counters) *int64 { return &c.ExternalSize }},
}

// Each calls fn with the counters' names, without the prefixes "self_" and "subtree_", and values.
func (c Counters) Each(fn func(name string, value int64)) {
	for _, n := range counterNames {
		fn(n.name, *n.field(&c))
	}
}

// Add returns the sum.
func (c Counters) Add(o Counters) Counters {
	for _, n := range counterNames {
		*n.field(&c) += *n.field(&o)
	}
	return c
}

// Sub returns the difference.
func (c Counters) Sub(o Counters) Counters {
	for _, n := range counterNames {
		*n.field(&c) -= *n.field(&o)
	}
	return c
}

// Count adds one row. Chunks count with the row of their file.
func (c *Counters) Count(e *Entry) {
	switch e.Type() {
	case 0o040000:
		c.Dir++
	case 0o120000:
		c.Symlink++
	case 0o100000:
		c.Regular++
		c.FileSize += e.Size
		if len(e.Chunks) > 0 {
			c.Chunked++
			c.ChunkedSize += e.Size
			c.Chunks += int64(len(e.Chunks))
		}
		if e.Flags&External != 0 {
			c.External++
			c.ExternalSize += e.Size
		}
	default:
		c.Special++
	}
	if len(e.Xattrs) > 0 {
		c.Xattr++
	}
}

// Statistics reads the catalog's counters. Those that its schema revision doesn't have are 0. They are the publisher's
// word: nothing compares them with the rows here.
func (c *Catalog) Statistics() (Statistics, error) {
	s, err := c.statistics()
	if err != nil {
		return Statistics{}, fmt.Errorf("statistics of catalog %s: %w", c.path, err)
	}
	return s, nil
}

func (c *Catalog) statistics() (s Statistics, err error) {
	if err := c.file.CheckTables("statistics"); err != nil {
		return s, err
	}
	values := map[string]int64{}
	err = c.query("SELECT counter, value FROM statistics", nil, func(row []driver.Value) error {
		name, _ := row[0].(string)
		if !knownCounter(name) {
			return nil
		}
		if _, twice := values[name]; twice {
			return fmt.Errorf("%w: counter %s twice", ErrInvalid, name)
		}
		v, err := integer(row[1], 0, math.MaxInt64)
		if err != nil {
			return fmt.Errorf("%w: counter %s: %w", ErrInvalid, name, err)
		}
		values[name] = v
		return nil
	})
	for _, n := range counterNames {
		*n.field(&s.Self) = values["self_"+n.name]
		*n.field(&s.Subtree) = values["subtree_"+n.name]
	}
	return s, err
}

func knownCounter(name string) bool {
	for _, n := range counterNames {
		if strings.TrimPrefix(name, "self_") == n.name || strings.TrimPrefix(name, "subtree_") == n.name {
			return true
		}
	}
	return false
}
