package objects

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/pack"
)

// packs stores the packs of a profile of objects, changed.
func (r *repository) packs(t *testing.T, p Profile, objs []Object, change func([]byte) []byte) []Pack {
	t.Helper()
	byName := map[string]Object{}
	for _, o := range objs {
		byName[o.Name()] = o
	}
	all := p.Packs(byName)
	var packs []Pack
	for _, first := range slices.Sorted(maps.Keys(all)) {
		var b []byte
		for _, path := range all[first] {
			r.mu.Lock()
			stored := r.files[path]
			r.mu.Unlock()
			b = pack.Append(b, path, stored)
		}
		if change != nil {
			b = change(b)
		}
		packs = append(packs, Pack{"r", first, Stored{
			Digest: r.put(hash.SHA1, hash.File, hash.None, b), Compression: hash.None, Size: int64(len(b)),
		}})
	}
	return packs
}

// someFiles are objects of 2,500 bytes, a chunked one and a large one, and a profile that reads some of each.
func someFiles(t *testing.T, r *repository, n int) ([]Object, []Ref, Profile) {
	objs := []Object{r.chunked(noise(9, 100_000), 10_000), r.whole(noise(8, pack.MaxObject+1))}
	for i := range n {
		objs = append(objs, r.whole(noise(100+i, 2500)))
	}
	all := refs(t, objs...)
	p := Profile{want(all[0], 2, 3, 4), want(all[1])}
	for _, r := range all[2:] {
		p = append(p, want(r))
	}
	return objs, all, append(p, want(all[0], 8, 9))
}

func TestWhatAProfileNamesComesInPacks(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	objs, all, p := someFiles(t, repo, 2000)
	packs := repo.packs(t, p, objs, nil)
	if len(packs) != 3 || packs[0].First != 0 || packs[1].Size < packedBytes || packs[1].Size > packedBytes+300_000 {
		t.Fatalf("packs of %d: %+v", len(packs), packs)
	}
	slices.Reverse(packs) // in whatever order they are listed
	done, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{Packs: packs})
	want := Started{Fetched: 2000 + 5 + 1, Bytes: 2000*2500 + 50_000 + pack.MaxObject + 1}
	if err != nil || done != want {
		t.Errorf("got %+v, %v, want %+v", done, err, want)
	}
	if n := repo.Requests(""); n != 3+1 {
		t.Errorf("%d requests, want one for each pack and one for what is too large", n)
	}
	for i, r := range all[2:] {
		holds(t, s, r, noise(100+i, 2500))
	}
	reads(t, s, all[0], noise(9, 100_000), 20_000, 30_000)
	reads(t, s, all[0], noise(9, 100_000), 80_000, 20_000)
	if n := repo.Requests(""); n != 3+1 {
		t.Errorf("%d requests once that was read", n)
	}
	again, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{Packs: packs})
	if n := repo.Requests(""); err != nil || again.Here != done.Fetched || n != 3+1 {
		t.Errorf("the second time: %+v, %v, %d requests", again, err, n)
	}
}

