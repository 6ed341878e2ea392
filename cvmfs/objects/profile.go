package objects

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	// MaxProfile bounds a profile's file in bytes: some hundred thousand reads.
	MaxProfile = 8 << 20
	// maxPieces bounds how many pieces of one object a profile may name: as many chunks as a table can hold.
	maxPieces = 1 << 24

	profileHead = "cvmfs start profile 1"
)

// Profile is what the start of an image reads, in the order of the first reads. It names content and no place: what an
// image doesn't consist of means nothing to it. The file is text, a line for each read:
//
//	cvmfs start profile 1
//	5798f7f4ca7585d850eea64610a1f73d8f8de7a3.z.6
//	0f1e….zc.70000000 0-3
//	0f1e….zc.70000000 17
//
// A line is the object's name in the store, and of one in chunks the numbers of the chunks, counted from 0.
type Profile []Read

// Read is one read of a profile.
type Read struct {
	Name        Name // Owner is 0: profiles hold for isolated images, too
	First, Last int  // chunks; 0, 0 of an object without chunks
}

// ParseProfile reads a profile's file, which is hostile until then.
func ParseProfile(b []byte) (Profile, error) {
	if len(b) > MaxProfile {
		return nil, fmt.Errorf("start profile: %d bytes, the limit is %d", len(b), MaxProfile)
	}
	head, rest, _ := strings.Cut(string(b), "\n")
	if head != profileHead {
		return nil, fmt.Errorf("start profile: it begins with %.40q, want %q: it is none, or of a newer version", head,
			profileHead)
	}
	p := Profile{}
	n := 1
	for line := range strings.Lines(rest) {
		n++
		r, err := parseRead(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("start profile: line %d: %w", n, err)
		}
		p = append(p, r)
	}
	return p, nil
}

func parseRead(line string) (r Read, err error) {
	name, chunks, some := strings.Cut(line, " ")
	if r.Name, err = ParseName(name); err != nil {
		return r, err
	}
	switch {
	case r.Name.Owner != 0:
		return r, fmt.Errorf("object %s is that of one host's isolated images: leave the last part out", name)
	case some != r.Name.Chunked:
		return r, errors.New("want the numbers of chunks behind an object that has some, and behind no other")
	case !some:
		return r, nil
	}
	first, last, several := strings.Cut(chunks, "-")
	if r.First, err = strconv.Atoi(first); err != nil {
		return r, fmt.Errorf("chunks %.40q: want a number, or two with - between", chunks)
	}
	r.Last = r.First
	if several {
		if r.Last, err = strconv.Atoi(last); err != nil {
			return r, fmt.Errorf("chunks %.40q: want a number, or two with - between", chunks)
		}
	}
	if r.First < 0 || r.Last < r.First || r.Last >= maxPieces {
		return r, fmt.Errorf("chunks %.40q: there are none such", chunks)
	}
	return r, nil
}

// Encode returns the profile's file, which ParseProfile takes.
func (p Profile) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, profileHead)
	for _, r := range p {
		switch {
		case !r.Name.Chunked:
			fmt.Fprintln(&b, r.Name)
		case r.First == r.Last:
			fmt.Fprintln(&b, r.Name, r.First)
		default:
			fmt.Fprintf(&b, "%v %d-%d\n", r.Name, r.First, r.Last)
		}
	}
	return b.Bytes()
}

// Count returns how many objects without chunks the profile names, the plain bytes of these, and how many chunks of
// other objects.
func (p Profile) Count() (whole, chunks int, bytes int64) {
	for _, r := range p {
		if r.Name.Chunked {
			chunks += r.Last - r.First + 1
			continue
		}
		whole++
		bytes += r.Name.Size
	}
	return whole, chunks, bytes
}
