package graphdriver_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/images"
)

// soon fails the test if a call hangs.
func soon(t *testing.T, what string, call func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		return err
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s hangs", what)
		return nil
	}
}

// applyThin returns a layer that is there a thin image.
func (r *rig) applyThin(id, parent string) error {
	_, err := r.ApplyDiff(r.t.Context(), id, parent,
		bytes.NewReader(tarOf(r.t, file{Name: "thin.json", Body: descriptor})))
	return err
}

func TestStaleApplyDiffHangsNobodyAndIsRefused(t *testing.T) {
	r := newRig(t)
	made, proceed := r.composer.Pause()
	ended := make(chan error, 2)
	for n := range 2 { // the second is for another layer, of the same id
		must(t, r.Create(graphdriver.CreateArgs{ID: "thin"}))
		go func() { ended <- r.applyThin("thin", "") }()
		<-made
		if n == 0 {
			must(t, soon(t, "a removal while the layer's image is composed", func() error { return r.Remove("thin") }))
		}
	}
	proceed()
	var failed []string
	for range 2 {
		if err := <-ended; err != nil {
			failed = append(failed, err.Error())
		}
	}
	if len(failed) != 1 || !strings.Contains(failed[0], "removed while its archive came in") {
		t.Errorf("one of two is refused, and these are: %q", failed)
	}
	must(t, soon(t, "the removal", func() error { return r.Remove("thin") }))
	if left := r.composer.Keys(); left != "" {
		t.Errorf("images left: %s", left)
	}
}

func TestStaleArchiveIsNotTakenForAnotherLayerOfItsID(t *testing.T) {
	r := newRig(t)
	must(t, r.Create(graphdriver.CreateArgs{ID: "l"}))
	pr, pw, err := os.Pipe()
	must(t, err)
	defer pr.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := r.ApplyDiff(t.Context(), "l", "", pr)
		ended <- err
	}()
	_, err = pw.Write(tarOf(t, file{Name: "stale", Body: "x"})[:512])
	must(t, err)
	for {
		if _, err := os.Lstat(filepath.Join(r.root, "layers/l/applying")); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	must(t, r.Remove("l"))
	must(t, r.Create(graphdriver.CreateArgs{ID: "l"}))
	_, err = pw.Write(tarOf(t, file{Name: "stale", Body: "x"})[512:])
	must(t, errors.Join(err, pw.Close()))
	if err := <-ended; err == nil {
		t.Error("the layer took an archive that began before it was made")
	}
	_, err = r.ApplyDiff(t.Context(), "l", "", bytes.NewReader(tarOf(t, file{Name: "mine"})))
	must(t, err)
}

func TestThinLayersComeAndGoAtOnce(t *testing.T) {
	r := newRig(t)
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			id := fmt.Sprint("thin", n%4) // two callers for each
			for range 25 {
				for _, err := range []error{
					r.Create(graphdriver.CreateArgs{ID: id}), r.applyThin(id, ""), r.Remove(id),
				} {
					if errors.Is(err, images.ErrNoImage) || err != nil && strings.HasPrefix(err.Error(), "remove") {
						t.Error(err)
					}
				}
			}
		})
	}
	must(t, soon(t, "one of these", func() error { all.Wait(); return nil }))
	if left := r.composer.Keys(); left != "" {
		t.Errorf("images left: %s", left)
	}
}

func TestLayersInACircleAreRefusedOrFailAndHangNobody(t *testing.T) {
	r := newRig(t)
	r.apply("a", "", tarOf(t))
	r.apply("b", "a", tarOf(t))
	must(t, r.Remove("a"))
	if err := r.Create(graphdriver.CreateArgs{ID: "a", Parent: "b", Writable: true}); err == nil ||
		!strings.Contains(err.Error(), "below it") {
		t.Errorf("a circle was made: %v", err)
	}
	must(t, r.Create(graphdriver.CreateArgs{ID: "a", Writable: true}))
	must(t, unix.Setxattr(filepath.Join(r.root, "layers/a"), "trusted.cvmfs-graphdriver.layer",
		[]byte(`{"parent":"b","writable":true}`), 0))
	err := soon(t, "Get", func() error { _, err := r.Get(t.Context(), "a", ""); return err })
	if err == nil || !strings.Contains(err.Error(), "ancestors") {
		t.Errorf("Get: %v", err)
	}
}

