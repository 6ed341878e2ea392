package objects

import (
	"cmp"
	"slices"

	"cvmfs-graphdriver/cvmfs/hash"
)

// LeastCut is the size in bytes above which files are cut where a start profile says which parts of them are read
// (ADR 38).
const LeastCut = 64 << 10

const (
	// leastGap is how many bytes that aren't read, between others that are, are worth a chunk of their own.
	leastGap = 32 << 10
	// leastUnread is the part of an object, an eighth, that must not be read for it to be cut.
	leastUnread = 8
	// mostCut is the largest chunk that a cut makes, bytes; half of it are made of larger ones.
	mostCut = 256 << 10
)

// Cuts say where the objects of a start are cut so that what it reads are chunks of their own.
type Cuts map[Name][]span

// span is bytes [off, end) of an object.
type span struct{ off, end int64 }

// Cuts returns where to cut the objects that the profile names.
func (p Profile) Cuts() Cuts {
	c := Cuts{}
	for i := range p {
		if r := &p[i]; r.Name.Size > LeastCut {
			off, end := r.Range()
			c[r.Name] = append(c[r.Name], span{off, end})
		}
	}
	for n, read := range c {
		if read = merged(read); unread(read, n.Size) < max(leastGap, n.Size/leastUnread) {
			delete(c, n)
		} else {
			c[n] = read
		}
	}
	return c
}

// merged returns the same spans in order, those that are near each other as one.
func merged(read []span) []span {
	slices.SortFunc(read, func(a, b span) int { return cmp.Compare(a.off, b.off) })
	one := read[:1]
	for _, s := range read[1:] {
		if last := &one[len(one)-1]; s.off-last.end < leastGap {
			last.end = max(last.end, s.end)
		} else {
			one = append(one, s)
		}
	}
	return one
}

// unread returns how many bytes of an object are in none of the spans.
func unread(read []span, size int64) int64 {
	for _, s := range read {
		size -= s.end - s.off
	}
	return size
}

// Of returns where the chunks of an object are to end; nil if it stays as it is. Chunks that it has stay chunks if they
// are read as a whole, or not at all.
func (c Cuts) Of(o *Object) []int64 {
	read := c[o.id()]
	if read == nil || o.External {
		return nil
	}
	var ends []int64
	for _, piece := range o.Stored() {
		at, last := piece.Offset, piece.Offset+piece.Size
		for len(read) > 0 && read[0].end <= at { // spans and pieces are in order
			read = read[1:]
		}
		for _, s := range read {
			if s.off >= last {
				break
			}
			if s.off-at >= leastGap/2 { // of what isn't read
				ends = evenly(ends, at, s.off)
				at = s.off
			}
			if last-s.end >= leastGap/2 {
				ends = evenly(ends, at, s.end)
				at = s.end
			}
		}
		if at == piece.Offset && piece.Suffix == hash.Chunk {
			ends = append(ends, last)
		} else {
			ends = evenly(ends, at, last)
		}
	}
	if len(ends) == len(o.Chunks) || len(ends) == 1 {
		return nil
	}
	return ends
}

// evenly appends where the chunks of [off, end) end: one, or of much several.
func evenly(ends []int64, off, end int64) []int64 {
	n := int64(1)
	if end-off > mostCut {
		n = (end - off + mostCut/2 - 1) / (mostCut / 2)
	}
	for i := int64(1); i <= n; i++ {
		ends = append(ends, off+(end-off)*i/n)
	}
	return ends
}

// Renamed returns the profile with the names of objects that are others now.
func (p Profile) Renamed(names map[Name]Name) Profile {
	renamed := slices.Clone(p)
	for i := range renamed {
		if to, some := names[renamed[i].Name]; some {
			renamed[i].Name = to
		}
	}
	return renamed
}
