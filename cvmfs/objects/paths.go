package objects

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
)

// paths are those of a table's objects that have one, as in its file.
type paths struct {
	records []byte
	text    []byte
}

// pathSize is that of a record, in bytes.
const pathSize = 12

func (p *paths) size() int { return len(p.records) + len(p.text) }

// add enters the path of the object at a position, which must be behind those before it.
func (p *paths) add(pos int, o *Object) {
	if o.File == "" {
		return
	}
	p.records = binary.LittleEndian.AppendUint32(p.records, uint32(pos))
	p.records = binary.LittleEndian.AppendUint32(p.records, uint32(len(p.text)))
	p.records = binary.LittleEndian.AppendUint16(p.records, uint16(len(o.File)))
	external := byte(0)
	if o.External {
		external = 1
	}
	p.records = append(p.records, external, 0)
	p.text = append(p.text, o.File...)
}

// of returns the path of the object at a position, and whether it is external; "" for one that has none.
func (p *paths) of(pos int) (path string, external bool) {
	n := len(p.records) / pathSize
	i := sort.Search(n, func(i int) bool { return p.object(i) >= pos })
	if i == n || p.object(i) != pos {
		return "", false
	}
	begin, length := p.extent(i)
	return string(p.text[begin:][:length]), p.records[i*pathSize+10] == 1
}

func (p *paths) object(i int) int { return int(binary.LittleEndian.Uint32(p.records[i*pathSize:])) }

func (p *paths) extent(i int) (begin, length int) {
	r := p.records[i*pathSize:]
	return int(binary.LittleEndian.Uint32(r[4:])), int(binary.LittleEndian.Uint16(r[8:]))
}

// check looks at every record, of a table with so many objects.
func (p *paths) check(objects int) error {
	last, end := -1, 0
	for i := range len(p.records) / pathSize {
		pos := p.object(i)
		begin, length := p.extent(i)
		r := p.records[i*pathSize:]
		if pos <= last || pos >= objects || begin != end || length > len(p.text)-end || r[10] > 1 || r[11] != 0 {
			return fmt.Errorf("path %d: bad record", i)
		}
		last, end = pos, end+length
	}
	if end != len(p.text) {
		return errors.New("text without a path")
	}
	return nil
}

// checkNamed looks at the objects that have a path.
func (t *Table) checkNamed() error {
	for i := range len(t.paths.records) / pathSize {
		pos := t.paths.object(i)
		o := t.object(pos)
		if o.File == "" {
			return fmt.Errorf("object %d: an empty path", pos)
		}
		if err := o.check(); err != nil {
			return fmt.Errorf("object %d: %w", pos, err)
		}
	}
	return nil
}

// origin is where the object at a position comes from.
func (t *Table) origin(pos int) origin {
	path, external := t.paths.of(pos)
	return origin{repo: t.repo(pos), external: external, path: path}
}
