package objects

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"
)

// Index finds objects in all tables there are, by name and by node id. It is safe for concurrent use.
//
// A node id is a keyed hash of the name: 62 bits with bit 62 set, so that it is the same in every life of the process
// that knows the key, and no publisher can make two names collide. Should it happen nevertheless, the name that came
// later is not found.
type Index struct {
	key [16]byte

	mu     sync.RWMutex
	heads  map[uint64]uint32 // node id → position in places
	places []occurrence      // position 0 is not used
	free   uint32            // first of the unused places, chained by next
	tables []*Table
}

// occurrence is one occurrence of a name, chained to the next of the same name.
type occurrence struct{ table, pos, next uint32 }

// NewIndex makes an empty index. Node ids depend on the key; 16 random bytes, the same in each life of the process.
func NewIndex(key [16]byte) *Index {
	return &Index{key: key, heads: map[uint64]uint32{}, places: make([]occurrence, 1)}
}

// batch is how many entries are made under one lock, so that lookups needn't wait long.
const batch = 1024

// Add enters a table's objects. It returns how many could not be entered because their node id is taken by another
// name. A table is added once.
func (x *Index) Add(t *Table) (refused int) {
	x.mu.Lock()
	slot := slices.Index(x.tables, nil)
	if slot < 0 {
		slot = len(x.tables)
		x.tables = append(x.tables, nil)
	}
	x.tables[slot] = t
	x.mu.Unlock()
	x.each(t, func(id uint64, pos int) {
		head := x.heads[id]
		if head != 0 && x.nameAt(head) != t.name(pos) {
			refused++
			return
		}
		// Behind the head, if there is one: the first table to name an object stays the one that answers.
		p := occurrence{table: uint32(slot), pos: uint32(pos)}
		n := x.alloc()
		if head == 0 {
			x.heads[id] = n
		} else {
			p.next = x.places[head].next
			x.places[head].next = n
		}
		x.places[n] = p
	})
	return refused
}

// Remove takes a table's objects out. Objects other tables name as well are still found.
func (x *Index) Remove(t *Table) {
	x.mu.RLock()
	slot := slices.Index(x.tables, t)
	x.mu.RUnlock()
	if slot < 0 {
		return
	}
	x.each(t, func(id uint64, pos int) {
		for prev, n := uint32(0), x.heads[id]; n != 0; prev, n = n, x.places[n].next {
			p := x.places[n]
			if p.table != uint32(slot) || p.pos != uint32(pos) {
				continue
			}
			switch {
			case prev != 0:
				x.places[prev].next = p.next
			case p.next != 0:
				x.heads[id] = p.next
			default:
				delete(x.heads, id)
			}
			x.places[n] = occurrence{next: x.free}
			x.free = n
			return
		}
	})
	x.mu.Lock()
	x.tables[slot] = nil
	x.mu.Unlock()
}

// each calls fn under the lock, with the node id of every position of the table.
func (x *Index) each(t *Table, fn func(id uint64, pos int)) {
	ids := make([]uint64, 0, batch)
	for pos := 0; pos < t.Len(); pos += len(ids) {
		ids = ids[:0]
		for i := pos; i < t.Len() && len(ids) < batch; i++ {
			ids = append(ids, x.id(t.name(i).String()))
		}
		x.mu.Lock()
		for i, id := range ids {
			fn(id, pos+i)
		}
		x.mu.Unlock()
	}
}

func (x *Index) alloc() uint32 {
	if n := x.free; n != 0 {
		x.free = x.places[n].next
		return n
	}
	x.places = append(x.places, occurrence{})
	return uint32(len(x.places) - 1)
}

func (x *Index) nameAt(n uint32) Name {
	p := x.places[n]
	return x.tables[p.table].name(int(p.pos))
}

// id is the node id of a name.
func (x *Index) id(name string) uint64 {
	var b [128]byte
	sum := sha256.Sum256(append(append(b[:0], x.key[:]...), name...))
	return binary.LittleEndian.Uint64(sum[:])>>2 | 1<<62
}

