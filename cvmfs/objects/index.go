package objects

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// Index finds objects in all tables there are, by name and by node id. It is safe for concurrent use; who looks for
// something waits for nobody.
//
// A node id is a keyed hash of the name: 62 bits with bit 62 set, so that it is the same in every life of the process
// that knows the key, and no publisher can make two names collide. Should it happen nevertheless, the name that came
// later is not found.
//
// Occurrences of names lie in runs that are sorted by node id: 16 bytes an occurrence, where a map takes 40. A run that
// is added is merged with the last one unless that is more than four times as long, so that there are few, and each
// occurrence is moved few times.
type Index struct {
	key [16]byte

	changing sync.Mutex // held to replace found
	found    atomic.Pointer[occurrences]
}

// occurrences are those of all names. They don't change: others take their place.
type occurrences struct {
	tables []*Table // nil where one was removed
	runs   []run    // what came first is first
}

// run is sorted by node id. Of one node id, what came first is first.
type run []occurrence

// occurrence is one of a name: where a table has it.
type occurrence struct {
	id         uint64
	table, pos uint32
}

// NewIndex makes an empty index. Node ids depend on the key; 16 random bytes, the same in each life of the process.
func NewIndex(key [16]byte) *Index {
	x := &Index{key: key}
	x.found.Store(&occurrences{})
	return x
}

// Add enters a table's objects. A table is added once.
func (x *Index) Add(t *Table) {
	more := make(run, t.Len())
	for i := range more {
		more[i] = occurrence{id: x.id(t.name(i).String()), pos: uint32(i)}
	}
	slices.SortFunc(more, func(a, b occurrence) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.pos, b.pos))
	})
	x.changing.Lock()
	defer x.changing.Unlock()
	was := x.found.Load()
	now := &occurrences{tables: slices.Clone(was.tables), runs: slices.Clone(was.runs)}
	slot := slices.Index(now.tables, nil)
	if slot < 0 {
		slot = len(now.tables)
		now.tables = append(now.tables, nil)
	}
	now.tables[slot] = t
	for i := range more {
		more[i].table = uint32(slot)
	}
	for last := len(now.runs) - 1; last >= 0 && len(now.runs[last]) <= 4*len(more); last-- {
		more = merge(now.runs[last], more)
		now.runs = now.runs[:last]
	}
	if len(more) > 0 {
		now.runs = append(now.runs, more)
	}
	x.found.Store(now)
}

// merge makes one run of two, of which the first came first.
func merge(first, second run) run {
	both := make(run, 0, len(first)+len(second))
	for len(first) > 0 && len(second) > 0 {
		from := &first
		if second[0].id < first[0].id {
			from = &second
		}
		both = append(both, (*from)[0])
		*from = (*from)[1:]
	}
	return append(append(both, first...), second...)
}

// Remove takes a table's objects out. Objects other tables name as well are still found.
func (x *Index) Remove(t *Table) {
	x.changing.Lock()
	defer x.changing.Unlock()
	was := x.found.Load()
	slot := slices.Index(was.tables, t)
	if slot < 0 {
		return
	}
	now := &occurrences{tables: slices.Clone(was.tables)}
	now.tables[slot] = nil
	of := func(o occurrence) bool { return o.table == uint32(slot) }
	for _, r := range was.runs {
		if slices.ContainsFunc(r, of) {
			r = slices.Clip(slices.DeleteFunc(slices.Clone(r), of))
		}
		if len(r) > 0 {
			now.runs = append(now.runs, r)
		}
	}
	x.found.Store(now)
}

// id is the node id of a name.
func (x *Index) id(name string) uint64 {
	var b [128]byte
	sum := sha256.Sum256(append(append(b[:0], x.key[:]...), name...))
	return binary.LittleEndian.Uint64(sum[:])>>2 | 1<<62
}

// search returns where the first occurrence of a node id is, or would be. Node ids are hashes: each lies about as far
// in a run as among all there could be, nearly always not further away than twice the root of the run's length.
func (r run) search(id uint64) int {
	guess, _ := bits.Mul64(id<<2, uint64(len(r))) // without bit 62, as a fraction
	away := 2 << (bits.Len(uint(len(r))) / 2)
	from, to := max(int(guess)-away, 0), min(int(guess)+away, len(r))
	if from > 0 && r[from-1].id >= id {
		from = 0
	}
	if to < len(r) && r[to].id < id {
		to = len(r)
	}
	at, _ := slices.BinarySearchFunc(r[from:to], id, func(o occurrence, id uint64) int {
		return cmp.Compare(o.id, id)
	})
	return from + at
}

// of yields each occurrence of a node id, what came first first.
func (f *occurrences) of(id uint64) iter.Seq[occurrence] {
	return func(yield func(occurrence) bool) {
		for _, r := range f.runs {
			for at := r.search(id); at < len(r) && r[at].id == id; at++ {
				if !yield(r[at]) {
					return
				}
			}
		}
	}
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
	f := x.found.Load()
	for o := range f.of(id) {
		return Ref{x: x, t: f.tables[o.table], pos: o.pos}, true
	}
	return Ref{}, false
}

// named yields each place where a table names an object: the table, and the position in it.
func (x *Index) named(name string) iter.Seq2[*Table, int] {
	return func(yield func(*Table, int) bool) {
		f := x.found.Load()
		for o := range f.of(x.id(name)) {
			if t := f.tables[o.table]; t.name(int(o.pos)).String() == name && !yield(t, int(o.pos)) {
				return
			}
		}
	}
}

// Tables are those that name an object, the one that answers for it first.
func (x *Index) Tables(r Ref) []*Table {
	tables := []*Table{r.t}
	for t := range x.named(r.Name()) {
		if !slices.Contains(tables, t) {
			tables = append(tables, t)
		}
	}
	return tables
}

// ByPath returns the tables there are by the path of their file.
func (x *Index) ByPath() map[string]*Table {
	tables := map[string]*Table{}
	for _, t := range x.found.Load().tables {
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
	for t, pos := range x.named(r.Name()) {
		o := t.origin(pos)
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
