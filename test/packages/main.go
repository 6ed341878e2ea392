// Command packages fetches the Docker engines that the demonstration and the tests run, the programs that tests run
// beside them, and the small Debian that packages are tried in, into a cache folder and without installing anything on
// the machine. It is the tests' set-up step: they themselves ask nothing of the network.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/debian"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/images"
	"cvmfs-graphdriver/test/prometheus"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	kubernetes := flag.Bool("kubernetes", false, "fetch and build what a cluster of Kubernetes consists of instead")
	flag.Parse()
	get := fetch
	if *kubernetes {
		get = fetchKubernetes
	}
	if err := get(ctx); err != nil {
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
	return errors.Join(engine.FetchAll(ctx, cache, os.Stderr), err, prometheus.Fetch(ctx, cache, os.Stderr),
		debian.Fetch(ctx, cache, os.Stderr, debian.Tools, debian.Docker))
}

// fetchKubernetes brings what the test of a cluster runs: its programs, and the Debian that its node is.
func fetchKubernetes(ctx context.Context) error {
	cache, err := engine.CacheDir()
	if err != nil {
		return err
	}
	return errors.Join(engine.FetchKubernetes(ctx, cache, os.Stderr), engine.FetchPrograms(ctx, cache, os.Stderr),
		debian.Fetch(ctx, cache, os.Stderr, debian.Booted))
}
