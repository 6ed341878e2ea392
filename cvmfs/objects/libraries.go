package objects

import (
	"maps"
	"slices"
	"strings"
)

const (
	mostLibraries  = 1 << 16 // names
	mostOfALibrary = 4       // objects of one name
)

// Libraries are the names of an image's shared libraries, and the positions in its table of the objects that have them:
// several where folders for several architectures do. Names lead to objects as the image's symbolic links do.
type Libraries map[string][]uint32

// Add notes a name of the object at a position, unless there are too many.
func (l Libraries) Add(name string, pos int) {
	known := l[name]
	if len(l) < mostLibraries && len(known) < mostOfALibrary && !slices.Contains(known, uint32(pos)) {
		l[name] = append(known, uint32(pos))
	}
}

// libraries are those of a table.
type libraries struct {
	named   Libraries
	linked  []uint32 // positions of those that programs are linked with, as libm.so.6, sorted
	modules []uint32 // of those that programs load by themselves, as _ctypes.so
}

// SetLibraries tells the names of the shared libraries among the objects. It is called before anybody uses the table.
func (t *Table) SetLibraries(l Libraries) {
	t.libraries.named = maps.Clone(l)
	for name, positions := range l {
		list := &t.libraries.modules
		if strings.HasPrefix(name, "lib") || strings.HasPrefix(name, "ld-") {
			list = &t.libraries.linked
		}
		*list = append(*list, positions...)
	}
	for _, list := range []*[]uint32{&t.libraries.linked, &t.libraries.modules} {
		slices.Sort(*list)
		*list = slices.Clip(slices.Compact(*list))
	}
}

// isLinked reports whether programs are linked with the object: its neighbours are other programs'.
func (r Ref) isLinked() bool {
	_, is := slices.BinarySearch(r.t.libraries.linked, r.pos)
	return is
}

// isModule reports whether the object is a library that a program loads by itself, mostly with others of its folder.
func (r Ref) isModule() bool {
	_, is := slices.BinarySearch(r.t.libraries.modules, r.pos)
	return is
}

// library returns the object that a name stands for, the one nearest to who asks: libraries of one architecture lie in
// the same folders.
func (r Ref) library(name string) (found Ref, ok bool) {
	distance := func(pos uint32) uint32 { return max(pos, r.pos) - min(pos, r.pos) }
	for _, pos := range r.t.libraries.named[name] {
		if int(pos) < r.t.Len() && (!ok || distance(pos) < distance(found.pos)) {
			found, ok = Ref{r.x, r.t, pos}, true
		}
	}
	return found, ok
}

// youngest returns the object as the table names it that came last of those that do: what starts where it wasn't
// before is mostly the image that came last.
func (r Ref) youngest() Ref {
	for t, pos := range r.x.named(r.Name()) {
		r.t, r.pos = t, uint32(pos)
	}
	return r
}
