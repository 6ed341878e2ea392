package objects

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"cvmfs-graphdriver/test/testutil"
)

// program is a repository with a program, the libraries that it needs and others, in the order of their names.
type program struct {
	repo                                       *repository
	store                                      *Store
	plain                                      [][]byte
	program, needed, large, module, other, odd Ref
}

const (
	libraryPart  = 64 << 10
	libraryChunk = 16 << 10
)

// newProgram makes one: program needs libneeded.so.1, and that liblarge.so.2, which is in chunks and needs it in turn.
func newProgram(t *testing.T, o testutil.ELF) *program {
	t.Helper()
	p := &program{repo: newRepository(t)}
	p.store = readingStore(t, p.repo)
	large := o
	large.Needed, large.Part = []string{"libneeded.so.1"}, libraryPart
	p.plain = [][]byte{
		testutil.ELF{Interpreter: "/lib/ld.so.9", Needed: []string{"libneeded.so.1", "libabsent.so.1"}}.Encode(),
		testutil.ELF{Needed: []string{"liblarge.so.2"}, Part: 20 << 10}.Encode(),
		large.Encode(),
		testutil.ELF{Part: 5 << 10}.Encode(), noise(1, 1000), testutil.ELF{Part: 6 << 10}.Encode(),
	}
	objs := make([]Object, len(p.plain))
	for i, b := range p.plain {
		objs[i] = p.repo.whole(b)
	}
	objs[2] = p.repo.chunked(p.plain[2], libraryChunk)
	all := refs(t, objs...)
	all[0].t.SetNames(Names{
		"libneeded.so.1": {1}, "liblarge.so.2": {2}, "module.so": {3}, "libodd.so": {5, 99},
	})
	p.program, p.needed, p.large, p.module, p.other, p.odd = all[0], all[1], all[2], all[3], all[4], all[5]
	return p
}

// chunks are those of the large library that are here.
func (p *program) chunks(t *testing.T) (here []int) {
	t.Helper()
	part, err := p.store.partial(p.large)
	if err != nil {
		t.Fatal(err)
	}
	defer p.store.partials.release(part)
	for i := range part.pieces {
		if part.has(i) {
			here = append(here, i)
		}
	}
	return here
}

func TestLibrariesComeWithTheProgramThatNeedsThem(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		layout testutil.ELF
		chunks []int // parts are of four chunks
	}{
		"symbols by themselves": {testutil.ELF{}, []int{0, 1, 2, 3, 4, 7, 12, 13, 14, 15}},
		"symbols with the code": {testutil.ELF{Mixed: true}, []int{0, 1, 2, 3, 7, 12, 13, 14, 15}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProgram(t, c.layout)
			if err := p.store.FetchNear(t.Context(), p.program); err != nil {
				t.Fatal(err)
			}
			eventually(t, "what the linker reads", func() bool { return slices.Equal(p.chunks(t), c.chunks) })
			atRest(t, p.store)
			if got := p.chunks(t); !slices.Equal(got, c.chunks) {
				t.Errorf("chunks %v came, want %v", got, c.chunks)
			}
			if p.store.Has(p.needed) || !p.store.holds.has(p.needed.Name()) {
				t.Error("a library that nobody has asked for is to be held")
			}
			if err := p.store.FetchNear(t.Context(), p.needed); err != nil {
				t.Fatal(err)
			}
			reads(t, p.store, p.large, p.plain[2], 0, 3*libraryChunk)
			reads(t, p.store, p.large, p.plain[2], 3*libraryPart, libraryPart)
			holds(t, p.store, p.needed, p.plain[1])
		})
	}
}

