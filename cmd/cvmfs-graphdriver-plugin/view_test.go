package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/test/referenceimage"
	"cvmfs-graphdriver/test/testutil"
)

// The fuse view asks the server for every attribute, unknown name and uncached byte: none may be lost when it is
// killed.
func TestServersKilledUnderLoadLoseNoRequest(t *testing.T) { forRungs(t, killUnderLoad) }

func killUnderLoad(t *testing.T, r rung) {
	p := r.start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
	p.init(r, object{})
	if text := p.apply("thin", "", archive(t, map[string]string{"thin.json": referenceimage.Descriptor(t)})); text != "" {
		t.Fatal(text)
	}
	dir := p.container("c1", "thin")
	defer p.ok("Put", object{"ID": "c1"})
	contents := map[string][]byte{}
	must(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			contents[name], err = os.ReadFile(name)
		}
		return err
	}))
	stop := make(chan struct{})
	var load sync.WaitGroup
	var rounds [4]int
	for i := range rounds {
		load.Go(func() {
			for ; ; rounds[i]++ {
				select {
				case <-stop:
					return
				default:
				}
				for name, want := range contents {
					if err := useFile(name, want, fmt.Sprintf("%d-%d", i, rounds[i])); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for range 6 { // each death in a row makes the next server come later
		time.Sleep(50 * time.Millisecond)
		must(t, syscall.Kill(p.status().PID, syscall.SIGKILL))
	}
	time.Sleep(100 * time.Millisecond)
	close(stop)
	load.Wait()
	for i, n := range rounds {
		if n == 0 {
			t.Errorf("worker %d did nothing", i)
		}
	}
}

// useFile reads a file not from the page cache, asks for an attribute it hasn't got, and for a name that nobody has
// asked for yet.
func useFile(name string, want []byte, unique string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	got := make([]byte, len(want)+1)
	if n, _ := f.ReadAt(got, 0); !bytes.Equal(got[:n], want) {
		return fmt.Errorf("%s: %d bytes of %d, or others", name, n, len(want))
	}
	if _, err := unix.Lgetxattr(name, "user.none", got); !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("%s: attribute that isn't there: %w", name, err)
	}
	if _, err := os.Lstat(name + unique); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: name that isn't there: %w", name, err)
	}
	return nil
}

// Containers keep the view they were started with when the option changes.
func TestBothViewsAreMountedAtOnce(t *testing.T) {
	p := start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
	p.init(rung{view: "erofs"}, object{})
	if text := p.apply("thin", "", archive(t, map[string]string{"thin.json": referenceimage.Descriptor(t)})); text != "" {
		t.Fatal(text)
	}
	old := p.container("c1", "thin")
	p.init(rung{view: "fuse"}, object{})
	young := p.container("c2", "thin")
	if a, b := strings.Join(tree(t, old), "\n"), strings.Join(tree(t, young), "\n"); a != b || len(a) == 0 {
		t.Errorf("erofs:\n%s\nfuse:\n%s", a, b)
	}
}

// Init chooses by the probe that the installer and doctor judge a host by, on this kernel and on older ones.
func TestTheViewIsTheOneThatTheKernelIsProbedFor(t *testing.T) {
	testutil.NeedRoot(t)
	for _, without := range []string{
		"", "mountapi", "metacopy=off", "parameters", "parameters,data,filebacked",
		"layers", "mountapi,data,filebacked", "filebacked",
	} {
		t.Run(without, func(t *testing.T) {
			// First, for it ends a thread, and with that what the thread has started.
			k := overlayfs.Kernel{Lack: overlayfs.ParseLack(without)}
			support, err := k.Probe(t.TempDir())
			must(t, err)
			p := start(t, t.TempDir(), "http://127.0.0.1:1", lackVariable+"="+without)
			p.init(rung{view: "auto"}, object{})
			way, reason := support.Way()
			want := "erofs"
			switch way {
			case overlayfs.ByTwo:
				want = "erofs (by two overlays: " + reason + ")"
			case overlayfs.None:
				want = "fuse (erofs can't be used: " + reason + ")"
			}
			view := p.view()
			if view != want {
				t.Errorf("%s, want %s", view, want)
			}
			if without == "" && testutil.ViewWords(view) != testutil.KnownView() {
				t.Errorf("%s, and known is %s", view, testutil.KnownView())
			}
		})
	}
}