// Lookup finds an object by its name.
func (x *Index) Lookup(name string) (Ref, bool) {
	r, ok := x.Node(x.id(name))
	if !ok || r.Name() != name {
		return Ref{}, false
	}
	return r, true
}

// Node finds an object by its node id.
func (x *Index) Node(id uint64) (Ref, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := x.heads[id]
	if n == 0 {
		return Ref{}, false
	}
	p := x.places[n]
	return Ref{x: x, t: x.tables[p.table], pos: p.pos}, true
}

// Tables are those that name an object, the one that answers for it first.
func (x *Index) Tables(r Ref) []*Table {
	tables := []*Table{r.t}
	x.mu.RLock()
	defer x.mu.RUnlock()
	for n := x.heads[x.id(r.Name())]; n != 0; n = x.places[n].next {
		if t := x.tables[x.places[n].table]; !slices.Contains(tables, t) {
			tables = append(tables, t)
		}
	}
	return tables
}

// ByPath returns the tables there are by the path of their file.
func (x *Index) ByPath() map[string]*Table {
	x.mu.RLock()
	defer x.mu.RUnlock()
	tables := make(map[string]*Table, len(x.tables))
	for _, t := range x.tables {
		if t != nil {
			tables[t.path] = t
		}
	}
	return tables
}

// origin is where an object comes from.
type origin struct {
	repo     string
	external bool   // from its servers of external files, as path
	path     string // else one of a file with that content, or ""
}

// origins are where the object comes from as tables say, r's own first. Of a repository one path is enough, unless they
// name different external files.
func (x *Index) origins(r named) []origin {
	origins := []origin{r.t.origin(int(r.pos))}
	x.mu.RLock()
	defer x.mu.RUnlock()
	for n := x.heads[x.id(r.Name())]; n != 0; n = x.places[n].next {
		p := x.places[n]
		o := x.tables[p.table].origin(int(p.pos))
		if !slices.ContainsFunc(origins, func(known origin) bool {
			return known == o || known.repo == o.repo && !known.external && !o.external
		}) {
			origins = append(origins, o)
		}
	}
	return origins
}

// Ref is an object where a table names it. It stays usable after the table was removed from the index. Values are
// comparable; the zero value is no object and must not be used.
type Ref struct {
	x   *Index
	t   *Table
	pos uint32
}

// Object is the recipe.
func (r Ref) Object() Object { return r.t.object(int(r.pos)) }

// Repo is the fqrn of the repository it comes from.
func (r Ref) Repo() string { return r.t.repo(int(r.pos)) }

// Name is the file name in the store.
func (r Ref) Name() string { return r.t.name(int(r.pos)).String() }

// Path is the place below the store's folder.
func (r Ref) Path() string { return place(r.Name()) }

// named is a Ref that knows its path, which others make anew, of the object's record, each time they are asked.
type named struct {
	Ref
	path string
}

func (r Ref) named() named { return named{r, r.Path()} }

// Name is the file name in the store.
func (n named) Name() string { return nameAt(n.path) }

// Path is the place below the store's folder.
func (n named) Path() string { return n.path }

// Size is the number of plain bytes.
func (r Ref) Size() int64 { return r.record().size() }

// Chunked reports whether the content is in chunks.
func (r Ref) Chunked() bool { return r.record().chunks() > 0 }

// Node is the node id.
func (r Ref) Node() uint64 { return r.x.id(r.Name()) }

// near returns the objects next to this in the order of the folders, n on either side, nearest first, fewer at the
// ends.
func (r Ref) near(n int) []Ref {
	refs := make([]Ref, 0, 2*n)
	for i := 1; i <= n; i++ {
		if pos := int(r.pos) + i; pos < r.t.Len() {
			refs = append(refs, Ref{r.x, r.t, uint32(pos)})
		}
		if pos := int(r.pos) - i; pos >= 0 {
			refs = append(refs, Ref{r.x, r.t, uint32(pos)})
		}
	}
	return refs
}

func (r Ref) record() record { return r.t.record(int(r.pos)) }
