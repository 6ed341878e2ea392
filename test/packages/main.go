// Command packages fetches the Docker engines that the demonstration and the tests run, and the programs that tests run
// beside them, into a cache folder and without installing anything. It is the tests' set-up step: they themselves ask nothing of the network.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"cvmfs-graphdriver/internal/engine"
	"cvmfs-graphdriver/test/images"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := fetch(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "packages:", err)
		os.Exit(1)
	}
}

func fetch(ctx context.Context) error {
	cache, err := engine.CacheDir()
	if err != nil {
		return err
	}
	_, err = images.FetchDebian(ctx, cache, os.Stderr)
	return errors.Join(engine.FetchAll(ctx, cache, os.Stderr), err)
}
