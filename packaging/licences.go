package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// licenceFile are the names of files, at the top of a module, that say under which terms it may be used.
var licenceFile = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying|copyright|notice|patents)([-._].*)?$`)

// licences returns the terms of everything that is linked into the programs for an architecture, the plugin's program
// included: each text once, after the names of what it is for. A module without any is an error.
func (r *release) licences(ctx context.Context, arch string) ([]byte, error) {
	modules := map[string]bool{} // path@version
	for _, name := range append([]string{"cvmfs-graphdriver-plugin"}, programs...) {
		file := filepath.Join(r.programs, arch, name)
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("list the modules of %s: %w", file, err)
		}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			modules[m.Path+"@"+m.Version] = true
		}
	}
	dirs, err := r.moduleDirs(ctx, slices.Sorted(maps.Keys(modules)))
	if err != nil {
		return nil, err
	}
	goroot, err := r.goCommand(ctx, "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	dirs["Go, its standard library"] = strings.TrimSpace(string(goroot))
	return collect(dirs)
}

// moduleDirs returns the folders with the sources of modules, which the go command fetches if need be.
func (r *release) moduleDirs(ctx context.Context, modules []string) (map[string]string, error) {
	out, err := r.goCommand(ctx, append([]string{"mod", "download", "-json"}, modules...)...)
	if err != nil {
		return nil, err
	}
	dirs := map[string]string{}
	for in := json.NewDecoder(bytes.NewReader(out)); ; {
		var m struct{ Path, Version, Dir string }
		if err := in.Decode(&m); errors.Is(err, io.EOF) {
			return dirs, nil
		} else if err != nil {
			return nil, fmt.Errorf("go mod download: %w", err)
		}
		dirs[m.Path+" "+m.Version] = m.Dir
	}
}

// collect joins the licences in folders, by the names of what is in these.
func collect(dirs map[string]string) ([]byte, error) {
	works := map[string][]string{} // by text
	var texts []string             // in the order of their first work
	for _, work := range slices.Sorted(maps.Keys(dirs)) {
		text, err := terms(dirs[work])
		if err != nil {
			return nil, fmt.Errorf("collect the licence of %s: %w", work, err)
		}
		if works[text] == nil {
			texts = append(texts, text)
		}
		works[text] = append(works[text], work)
	}
	var b bytes.Buffer
	b.WriteString("What the programs of cvmfs-graphdriver are made of besides its own code, and the terms of each.\n")
	for _, text := range texts {
		fmt.Fprintf(&b, "\n%s\n%s\n\n%s", strings.Repeat("=", 80), strings.Join(works[text], "\n"), text)
	}
	return b.Bytes(), nil
}

// terms joins the files of a folder that tell terms.
func terms(dir string) (string, error) {
	files, err := os.ReadDir(dir) // sorted
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, f := range files {
		if !f.Type().IsRegular() || !licenceFile.MatchString(f.Name()) || filepath.Ext(f.Name()) == ".go" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&text, "%s\n\n%s\n", strings.Repeat("-", 80), bytes.TrimSpace(content))
	}
	if text.Len() == 0 {
		return "", fmt.Errorf("there is none in %s", dir)
	}
	return text.String(), nil
}
