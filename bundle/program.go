package bundle

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// architectures are the machines the plugin is built for.
var architectures = map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}

// Architectures are those the plugin is built for, as in GOARCH.
func Architectures() []string { return []string{"amd64", "arm64"} }

// Stamp is what the linker was told of a program's build: -buildid=cvmfs-graphdriver/VERSION/COMMIT. The file can be
// asked without being run, which on another architecture it couldn't be.
type Stamp struct{ Version, Commit string }

// program is the plugin's program as a file.
type program struct {
	Arch  string
	Stamp *Stamp // nil: it has none
	data  []byte
}

// readProgram reads the plugin's program, or takes it out of a bundle's archive, and checks that it can run in the
// plugin.
func readProgram(name string) (*program, error) {
	var data []byte
	var err error
	if strings.HasSuffix(name, "."+string(TarGz)) || strings.HasSuffix(name, "."+string(TarZst)) {
		var b *Bundle
		if b, err = Open(name); err == nil {
			data = b.Program()
		}
	} else {
		data, err = readFile(name, maxSize)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the plugin's program is missing (build it: make build): %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("the plugin's program: %w", err)
	}
	p, err := parseProgram(data)
	if err != nil {
		return nil, fmt.Errorf("the plugin's program %s: %w", name, err)
	}
	return p, nil
}

// ProgramArch tells for which architecture a program is, as in GOARCH.
func ProgramArch(name string) (string, error) {
	p, err := readProgram(name)
	if err != nil {
		return "", err
	}
	return p.Arch, nil
}

// parseProgram checks that a program can run in the plugin, where there is no loader and no library.
func parseProgram(data []byte) (*program, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("isn't an ELF executable: %w", err)
	}
	arch, ok := architectures[f.Machine]
	if !ok {
		return nil, fmt.Errorf("is for %v; amd64 and arm64 are supported", f.Machine)
	}
	for _, segment := range f.Progs {
		if segment.Type == elf.PT_INTERP {
			return nil, errors.New("needs a dynamic loader (build it with CGO_ENABLED=0)")
		}
	}
	return &program{Arch: arch, Stamp: readStamp(f), data: data}, nil
}

// readStamp finds the stamp in the note that holds Go's build id.
func readStamp(f *elf.File) *Stamp {
	section := f.Section(".note.go.buildid")
	if section == nil {
		return nil
	}
	note, err := section.Data()
	const header = 16 // sizes of name and content, type, name
	if err != nil || len(note) < header {
		return nil
	}
	size := binary.LittleEndian.Uint32(note[4:])
	if uint64(size) > uint64(len(note)-header) {
		return nil
	}
	parts := strings.Split(string(note[header:header+size]), "/")
	if len(parts) != 3 || parts[0] != "cvmfs-graphdriver" {
		return nil
	}
	return &Stamp{Version: parts[1], Commit: parts[2]}
}

// readFile reads a regular file of at most so many bytes.
func readFile(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name) // before it is opened: opening a FIFO waits for its writer
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("read %s: not a regular file", name)
	case info.Size() > limit:
		return nil, fmt.Errorf("read %s: %w", name, errTooLarge)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	return io.ReadAll(io.LimitReader(f, limit))
}
