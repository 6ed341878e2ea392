package objects

import (
	"slices"
	"sync"
)

// Recording is what is read of a store's objects, in the order of the first reads, from Record until Stop. What is in
// the store's folder when it begins is opened without the store, and not seen; so is what is fetched ahead and not
// held. It is safe for concurrent use.
type Recording struct {
	store *Store

	mu    sync.Mutex
	seen  map[pageWord]uint64 // a bit for each page that was read, but for those of whole objects
	whole map[Name]bool       // objects all of which was read at once
	reads []Read
	news  int // reads of something new
}

// pageWord is 64 pages of an object.
type pageWord struct {
	name Name // without an owner
	at   int
}

// mostRecorded bounds a recording: a program that reads all of a large image has no start worth a profile.
const mostRecorded = 1 << 16 // lines of such a number are no more than MaxProfile

// Record begins a recording.
func (s *Store) Record() *Recording {
	r := &Recording{store: s, seen: map[pageWord]uint64{}, whole: map[Name]bool{}}
	for {
		old := s.recordings.Load()
		var next []*Recording
		if old != nil {
			next = slices.Clone(*old)
		}
		next = append(next, r)
		if s.recordings.CompareAndSwap(old, &next) {
			return r
		}
	}
}

// Stop ends the recording.
func (r *Recording) Stop() {
	for {
		old := r.store.recordings.Load()
		if old == nil {
			return
		}
		next := slices.DeleteFunc(slices.Clone(*old), func(o *Recording) bool { return o == r })
		list := &next
		if len(next) == 0 {
			list = nil
		}
		if r.store.recordings.CompareAndSwap(old, list) {
			return
		}
	}
}

// Len returns how many pages and objects were read until now, of whatever image.
func (r *Recording) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.news
}

// Profile returns what was read of an image's objects.
func (r *Recording) Profile(t *Table) Profile {
	r.mu.Lock()
	defer r.mu.Unlock()
	wanted := map[Name]bool{}
	for _, read := range r.reads {
		wanted[read.Name] = false
	}
	for i := range t.Len() {
		n := t.record(i).name()
		if _, read := wanted[n]; read {
			wanted[n] = true
		}
	}
	p := Profile{}
	for _, read := range r.reads {
		if !wanted[read.Name] {
			continue
		}
		if n := len(p); n > 0 && p[n-1].goesOn(&read) {
			p[n-1].Last = read.Last
			continue
		}
		p = append(p, read)
	}
	for i := range p {
		if off, end := p[i].Range(); off == 0 && end == p[i].Name.Size {
			p[i] = Read{Name: p[i].Name}
		}
	}
	return p
}

// asked tells recordings that bytes [off, end) of an object are read.
func (s *Store) asked(r Ref, off, end int64) {
	list := s.recordings.Load()
	if list == nil || end <= off {
		return
	}
	n := r.record().name()
	for _, to := range *list {
		if off == 0 && end == n.Size {
			to.addWhole(n)
		} else {
			to.add(n, int(off/PageSize), int((end-1)/PageSize))
		}
	}
}

// addWhole takes note of all of an object, whose size an image may claim as it likes.
func (r *Recording) addWhole(n Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.whole[n] && len(r.reads) < mostRecorded {
		r.whole[n] = true
		r.news++
		r.reads = append(r.reads, Read{Name: n})
	}
}

// add takes note of pages first to last, as far as they weren't read before.
func (r *Recording) add(n Name, first, last int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.whole[n] {
		return
	}
	for i := first; i <= last && len(r.reads) < mostRecorded; i++ {
		word, bit := pageWord{n, i / 64}, uint64(1)<<(i%64)
		if r.seen[word]&bit != 0 {
			continue
		}
		r.seen[word] |= bit
		r.news++
		read := Read{Name: n, Unit: Pages, First: i, Last: i}
		if k := len(r.reads) - 1; k >= 0 && r.reads[k].goesOn(&read) {
			r.reads[k].Last = i
			continue
		}
		r.reads = append(r.reads, read)
	}
}

// goesOn reports whether another read is of the pages behind.
func (r *Read) goesOn(next *Read) bool {
	return r.Unit == Pages && next.Unit == Pages && r.Name == next.Name && r.Last+1 == next.First
}
