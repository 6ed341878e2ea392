package graphdriver_test

import (
	"os"
	"strings"
	"testing"

	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/internal/overlayfs"
)

// listing is a kernel that keeps what it mounts.
type listing struct {
	node.Kernel
	mounts *[]*overlayfs.Spec
}

func (k listing) Mount(target string, s *overlayfs.Spec) error {
	*k.mounts = append(*k.mounts, s)
	if s.Upper == "" && len(s.Lower) > 1 { // a shared overlay: nobody serves FUSE here
		if err := os.MkdirAll(s.Lower[1], 0o755); err != nil {
			return err
		}
	}
	return k.Kernel.Mount(target, s)
}

func statusOf(r *rig, name string) string {
	for _, s := range r.Status() {
		if s[0] == name {
			return s[1]
		}
	}
	return ""
}

func TestViewIsTheBestThatWorks(t *testing.T) {
	r := newRig(t)
	auto := statusOf(r, "View")
	if auto != "erofs" && !strings.HasPrefix(auto, "erofs (by two overlays: ") &&
		!strings.HasPrefix(auto, "fuse (erofs can't be used: ") {
		t.Errorf("View: %q", auto)
	}
	must(t, r.Init(graphdriver.InitArgs{Opts: []string{"cvmfs.view=fuse"}}))
	if got := statusOf(r, "View"); got != "fuse (set by cvmfs.view)" {
		t.Errorf("View: %q", got)
	}
	must(t, r.Init(graphdriver.InitArgs{Opts: []string{"cvmfs.view=auto"}}))
	if got := statusOf(r, "View"); got != auto {
		t.Errorf("View: %q", got)
	}
	if err := r.Init(graphdriver.InitArgs{Opts: []string{"cvmfs.view=ext4"}}); err == nil ||
		!strings.Contains(err.Error(), "auto, erofs and fuse") {
		t.Error(err)
	}
	if left, err := os.ReadDir(r.run + "/views"); err != nil || len(left) > 0 {
		t.Errorf("left in views: %v, %v", left, err)
	}
}

func TestViewFuseIsChosenWhereTheKernelMountsNoImages(t *testing.T) {
	r := newRig(t)
	var mounts []*overlayfs.Spec
	r.cfg.Kernel = listing{&overlayfs.Kernel{Lack: overlayfs.NoFileBackedEROFS}, &mounts}
	r.reopen()
	must(t, r.Init(graphdriver.InitArgs{}))
	const old = "this kernel can't mount EROFS images from files, which takes Linux 6.12 with CONFIG_EROFS_FS: block device required"
	if got, want := statusOf(r, "View"), "fuse (erofs can't be used: "+old+")"; got != want {
		t.Errorf("View: %q, want %q", got, want)
	}
	err := r.Init(graphdriver.InitArgs{Opts: []string{"cvmfs.view=erofs"}})
	if err == nil || !strings.Contains(err.Error(), old) || !strings.Contains(err.Error(), "cvmfs.view=fuse") {
		t.Errorf("Init with erofs: %v", err)
	}
	r.apply("thin", "", tarOf(t, file{Name: "thin.json", Body: `{"version":"1.0","layers":[]}`}))
	r.apply("above", "thin", tarOf(t, file{Name: "f", Body: "f"}))
	r.container("c", "above")
	shared, m := mounts[len(mounts)-2], mounts[len(mounts)-1]
	if len(m.Data) > 0 || m.Lower[len(m.Lower)-1] != r.run+"/shared/key1.fuse" ||
		shared.Lower[1] != r.run+"/fuse/view/key1" {
		t.Errorf("mounted %+v on %+v", m, shared)
	}
	must(t, r.Put("c"))
	must(t, os.RemoveAll(r.run+"/fuse"))
}
