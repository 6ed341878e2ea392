package layers_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/layers/layerstest"
	"cvmfs-graphdriver/test/testutil"
)

// Digests tell whether an archive is whole. What reads as one is taken, as by the engine's own driver; what ends within
// an entry isn't.
func TestApplyDiffJudgesAFirstArchiveByItsContent(t *testing.T) {
	r := newRig(t)
	whole := tarOf(t,
		file{Name: "zeros", Body: strings.Repeat("\x00", 2048)},
		file{Name: "long", Body: "x", Xattrs: map[string]string{"user.long": strings.Repeat("\x00", 1500)}},
		file{Name: "d/", Kind: tar.TypeDir})
	taken := 0
	for n := 0; n <= len(whole); n += 512 {
		for _, cut := range []int{n, n + 1, n + 511} {
			archive := whole[:min(cut, len(whole))]
			must(t, r.Create(layers.CreateArgs{ID: "base"}))
			size, err := r.receive("base", "", bytes.NewReader(archive))
			if readable(archive) {
				taken++
				if err != nil {
					t.Errorf("the first %d of %d bytes: %v", cut, len(whole), err)
				}
			} else if !errors.Is(err, layers.ErrTruncated) || len(list(t, r.diff("base"))) > 0 {
				t.Errorf("the first %d of %d bytes: size %d, error %v, left %v", cut, len(whole), size, err,
					list(t, r.diff("base")))
			}
			must(t, r.remove("base"))
		}
	}
	if taken < 5 {
		t.Errorf("%d archives were taken", taken)
	}
	must(t, r.Create(layers.CreateArgs{ID: "base"}))
	padded := append(slices.Clone(whole), make([]byte, 10240)...)
	if _, err := r.receive("base", "", bytes.NewReader(padded)); err != nil {
		t.Errorf("whole: %v", err)
	}
	if _, err := r.receive("base", "", bytes.NewReader(whole)); err == nil {
		t.Error("content came twice")
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// readable reports whether the engines' reader comes to an archive's end.
func readable(archive []byte) bool {
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		_, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return true
		}
		if err == nil {
			_, err = io.Copy(io.Discard, tr)
		}
		if err != nil {
			return false
		}
	}
}

