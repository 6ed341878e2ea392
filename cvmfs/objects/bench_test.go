package objects

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zlib"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/hash"
)

// each calls fn for every object, with so many at once.
func each(b *testing.B, all []Ref, parallel int, fn func(Ref) error) {
	var next atomic.Int64
	var group sync.WaitGroup
	for range parallel {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(all)); i = next.Add(1) - 1 {
				if err := fn(all[i]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
}

var (
	inflaters sync.Pool
	buffers   = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}
)

// bare is the least that could be done: GET, inflate, hash, write. Nothing is tried again, linked, recorded, bounded or
// shared.
func bare(client *http.Client, url, dir string, r Ref) error {
	d := r.Object().Digest
	answer, err := client.Get(url + "/" + d.Path(hash.File))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	sum := sha1.New()
	stored := io.TeeReader(answer.Body, sum)
	z, pooled := inflaters.Get().(io.ReadCloser)
	if pooled {
		err = z.(zlib.Resetter).Reset(stored, nil)
	} else {
		z, err = zlib.NewReader(stored)
	}
	if err != nil {
		return err
	}
	defer inflaters.Put(z)
	f, err := os.Create(filepath.Join(dir, r.Path()))
	if err != nil {
		return err
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, z, *buf)
	if got := hex.EncodeToString(sum.Sum(nil)); err == nil && got != d.Hex() {
		err = errors.New("wrong digest " + got)
	}
	return errors.Join(err, f.Close())
}

// cpuTime is what this process, the server in it included, has taken of the processors: it doesn't depend on what else
// runs.
func cpuTime(b *testing.B) float64 {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// Fetch of 5,000 small objects over loopback, against a bare loop with the same parallelism. The two take turns, so
// that what else the machine does meets both.
func BenchmarkFetchAgainstBareLoop(b *testing.B) {
	repo := newRepository(b)
	var objs []Object
	for i := range 5000 {
		objs = append(objs, repo.whole(noise(i, 4096)))
	}
	all := refs(b, objs...)
	for _, parallel := range []int{1, 8} {
		b.Run(fmt.Sprintf("%d-way", parallel), func(b *testing.B) {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: parallel}}
			var ours, theirs, cpuOurs, cpuTheirs []float64
			for range b.N {
				s := newStore(b, repo)
				runtime.GC()
				began, cpu := time.Now(), cpuTime(b)
				each(b, all, parallel, func(r Ref) error { return s.Fetch(b.Context(), r) })
				ours, cpuOurs = append(ours, time.Since(began).Seconds()), append(cpuOurs, cpuTime(b)-cpu)
				dir := b.TempDir()
				for i := range folders {
					must(b, os.Mkdir(filepath.Join(dir, folderName(i)), 0o755))
				}
				runtime.GC()
				began, cpu = time.Now(), cpuTime(b)
				each(b, all, parallel, func(r Ref) error { return bare(client, repo.URL, dir, r) })
				theirs, cpuTheirs = append(theirs, time.Since(began).Seconds()), append(cpuTheirs, cpuTime(b)-cpu)
			}
			b.ReportMetric(median(ours)*1e6/float64(len(all)), "µs/object")
			b.ReportMetric(median(theirs)*1e6/float64(len(all)), "µs/bare")
			b.ReportMetric(median(ours)/median(theirs), "ratio")
			b.ReportMetric(median(cpuOurs)/median(cpuTheirs), "cpu-ratio")
		})
	}
}

// Start of a store that holds a million objects, after a clean end and after a kill; smaller with -short.
func BenchmarkOpen(b *testing.B) {
	objects := 1 << 20
	if testing.Short() {
		objects = 1 << 14
	}
	cfg := configIn(b.TempDir(), sources{})
	s, err := Open(cfg)
	must(b, err)
	fill(b, cfg.Dir, objects)
	must(b, s.count(b.Context()))
	must(b, s.Close())
	for _, clean := range []bool{true, false} {
		b.Run(fmt.Sprintf("objects=%d/clean=%v", objects, clean), func(b *testing.B) {
			for range b.N {
				s, err := Open(cfg)
				must(b, err)
				b.StopTimer()
				if st, _ := s.Status(); st.Objects != int64(objects) {
					b.Errorf("%+v", st)
				}
				if clean {
					must(b, s.Close())
				} else {
					s.end()
					s.dir.Close()
				}
				b.StartTimer()
			}
		})
	}
	s, err = Open(cfg)
	must(b, err)
	defer s.Close()
	for name, fn := range map[string]func() error{
		"count": func() error { return s.count(b.Context()) },
		"survey": func() error {
			_, err := s.survey(b.Context())
			return err
		},
	} {
		b.Run(fmt.Sprintf("objects=%d/%s", objects, name), func(b *testing.B) {
			for range b.N {
				must(b, fn())
			}
		})
	}
}