func TestImageOfALayerThatIsRemovedWhileItIsComposedGoes(t *testing.T) {
	r := newRig(t)
	made, proceed := r.composer.Pause()
	must(t, r.Create(graphdriver.CreateArgs{ID: "thin"}))
	ended := make(chan error, 1)
	go func() { ended <- r.applyThin("thin", "") }()
	<-made
	must(t, soon(t, "the removal", func() error { return r.Remove("thin") }))
	proceed()
	if err := <-ended; err == nil {
		t.Error("a removed layer took content")
	}
	if left := r.composer.Keys(); left != "" || r.Exists("thin") {
		t.Errorf("images left: %s; the layer exists: %v", left, r.Exists("thin"))
	}
}

// A layer that was made anew while a former one of its id was composed doesn't get the former one's image.
func TestLayerMadeAnewDoesNotGetTheImageOfTheFormerOne(t *testing.T) {
	r := newRig(t)
	r.composer.Fail(fetch.ErrUnavailable)
	r.apply("thin", "", tarOf(t, file{Name: "thin.json", Body: descriptor}))
	must(t, r.Create(graphdriver.CreateArgs{ID: "c1", Parent: "thin", Writable: true}))
	r.composer.Fail(nil)
	made, proceed := r.composer.Pause()
	ended := make(chan error, 1)
	go func() {
		_, err := r.Get(t.Context(), "c1", "")
		ended <- err
	}()
	<-made
	must(t, soon(t, "the removal", func() error { return r.Remove("thin") }))
	r.apply("thin", "", tarOf(t, file{Name: "ordinary", Body: "x"}))
	proceed()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "made anew") {
		t.Errorf("Get: %v", err)
	}
	if left := r.composer.Keys(); left != "" {
		t.Errorf("images left: %s", left)
	}
}

func TestStartRemovesImagesThatNobodyNames(t *testing.T) {
	r := newRig(t)
	r.apply("thin", "", tarOf(t, file{Name: "thin.json", Body: descriptor}))
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	for _, c := range []string{"c1", "c2"} {
		r.container(c, "base")
	}
	r.record("c1", "used", "first", 1)
	r.record("c2", "stranded", "before", 1)
	// the last by a kill between a layer's removal and that of its image
	for _, key := range []string{"used", "stranded", "left"} {
		r.composer.Images[key] = &images.Image{Key: key}
	}
	for _, dir := range []string{"images/gone", "shared/gone.fuse", "images/key1", "shared/key1.erofs"} {
		must(t, os.Mkdir(filepath.Join(r.run, dir), 0o700))
	}
	// A record that can't be read may name any image.
	must(t, os.MkdirAll(r.diff("damaged"), 0o755))
	r.reopen()
	if got := r.composer.Keys(); got != "key1 left stranded used" {
		t.Errorf("with a damaged record there are %s", got)
	}
	must(t, r.Remove("damaged"))
	r.reopen()
	if got := r.composer.Keys(); got != "key1 stranded used" {
		t.Errorf("there are %s", got)
	}
	for dir, want := range map[string]int{"images": 1, "shared": 1} {
		if entries, err := os.ReadDir(filepath.Join(r.run, dir)); err != nil || len(entries) != want {
			t.Errorf("%s: %v, %v", dir, entries, err)
		}
	}
}

func TestSweepLeavesWhatIsBeingComposed(t *testing.T) {
	r := newRig(t)
	r.composer.Fail(fetch.ErrUnavailable)
	r.apply("thin", "", tarOf(t, file{Name: "thin.json", Body: descriptor}))
	must(t, r.Create(graphdriver.CreateArgs{ID: "c1", Parent: "thin", Writable: true}))
	r.composer.Fail(nil)
	made, proceed := r.composer.Pause()
	ended := make(chan error, 1)
	go func() {
		_, err := r.Get(t.Context(), "c1", "")
		ended <- err
	}()
	<-made
	r.composer.Images["left"] = &images.Image{Key: "left"}
	// a composer takes over, and sweeps
	must(t, r.Init(graphdriver.InitArgs{Opts: []string{"cvmfs.repositories=x.example.org"}}))
	if got := r.composer.Keys(); got != "key1 left" {
		t.Errorf("swept while an image was composed: there are %s", got)
	}
	proceed()
	<-ended // there is nothing to mount
	if got := r.composer.Keys(); got != "key1" || len(r.composer.Chains) != 2 {
		t.Errorf("there are %s, composed %d times after the first failed", got, len(r.composer.Chains)-1)
	}
}