// What is not said to be needed isn't fetched for it: no profile's start, no record of one, no library of another name.
func TestLibrariesDoNotComeWhereNothingIsToComeAhead(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(p *program){
		"a start by its profile": func(p *program) { p.store.starts.enter(p.program.t)(true) },
		"nothing ahead":          func(p *program) { p.store.cfg.NothingAhead = true },
		"names not known":        func(p *program) { p.program.t.names = tableNames{} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProgram(t, testutil.ELF{})
			prepare(p)
			if err := p.store.Fetch(t.Context(), p.program); err != nil {
				t.Fatal(err)
			}
			p.store.followSoon(p.program)
			atRest(t, p.store)
			time.Sleep(50 * time.Millisecond) // what would follow has no other sign
			if n := p.repo.Requests(""); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func TestALibraryHasNoNeighbours(t *testing.T) {
	t.Parallel()
	p := newProgram(t, testutil.ELF{})
	p.store.Near(p.odd)
	atRest(t, p.store)
	if n := p.repo.Requests(""); n != 0 {
		t.Errorf("%d requests for the neighbours of a library that programs are linked with", n)
	}
	p.store.Near(p.module)
	eventually(t, "a neighbour of a module", func() bool { return p.store.holds.has(p.other.Name()) })
}

func TestModulesMayBeLargerThanOtherNeighbours(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	all := refs(t, repo.whole(noise(1, 10)), repo.whole(noise(2, prefetchLimit+1)),
		repo.whole(noise(3, prefetchLimit+1)), repo.whole(noise(4, moduleLimit+1)))
	all[0].t.SetNames(Names{"_a.so": {2}, "_b.so": {3}})
	s.Near(all[0])
	eventually(t, "the module", func() bool { return s.holds.has(all[2].Name()) })
	atRest(t, s)
	if n := repo.Requests(""); n != 1 {
		t.Errorf("%d objects came", n)
	}
}

func TestOfLibrariesOfOneNameTheNearestIsMeant(t *testing.T) {
	t.Parallel()
	all := few(t, newRepository(t), 10)
	all[0].t.SetNames(Names{"libc.so.6": {2, 8, 1000}})
	for from, want := range map[int]uint32{0: 2, 4: 2, 6: 8, 9: 8} {
		if got, ok := all[from].library("libc.so.6"); !ok || got.pos != want {
			t.Errorf("from %d: %d, %v; want %d", from, got.pos, ok, want)
		}
	}
	if _, ok := all[0].library("libm.so.6"); ok {
		t.Error("a name that is none's")
	}
}

// Where images share a program, its libraries are those of the one that came last.
func TestLibrariesAreThoseOfTheYoungestImage(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	shared := repo.whole(testutil.ELF{Needed: []string{"liba.so.1"}}.Encode())
	old, young := repo.whole(noise(1, 2000)), repo.whole(noise(2, 2000))
	x := NewIndex([16]byte{})
	for _, library := range []Object{old, young} {
		image := table(t, "r", shared, library)
		image.SetNames(Names{"liba.so.1": {1}})
		x.Add(image)
	}
	program, _ := x.Lookup(shared.Name())
	if err := s.Fetch(t.Context(), program); err != nil {
		t.Fatal(err)
	}
	s.followSoon(program)
	eventually(t, "the library", func() bool { return s.holds.has(young.Name()) })
	atRest(t, s)
	if s.holds.has(old.Name()) {
		t.Error("the library of an older image came")
	}
}

func TestTheEndOfALargeObjectComesWithItsBeginning(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	plain := noise(1, 20_000)
	r := ref(t, repo.chunked(plain, 1000))
	reads(t, s, r, plain, 0, 1)
	p, err := s.partial(r)
	if err != nil {
		t.Fatal(err)
	}
	defer s.partials.release(p)
	eventually(t, "the end", func() bool { return p.has(18) && p.has(19) })
	atRest(t, s)
	if n := repo.Requests(""); n != 4 { // and the one that follows
		t.Errorf("%d requests", n)
	}
}

func TestWhatAnyContainerReadsComesWhenAnImageStarts(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	all := refs(t, repo.whole(noise(1, 100)), repo.whole(noise(2, 100)), repo.whole(noise(3, 100)),
		repo.whole(testutil.ELF{Needed: []string{"libx.so.1"}}.Encode()), repo.whole(noise(4, 100)))
	all[0].t.SetNames(Names{
		"/etc/passwd": {0}, "/etc/group": {1, 1000}, "libother.so.1": {2}, "libc.so.6": {3}, "libx.so.1": {4},
	})
	s.Usual(all[0].x, all[0].t)
	for _, i := range []int{0, 1, 3, 4} {
		eventually(t, "what is usual", func() bool { return s.holds.has(all[i].Name()) })
	}
	atRest(t, s)
	if n := repo.Requests(""); n != 4 {
		t.Errorf("%d requests", n)
	}
}

// Whatever libraries say that they need, so many come because of one file that was opened, and no more.
func TestLibrariesWithoutEndAreNotFollowedToIt(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	var objs []Object
	names := Names{}
	for i := range mostLinked + 50 {
		next := fmt.Sprintf("lib%d.so", (i+1)%(mostLinked+50))
		objs = append(objs, repo.whole(testutil.ELF{Needed: []string{next}}.Encode()))
		names.Add(fmt.Sprintf("lib%d.so", i), i)
	}
	all := refs(t, objs...)
	all[0].t.SetNames(names)
	if err := s.Fetch(t.Context(), all[0]); err != nil {
		t.Fatal(err)
	}
	s.followSoon(all[0])
	eventually(t, "the last library", func() bool { return s.holds.has(all[mostLinked].Name()) })
	atRest(t, s)
	if s.holds.has(all[mostLinked+1].Name()) {
		t.Errorf("more than %d libraries came", mostLinked)
	}
}

func TestALibraryThatCouldNotBeHadIsFollowedWhenItIsMetAgain(t *testing.T) {
	t.Parallel()
	p := newProgram(t, testutil.ELF{})
	p.repo.Set(testutil.Fault{Status: 500})
	if !p.store.followed.begin(p.needed) || p.store.followed.begin(p.needed) {
		t.Fatal("an object is followed once")
	}
	p.store.fetchLibrary(t.Context(), p.needed, newLinked())
	if !p.store.followed.begin(p.needed) {
		t.Error("it isn't followed any more")
	}
	p.store.followed.forget(p.needed)
	p.store.followed.m = map[Ref]struct{}{}
	for i := range mostFollowed {
		p.store.followed.m[Ref{pos: uint32(i)}] = struct{}{}
	}
	if p.store.followed.begin(p.needed) {
		t.Error("more are remembered than may be")
	}
}