// A server that dies between a layer's making and its archive may have taken some of that, or all, and noted nothing.
func TestApplyDiffTakesNothingForALayerOfAFormerProcess(t *testing.T) {
	r := newRig(t)
	whole := tarOf(t, file{Name: "a", Body: "a"})
	must(t, r.Create(layers.CreateArgs{ID: "base"}))
	r.reopen()
	for what, rest := range map[string][]byte{"nothing": nil, "the end marker": whole[1024:], "all of it": whole} {
		if _, err := r.receive("base", "", bytes.NewReader(rest)); !errors.Is(err, layers.ErrBroken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// the engine repeats calls: it has sent no archive before the answer
	must(t, r.Create(layers.CreateArgs{ID: "base"}))
	if _, err := r.receive("base", "", bytes.NewReader(nil)); err != nil {
		t.Errorf("a layer of no bytes: %v", err)
	}
}

func TestApplyDiffTakesNoRestOfABrokenArchive(t *testing.T) {
	r := newRig(t)
	whole := tarOf(t, file{Name: "a", Body: "a"}, file{Name: "b", Body: "b"})
	for name, at := range map[string]int{"between": 1024, "marker": 2048, "nothing": len(whole)} {
		must(t, r.Create(layers.CreateArgs{ID: name}))
		broken := io.MultiReader(bytes.NewReader(whole[:at]), iotest.ErrReader(io.ErrUnexpectedEOF))
		if _, err := r.receive(name, "", broken); err == nil {
			t.Errorf("%s: a broken archive was taken", name)
		}
		r.reopen() // the server may have been killed meanwhile
		if _, err := r.receive(name, "", bytes.NewReader(whole[at:])); !errors.Is(err,
			layers.ErrBroken) {
			t.Errorf("%s: the rest gave %v", name, err)
		}
		if _, err := r.receive(name, "", bytes.NewReader(whole)); !errors.Is(err, layers.ErrBroken) {
			t.Errorf("%s: the whole after it gave %v", name, err)
		}
		must(t, r.remove(name))
		r.apply(name, "", whole)
	}
	// What came in to its end and was refused is forgotten.
	must(t, r.Create(layers.CreateArgs{ID: "refused"}))
	if _, err := r.receive("refused", "",
		bytes.NewReader(tarOf(t, file{Name: "x", Kind: tar.TypeLink, Link: "none"}, file{Name: "y"}))); err == nil {
		t.Error("a link to nothing was taken")
	}
	_, err := r.receive("refused", "", bytes.NewReader(whole))
	must(t, err)
}

func TestApplyDiffStaysInsideTheLayer(t *testing.T) {
	canary := t.TempDir()
	reg := func(name string) file { return file{Name: name, Body: "owned"} }
	link := func(name, target string) file { return file{Name: name, Kind: tar.TypeSymlink, Link: target} }
	hard := func(name, target string) file { return file{Name: name, Kind: tar.TypeLink, Link: target} }
	for _, c := range []struct {
		name  string
		files []file
	}{
		{"path with dots", []file{reg("../../../../../.." + canary + "/f")}},
		{"path with dots further down", []file{reg("a/../../../../../../../../.." + canary + "/f")}},
		{"absolute path", []file{reg(canary + "/f")}},
		{"absolute link, file through it", []file{link("l", canary), reg("l/f")}},
		{"relative link, file through it", []file{link("l", strings.Repeat("../", 20)+canary[1:]), reg("l/f")}},
		{"two links, file through them", []file{link("a", canary), link("b", "a"), reg("b/f")}},
		{"link, folder through it", []file{link("l", canary), {Name: "l/d/", Kind: tar.TypeDir}, reg("l/d/f")}},
		{"link, file in its place", []file{link("l", canary+"/f"), reg("l")}},
		{"link, folder in its place, file below", []file{
			link("l", canary),
			{Name: "l", Kind: tar.TypeDir, Mode: 0o700},
			reg("l/f"),
		}},
		{"hard link to outside", []file{hard("h", canary+"/keep"), reg("h")}},
		{"hard link to outside by dots", []file{hard("h", strings.Repeat("../", 20)+canary[1:]+"/keep"), reg("h")}},
		{"hard link through a link", []file{link("l", canary), hard("h", "l/keep"), reg("h")}},
		{"whiteout through a link", []file{link("l", canary), {Name: "l/.wh.keep"}}},
		{"opaque through a link", []file{link("l", canary), {Name: "l/.wh..wh..opq"}}},
		{"whiteout of dots", []file{{Name: ".wh..."}, {Name: ".wh.."}}},
		{"device through a link", []file{link("l", canary), {Name: "l/dev", Kind: tar.TypeChar, Dev: 3}}},
		{"attribute through a link", []file{
			link("l", canary),
			{Name: "l/.", Kind: tar.TypeDir, Xattrs: map[string]string{"user.x": "y"}},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			must(t, os.WriteFile(filepath.Join(canary, "keep"), []byte("kept"), 0o600))
			before, attrs := list(t, canary), layerstest.Xattrs(t, canary)
			r := newRig(t)
			must(t, r.Create(layers.CreateArgs{ID: "base"}))
			_, err := r.receive("base", "", bytes.NewReader(tarOf(t, c.files...)))
			t.Logf("answer: %v", err)
			if d := cmp.Diff(before, list(t, canary)); d != "" {
				t.Errorf("outside: -before +after\n%s", d)
			}
			if d := cmp.Diff(attrs, layerstest.Xattrs(t, canary)); d != "" {
				t.Errorf("attributes outside: -before +after\n%s", d)
			}
		})
	}
}

func TestApplyDiffRemovesWhatInstructsOverlayfs(t *testing.T) {
	r := newRig(t)
	evil := map[string]string{
		"trusted.overlay.redirect": "/objects/3f/aaa", "trusted.overlay.metacopy": "", "trusted.overlay.opaque": "y",
		"user.overlay.redirect": "/x", "trusted.overlay.anything": "1", "user.harmless": "kept",
		"security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	}
	r.apply("base", "", tarOf(t,
		file{Name: "f", Body: "f", Xattrs: evil}, file{
			Name: "d/", Kind: tar.TypeDir,
			Xattrs: map[string]string{"trusted.overlay.opaque": "y"},
		},
		file{Name: "o/", Kind: tar.TypeDir}, file{Name: "o/.wh..wh..opq"}))
	want := []string{"f security.capability", "f user.harmless", "o trusted.overlay.opaque"}
	got := layerstest.Xattrs(t, r.diff("base"))
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestApplyDiffKeepsEveryKindOfFile(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t,
		file{Name: "suid", Body: "x", Mode: 0o4755, UID: 1, GID: 2},
		file{Name: "sticky/", Kind: tar.TypeDir, Mode: 0o1777},
		file{Name: "hard", Kind: tar.TypeLink, Link: "suid", Mode: 0o4755, UID: 1, GID: 2},
		file{Name: "soft", Kind: tar.TypeSymlink, Link: "/nowhere"},
		file{Name: "fifo", Kind: tar.TypeFifo},
		file{Name: "null", Kind: tar.TypeChar, Dev: 3},
		file{Name: "implied/by/file", Body: "y"}))
	want := []string{
		"fifo prw-r--r-- 0:0", "hard urwxr-xr-x 1:2 x", "implied drwxr-xr-x 0:0", "implied/by drwxr-xr-x 0:0",
		"implied/by/file -rw-r--r-- 0:0 y",
		"null Dcrw-r--r-- 0:0", "soft Lrwxrwxrwx 0:0 /nowhere", "sticky dtrwxrwxrwx 0:0", "suid urwxr-xr-x 1:2 x",
	}
	if d := cmp.Diff(want, list(t, r.diff("base"))); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	a, err := os.Stat(filepath.Join(r.diff("base"), "suid"))
	must(t, err)
	b, err := os.Stat(filepath.Join(r.diff("base"), "hard"))
	must(t, err)
	if !os.SameFile(a, b) {
		t.Error("the hard link is a file of its own")
	}
}

func TestFullDiskFailsTheLayerAndLeavesNothing(t *testing.T) {
	r := newRigIn(t, testutil.SmallDisk(t, "1m"))
	must(t, r.Create(layers.CreateArgs{ID: "big"}))
	_, err := r.receive("big", "",
		bytes.NewReader(tarOf(t, file{Name: "f", Body: strings.Repeat("x", 4<<20)})))
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v, want ENOSPC", err)
	}
	if left := list(t, r.diff("big")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	r.apply("fits", "", tarOf(t, file{Name: "f", Body: "x"}))
}

// TestKilledServerLeavesWholeLayersOrNone kills a process at work again and again and looks at what it left.
func TestKilledServerLeavesWholeLayersOrNone(t *testing.T) {
	r := newRig(t)
	const files = 200
	var content []file
	for n := range files {
		content = append(content, file{Name: fmt.Sprintf("f%d", n), Body: strings.Repeat("x", 2000)})
	}
	archive := tarOf(t, content...)
	path := filepath.Join(t.TempDir(), "layer.tar")
	must(t, os.WriteFile(path, archive, 0o600))
	for round := range 6 {
		child := exec.Command(os.Args[0], "-test.run=^TestHelperAppliesLayers$")
		child.Env = append(os.Environ(), "STORE_ROOT="+filepath.Dir(r.dir), "STORE_TAR="+path,
			fmt.Sprint("STORE_ROUND=", round))
		out, err := child.StdoutPipe()
		must(t, err)
		must(t, child.Start())
		if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
			t.Fatalf("the helper didn't start: %v", err)
		}
		time.Sleep(time.Duration(20+round*17) * time.Millisecond)
		must(t, child.Process.Kill())
		_ = child.Wait() // killed
		r.reopen()
		cut, err := r.Uncommitted()
		must(t, err)
		for _, id := range cut {
			must(t, r.remove(id))
		}
		entries, err := os.ReadDir(r.dir)
		must(t, err)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				t.Errorf("round %d: %s was left", round, e.Name())
				continue
			}
			if got := len(list(t, r.diff(e.Name()))); got != files {
				t.Errorf("round %d: layer %s has %d of %d files", round, e.Name(), got, files)
			}
		}
		t.Logf("round %d: %d layers", round, len(entries))
	}
}

// TestHelperAppliesLayers is the process that the test above kills.
func TestHelperAppliesLayers(t *testing.T) {
	if os.Getenv("STORE_ROOT") == "" {
		return
	}
	r := newRigIn(t, os.Getenv("STORE_ROOT"))
	archive, err := os.ReadFile(os.Getenv("STORE_TAR"))
	must(t, err)
	fmt.Print("ready")
	for n := 0; ; n++ {
		r.apply(fmt.Sprintf("l%s-%d", os.Getenv("STORE_ROUND"), n), "", archive)
	}
}
