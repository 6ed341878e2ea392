package gc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"cvmfs-graphdriver/internal/durable"
)

// doomedFile lists, in the publisher's folder, the files that a collection removes. It outlives a collection that was
// killed: the reflog has forgotten by then what they were part of.
const doomedFile = "gc.doomed"

// doomed is a file to remove.
type doomed struct {
	objectKey
	name string
	size int64 // stored bytes
}

// writeDoomed notes what will be removed. It must be on the disk before anything forgets what the files were.
func writeDoomed(dir string, files []doomed) error {
	var b bytes.Buffer
	for _, f := range files {
		fmt.Fprintln(&b, f.name)
	}
	return durable.Replace(filepath.Join(dir, doomedFile), 0o644, b.Bytes())
}

// readDoomed calls fn for what a collection that was killed meant to remove.
func readDoomed(dir string, fn func(objectKey)) error {
	f, err := os.Open(filepath.Join(dir, doomedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() // only read
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if o, ok := parseObject(lines.Text()); ok {
			fn(o)
		}
	}
	return lines.Err()
}

// forgetDoomed ends the list: all of it was removed.
func forgetDoomed(dir string) error {
	if err := durable.Remove(filepath.Join(dir, doomedFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
