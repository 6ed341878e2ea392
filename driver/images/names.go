package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"cvmfs-graphdriver/cvmfs/objects"
)

// Images may be hostile: no more libraries are looked up than these, and none by a path that leads through more names.
const (
	mostLibraries = 1 << 14
	mostSteps     = 256
)

// isLibrary reports whether a file's name is that of a shared library, as libm.so.6 or libc-2.31.so.
func isLibrary(name string) bool {
	return strings.Index(name, ".so.") > 0 || strings.HasSuffix(name, ".so") && name != ".so"
}

// namesOf returns the objects that the names of libraries at some paths lead to, and those of usual files.
func namesOf(root *node, libraries []string, positions map[string]int) objects.Names {
	all := objects.Names{}
	add := func(name, path string) {
		if n := root.resolve(path); n != nil && n.object != nil {
			all.Add(name, positions[n.redirect])
		}
	}
	for _, p := range objects.UsualFiles {
		add(p, p)
	}
	for _, p := range libraries {
		add(path.Base(p), p)
	}
	return all
}

// resolve returns what a path in a tree leads to, symbolic links followed; nil if that is nothing.
func (n *node) resolve(p string) *node {
	open, names := []*node{n}, strings.Split(p, "/")
	for steps := 0; len(names) > 0; steps++ {
		if steps+len(names) > mostSteps {
			return nil
		}
		name := names[0]
		names = names[1:]
		switch name {
		case "", ".":
		case "..":
			open = open[:max(len(open)-1, 1)]
		default:
			c := open[len(open)-1].children[name]
			switch {
			case c == nil:
				return nil
			case c.Target == "":
				open = append(open, c)
				continue
			case c.Target[0] == '/':
				open = open[:1]
			}
			names = append(strings.Split(c.Target, "/"), names...)
		}
	}
	return open[len(open)-1]
}

// readNames reads what write has written. Images of older versions have none.
func readNames(file string) (n objects.Names, err error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err != nil {
		return nil, fmt.Errorf("names of objects: %w", err)
	}
	return n, nil
}
