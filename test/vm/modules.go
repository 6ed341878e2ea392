package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// modulesOf is [Emulator.Modules]. What a module needs it says itself, so that no list made at installation is needed.
func modulesOf(dir string, unxz func(file string) ([]byte, error), names ...string) ([]File, error) {
	m := &modules{unxz: unxz, paths: map[string]string{}, seen: map[string]bool{}}
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(file string, d fs.DirEntry, err error) error {
		if base, _, ok := strings.Cut(filepath.Base(file), ".ko"); ok {
			m.paths[moduleName(base)] = file
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the kernel's modules: %w", err)
	}
	for _, name := range names {
		if err := m.add(name); err != nil {
			return nil, err
		}
	}
	return m.ordered, nil
}

// moduleName returns the form of a name that counts for the kernel.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

type modules struct {
	unxz    func(file string) ([]byte, error)
	paths   map[string]string // by name
	seen    map[string]bool
	ordered []File
}

// add adds a module after those that it needs.
func (m *modules) add(name string) error {
	name = moduleName(name)
	path, ok := m.paths[name]
	if !ok || m.seen[name] {
		return nil
	}
	m.seen[name] = true
	content, err := m.read(path)
	if err != nil {
		return fmt.Errorf("read the module %s: %w", path, err)
	}
	needs, err := moduleNeeds(content)
	if err != nil {
		return fmt.Errorf("read what the module %s needs: %w", path, err)
	}
	for _, other := range needs {
		if err := m.add(other); err != nil {
			return err
		}
	}
	m.ordered = append(m.ordered, File{Name: name + ".ko", Mode: 0o644, Content: content})
	return nil
}

// read returns a module's content, uncompressed.
func (m *modules) read(path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".ko":
		return os.ReadFile(path)
	case ".xz":
		return m.unxz(path)
	}
	return nil, errors.New("its compression isn't known here")
}

// moduleNeeds reads from a module's .modinfo section, "key=value" strings that end with a zero byte, which others are
// loaded before it: those whose symbols it uses ("depends=a,b") and those it asks for by name ("softdep=pre: c").
func moduleNeeds(content []byte) (names []string, err error) {
	file, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for line := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(line, "depends="); ok && list != "" {
			names = append(names, strings.Split(list, ",")...)
		}
		if list, ok := strings.CutPrefix(line, "softdep="); ok {
			names = append(names, softNeeds(list)...)
		}
	}
	return names, nil
}

// softNeeds returns the modules of a softdep, "pre: a b post: c", that are to be loaded before.
func softNeeds(list string) (names []string) {
	before := false
	for word := range strings.FieldsSeq(list) {
		if strings.HasSuffix(word, ":") {
			before = word == "pre:"
		} else if before {
			names = append(names, word)
		}
	}
	return names
}
