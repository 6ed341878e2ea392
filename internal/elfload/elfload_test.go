package elfload_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/internal/elfload"
	"cvmfs-graphdriver/test/testutil"
)

func TestWhatALinkerReads(t *testing.T) {
	const part = 8192
	needed := []string{"libc.so.6", "libm.so.6"}
	for name, c := range map[string]struct {
		file    testutil.ELF
		touched func(size, dynamic int64) []elfload.Extent
	}{
		"symbols by themselves": {
			testutil.ELF{Part: part, Needed: needed},
			func(size, dynamic int64) []elfload.Extent {
				return []elfload.Extent{
					{Offset: size - dynamic, Size: dynamic},
					{Offset: 3 * part, Size: part},
					{Offset: 0, Size: part},
					{Offset: part, Size: 1},
					{Offset: 2*part - 1, Size: 1},
				}
			},
		},
		"symbols with the code": {
			testutil.ELF{Part: part, Needed: needed, Mixed: true},
			func(size, dynamic int64) []elfload.Extent {
				return []elfload.Extent{
					{Offset: size - dynamic, Size: dynamic},
					{Offset: 3 * part, Size: part},
					{Offset: 0, Size: 1},
					{Offset: 2*part - 1, Size: 1},
				}
			},
		},
	} {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			t.Run(name+", "+order.String(), func(t *testing.T) {
				c.file.Order = order
				b := c.file.Encode()
				f := elfload.Open(bytes.NewReader(b), int64(len(b)))
				if f == nil {
					t.Fatal("no ELF file")
				}
				const entries = 2 + 4 + 1 // libraries, tables, the end
				if diff := cmp.Diff(c.touched(int64(len(b)), entries*16), f.Touched()); diff != "" {
					t.Errorf("touched (-want +got):\n%s", diff)
				}
				links := f.Links()
				want := elfload.Links{Symbols: elfload.Extent{Offset: 0, Size: part - 16}, Needed: needed}
				if diff := cmp.Diff(want, links); diff != "" {
					t.Errorf("links (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestAProgramNeedsItsLinkerFirst(t *testing.T) {
	b := testutil.ELF{Interpreter: "/lib64/ld-linux-x86-64.so.2", Needed: []string{"libz.so.1"}}.Encode()
	links := elfload.Open(bytes.NewReader(b), int64(len(b))).Links()
	if diff := cmp.Diff([]string{"ld-linux-x86-64.so.2", "libz.so.1"}, links.Needed); diff != "" {
		t.Errorf("needed (-want +got):\n%s", diff)
	}
}

func TestOtherFilesAreNone(t *testing.T) {
	whole := testutil.ELF{}.Encode()
	narrow := bytes.Clone(whole)
	narrow[elf.EI_CLASS] = byte(elf.ELFCLASS32)
	far := bytes.Clone(whole)
	binary.LittleEndian.PutUint64(far[32:], uint64(len(far))+1) // where the list of segments is
	for name, b := range map[string][]byte{
		"empty": nil, "text": bytes.Repeat([]byte("#!/bin/sh\n"), 20), "cut in the header": whole[:63],
		"cut in the list of segments": whole[:100], "32 bits": narrow, "segments behind the end": far,
	} {
		if elfload.Open(bytes.NewReader(b), int64(len(b))) != nil {
			t.Errorf("%s: it is taken for a library", name)
		}
	}
}

// The programs of the machine that the test runs on, as package debug/elf reads them.
func TestAgreesWithDebugELF(t *testing.T) {
	seen := 0
	for _, pattern := range []string{"/bin/*", "/lib/*/*.so.*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files[:min(len(files), 60)] {
			b, err := os.ReadFile(name)
			if err != nil {
				continue // a folder, or for others
			}
			whole, err := elf.NewFile(bytes.NewReader(b))
			if err != nil || whole.Class != elf.ELFCLASS64 {
				continue
			}
			seen++
			want, err := whole.ImportedLibraries()
			if err != nil {
				continue
			}
			for _, p := range whole.Progs {
				if p.Type == elf.PT_INTERP {
					text, _, _ := bytes.Cut(b[p.Off:], []byte{0})
					want = append([]string{path.Base(string(text))}, want...)
				}
			}
			f := elfload.Open(bytes.NewReader(b), int64(len(b)))
			if f == nil {
				t.Errorf("%s: no ELF file", name)
				continue
			}
			links := f.Links()
			if diff := cmp.Diff(want, links.Needed); diff != "" {
				t.Errorf("%s: needed (-want +got):\n%s", name, diff)
			}
			for _, table := range []string{".dynsym", ".dynstr", ".rela.dyn", ".rela.plt"} {
				if s := whole.Section(table); s != nil && s.Flags&elf.SHF_ALLOC != 0 &&
					links.Symbols.End() < int64(s.Offset+s.FileSize) {
					t.Errorf("%s: symbols up to %d, %s ends at %d", name, links.Symbols.End(), table, s.Offset+s.FileSize)
				}
			}
		}
	}
	if seen == 0 {
		t.Error("there is no program")
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(testutil.ELF{Interpreter: "/lib/ld.so", Needed: []string{"libc.so.6"}}.Encode()[:1<<10])
	f.Add(testutil.ELF{Mixed: true, Order: binary.BigEndian, Needed: []string{"a", "b"}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		file := elfload.Open(bytes.NewReader(b), int64(len(b)))
		if file == nil {
			return
		}
		links := file.Links()
		for _, e := range append(file.Touched(), links.Symbols) {
			if e.Offset < 0 || e.Size < 0 || e.End() > int64(len(b)) {
				t.Errorf("%+v of %d bytes", e, len(b))
			}
		}
		for _, n := range links.Needed {
			if n == "" || len(n) > 255 {
				t.Errorf("a library's name has %d bytes", len(n))
			}
		}
	})
}
