// Package elfload tells what of a program or a shared library is read when it is loaded, whatever the program does
// then, and which libraries are loaded with it. The format is that of the System V ABI, files of 64 bits.
//
// Package debug/elf reads more of a file, and isn't made for hostile ones: here nothing is taken for granted, and what
// is read is bounded.
package elfload

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"path"
)

const (
	headSize = 64 // that of elf.Header64

	// What more there is of these in a file isn't read.
	mostSegments = 256
	mostDynamic  = 64 << 10 // bytes of the dynamic section
	mostNeeded   = 1024     // libraries
	mostName     = 255      // bytes of a library's name
)

// File is a program or a shared library.
type File struct {
	in    io.ReaderAt
	order binary.ByteOrder

	loaded      []segment
	dynamic     Extent
	interpreter Extent
}

// segment is a part of the file that is mapped into memory.
type segment struct {
	Extent
	address uint64
	flags   elf.ProgFlag
}

// Extent is a range of a file, in bytes. The zero value is empty.
type Extent struct{ Offset, Size int64 }

// End is behind the last byte.
func (e Extent) End() int64 { return e.Offset + e.Size }

// Open reads the headers of a file of so many bytes. It returns nil where they can't be read, or it is neither a
// program nor a library of 64 bits.
func Open(in io.ReaderAt, size int64) *File {
	var head [headSize]byte
	if n, _ := in.ReadAt(head[:], 0); n < len(head) || !bytes.HasPrefix(head[:], []byte(elf.ELFMAG)) ||
		elf.Class(head[elf.EI_CLASS]) != elf.ELFCLASS64 {
		return nil
	}
	f := &File{in: in, order: binary.LittleEndian}
	if elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2MSB {
		f.order = binary.BigEndian
	}
	var h elf.Header64
	if _, err := binary.Decode(head[:], f.order, &h); err != nil || h.Phoff > uint64(size) {
		return nil
	}
	list := make([]elf.Prog64, min(h.Phnum, mostSegments))
	if binary.Read(io.NewSectionReader(in, int64(h.Phoff), size-int64(h.Phoff)), f.order, list) != nil {
		return nil
	}
	for _, p := range list {
		if p.Off < uint64(size) && p.Filesz > 0 {
			f.add(&p, Extent{int64(p.Off), int64(min(p.Filesz, uint64(size)-p.Off))})
		}
	}
	return f
}

func (f *File) add(p *elf.Prog64, e Extent) {
	switch elf.ProgType(p.Type) {
	case elf.PT_LOAD:
		f.loaded = append(f.loaded, segment{e, p.Vaddr, elf.ProgFlag(p.Flags)})
	case elf.PT_DYNAMIC:
		f.dynamic = e
	case elf.PT_INTERP:
		f.interpreter = e
	}
}

// Touched returns what is read in any case, in that order, as far as the headers tell: the dynamic section and all else
// that may be written, which is what the linker relocates; what comes first if it is no code, which is symbols and
// relocations; and a byte where code begins and one where it ends, which is run before and after the program.
func (f *File) Touched() []Extent {
	parts := []Extent{f.dynamic}
	for _, s := range f.loaded {
		if s.flags&elf.PF_W != 0 {
			parts = append(parts, s.Extent)
		}
	}
	for i, s := range f.loaded {
		switch {
		case s.flags&elf.PF_W != 0:
		case s.flags&elf.PF_X != 0:
			parts = append(parts, Extent{s.Offset, 1}, Extent{s.End() - 1, 1})
		case i == 0:
			parts = append(parts, s.Extent)
		}
	}
	return parts
}

// Links is what the dynamic section of a file says.
type Links struct {
	Symbols Extent   // symbols and relocations, which are read in any case
	Needed  []string // names of the libraries that are loaded with it, the dynamic linker first
}

// Links reads the dynamic section, and the names that it tells of. Of what can't be read there is nothing.
func (f *File) Links() (l Links) {
	if name := f.text(f.interpreter.Offset, f.interpreter.Size); name != "" {
		l.Needed = append(l.Needed, path.Base(name))
	}
	values := map[elf.DynTag]uint64{}
	var names []uint64
	section := io.NewSectionReader(f.in, f.dynamic.Offset, min(f.dynamic.Size, mostDynamic))
	content, _ := io.ReadAll(section) // what there is
	for entries := bytes.NewReader(content); len(names) < mostNeeded; {
		var d elf.Dyn64
		if binary.Read(entries, f.order, &d) != nil || elf.DynTag(d.Tag) == elf.DT_NULL {
			break
		}
		if elf.DynTag(d.Tag) == elf.DT_NEEDED {
			names = append(names, d.Val)
		}
		values[elf.DynTag(d.Tag)] = d.Val
	}
	l.Symbols = f.symbols(values)
	for _, name := range names {
		at := f.place(values[elf.DT_STRTAB] + name)
		if text := f.text(at.Offset, at.Size); text != "" {
			l.Needed = append(l.Needed, text)
		}
	}
	return l
}

// symbols returns from where the first segment begins to where the last table ends that the dynamic section names.
func (f *File) symbols(values map[elf.DynTag]uint64) (all Extent) {
	for _, table := range [][2]elf.DynTag{
		{elf.DT_STRTAB, elf.DT_STRSZ},
		{elf.DT_RELA, elf.DT_RELASZ}, //nolint:misspell // the tag's name
		{elf.DT_REL, elf.DT_RELSZ},
		{elf.DT_JMPREL, elf.DT_PLTRELSZ},
	} {
		at, size := f.place(values[table[0]]), values[table[1]]
		if size == 0 || len(f.loaded) == 0 || at.Size < 1 || f.loaded[0].Offset > at.Offset {
			continue
		}
		at.Size = int64(min(size, uint64(at.Size)))
		all.Offset = f.loaded[0].Offset
		all.Size = max(all.Size, at.End()-all.Offset)
	}
	return all
}

// place returns where in the file an address of the memory is, and what follows of its segment.
func (f *File) place(address uint64) Extent {
	for _, s := range f.loaded {
		if address >= s.address && address-s.address < uint64(s.Size) {
			skip := int64(address - s.address)
			return Extent{s.Offset + skip, s.Size - skip}
		}
	}
	return Extent{}
}

// text returns what stands at a place up to a NUL, of no more than some bytes; "" where there is none that is a name.
func (f *File) text(offset, most int64) string {
	b := make([]byte, max(min(most, mostName+1), 0))
	n, _ := f.in.ReadAt(b, offset) // what there is
	text, _, ended := bytes.Cut(b[:n], []byte{0})
	if !ended {
		return ""
	}
	return string(text)
}
