// Package prometheus fetches Debian's Prometheus into the cache folder, for tests of what it is to understand: metrics,
// alert rules, and a dashboard.
package prometheus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"cvmfs-graphdriver/test/engine"
)

// Programs of the package.
const (
	Server = "prometheus"
	Tool   = "promtool"
)

// folder is in the cache folder. The number counts up when it holds other packages.
const folder = "prometheus-1"

// Fetch brings Prometheus into the cache folder unless it is there.
func Fetch(ctx context.Context, cache string, progress io.Writer) error {
	u := &engine.Unpacked{
		Folder: folder, What: "the Debian package of Prometheus", Packages: []string{"prometheus"},
		Works: func(dir string) error {
			_, server := find(dir, Server)
			_, tool := find(dir, Tool)
			return errors.Join(server, tool)
		},
	}
	return u.Fetch(ctx, cache, progress)
}

// Find returns the path of a program; errors.Is(err, engine.ErrNotFetched) when [Fetch] would help.
func Find(program string) (string, error) {
	cache, err := engine.CacheDir()
	if err != nil {
		return "", err
	}
	return find(filepath.Join(cache, folder), program)
}

func find(dir, program string) (string, error) {
	name := filepath.Join(dir, "usr/bin", program)
	if _, err := os.Stat(name); err != nil {
		return "", fmt.Errorf("find %s: %w: %w", program, engine.ErrNotFetched, err)
	}
	return name, nil
}