// fill makes files that are named like objects.
func fill(b *testing.B, dir string, n int) {
	for i := range n {
		o := Object{Digest: hash.SHA1.Digest([]byte(fmt.Sprint(i))), Size: 10}
		fd, err := unix.Open(filepath.Join(dir, o.Path()), unix.O_CREAT|unix.O_WRONLY, 0o444)
		must(b, err)
		unix.Close(fd)
	}
}

// What opening a local object costs a reader while objects are evicted all the time, against when none are.
func BenchmarkOpenWhileEvicting(b *testing.B) {
	repo := newRepository(b)
	s, images := cached(b, repo, 100*mib)
	_, mounted := images.add(b, "mounted", several(repo, 0, 500, 4096)...)
	fetchAll(b, s, mounted)
	images.mount("mounted", true)
	_, others := images.add(b, "others", several(repo, 1000, 3000, 4096)...)
	for _, evicting := range []bool{false, true} {
		b.Run(fmt.Sprintf("evicting=%v", evicting), func(b *testing.B) {
			fetchAll(b, s, others)
			ctx, cancel := context.WithCancel(b.Context())
			var group sync.WaitGroup
			removed := int64(0)
			group.Go(func() { // in both cases somebody fetches
				for ctx.Err() == nil {
					for _, r := range others {
						if s.Fetch(ctx, r) != nil {
							break
						}
					}
				}
			})
			if evicting {
				group.Go(func() {
					for ctx.Err() == nil {
						done, err := s.evictStep(ctx, 1<<20)
						if err != nil && ctx.Err() == nil {
							b.Error(err)
						}
						removed += done.Objects
						sleep(ctx, 5*time.Millisecond) // ctx is asked
					}
				})
			}
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				began := time.Now()
				f, err := os.Open(filepath.Join(s.cfg.Dir, mounted[i%len(mounted)].Path()))
				took = append(took, time.Since(began))
				must(b, err)
				f.Close()
			}
			cancel()
			group.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
			b.ReportMetric(float64(removed), "evicted")
		})
	}
}

// BenchmarkIndex finds objects of so many images by their node ids, beside a map that has them all, and says what both
// take in memory.
func BenchmarkIndex(b *testing.B) {
	const size = 20_000
	for _, images := range []int{1, 10, 50} {
		var tables []*Table
		for i := range images {
			objs := make([]Object, size)
			for n := range objs {
				objs[n] = Object{Digest: digest(fmt.Sprint(i*size + n)), Size: 1}
			}
			tables = append(tables, table(b, fmt.Sprint(i), objs...))
		}
		before := allocated()
		x := NewIndex([16]byte{1})
		for _, t := range tables {
			x.Add(t)
		}
		between := allocated()
		every, ids := map[uint64]Ref{}, make([]uint64, 0, images*size)
		for _, t := range tables {
			for pos := range t.Len() {
				r := Ref{x, t, uint32(pos)}
				every[r.Node()] = r
				ids = append(ids, r.Node())
			}
		}
		after := allocated() - uint64(8*cap(ids))
		for name, c := range map[string]struct {
			find  func(id uint64) (Ref, bool)
			bytes uint64
		}{
			"map":   {func(id uint64) (Ref, bool) { r, ok := every[id]; return r, ok }, after - between},
			"index": {x.Node, between - before},
		} {
			b.Run(fmt.Sprintf("%d images/%s", images, name), func(b *testing.B) {
				for n := 0; b.Loop(); n += 7919 {
					if r, ok := c.find(ids[n%len(ids)]); !ok || r.x != x {
						b.Fatal("an object is lost")
					}
				}
				b.ReportMetric(float64(c.bytes)/float64(images*size), "B/object")
			})
		}
	}
}

// allocated is what is in use of the heap, in bytes.
func allocated() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
