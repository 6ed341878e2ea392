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

// mostLinks bounds how many symbolic links a path leads through, as the kernel does.
const mostLinks = 40

// isLibrary reports whether a file's name is that of a shared library, as libm.so.6 or libc-2.31.so.
func isLibrary(name string) bool {
	return strings.Index(name, ".so.") > 0 || strings.HasSuffix(name, ".so") && name != ".so"
}

// resolveLibraries returns the objects that the names of libraries at some paths lead to.
func resolveLibraries(root *node, paths []string, positions map[string]int) objects.Libraries {
	all := objects.Libraries{}
	for _, p := range paths {
		if n := root.resolve(p); n != nil && n.object != nil {
			all.Add(path.Base(p), positions[n.redirect])
		}
	}
	return all
}

// resolve returns what a path in a tree leads to, symbolic links followed; nil if that is nothing.
func (n *node) resolve(p string) *node {
	open, names, links := []*node{n}, strings.Split(p, "/"), 0
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		switch name {
		case "", ".":
		case "..":
			open = open[:max(len(open)-1, 1)]
		default:
			c := open[len(open)-1].children[name]
			switch {
			case c == nil || links > mostLinks:
				return nil
			case c.Target == "":
				open = append(open, c)
				continue
			case c.Target[0] == '/':
				open = open[:1]
			}
			links++
			names = append(strings.Split(c.Target, "/"), names...)
		}
	}
	return open[len(open)-1]
}

// readLibraries reads what write has written. Images of older versions have none.
func readLibraries(file string) (l objects.Libraries, err error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &l)
	}
	if err != nil {
		return nil, fmt.Errorf("names of libraries: %w", err)
	}
	return l, nil
}
