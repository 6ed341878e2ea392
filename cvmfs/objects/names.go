package objects

import (
	"slices"
	"strings"
)

const (
	mostOfAName  = 4 // objects
	linkerPrefix = "ld-"
)

// Names are names that programs of an image ask for, and the positions in its table of the objects that have them:
// several where folders for several architectures do. They are those of shared libraries, as libm.so.6, which lead to
// objects as the image's symbolic links do, and the paths of UsualFiles.
type Names map[string][]uint32

// UsualFiles are paths that are read at the start of any container: runtimes look up who it is to run as.
var UsualFiles = []string{"/etc/passwd", "/etc/group"}

// Add notes a name of the object at a position, unless there are some of that name.
func (n Names) Add(name string, pos int) {
	known := n[name]
	if len(known) < mostOfAName && !slices.Contains(known, uint32(pos)) {
		n[name] = append(known, uint32(pos))
	}
}

// tableNames are those of a table.
type tableNames struct {
	all     Names
	linked  []uint32 // positions of libraries that programs are linked with, as libm.so.6, sorted
	modules []uint32 // of those that programs load by themselves, as _ctypes.so
	usual   []uint32 // of what any container reads
}

// SetNames tells the names of objects. It is called before anybody uses the table.
func (t *Table) SetNames(all Names) {
	n := tableNames{all: all}
	for name, positions := range all {
		positions = slices.DeleteFunc(slices.Clone(positions), func(pos uint32) bool { return int(pos) >= t.Len() })
		switch {
		case slices.Contains(UsualFiles, name):
			n.usual = append(n.usual, positions...)
			continue
		case strings.HasPrefix(name, linkerPrefix), name == "libc.so.6":
			n.usual = append(n.usual, positions...)
			fallthrough
		case strings.HasPrefix(name, "lib"):
			n.linked = append(n.linked, positions...)
		default:
			n.modules = append(n.modules, positions...)
		}
	}
	for _, list := range []*[]uint32{&n.linked, &n.modules, &n.usual} {
		slices.Sort(*list)
		*list = slices.Clip(slices.Compact(*list))
	}
	t.names = n
}

// isLinked reports whether programs are linked with the object: its neighbours are other programs'.
func (r Ref) isLinked() bool {
	_, is := slices.BinarySearch(r.t.names.linked, r.pos)
	return is
}

// isModule reports whether the object is a library that a program loads by itself, mostly with others of its folder.
func (r Ref) isModule() bool {
	_, is := slices.BinarySearch(r.t.names.modules, r.pos)
	return is
}

// library returns the object that a name stands for, the one nearest to who asks: libraries of one architecture lie in
// the same folders.
func (r Ref) library(name string) (found Ref, ok bool) {
	distance := func(pos uint32) uint32 { return max(pos, r.pos) - min(pos, r.pos) }
	for _, pos := range r.t.names.all[name] {
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
