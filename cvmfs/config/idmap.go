package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// IDMap says which user or group id of the host stands for one of the repository. A nil map changes nothing.
type IDMap struct {
	ids   map[uint32]uint32
	other *uint32 // for ids that aren't in the map; nil: they stay
}

// Map returns the host's id.
func (m *IDMap) Map(id uint32) uint32 {
	if m == nil {
		return id
	}
	if to, ok := m.ids[id]; ok {
		return to
	}
	if m.other != nil {
		return *m.other
	}
	return id
}

// String is the map as a file would have it, sorted: maps with the same text are the same. "" for no map.
func (m *IDMap) String() string {
	if m == nil {
		return ""
	}
	var b strings.Builder
	for _, from := range slices.Sorted(maps.Keys(m.ids)) {
		fmt.Fprintf(&b, "%d %d\n", from, m.ids[from])
	}
	if m.other != nil {
		fmt.Fprintf(&b, "* %d\n", *m.other)
	}
	return b.String()
}

// ParseIDMap reads lines "FROM TO", FROM being an id or "*" for all others, and comments after "#". Errors begin with
// the line's number. The last line for an id is the one that counts.
func ParseIDMap(text string) (*IDMap, error) {
	m := &IDMap{ids: make(map[uint32]uint32)}
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if err := m.add(fields); err != nil {
			return nil, fmt.Errorf("%d: %w", i+1, err)
		}
	}
	return m, nil
}

func (m *IDMap) add(fields []string) error {
	if len(fields) != 2 {
		return fmt.Errorf("%.80q: want two ids, or * and an id", strings.Join(fields, " "))
	}
	to, err := parseID(fields[1])
	if err != nil {
		return err
	}
	if fields[0] == "*" {
		m.other = &to
		return nil
	}
	from, err := parseID(fields[0])
	if err != nil {
		return err
	}
	m.ids[from] = to
	return nil
}

// parseID refuses 2³²−1, which means "no id" to the kernel.
func parseID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil || id == 1<<32-1 {
		return 0, fmt.Errorf("%.40q isn't an id from 0 to %d", s, uint32(1<<32-2))
	}
	return uint32(id), nil
}
