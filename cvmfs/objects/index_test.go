package objects

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	if n := x.Add(table(t, "r.example.org", sample...)); n != 0 {
		t.Fatalf("%d refused", n)
	}
	for i, o := range sample {
		r, ok := x.Lookup(o.Name())
		if !ok {
			t.Fatalf("object %d is not found", i)
		}
		if diff := cmp.Diff(o, r.Object()); diff != "" {
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
	if diff := cmp.Diff([]string{"a", "c", "b"}, reposOf(x, r)); diff != "" {
		t.Errorf("repositories (-want +got):\n%s", diff)
	}
	for _, t := range []*Table{a, c, b} {
		x.Remove(t)
		steps = append(steps, found())
	}
	if diff := cmp.Diff([]string{"aaabb", "-bcbb", "-bbbb", "-----"}, steps); diff != "" {
		t.Errorf("who answers (-want +got):\n%s", diff)
	}
	if got := r.Object().Size; got != sample[2].Size {
		t.Error("a Ref does not survive its table's removal")
	}
	x.Remove(a) // a second time: nothing happens
	before := len(x.places)
	x.Add(b)
	if len(x.places) != before || len(x.tables) != 3 {
		t.Errorf("places are not used again: %d, then %d; %d tables", before, len(x.places), len(x.tables))
	}
}

func TestCollidingNameIsRefusedNotConfused(t *testing.T) {
	x := NewIndex([16]byte{})
	x.Add(table(t, "a", sample[0]))
	other := sample[1].Name()
	x.heads[x.id(other)] = x.heads[x.id(sample[0].Name())] // as if both had one id
	b := table(t, "b", sample[1])
	if n := x.Add(b); n != 1 {
		t.Errorf("%d refused, want 1", n)
	}
	if r, ok := x.Lookup(other); ok {
		t.Errorf("found %s for %s", r.Name(), other)
	}
	x.Remove(b)
	if _, ok := x.Lookup(sample[0].Name()); !ok {
		t.Error("the first name is lost")
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
	if len(x.heads) != 0 {
		t.Errorf("%d names are left", len(x.heads))
	}
}

func reposOf(x *Index, r Ref) (repos []string) {
	for _, o := range x.origins(r.named()) {
		repos = append(repos, o.repo)
	}
	return repos
}
