// Command convert measures what the conversion of an image takes, against unpacking its layers with gzip and tar onto
// the same disk, in the same run: what counts are the ratios.
//
// The image is one of Debian packages (package images). It is converted into a fresh repository, and then a second
// image, which shares nine of ten files with it and no layer. Both ways end with a sync of what they wrote. The median
// of the rounds is printed, and the most memory the converter took.
package main

import (
	"archive/tar"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/images"
)

const repository = "bench.example.org"

func main() {
	converter := flag.String("converter", "", "the program docker2cvmfs")
	rounds := flag.Int("rounds", 5, "how often each way is measured")
	flag.Parse()
	if *converter == "" || flag.NArg() > 0 || *rounds < 1 {
		fmt.Fprintln(os.Stderr, "convert: want -converter PROGRAM and no argument")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := run(ctx, *converter, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "convert:", err)
		os.Exit(1)
	}
}

// sample is what one round measured: seconds, and bytes of the converter's largest resident set.
type sample struct {
	unpack, first, second float64
	peak                  int64
}

func run(ctx context.Context, converter string, rounds int) (err error) {
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
	fmt.Fprintln(os.Stderr, "make the second image")
	second, err := changed(ctx, filepath.Join(dir, "second"), image)
	if err != nil {
		return err
	}
	var samples []sample
	for n := range rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", n+1, rounds)
		s, err := round(ctx, converter, filepath.Join(dir, "round"), image, second)
		if err != nil {
			return err
		}
		samples = append(samples, s)
	}
	median := func(of func(sample) float64) float64 {
		var v []float64
		for _, s := range samples {
			v = append(v, of(s))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	fmt.Printf("gzip -dc | tar x, and sync        %.2f s\n", median(func(s sample) float64 { return s.unpack }))
	fmt.Printf("convert the image                 × %.2f\n",
		median(func(s sample) float64 { return s.first / s.unpack }))
	fmt.Printf("convert one that shares 90 %%      × %.2f\n",
		median(func(s sample) float64 { return s.second / s.unpack }))
	fmt.Printf("peak memory of the converter      %.0f MB\n",
		median(func(s sample) float64 { return float64(s.peak) / 1e6 }))
	return nil
}

// changed makes an image like another, in which every tenth file with content is another one.
func changed(ctx context.Context, dir string, image *images.Image) (*images.Image, error) {
	var layers []images.Layer
	for _, blob := range image.Layers {
		layers = append(layers, images.Archive(func(w *tar.Writer) error {
			f, err := os.Open(blob.Path)
			if err != nil {
				return err
			}
			defer f.Close()
			z, err := gzip.NewReader(f)
			if err != nil {
				return err
			}
			return change(w, tar.NewReader(z))
		}))
	}
	return images.Make(ctx, dir, "example/changed:1", images.Config{}, layers...)
}

func change(w *tar.Writer, r *tar.Reader) error {
	const more = "\nand more"
	for files := 0; ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		content := io.Reader(r)
		if h.Typeflag == tar.TypeReg && h.Size > 0 {
			if files++; files%10 == 0 {
				h.Size += int64(len(more))
				content = io.MultiReader(r, strings.NewReader(more))
			}
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, content); err != nil {
			return err
		}
	}
}

// round measures each way once, on a disk that has nothing of the others to write.
func round(ctx context.Context, converter, dir string, image, second *images.Image) (s sample, err error) {
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	publisher := filepath.Join(dir, "publisher")
	if err := publish.Create(ctx, publisher, publish.Settings{FQRN: repository}, publish.Options{}); err != nil {
		return s, err
	}
	if s.unpack, err = timed(func() error { return unpack(ctx, filepath.Join(dir, "unpacked"), image) }); err != nil {
		return s, err
	}
	for _, c := range []struct {
		image *images.Image
		took  *float64
	}{{image, &s.first}, {second, &s.second}} {
		convert := exec.CommandContext(ctx, converter, "make-thin", "--input-reference", "oci:"+c.image.Dir,
			"--output-reference", "oci:"+filepath.Join(dir, "thin"), "--repository", repository, "--target",
			"native:"+publisher)
		if *c.took, err = timed(func() error { return quiet(convert) }); err != nil {
			return s, err
		}
		s.peak = max(s.peak, convert.ProcessState.SysUsage().(*syscall.Rusage).Maxrss<<10)
	}
	return s, nil
}

// timed returns the seconds something takes.
func timed(do func() error) (float64, error) {
	unix.Sync() // what others have written is not its time
	begin := time.Now()
	err := do()
	return time.Since(begin).Seconds(), err
}

// unpack unpacks the layers one after the other.
func unpack(ctx context.Context, dir string, image *images.Image) error {
	for n, blob := range image.Layers {
		to := filepath.Join(dir, fmt.Sprint(n))
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := quiet(exec.CommandContext(ctx, "sh", "-c", `gzip -dc "$0" | tar x --numeric-owner -C "$1"`, blob.Path,
			to)); err != nil {
			return err
		}
	}
	return quiet(exec.CommandContext(ctx, "sync", "--file-system", dir))
}

// quiet runs a command, and tells what it says only if it fails.
func quiet(c *exec.Cmd) error {
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", c, err, out)
	}
	return nil
}
