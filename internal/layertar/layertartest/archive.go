package layertartest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Item is an entry of an archive, written as it stands, sensible or not.
type Item struct {
	Name, Link, Body string
	Type             byte  // '0' if 0
	Mode             int64 // 0644 if 0, 0755 of folders
	UID, GID         int64
	Major, Minor     int64
	Mtime            int64 // seconds; Time if 0
	PAX              map[string]string
}

// Time is when what an archive holds was changed.
const Time = 1_000_000_000

const block = 512

// Marker is an archive's end marker.
func Marker() []byte { return make([]byte, 2*block) }

// Bare makes an archive without an end marker.
func Bare(items ...Item) []byte {
	var b bytes.Buffer
	for _, i := range items {
		if len(i.PAX) > 0 {
			body := records(i.PAX)
			b.Write(header(Item{Name: "pax", Type: 'x'}, len(body)))
			pad(&b, body)
		}
		b.Write(header(i, len(i.Body)))
		pad(&b, i.Body)
	}
	return b.Bytes()
}

// Tar makes an archive.
func Tar(items ...Item) []byte { return append(Bare(items...), Marker()...) }

func pad(b *bytes.Buffer, body string) {
	b.WriteString(body)
	b.Write(make([]byte, (block-len(body)%block)%block))
}

// records writes an extended header (POSIX pax): "LENGTH KEY=VALUE\n" each.
func records(of map[string]string) string {
	var all strings.Builder
	for _, key := range slices.Sorted(maps.Keys(of)) {
		rest := " " + key + "=" + of[key] + "\n"
		n := len(rest)
		for len(fmt.Sprint(n))+len(rest) != n {
			n = len(fmt.Sprint(n)) + len(rest)
		}
		fmt.Fprint(&all, n, rest)
	}
	return all.String()
}

// header writes a block in GNU's format, whose numbers may be of 256 to the power of the field's size.
func header(i Item, size int) []byte {
	if i.Type == 0 {
		i.Type = '0'
	}
	if i.Mode == 0 {
		if i.Mode = 0o644; i.Type == '5' {
			i.Mode = 0o755
		}
	}
	if i.Mtime == 0 {
		i.Mtime = Time
	}
	h := make([]byte, block)
	copy(h[0:100], i.Name)
	number(h[100:108], i.Mode)
	number(h[108:116], i.UID)
	number(h[116:124], i.GID)
	number(h[124:136], int64(size))
	number(h[136:148], i.Mtime)
	copy(h[148:156], "        ")
	h[156] = i.Type
	copy(h[157:257], i.Link)
	copy(h[257:265], "ustar  \x00")
	number(h[329:337], i.Major)
	number(h[337:345], i.Minor)
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// number writes octal digits, or a two's complement where they don't suffice.
func number(field []byte, n int64) {
	if digits := fmt.Sprintf("%0*o", len(field)-1, n); n >= 0 && len(digits) < len(field) {
		copy(field, digits)
		return
	}
	for i := len(field) - 1; i >= 0; i-- {
		field[i] = byte(n)
		n >>= 8
	}
	field[0] |= 0x80
}
