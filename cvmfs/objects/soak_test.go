package objects

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// loopDisk mounts an ext4 file system of n bytes, made in a file.
func loopDisk(t *testing.T, n int64) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, n))
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", image).CombinedOutput(); err != nil {
		t.Skipf("needs mkfs.ext4: %v %s", err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("needs to mount: %v %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// soak is images that come into use and go out of it again, read at random.
type soak struct {
	s      *Store
	images *imageSet
	tables []*Table
	refs   [][]Ref
	seeds  [][]int // of the content of each object
}

// Eight images of more than the limit in all are read at random, some mounted and some not, by turns. No read may fail,
// no object of a mounted image vanish, and the disk must not hold more than the limit. SOAK=10m makes it go on so long.
func TestSoak(t *testing.T) {
	rounds, long := 8, 2*time.Minute
	if v := os.Getenv("SOAK"); v != "" {
		var err error
		rounds = 1 << 30
		long, err = time.ParseDuration(v)
		must(t, err)
	}
	const disk, limit, object = 256 * mib, 40 * mib, 100_000
	dir := loopDisk(t, disk)
	empty := usedOf(t, dir)
	repo := newRepository(t)
	images := newImages(filepath.Join(dir, "images"))
	must(t, os.Mkdir(images.dir, 0o755))
	cfg := configIn(dir, sources{"r": fetcher(t, repo.URL)})
	cfg.Images, cfg.Limits, cfg.ScrubRate = images, Limits{Limit: limit}, 1<<40
	k := &soak{s: open(t, cfg), images: images}
	for i := range 8 {
		var objs []Object
		var seeds []int
		for j := range 200 { // some 20 MB; a quarter of it is in all images
			seed := 1000*i + j
			if j < 50 {
				seed = j
			}
			objs, seeds = append(objs, repo.whole(noise(seed, object))), append(seeds, seed)
		}
		table, refs := images.add(t, fmt.Sprint("image", i), objs...)
		k.tables, k.refs, k.seeds = append(k.tables, table), append(k.refs, refs), append(k.seeds, seeds)
	}
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	go k.s.Run(t.Context())
	var group sync.WaitGroup
	for n := range 4 {
		group.Go(func() { k.container(ctx, t, n, rounds) })
	}
	go func() {
		group.Wait()
		cancel()
	}()
	var most int64
	for ctx.Err() == nil {
		most = max(most, usedOf(t, dir)-empty)
		time.Sleep(20 * time.Millisecond)
	}
	group.Wait()
	idle(t, k.s)
	most = max(most, usedOf(t, dir)-empty)
	st, err := k.s.Status()
	must(t, err)
	t.Logf("most on disk %d of %d bytes; %+v", most, int64(limit), st)
	if most > limit+limit/20 {
		t.Errorf("%d bytes on disk, the limit is %d", most, int64(limit))
	}
	if st.Evicted.Objects == 0 || st.Refused > 0 || st.Used != diskUse(t, k.s)+st.Partial {
		t.Errorf("%+v, objects take %d", st, diskUse(t, k.s))
	}
	v, err := k.s.Verify(t.Context(), "", func(Verified) {})
	if err != nil || v.Damaged > 0 || v.Objects == 0 {
		t.Errorf("%+v, %v", v, err)
	}
}

func usedOf(t *testing.T, dir string) int64 {
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// container mounts one of its images, reads in it for a while, unmounts it, and so on.
func (k *soak) container(ctx context.Context, t *testing.T, n, rounds int) {
	random := rand.New(rand.NewPCG(uint64(n), 7))
	for ; rounds > 0 && ctx.Err() == nil; rounds-- {
		i := n + 4*random.IntN(2)
		k.s.Used(k.tables[i])
		k.images.mount(fmt.Sprint("image", i), true)
		seen := map[int]bool{}
		for range 150 {
			if ctx.Err() != nil {
				break
			}
			k.read(ctx, t, i, random.IntN(200), seen)
		}
		for j := range seen {
			if !k.s.Has(k.refs[i][j]) {
				t.Errorf("object %d has vanished from image %d while it was mounted", j, i)
			}
		}
		k.images.mount(fmt.Sprint("image", i), false)
		k.s.Used(k.tables[i])
		k.s.eviction.mu.Lock()
		delete(k.s.eviction.holds, fmt.Sprint("image", i)) // as if a minute had passed
		k.s.eviction.mu.Unlock()
	}
}

// read reads an object as an overlay would: locally, through the gate, or else through the data folder.
func (k *soak) read(ctx context.Context, t *testing.T, image, object int, seen map[int]bool) {
	r := k.refs[image][object]
	want := noise(k.seeds[image][object], int(r.Size()))
	err := k.s.Fetch(ctx, r)
	if err == nil {
		seen[object] = true
		got, err := os.ReadFile(filepath.Join(k.s.cfg.Dir, r.Path()))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("image %d, object %d: %v", image, object, err)
		}
		return
	}
	if errors.Is(err, ErrLimit) {
		got := make([]byte, r.Size())
		var n int
		n, err = k.s.ReadAt(ctx, r, got, 0)
		if n == len(got) && bytes.Equal(got, want) {
			return
		}
	}
	if ctx.Err() == nil {
		t.Errorf("image %d, object %d: %v", image, object, err)
	}
}
