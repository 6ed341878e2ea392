package catalog

import (
	"fmt"
	"slices"
	"strings"
)

// ParseXattrs reads a row's extended attributes, sorted by name (CernVM-FS client, xattr.cc: Deserialize): one byte
// version, one byte count, then for each one byte length of the name, one of the value, the name, the value. Whatever
// is amiss spoils the whole. Of equal names the last counts.
func ParseXattrs(b []byte) ([]Xattr, error) {
	if len(b) < 2 || b[0] != 1 {
		return nil, fmt.Errorf("extended attributes: not of version 1")
	}
	attrs := make([]Xattr, 0, b[1])
	rest := b[2:]
	for i := range b[1] {
		if len(rest) < 2 || len(rest) < 2+int(rest[0])+int(rest[1]) {
			return nil, fmt.Errorf("extended attributes: end after %d of %d", i, b[1])
		}
		k, v := int(rest[0]), int(rest[1])
		name, value := rest[2:2+k], rest[2+k:2+k+v]
		rest = rest[2+k+v:]
		if len(name) == 0 || slices.Contains(name, 0) {
			return nil, fmt.Errorf("extended attributes: number %d has no valid name", i)
		}
		attrs = append(attrs, Xattr{Name: string(name), Value: slices.Clone(value)})
	}
	slices.SortStableFunc(attrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return lastOfEach(attrs), nil
}

// lastOfEach keeps the last of equal names in a sorted list.
func lastOfEach(attrs []Xattr) []Xattr {
	kept := attrs[:0]
	for i, a := range attrs {
		if i+1 == len(attrs) || attrs[i+1].Name != a.Name {
			kept = append(kept, a)
		}
	}
	return kept
}

// FormatXattrs writes what ParseXattrs reads; nothing for no attributes. They must be sorted by name.
func FormatXattrs(attrs []Xattr) ([]byte, error) {
	if len(attrs) == 0 {
		return nil, nil
	}
	if len(attrs) > MaxXattrs {
		return nil, fmt.Errorf("%d extended attributes, a row holds %d", len(attrs), MaxXattrs)
	}
	b := []byte{1, byte(len(attrs))}
	for i, a := range attrs {
		if !a.Fits() || i > 0 && attrs[i-1].Name >= a.Name { //nolint:gosec // i is one of attrs
			return nil, fmt.Errorf("extended attribute %.60q of %d bytes doesn't fit, or stands out of order", a.Name,
				len(a.Value))
		}
		b = append(b, byte(len(a.Name)), byte(len(a.Value)))
		b = append(b, a.Name...)
		b = append(b, a.Value...)
	}
	return b, nil
}

// MaxXattrs is how many extended attributes a row holds, and the most bytes of a name and of a value.
const MaxXattrs = 255

// Fits reports whether a row can hold the attribute.
func (x Xattr) Fits() bool {
	return x.Name != "" && len(x.Name) <= MaxXattrs && len(x.Value) <= MaxXattrs && strings.IndexByte(x.Name, 0) < 0
}
