package kubernetes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/internal/durable"
)

// record is what was changed on a host: the files that were written. It is on disk before the first of them is.
type record struct {
	path    string
	Files   map[string]*file `json:"files"`
	Folders []string         `json:"folders"` // that were made for them, outermost first
}

// file is one that was written, or is about to be.
type file struct {
	Before []byte   `json:"before"` // what stands there without us; nil for nothing
	Mode   uint32   `json:"mode"`   // its mode
	Ours   [][]byte `json:"ours"`   // what was put there last, and what is being put there
}

// without is what a file would be without us, which others may have changed since; nil for nothing. Where they have
// changed the same lines it is as it is.
func (f *file) without(now []byte) []byte {
	if f == nil {
		return now
	}
	if now == nil || slices.ContainsFunc(f.Ours, func(o []byte) bool { return bytes.Equal(o, now) }) {
		return f.Before
	}
	undone, ok := daemonjson.UndoLines(now, f.Before, f.Ours[0])
	if !ok {
		return now
	}
	return undone
}

// readRecord reads the record at a path, which may have none.
func readRecord(path string) (*record, error) {
	r := &record{path: path, Files: map[string]*file{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	if err != nil {
		return nil, fmt.Errorf("read what was changed on this host: %w", err)
	}
	return r, nil
}

func (r *record) save() error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return durable.Replace(r.path, 0o600, text)
}

// read returns a file's content, nil for none.
func read(path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return append([]byte{}, content...), err
}

// without returns what a file would be without us, nil for nothing.
func (r *record) without(path string) ([]byte, error) {
	now, err := read(path)
	return r.Files[path].without(now), err
}

// write puts content in the place of a file, unless it is there, and reports whether it changed anything.
func (r *record) write(path string, content []byte) (changed bool, err error) {
	now, err := read(path)
	if err != nil || now != nil && bytes.Equal(now, content) {
		return false, err
	}
	f := r.Files[path]
	if f == nil {
		f = &file{Mode: 0o644}
		if info, err := os.Stat(path); err == nil {
			f.Mode = uint32(info.Mode().Perm())
		}
		r.Files[path] = f
		f.Before = now
	} else {
		f.Before = f.without(now)
	}
	f.Ours = append(f.Ours, content)
	r.Folders = append(r.Folders, missing(filepath.Dir(path))...)
	if err := r.save(); err != nil {
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	if err := durable.Replace(path, fs.FileMode(f.Mode), content); err != nil {
		return true, err
	}
	f.Ours = [][]byte{content}
	return true, r.save()
}

// missing are the folders of a path that aren't there, outermost first.
func missing(dir string) (folders []string) {
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); err == nil || dir == filepath.Dir(dir) {
			slices.Reverse(folders)
			return folders
		}
		folders = append(folders, dir)
	}
}

// restore brings files back to what they would be without us.
func (r *record) restore(log *slog.Logger, paths ...string) error {
	for _, path := range paths {
		f := r.Files[path]
		if f == nil {
			continue
		}
		now, err := read(path)
		if err != nil {
			return err
		}
		switch was := f.without(now); {
		case now == nil:
		case bytes.Equal(was, now) && was != nil:
			log.Warn("changed by somebody else, left as it is", "file", path)
		case len(was) == 0 && f.Before == nil:
			err = durable.Remove(path)
		default:
			err = durable.Replace(path, fs.FileMode(f.Mode), was)
		}
		if err != nil {
			return err
		}
		delete(r.Files, path)
		r.removeFolders()
		if err := r.save(); err != nil {
			return err
		}
	}
	return nil
}

// removeFolders removes what folders it can: others have something in them.
func (r *record) removeFolders() {
	for _, dir := range slices.Backward(slices.Clone(r.Folders)) {
		if err := os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			r.Folders = slices.DeleteFunc(r.Folders, func(d string) bool { return d == dir })
		}
	}
}

// below are the recorded files below a folder, or that one itself, sorted.
func (r *record) below(path string) (paths []string) {
	for _, p := range slices.Sorted(maps.Keys(r.Files)) {
		if p == path || strings.HasPrefix(p, path+"/") {
			paths = append(paths, p)
		}
	}
	return paths
}
