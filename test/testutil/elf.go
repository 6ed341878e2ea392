package testutil

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// ELF is a shared library as linkers make it, without code. Layout is that of its file: by default symbols and names in
// a part of their own, before code, constants, and what is written, at the end of which is the dynamic section.
type ELF struct {
	Order       binary.ByteOrder // nil is little endian
	Mixed       bool             // symbols are in one part with the code, as older linkers lay them out
	Interpreter string           // of a program
	Needed      []string
	Part        int // bytes of each of the four parts, at least; 0 is 4 KiB
}

// The places of the parts in memory are not those in the file.
const elfShift = 0x40_0000

// Encode returns the file.
func (e ELF) Encode() []byte {
	order := e.Order
	data := elf.ELFDATA2MSB
	if order == nil {
		order = binary.LittleEndian
	}
	if order == binary.LittleEndian {
		data = elf.ELFDATA2LSB
	}
	names := []byte{0}
	var dynamic []elf.Dyn64
	for _, n := range e.Needed {
		dynamic = append(dynamic, elf.Dyn64{Tag: int64(elf.DT_NEEDED), Val: uint64(len(names))})
		names = append(append(names, n...), 0)
	}
	interpreter := append([]byte(e.Interpreter), 0)
	const head = 64 + 7*56
	part := max(e.Part, 4<<10, head+len(interpreter)+len(names)+64)
	relocations := part - 64 // the last of the first part
	dynamic = append(dynamic,
		elf.Dyn64{Tag: int64(elf.DT_STRTAB), Val: uint64(elfShift + head + len(interpreter))},
		elf.Dyn64{Tag: int64(elf.DT_STRSZ), Val: uint64(len(names))},
		elf.Dyn64{Tag: int64(elf.DT_RELA), Val: uint64(elfShift + relocations)}, //nolint:misspell // the tag's name
		elf.Dyn64{Tag: int64(elf.DT_RELASZ), Val: 48},
		elf.Dyn64{Tag: int64(elf.DT_NULL)})
	section := encoded(order, dynamic)

	segment := func(kind elf.ProgType, flags elf.ProgFlag, off, size int) elf.Prog64 {
		return elf.Prog64{
			Type: uint32(kind), Flags: uint32(flags), Off: uint64(off), Vaddr: uint64(elfShift + off),
			Filesz: uint64(size), Memsz: uint64(size), Align: 1,
		}
	}
	size := 3*part + max(part, len(section))
	var list []elf.Prog64
	if e.Interpreter != "" {
		list = append(list, segment(elf.PT_INTERP, elf.PF_R, head, len(interpreter)))
	}
	if e.Mixed {
		list = append(list, segment(elf.PT_LOAD, elf.PF_R|elf.PF_X, 0, 2*part))
	} else {
		list = append(list, segment(elf.PT_LOAD, elf.PF_R, 0, part),
			segment(elf.PT_LOAD, elf.PF_R|elf.PF_X, part, part))
	}
	list = append(list, segment(elf.PT_LOAD, elf.PF_R, 2*part, part),
		segment(elf.PT_LOAD, elf.PF_R|elf.PF_W, 3*part, size-3*part),
		segment(elf.PT_DYNAMIC, elf.PF_R|elf.PF_W, size-len(section), len(section)))
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(data), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Phoff: 64,
		Ehsize: 64, Phentsize: 56, Phnum: uint16(len(list)),
	}

	file := make([]byte, size)
	for i := range file {
		file[i] = byte(i) ^ byte(i>>8) ^ byte(len(names)) // not all the same
	}
	copy(file, encoded(order, header))
	copy(file[64:], encoded(order, list))
	copy(file[head:], interpreter)
	copy(file[head+len(interpreter):], names)
	copy(file[size-len(section):], section)
	return file
}

func encoded(order binary.ByteOrder, v any) []byte {
	var b bytes.Buffer
	if err := binary.Write(&b, order, v); err != nil {
		panic(err) // the values are of fixed size
	}
	return b.Bytes()
}
