package publish_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	. "cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/internal/durable"

	. "cvmfs-graphdriver/test/publishtest"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
)

// imageBytes is about how much the benchmark's image holds, in imageLayers layers.
const (
	imageBytes  = 400 << 20
	imageLayers = 4
)

// benchImage packs files of this host's /usr as the layers of an image: real names, sizes and content. In the second
// image a tenth of the files differ. It gives the layers' files and what is in them.
func benchImage(b *testing.B, dir string, second bool) (layers []string, files int, total int64) {
	b.Helper()
	var (
		at     int
		out    *os.File
		z      *gzip.Writer
		w      *tar.Writer
		finish = func() {
			for _, c := range []io.Closer{w, z, out} {
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
			}
		}
		open = func() {
			at++
			path := filepath.Join(dir, fmt.Sprintf("%v-%d.tar.gz", second, at))
			var err error
			if out, err = os.Create(path); err != nil {
				b.Fatal(err)
			}
			z = gzip.NewWriter(out)
			w = tar.NewWriter(z)
			layers = append(layers, path)
		}
	)
	open()
	errFull := errors.New("enough")
	roots := []string{"/usr/bin", "/usr/sbin", "/usr/share", "/usr/lib"}
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err != nil || info.Size() > 32<<20 {
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if second && files%10 == 0 {
				content = append(content, "changed"...)
			}
			h := &tar.Header{
				Typeflag: tar.TypeReg, Name: path[1:], Mode: 0o644, Size: int64(len(content)),
				ModTime: info.ModTime(),
			}
			if err := w.WriteHeader(h); err != nil {
				return err
			}
			if _, err := w.Write(content); err != nil {
				return err
			}
			files++
			if total += int64(len(content)); total > imageBytes {
				return errFull
			}
			if total > int64(at)*imageBytes/imageLayers {
				finish()
				open()
			}
			return nil
		})
		if errors.Is(err, errFull) {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	finish()
	return layers, files, total
}

// BenchmarkImage measures the time to take in an image's compressed layers and commit, against that of gzip -dc | tar x
// of the same layers onto the same disk (ratio), and that of a second image which shares nine tenths of its files
// (again-ratio).
func BenchmarkImage(b *testing.B) {
	dir := b.TempDir()
	first, files, total := benchImage(b, dir, false)
	second, _, _ := benchImage(b, dir, true)
	for b.Loop() {
		plain, synced := unpackAll(b, filepath.Join(dir, "plain"), first)
		repo := NewIn(b, dir, Settings{FQRN: FQRN})
		one := publishAll(b, repo, "/one", first)
		peak := peakMemory(b)
		two := publishAll(b, repo, "/two", second)
		b.ReportMetric(plain.Seconds(), "tar-s")
		b.ReportMetric(synced.Seconds(), "tar-and-sync-s")
		b.ReportMetric(one.Seconds(), "first-s")
		b.ReportMetric(two.Seconds(), "second-s")
		b.ReportMetric(one.Seconds()/plain.Seconds(), "ratio")
		b.ReportMetric(two.Seconds()/plain.Seconds(), "again-ratio")
		b.ReportMetric(float64(total)/(1<<20), "MiB")
		b.ReportMetric(float64(files), "files")
		b.ReportMetric(peak, "peak-MiB")
		os.RemoveAll(repo.Dir())
		os.RemoveAll(filepath.Join(dir, "plain"))
	}
}

// unpackAll unpacks layers one after the other, as a person would. It gives the time that takes, and the time until all
// is on the disk, as it is after a commit.
func unpackAll(b *testing.B, dir string, layers []string) (unpacked, synced time.Duration) {
	b.Helper()
	start := time.Now()
	for i, layer := range layers {
		to := filepath.Join(dir, fmt.Sprint(i))
		if err := os.MkdirAll(to, 0o755); err != nil {
			b.Fatal(err)
		}
		if out, err := exec.Command("sh", "-c", "gzip -dc "+layer+" | tar x -C "+to).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
	unpacked = time.Since(start)
	if err := durable.SyncFS(dir); err != nil {
		b.Fatal(err)
	}
	return unpacked, time.Since(start)
}

// publishAll publishes layers, two at once.
func publishAll(b *testing.B, r *Repository, below string, layers []string) time.Duration {
	b.Helper()
	start := time.Now()
	tx := Begin(b, r)
	var group errgroup.Group
	group.SetLimit(2)
	for i, layer := range layers {
		group.Go(func() error {
			f, err := os.Open(layer)
			if err != nil {
				return err
			}
			defer f.Close()
			z, err := gzip.NewReader(f)
			if err != nil {
				return err
			}
			_, err = tx.Ingest(context.Background(), fmt.Sprintf("%s/%d", below, i), z, LayerOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	Commit(b, tx)
	return time.Since(start)
}

// peakMemory is the most memory the process had so far, in MiB.
func peakMemory(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
			return kib / 1024
		}
	}
	b.Fatal("no VmHWM in /proc/self/status")
	return 0
}

// BenchmarkOneMoreLayer measures a publish to a repository that has 10,000 layers.
func BenchmarkOneMoreLayer(b *testing.B) {
	const layers = 10_000
	r := New(b, Settings{FQRN: FQRN})
	tx := Begin(b, r)
	for i := range layers {
		path := fmt.Sprintf("/layers/%d", i)
		Ingest(b, tx, path, Pack(b, File("usr/file", fmt.Sprint(i%100))))
		if err := tx.WriteFile(b.Context(), path+".record.json", []byte("{}"), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	Commit(b, tx)
	archive := Pack(b, Everything()...)
	n := 0
	for b.Loop() {
		n++
		tx := Begin(b, r)
		Ingest(b, tx, fmt.Sprintf("/layers/more%d", n), archive)
		Commit(b, tx)
	}
}

// BenchmarkManyEntries measures a layer of 200,000 small files and what memory it takes.
func BenchmarkManyEntries(b *testing.B) {
	const files = 200_000
	path := filepath.Join(b.TempDir(), "layer.tar")
	out, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	w := tar.NewWriter(out)
	for i := range files {
		content := fmt.Sprintf("content of file %d", i)
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/share/folder-%04d/some-file-%06d.txt", i/100, i), Mode: 0o644,
			Size:    int64(len(content)),
			ModTime: time.Unix(1_700_000_000, 0),
		}
		if err := w.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), out.Close()); err != nil {
		b.Fatal(err)
	}
	r := New(b, Settings{FQRN: FQRN})
	debug.SetMemoryLimit(150 << 20) // as the command does
	n := 0
	for b.Loop() {
		n++
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		tx := Begin(b, r)
		if _, err := tx.Ingest(b.Context(), fmt.Sprintf("/layers/%d", n), f, LayerOptions{}); err != nil {
			b.Fatal(err)
		}
		Commit(b, tx)
		f.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*files), "µs/file")
	b.ReportMetric(peakMemory(b), "peak-MiB")
}
