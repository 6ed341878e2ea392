package objects

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

func table(t testing.TB, repo string, objs ...Object) *Table {
	t.Helper()
	table, err := parseTable(encode(t, []string{repo}, from(objs, 0)))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestIndexFindsByNameAndNode(t *testing.T) {
	x := NewIndex([16]byte{1, 2, 3})
	x.Add(table(t, "r.example.org", sample...))
	for i, o := range sample {
		r, ok := x.Lookup(o.Name())
		if !ok {
			t.Fatalf("object %d is not found", i)
		}
		if diff := gocmp.Diff(o, r.Object()); diff != "" {
			t.Errorf("object %d (-want +got):\n%s", i, diff)
		}
		if r.Name() != o.Name() || r.Path() != o.Path() || r.Repo() != "r.example.org" || r.Size() != o.Size ||
			r.Chunked() != (o.Chunks != nil) {
			t.Errorf("object %d is %s %s %s %d %v", i, r.Name(), r.Path(), r.Repo(), r.Size(), r.Chunked())
		}
		if r.Node()>>62 != 1 {
			t.Errorf("node id %x: bit 62 should be its highest", r.Node())
		}
		if n, ok := x.Node(r.Node()); !ok || n != r {
			t.Errorf("object %d is not found by its node id", i)
		}
	}
	if _, ok := x.Lookup("absent"); ok {
		t.Error("found what isn't there")
	}
}

func TestNodeIdsDependOnKeyAndNameAlone(t *testing.T) {
	id := func(key byte, objs ...Object) uint64 {
		x := NewIndex([16]byte{key})
		x.Add(table(t, fmt.Sprint(len(objs)), objs...))
		r, _ := x.Lookup(sample[2].Name())
		return r.Node()
	}
	if id(1, sample...) != id(1, sample[2]) || id(1, sample...) == id(2, sample...) {
		t.Error("node ids are not what they should be")
	}
}

func TestObjectsOfSeveralTablesStayUntilTheLastGoes(t *testing.T) {
	x := NewIndex([16]byte{})
	a, b, c := table(t, "a", sample[:3]...), table(t, "b", sample[1:]...), table(t, "c", sample[2], sample[2])
	for _, t := range []*Table{a, b, c} {
		x.Add(t)
	}
	found := func() (s string) {
		for _, o := range sample {
			if r, ok := x.Lookup(o.Name()); ok {
				s += r.Repo()
			} else {
				s += "-"
			}
		}
		return s
	}
	steps := []string{found()}
	r, _ := x.Lookup(sample[2].Name())
	if diff := gocmp.Diff([]string{"a", "b", "c"}, reposOf(x, r)); diff != "" {
		t.Errorf("repositories (-want +got):\n%s", diff)
	}
	for _, t := range []*Table{a, c, b} {
		x.Remove(t)
		steps = append(steps, found())
	}
	if diff := gocmp.Diff([]string{"aaabb", "-bbbb", "-bbbb", "-----"}, steps); diff != "" {
		t.Errorf("who answers (-want +got):\n%s", diff)
	}
	if got := r.Object().Size; got != sample[2].Size {
		t.Error("a Ref does not survive its table's removal")
	}
	x.Remove(a) // a second time: nothing happens
	x.Add(b)
	if f := x.found.Load(); len(f.runs) != 1 || len(f.runs[0]) != b.Len() || len(f.tables) != 3 {
		t.Errorf("%d runs, the first of %d; %d tables", len(f.runs), len(f.runs[0]), len(f.tables))
	}
}

func TestCollidingNameIsRefusedNotConfused(t *testing.T) {
	x := NewIndex([16]byte{})
	x.Add(table(t, "a", sample[0]))
	other := sample[1].Name()
	id := x.id(other)
	x.found.Load().runs[0][0].id = id // as if both had one id
	b := table(t, "b", sample[1])
	x.Add(b)
	if r, ok := x.Lookup(other); ok {
		t.Errorf("found %s for %s", r.Name(), other)
	}
	r, ok := x.Node(id)
	if !ok || r.Name() != sample[0].Name() {
		t.Fatal("the first name is lost")
	}
	if got := x.Tables(Ref{x, b, 0}); len(got) != 1 || len(x.origins(Ref{x, b, 0}.named())) != 1 {
		t.Errorf("tables of another name are among %v", got)
	}
}

func TestNodeIdsAreFoundWhereverTheyLie(t *testing.T) {
	const first, last = uint64(1) << 62, uint64(1)<<63 - 1
	for name, r := range map[string]run{
		"none": {}, "one": {{id: first}}, "the first and the last": {{id: first}, {id: last}},
		"all at the end":       slices.Repeat(run{{id: last}}, 1000),
		"all at the beginning": slices.Repeat(run{{id: first}}, 1000),
		"some at both":         slices.Concat(slices.Repeat(run{{id: first + 1}}, 500), run{{id: last - 1}, {id: last - 1}}),
	} {
		for _, id := range []uint64{first, first + 1, first + 2, 3 << 61, last - 2, last - 1, last} {
			want := 0
			for want < len(r) && r[want].id < id {
				want++
			}
			if got := r.search(id); got != want {
				t.Errorf("%s: %x is at %d, want %d", name, id, got, want)
			}
		}
	}
}

// However many tables there are, there are few runs to look into.
func TestRunsAreFewAndHoldAllThatIsThere(t *testing.T) {
	x := NewIndex([16]byte{})
	var objs []Object
	for i := range 1000 {
		objs = append(objs, Object{Digest: digest(fmt.Sprint(i)), Size: 1})
	}
	var tables []*Table
	for i := range 100 {
		tables = append(tables, table(t, fmt.Sprint(i), objs[i*10:min(len(objs), i*10+1+i%37)]...))
	}
	holds := func(when string, want []*Table) {
		t.Helper()
		f, n := x.found.Load(), 0
		for i, r := range f.runs {
			n += len(r)
			if !slices.IsSortedFunc(r, func(a, b occurrence) int { return cmp.Compare(a.id, b.id) }) {
				t.Errorf("%s: run %d isn't sorted", when, i)
			}
		}
		for _, tab := range want {
			n -= tab.Len()
			for i := range tab.Len() {
				if r, ok := x.Lookup(tab.name(i).String()); !ok || r.Name() != tab.name(i).String() {
					t.Fatalf("%s: an object is lost", when)
				}
			}
		}
		if n != 0 || len(f.runs) > 10 {
			t.Errorf("%s: %d occurrences too many, in %d runs", when, n, len(f.runs))
		}
	}
	for i, tab := range tables {
		x.Add(tab)
		holds("added", tables[:i+1])
	}
	for i, tab := range tables {
		x.Remove(tab)
		holds("removed", tables[i+1:])
	}
}

func TestNeighboursEndWithTheTable(t *testing.T) {
	x := NewIndex([16]byte{})
	x.Add(table(t, "a", sample[:5]...))
	for pos, want := range [][]int{{1, 2}, {2, 0, 3}, {3, 1, 4, 0}, {4, 2, 1}, {3, 2}} {
		r, _ := x.Lookup(sample[pos].Name())
		var got []int
		for _, n := range r.near(2) {
			got = append(got, int(n.pos))
		}
		if !slices.Equal(got, want) {
			t.Errorf("next to %d: %v, want %v", pos, got, want)
		}
	}
}

func TestIndexIsSafeForConcurrentUse(t *testing.T) {
	x := NewIndex([16]byte{})
	var objs []Object
	for i := range 3000 {
		objs = append(objs, Object{Digest: digest(fmt.Sprint(i)), Size: 1})
	}
	base := table(t, "base", objs[:100]...)
	x.Add(base)
	var wg sync.WaitGroup
	for i := range 4 {
		more := table(t, fmt.Sprint(i), objs[i*500:]...)
		wg.Go(func() {
			for range 5 {
				x.Add(more)
				x.Remove(more)
			}
		})
		wg.Go(func() {
			for j := range 5000 {
				o := objs[j%100]
				r, ok := x.Lookup(o.Name())
				if !ok || r.Object().Digest != o.Digest || len(x.origins(r.named())) == 0 {
					t.Errorf("object %d is lost", j%100)
					return
				}
			}
		})
	}
	wg.Wait()
	x.Remove(base)
	if f := x.found.Load(); len(f.runs) != 0 {
		t.Errorf("%d runs are left", len(f.runs))
	}
}

func reposOf(x *Index, r Ref) (repos []string) {
	for _, o := range x.origins(r.named()) {
		repos = append(repos, o.repo)
	}
	return repos
}
