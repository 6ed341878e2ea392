package thin

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	// RecordSuffix, behind a layer's folder, names the file with its record: "/layers/ab….record.json".
	RecordSuffix = ".record.json"
	// MaxRecordSize bounds a record in bytes.
	MaxRecordSize = 64 << 20

	recordVersion = 1
)

// Record is what a layer's archive says and a catalog has no place for. Paths are relative to the layer's root, as in
// "usr/bin/perl". A record comes from a repository: whoever publishes a layer decides what is in both.
type Record struct {
	Root    *Attributes        // of the layer's own root folder; nil: unknown
	Links   [][]string         // groups of at least two paths that are one file
	Xattrs  map[string][]Xattr // all extended attributes of a path whose catalog row can't hold them; "" is the root
	Markers []string           // files of the layer that have the name of a marker of nested catalogs
}

// Attributes are what stat(2) tells of a folder.
type Attributes struct {
	Mode   uint32 `json:"mode"` // permission bits, set-id and sticky bits
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Mtime  int64  `json:"mtime"`   // seconds since 1970
	MtimeN uint32 `json:"mtimens"` // nanoseconds
}

// Xattr is one extended attribute with its full name.
type Xattr struct {
	Name  string
	Value []byte
}

// Empty reports whether the record says nothing.
func (r *Record) Empty() bool {
	return r.Root == nil && len(r.Links) == 0 && len(r.Xattrs) == 0 && len(r.Markers) == 0
}

// recordJSON is the form on disk. Bytes of paths and names that are no UTF-8 are written %XX, and % itself %25.
type recordJSON struct {
	Version int                    `json:"version"`
	Root    *Attributes            `json:"root,omitempty"`
	Links   [][]string             `json:"links,omitempty"`
	Xattrs  map[string][]xattrJSON `json:"xattrs,omitempty"`
	Markers []string               `json:"markers,omitempty"`
}

type xattrJSON struct {
	Name  string `json:"name"`
	Value []byte `json:"value"` // base64
}

// Encode returns the record's file: the same record gives the same bytes.
func (r *Record) Encode() ([]byte, error) {
	j := recordJSON{Version: recordVersion, Root: r.Root, Markers: escapeAll(r.Markers)}
	for _, group := range r.Links {
		j.Links = append(j.Links, escapeAll(group))
	}
	if len(r.Xattrs) > 0 {
		j.Xattrs = map[string][]xattrJSON{}
	}
	for path, attrs := range r.Xattrs {
		for _, x := range attrs {
			j.Xattrs[escape(path)] = append(j.Xattrs[escape(path)], xattrJSON{escape(x.Name), x.Value})
		}
	}
	b, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode layer record: %w", err)
	}
	if len(b) > MaxRecordSize {
		return nil, fmt.Errorf("encode layer record: %d bytes, the limit is %d", len(b), MaxRecordSize)
	}
	return b, nil
}

// ParseRecord reads a record's file.
func ParseRecord(b []byte) (*Record, error) {
	r, err := parseRecord(b)
	if err != nil {
		return nil, fmt.Errorf("layer record: %w", err)
	}
	return r, nil
}

func parseRecord(b []byte) (*Record, error) {
	if len(b) > MaxRecordSize {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(b), MaxRecordSize)
	}
	var j recordJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return nil, err
	}
	if j.Version != recordVersion {
		return nil, fmt.Errorf("version %d, this driver reads %d: upgrade the driver", j.Version, recordVersion)
	}
	r := &Record{Root: j.Root}
	if r.Root != nil && (r.Root.Mode&^0o7777 != 0 || r.Root.MtimeN > 999_999_999) {
		return nil, fmt.Errorf("attributes of the root: mode %o or nanoseconds %d out of range", r.Root.Mode,
			r.Root.MtimeN)
	}
	for _, group := range j.Links {
		paths, err := unescapePaths(group)
		if err != nil {
			return nil, fmt.Errorf("links: %w", err)
		}
		if len(paths) < 2 {
			return nil, errors.New("links: a group of one path")
		}
		r.Links = append(r.Links, paths)
	}
	var err error
	if r.Markers, err = unescapePaths(j.Markers); err != nil {
		return nil, fmt.Errorf("markers: %w", err)
	}
	if r.Xattrs, err = parseRecordXattrs(j.Xattrs); err != nil {
		return nil, fmt.Errorf("xattrs: %w", err)
	}
	return r, nil
}

func parseRecordXattrs(in map[string][]xattrJSON) (map[string][]Xattr, error) {
	var out map[string][]Xattr
	for escaped, attrs := range in {
		path, err := unescape(escaped)
		if err == nil && path != "" {
			err = checkPath(path)
		}
		if err != nil {
			return nil, err
		}
		for _, x := range attrs {
			name, err := unescape(x.Name)
			if err != nil || name == "" || len(name) > maxName || strings.IndexByte(name, 0) >= 0 ||
				len(x.Value) > 1<<16 {
				return nil, fmt.Errorf("%.60q: attribute %.60q is none the kernel takes", path, x.Name)
			}
			if out == nil {
				out = map[string][]Xattr{}
			}
			out[path] = append(out[path], Xattr{name, x.Value})
		}
	}
	return out, nil
}

func unescapePaths(escaped []string) ([]string, error) {
	var paths []string
	for _, e := range escaped {
		path, err := unescape(e)
		if err == nil {
			err = checkPath(path)
		}
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

const upperHex = "0123456789ABCDEF"

func escape(s string) string {
	if utf8.ValidString(s) && !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == '%' || r == utf8.RuneError && n == 1 {
			b.WriteString("%" + upperHex[s[0]>>4:s[0]>>4+1] + upperHex[s[0]&15:s[0]&15+1])
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

func escapeAll(paths []string) []string {
	var escaped []string
	for _, p := range paths {
		escaped = append(escaped, escape(p))
	}
	return escaped
}

// unescape is the inverse of escape; another spelling of the same bytes is refused, so that no path comes twice.
func unescape(s string) (string, error) {
	var b strings.Builder
	for whole := s; ; {
		before, rest, found := strings.Cut(s, "%")
		b.WriteString(before)
		if !found {
			if escape(b.String()) != whole {
				return "", fmt.Errorf("%.60q: %%XX stands for a byte that needs none", whole)
			}
			return b.String(), nil
		}
		if len(rest) < 2 {
			return "", fmt.Errorf("%.60q ends within %%XX", s)
		}
		hi, lo := strings.IndexByte(upperHex, rest[0]), strings.IndexByte(upperHex, rest[1])
		if hi < 0 || lo < 0 {
			return "", fmt.Errorf("%.60q: %%%s is not %%XX", s, rest[:2])
		}
		b.WriteByte(byte(hi<<4 | lo))
		s = rest[2:]
	}
}
