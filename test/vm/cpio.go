package vm

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"slices"
)

// File is a regular file of an archive.
type File struct {
	Name    string // relative, slashes
	Mode    uint32 // permissions
	Content []byte
}

// WriteArchive writes files, with the folders they lie in, as the kernel takes an initial root file system (the "newc"
// format of cpio, Documentation/driver-api/early-userspace/buffer-format.rst). Equal files give equal bytes.
func WriteArchive(w io.Writer, files []File) error {
	a := &archive{w: w, folders: map[string]bool{".": true}}
	for _, f := range files {
		a.parents(path.Clean(f.Name))
		a.entry(path.Clean(f.Name), 0o100000|f.Mode&0o7777, f.Content)
	}
	a.entry("TRAILER!!!", 0, nil)
	return a.err
}

type archive struct {
	w       io.Writer
	folders map[string]bool // that are written
	inode   uint32
	err     error
}

// parents writes the folders above a name that aren't there yet.
func (a *archive) parents(name string) {
	var missing []string
	for dir := path.Dir(name); !a.folders[dir]; dir = path.Dir(dir) {
		a.folders[dir] = true
		missing = append(missing, dir)
	}
	for _, dir := range slices.Backward(missing) {
		a.entry(dir, 0o040755, nil)
	}
}

// entry writes a header of hexadecimal numbers, the name and the content, each padded to a multiple of four bytes.
func (a *archive) entry(name string, mode uint32, content []byte) {
	if a.err != nil {
		return
	}
	a.inode++
	var b bytes.Buffer
	b.WriteString("070701")
	// inode, mode, owner, group, links, time, size, four device numbers, length of the name, checksum
	for _, n := range []uint32{a.inode, mode, 0, 0, 1, 0, uint32(len(content)), 0, 0, 0, 0, uint32(len(name) + 1), 0} {
		fmt.Fprintf(&b, "%08X", n)
	}
	b.WriteString(name + "\x00")
	pad(&b)
	b.Write(content)
	pad(&b)
	_, a.err = a.w.Write(b.Bytes())
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
