package images_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

// The kernel is the judge: a chain of random layers, merged by compose, must look as overlayfs shows the same folders.
func TestMergeAgreesWithOverlayfs(t *testing.T) {
	testutil.NeedRoot(t)
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			base := t.TempDir()
			var chain []images.Layer
			var lowers []string
			for n := range 5 {
				l := images.Layer{ID: fmt.Sprint("layer", n), Diff: filepath.Join(base, fmt.Sprint(n))}
				if err := os.Mkdir(l.Diff, 0o755); err != nil {
					t.Fatal(err)
				}
				fill(t, random, l.Diff, 3)
				chain = append(chain, l)
				lowers = append([]string{l.Diff}, lowers...)
			}
			c, _ := composer(t, images.Config{})
			image, err := c.Compose(t.Context(), append(chain, images.Layer{Thin: &thin.Descriptor{}}))
			if err != nil {
				t.Fatal(err)
			}
			composed, _ := show(t, mount(t, image))
			merged := filepath.Join(base, "merged")
			if err := os.Mkdir(merged, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY,
				"redirect_dir=off,lowerdir="+strings.Join(lowers, ":")); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(merged, unix.MNT_DETACH) })
			want, _ := show(t, merged)
			for _, list := range [][]entry{want, composed} {
				for i := range list {
					if list[i].Mode&syscall.S_IFMT == syscall.S_IFDIR {
						list[i].Nlink = 0 // overlayfs doesn't count the subfolders of a merged folder
					}
				}
			}
			if diff := cmp.Diff(want, composed); diff != "" {
				t.Errorf("composed image (-overlayfs +composed):\n%s", diff)
			}
		})
	}
}

// fill makes the content of a layer: few names, so that layers meet.
func fill(t *testing.T, random *rand.Rand, dir string, depth int) {
	t.Helper()
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		path := filepath.Join(dir, name)
		var err error
		switch random.IntN(9) {
		case 0, 1:
			err = os.WriteFile(path, make([]byte, random.IntN(3)), 0o600)
		case 2:
			err = os.Symlink(fmt.Sprint("target", random.IntN(100)), path)
		case 3:
			err = unix.Mknod(path, syscall.S_IFCHR|0o600, 0)
		case 4:
			err = unix.Mknod(path, syscall.S_IFIFO|0o644, 0)
		case 5, 6:
			if depth == 0 {
				continue
			}
			err = os.Mkdir(path, os.FileMode(0o700+random.IntN(64)))
			if err == nil {
				fill(t, random, path, depth-1)
			}
			if err == nil && random.IntN(3) == 0 {
				err = unix.Lsetxattr(path, "trusted.overlay.opaque", []byte("y"), 0)
			}
		default:
			continue
		}
		if err == nil {
			err = os.Lchown(path, random.IntN(3), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