// A pack is fetched for what is missing of it, and not for the rest; nor one that has more in it than that can be.
func TestPacksThatAreNotWorthItAreNotFetched(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	objs, all, p := someFiles(t, repo, 40)
	for name, c := range map[string]struct {
		here   int
		change func([]byte) []byte
		packs  int
	}{
		"a third is here":     {15, nil, 1},
		"most is here":        {39, nil, 0},
		"there is more in it": {0, func(b []byte) []byte { return pack.Append(b, "data/00/1", noise(1, 100_000)) }, 0},
	} {
		s := newStore(t, repo)
		for _, r := range all[2 : 2+c.here] {
			if err := s.Fetch(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		if c.here == 39 {
			if err := s.FetchPieces(t.Context(), all[0], 2, 3, 4); err != nil {
				t.Fatal(err)
			}
		}
		packs := repo.packs(t, p, objs, c.change)
		before := repo.Requests(packs[0].Digest.Path(hash.File))
		done, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{Packs: packs})
		if n := repo.Requests(packs[0].Digest.Path(hash.File)) - before; err != nil || n != c.packs || len(packs) != 1 {
			t.Errorf("%s: %d requests for the pack, want %d; %v", name, n, c.packs, err)
		}
		if done.Failed+done.Unknown > 0 || done.Fetched+done.Here != 40+5+1 {
			t.Errorf("%s: %+v", name, done)
		}
		for i, r := range all[2:] {
			holds(t, s, r, noise(100+i, 2500))
		}
	}
}

// Whatever a server gives for a pack, what comes is what the catalogs say.
func TestBadPacksDoNoHarm(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func([]byte) []byte{
		"no pack":       func(b []byte) []byte { return bytes.Repeat([]byte{'x'}, len(b)) },
		"empty":         func([]byte) []byte { return nil },
		"it breaks off": func(b []byte) []byte { return b[:len(b)/2] },
		"other bytes": func(b []byte) []byte {
			b = bytes.Clone(b)
			for i := 200; i < len(b); i += 1000 {
				b[i]++
			}
			return b
		},
		"huge sizes": func(b []byte) []byte {
			return append([]byte("data/00/11 9223372036854775807\n"), b[:len(b)-100]...)
		},
		"objects by other names": func(b []byte) []byte { return []byte(strings.ReplaceAll(string(b), "\ndata/", "\ndata/f")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			repo := newRepository(t)
			s := newStore(t, repo)
			objs, all, p := someFiles(t, repo, 40)
			packs := repo.packs(t, p, objs, change)
			done, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{Packs: packs})
			if err != nil || done.Failed+done.Unknown > 0 || done.Fetched != 40+5+1 {
				t.Errorf("%+v, %v", done, err)
			}
			for i, r := range all[2:] {
				holds(t, s, r, noise(100+i, 2500))
			}
			reads(t, s, all[0], noise(9, 100_000), 20_000, 30_000)
		})
	}
}

// A pack that can't be had is one request in vain.
func TestAPackThatIsGone(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	objs, all, p := someFiles(t, repo, 40)
	packs := repo.packs(t, p, objs, nil)
	repo.mu.Lock()
	delete(repo.files, packs[0].Digest.Path(hash.File))
	repo.mu.Unlock()
	done, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{Packs: packs})
	if err != nil || done.Failed > 0 || done.Fetched != 40+5+1 {
		t.Errorf("%+v, %v", done, err)
	}
	packs[0].FQRN = "another"
	if l := s.loads(t.Context(), all[0].x, all[0].t, all[0].t.steps(p, 0, &done), packs); len(l) != 46 {
		t.Errorf("%d loads: another repository's pack has nothing of this", len(l))
	}
}

// A server may go on and on: what follows a pack isn't read.
func TestAPackIsReadNoFurtherThanItsEntrySays(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		body io.Reader
		want error
	}{
		"its end":    {strings.NewReader(""), nil},
		"more":       {io.MultiReader(strings.NewReader("x"), iotest.ErrReader(broken)), fetch.ErrBadData},
		"a bad link": {iotest.ErrReader(broken), broken},
	} {
		if err := atEnd(c.body); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	repo := newRepository(t)
	s := newStore(t, repo)
	objs, all, p := someFiles(t, repo, 40)
	packs := repo.packs(t, p, objs, nil)
	path := packs[0].Digest.Path(hash.File)
	repo.store(path, append(repo.files[path], "data/00/11 0\n"...))
	done, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{Packs: packs})
	if err != nil || done.Failed > 0 || done.Fetched != 40+5+1 || repo.Requests(path) != 2 {
		t.Errorf("%+v, %v, %d requests for it", done, err, repo.Requests(path))
	}
}

