package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"cvmfs-graphdriver/test/engine"
)

// folder is that of the kernel in the cache folder.
func (k *kernel) folder() string { return "kernel-" + k.name }

// fetch brings the kernel into the cache folder. One that is there stays, though Debian may have a newer one by now.
func (k *kernel) fetch(ctx context.Context, cache string, progress io.Writer) error {
	u := &engine.Unpacked{
		Folder: k.folder(), What: "Debian's kernel " + k.name, Suites: k.suites, Choose: k.choose,
		Works: func(dir string) error {
			_, err := unpackedIn(dir)
			return err
		},
	}
	return u.Fetch(ctx, cache, progress)
}

// image is an unpacked kernel.
type image struct {
	release string // as in uname -r
	kernel  string // a file
	modules string // the folder lib/modules/RELEASE
}

// unpackedIn finds the kernel below a folder. Its parts have moved over the years.
func unpackedIn(dir string) (*image, error) {
	for _, pattern := range []string{"usr/lib/modules/*", "lib/modules/*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		for _, modules := range found {
			i := &image{release: filepath.Base(modules), modules: modules}
			for _, file := range []string{
				filepath.Join(modules, "vmlinuz"),
				filepath.Join(dir, "boot", "vmlinuz-"+i.release),
			} {
				if _, err := os.Stat(file); err == nil {
					i.kernel = file
					return i, nil
				} else if !errors.Is(err, os.ErrNotExist) {
					return nil, err
				}
			}
		}
	}
	return nil, fmt.Errorf("no kernel with its modules below %s", dir)
}
