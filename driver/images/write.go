package images

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/internal/erofs"
	"cvmfs-graphdriver/internal/overlayfs"
)

// The files of an image's folder.
const (
	metaFile   = "meta.erofs"
	tableFile  = "objects"
	recordFile = "image.json"
	// namesFile has names of objects, if there are any: JSON, from names to positions in the table.
	namesFile = "names.json"
)

// flat is a merged tree made ready for writing.
type flat struct {
	root  *erofs.Node
	repos []string
	table []tableRow // each object once, a folder's own files before those of its subfolders
	size  int64      // plain bytes of all files, hard links counted once

	names   objects.Names
	profile []byte // file of the start profile; nil: none, or it couldn't be had
}

type tableRow struct {
	object *objects.Object
	repo   int
}

// flatten joins the tree into erofs nodes and collects the objects in the order in which programs tend to ask for them.
// Files are cut as cuts say, which may be nil.
func flatten(root *node, cuts *cuts) *flat {
	f := &flat{root: &root.Node}
	repos := map[string]int{}
	positions := map[string]int{} // in the table, by redirect
	var libraries []string
	var visit func(n *node, path string)
	visit = func(n *node, path string) {
		var folders []string
		for _, name := range n.sorted() {
			c := n.children[name]
			n.Children = append(n.Children, erofs.Child{Name: name, Node: &c.Node})
			if c.isDir() {
				folders = append(folders, name)
			} else if len(libraries) < mostLibraries && isLibrary(name) && len(path)+len(name) < unix.PathMax {
				libraries = append(libraries, path+"/"+name)
			}
			if c.met || c.redirect == "" {
				continue
			}
			c.met = true
			f.size += c.Size
			cuts.apply(c)
			c.Xattrs = append(c.Xattrs,
				erofs.Xattr{Name: overlayfs.XattrMetacopy},
				erofs.Xattr{Name: overlayfs.XattrRedirect, Value: c.redirect})
			if _, known := positions[c.redirect]; c.object == nil || known {
				continue
			}
			positions[c.redirect] = len(f.table)
			repo, known := repos[c.repo]
			if !known {
				repo = len(f.repos)
				repos[c.repo] = repo
				f.repos = append(f.repos, c.repo)
			}
			f.table = append(f.table, tableRow{c.object, repo})
		}
		for _, name := range folders {
			visit(n.children[name], path+"/"+name)
		}
	}
	visit(root, "")
	f.names = namesOf(root, libraries, positions)
	return f
}

// nest puts the tree below a folder.
func (f *flat) nest() {
	f.root = &erofs.Node{
		Mode: typeDir | 0o755, Mtime: f.root.Mtime, MtimeN: f.root.MtimeN,
		Children: []erofs.Child{{Name: Folder, Node: f.root}},
	}
}

// write puts the image into dir/<key>. It is there complete, or not at all.
func (f *flat) write(dir string, image *Image) (err error) {
	folder, err := durable.CreateFolder(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()
	err = writeFile(filepath.Join(folder.Path(), metaFile), func(w io.Writer) error {
		_, err := erofs.Write(w, f.root, erofs.Options{UUID: image.uuid()})
		return err
	})
	if err != nil {
		return fmt.Errorf("write metadata: %w", err)
	}
	err = writeFile(filepath.Join(folder.Path(), tableFile), func(w io.Writer) error {
		return objects.WriteTable(w, f.repos, image.Isolated, func(yield func(*objects.Object, int) bool) {
			for _, r := range f.table {
				if !yield(r.object, r.repo) {
					return
				}
			}
		})
	})
	if err != nil {
		return fmt.Errorf("write object table: %w", err)
	}
	if len(f.names) > 0 {
		err = writeFile(filepath.Join(folder.Path(), namesFile), func(w io.Writer) error {
			return json.NewEncoder(w).Encode(f.names)
		})
		if err != nil {
			return fmt.Errorf("write names of objects: %w", err)
		}
	}
	if f.profile != nil {
		err = writeFile(filepath.Join(folder.Path(), profileFile), func(w io.Writer) error {
			_, err := w.Write(f.profile)
			return err
		})
		if err != nil {
			return fmt.Errorf("write start profile: %w", err)
		}
	}
	err = writeFile(filepath.Join(folder.Path(), recordFile), func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(image)
	})
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return folder.New(image.Key)
}

func writeFile(name string, fill func(io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	err = fill(w)
	if err == nil {
		err = w.Flush()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