// Who reads while a pack comes neither waits for all of it nor fetches twice what it brings.
func TestReadersPassAPackThatIsSlow(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	objs, all, p := someFiles(t, repo, 40)
	packs := repo.packs(t, p, objs, nil)
	slow := repo.stall(packs[0].Digest.Path(hash.File), int(packs[0].Size)/2)
	started := make(chan error, 1)
	go func() {
		_, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{Packs: packs})
		started <- err
	}()
	<-slow.stalled
	eventually(t, "the first half", func() bool { return s.Has(all[2]) })
	for _, r := range []Ref{all[2], all[41]} { // the first has come, the last not
		if err := s.Fetch(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-started:
		t.Fatalf("the pack didn't stall: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	close(slow.proceed)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if n := repo.Requests(""); n != 1+1+1 {
		t.Errorf("%d requests, want those for the pack, for what is too large, and for what was read", n)
	}
}

// What a pack has of an object whose size the catalog has wrong isn't taken for it.
func TestWrongSizesDoNotComeInPacks(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	chunked, whole := repo.chunked(noise(1, 3000), 1000), repo.whole(noise(2, 1000))
	chunked.Chunks[2].Size, chunked.Size, whole.Size = 1001, 3001, 1001
	objs := []Object{chunked, whole, repo.whole(noise(3, 1000))}
	all := refs(t, objs...)
	p := Profile{want(all[0]), want(all[1]), want(all[2])}
	p[0].Unit, p[0].Last = Chunks, 2
	packs := repo.packs(t, p, objs, nil)
	done, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{Packs: packs})
	if want := (Started{Fetched: 3, Bytes: 3000, Failed: 2}); err != nil || done != want {
		t.Errorf("got %+v, %v, want %+v", done, err, want)
	}
	if s.Has(all[0]) || s.Has(all[1]) {
		t.Error("something is here that isn't what the catalog says")
	}
}

// What is asked for around what a profile names isn't in its packs, and has requests of its own.
func TestPacksHaveNothingOfWhatIsAround(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	objs := []Object{repo.chunked(noise(9, 200_000), 10_000)}
	all := refs(t, objs...)
	name := want(all[0]).Name
	p := Profile{{Name: name, Unit: Pages, First: 20, Last: 20}, {Name: name, Unit: Pages, First: 23, Last: 30}}
	packs := repo.packs(t, p, objs, nil)
	done, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{Around: 20_000, Packs: packs})
	if err != nil || done.Failed+done.Unknown > 0 || done.Fetched != 9 {
		t.Errorf("%+v, %v", done, err)
	}
	if n := repo.Requests(""); n != 1+4 { // of page 20 chunk 8, of the others 9 to 12; around are 6 and 7, 13 and 14
		t.Errorf("%d requests", n)
	}
	reads(t, s, all[0], noise(9, 200_000), 60_000, 90_000)
}

// A pack has no more than so much, however much a read is of.
func TestALongReadIsNotAllInOnePack(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	objs := []Object{repo.chunked(noise(9, 3*packedBytes), 100_000)}
	all := refs(t, objs...)
	p := Profile{{Name: want(all[0]).Name}}
	packs := repo.packs(t, p, objs, nil)
	if len(packs) != 1 || packs[0].Size < 2*packedBytes || packs[0].Size > 2*packedBytes+200_000 {
		t.Fatalf("%+v", packs)
	}
	steps := all[0].t.steps(p, 0, &Started{})
	loads := s.loads(t.Context(), all[0].x, all[0].t, steps, packs)
	if n := 1 + len(steps) - len(loads[0].steps); len(loads) != n || loads[0].pack == nil {
		t.Errorf("%d loads, want %d, of which the first is a pack", len(loads), n)
	}
	done, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{Packs: packs})
	if n := repo.Requests(""); err != nil || done.Fetched != len(steps) || n != len(loads) {
		t.Errorf("%+v, %v, %d requests, want %d", done, err, n, len(loads))
	}
}
