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
	seen  map[pieceRead]bool
	reads []pieceRead
}

// pieceRead is a piece that was read.
type pieceRead struct {
	name  Name // without an owner
	piece int
}

// mostRecorded bounds a recording: a program that reads all of a large image has no start worth a profile.
const mostRecorded = 1 << 16 // lines of such a number are no more than MaxProfile

// Record begins a recording.
func (s *Store) Record() *Recording {
	r := &Recording{store: s, seen: map[pieceRead]bool{}}
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

// Len returns how many pieces were read until now, of whatever image.
func (r *Recording) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.reads)
}

// Profile returns what was read of an image's objects.
func (r *Recording) Profile(t *Table) Profile {
	r.mu.Lock()
	defer r.mu.Unlock()
	wanted := map[Name]bool{}
	for _, read := range r.reads {
		wanted[read.name] = false
	}
	for i := range t.Len() {
		n := t.record(i).name()
		if _, read := wanted[n]; read {
			wanted[n] = true
		}
	}
	p := Profile{}
	for _, read := range r.reads {
		if !wanted[read.name] {
			continue
		}
		if n := len(p); n > 0 && p[n-1].Name == read.name && p[n-1].Last+1 == read.piece {
			p[n-1].Last++
			continue
		}
		p = append(p, Read{read.name, read.piece, read.piece})
	}
	return p
}

// asked tells recordings that bytes [off, end) of an object are read.
func (s *Store) asked(r Ref, off, end int64) {
	if s.recordings.Load() == nil {
		return
	}
	o := r.Object()
	stored := o.Stored()
	first, last := within(len(stored), func(i int) int64 { return stored[i].Offset }, off, end)
	s.askedPieces(r, first, last)
}

// askedPieces tells recordings that pieces [first, last) of an object are read.
func (s *Store) askedPieces(r Ref, first, last int) {
	list := s.recordings.Load()
	if list == nil {
		return
	}
	n := r.record().name()
	for _, to := range *list {
		to.add(n, first, last)
	}
}

func (r *Recording) add(n Name, first, last int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := first; i < last; i++ {
		read := pieceRead{n, i}
		if len(r.reads) < mostRecorded && !r.seen[read] {
			r.seen[read] = true
			r.reads = append(r.reads, read)
		}
	}
}
