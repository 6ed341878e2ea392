package objects

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const (
	// MaxProfile bounds a profile's file in bytes: some hundred thousand reads.
	MaxProfile = 8 << 20
	// PageSize is what profiles count reads in, bytes, whatever pages a host has.
	PageSize = 4096
	// maxPieces bounds how many chunks of one object a profile may name: as many as a table can hold.
	maxPieces = 1 << 24

	profileHead = "cvmfs start profile 2"
	// chunksHead is that of files in which numbers are those of chunks.
	chunksHead = "cvmfs start profile 1"
)

// Profile is what the start of an image reads, in the order of the first reads. It names content and no place: what an
// image doesn't consist of means nothing to it. The file is text, a line for each read:
//
//	cvmfs start profile 2
//	5798f7f4ca7585d850eea64610a1f73d8f8de7a3.z.6
//	0f1e….zc.70000000 0-3
//	0f1e….zc.70000000 17
//
// A line is the object's name in the store, and which pages of 4 KiB of it are read, counted from 0; all of it without
// numbers. In files of version 1, which older programs have written, numbers are those of chunks, and stand behind
// objects in chunks only.
type Profile []Read

// Read is one read of a profile.
type Read struct {
	Name        Name // Owner is 0: profiles hold for isolated images, too
	Unit        Unit
	First, Last int // of the unit; 0, 0 of whole objects
}

// Unit is what a read counts.
type Unit int

// The units of reads.
const (
	Whole  Unit = iota // all of the object
	Pages              // of PageSize
	Chunks             // of an object in chunks
)

// ParseProfile reads a profile's file, which is hostile until then.
func ParseProfile(b []byte) (Profile, error) {
	if len(b) > MaxProfile {
		return nil, fmt.Errorf("start profile: %d bytes, the limit is %d", len(b), MaxProfile)
	}
	head, rest, _ := strings.Cut(string(b), "\n")
	unit := Pages
	switch head {
	case profileHead:
	case chunksHead:
		unit = Chunks
	default:
		return nil, fmt.Errorf("start profile: it begins with %.40q, want %q: it is none, or of a newer version", head,
			profileHead)
	}
	p := Profile{}
	n := 1
	for line := range strings.Lines(rest) {
		n++
		r, err := parseRead(strings.TrimSuffix(line, "\n"), unit)
		if err != nil {
			return nil, fmt.Errorf("start profile: line %d: %w", n, err)
		}
		p = append(p, r)
	}
	return p, nil
}

func parseRead(line string, unit Unit) (r Read, err error) {
	name, numbers, some := strings.Cut(line, " ")
	if r.Name, err = ParseName(name); err != nil {
		return r, err
	}
	switch {
	case r.Name.Owner != 0:
		return r, fmt.Errorf("object %s is that of one host's isolated images: leave the last part out", name)
	case unit == Chunks && some != r.Name.Chunked:
		return r, errors.New("want the numbers of chunks behind an object that has some, and behind no other")
	case !some:
		return r, nil
	}
	r.Unit = unit
	first, last, several := strings.Cut(numbers, "-")
	if r.First, err = strconv.Atoi(first); err != nil {
		return r, fmt.Errorf("%.40q: want a number, or two with - between", numbers)
	}
	r.Last = r.First
	if several {
		if r.Last, err = strconv.Atoi(last); err != nil {
			return r, fmt.Errorf("%.40q: want a number, or two with - between", numbers)
		}
	}
	most := int64(maxPieces)
	if unit == Pages {
		most = pagesOf(r.Name.Size)
	}
	if r.First < 0 || r.Last < r.First || int64(r.Last) >= most {
		return r, fmt.Errorf("%.40q: the object has none such", numbers)
	}
	return r, nil
}

// pagesOf returns how many pages so many bytes take.
func pagesOf(size int64) int64 { return size/PageSize + min(size%PageSize, 1) }

// Range returns which bytes a read is of, [off, end). It isn't known of chunks, nor needed: of these it is all.
func (r *Read) Range() (off, end int64) {
	if r.Unit != Pages {
		return 0, r.Name.Size
	}
	if int64(r.Last) >= pagesOf(r.Name.Size)-1 { // where the last page ends there may be no number for
		return int64(r.First) * PageSize, r.Name.Size
	}
	return int64(r.First) * PageSize, int64(r.Last+1) * PageSize
}

// Encode returns the profile's file, which ParseProfile takes.
func (p Profile) Encode() []byte {
	var b bytes.Buffer
	head := profileHead
	if slices.ContainsFunc(p, func(r Read) bool { return r.Unit == Chunks }) {
		head = chunksHead
	}
	fmt.Fprintln(&b, head)
	for _, r := range p {
		switch {
		case r.Unit == Whole:
			fmt.Fprintln(&b, r.Name)
		case r.First == r.Last:
			fmt.Fprintln(&b, r.Name, r.First)
		default:
			fmt.Fprintf(&b, "%v %d-%d\n", r.Name, r.First, r.Last)
		}
	}
	return b.Bytes()
}

// Count returns how many objects the profile names, the plain bytes that it names of them, and of a file of version 1
// how many chunks besides, whose bytes it doesn't tell.
func (p Profile) Count() (names, chunks int, bytes int64) {
	seen := map[Name]bool{}
	for i := range p {
		r := &p[i]
		seen[r.Name] = true
		if r.Unit == Chunks {
			chunks += r.Last - r.First + 1
			continue
		}
		off, end := r.Range()
		bytes += end - off
	}
	return len(seen), chunks, bytes
}
