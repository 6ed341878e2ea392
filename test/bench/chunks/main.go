// Command chunks measures what the size of chunks costs and saves: an image is published with each of several sizes,
// and what a start would fetch is counted, from a list of the pages that one has touched. Bytes and requests are the
// same in every run; only the time of processors to publish depends on the machine.
//
//	chunks [-sizes 64KiB,...] [-whole 1MiB,...] [LIST]
//	chunks -record LIST
//
// The image is the one of Debian packages (package images). Recording needs root: it runs the image's program on a file
// system that reads nothing ahead, and asks the kernel for the pages in memory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/images"
)

// What is measured: chunks of these sizes, of files larger than these.
const (
	defaultSizes = "64KiB,128KiB,256KiB,512KiB,1MiB,4MiB,8MiB"
	defaultWhole = "1MiB"
)

func main() {
	record := flag.String("record", "", "write the list of touched pages to `FILE`, and measure nothing")
	sizes := flag.String("sizes", defaultSizes, "average chunks to measure")
	whole := flag.String("whole", defaultWhole, "sizes up to which files aren't cut")
	flag.Parse()
	if flag.NArg() > 1 || *record != "" && flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "chunks: want one list of touched pages at most, or -record FILE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := run(ctx, *record, *sizes, *whole); err != nil {
		fmt.Fprintln(os.Stderr, "chunks:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, record, sizes, whole string) (err error) {
	cache, err := engine.CacheDir()
	if err != nil {
		return err
	}
	image, err := images.FetchDebian(ctx, cache, os.Stderr)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/var/tmp", "cvmfs-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if record != "" {
		return recordTouched(ctx, dir, image, record)
	}
	list := filepath.Join("test", "bench", "chunks", "testdata", "analysis.pages")
	if flag.NArg() == 1 {
		list = flag.Arg(0)
	}
	touched, err := readTouched(list)
	if err != nil {
		return err
	}
	averages, err := parseSizes(sizes)
	if err != nil {
		return err
	}
	wholes, err := parseSizes(whole)
	if err != nil {
		return err
	}
	return measure(ctx, filepath.Join(dir, "publisher"), image, touched, averages, wholes)
}

// measure prints the table.
func measure(ctx context.Context, dir string, image *images.Image, touched []touchedFile,
	averages, wholes []int,
) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "average\twhole up to\tfetched\trequests\tcatalogs\tstored\tprocessors\t")
	for _, average := range averages {
		for _, whole := range wholes {
			p, err := publishImage(ctx, dir, image, average, whole)
			if err != nil {
				return err
			}
			bytes, requests := p.cost(touched)
			fmt.Fprintf(w, "%s\t%s\t%.1f MB\t%d\t%.2f MB\t%.1f MB\t%.1f s\t\n", humanize.IBytes(uint64(average)),
				humanize.IBytes(uint64(whole)), mega(bytes), requests, mega(p.catalogs), mega(p.stored),
				p.took.Seconds())
		}
	}
	return w.Flush()
}

func mega(n int64) float64 { return float64(n) / 1e6 }

func parseSizes(list string) (sizes []int, err error) {
	for text := range strings.SplitSeq(list, ",") {
		n, err := humanize.ParseBytes(text)
		if err != nil {
			return nil, fmt.Errorf("size %q: %w", text, err)
		}
		sizes = append(sizes, int(n))
	}
	return sizes, nil
}
