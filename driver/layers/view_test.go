package layers_test

import (
	"os"
	"strings"
	"testing"

	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/internal/overlayfs"
)

// listing is a Mounter that keeps what it mounts.
type listing struct {
	layers.Mounter
	mounts *[]layers.Mount
}

func (k listing) Mount(m layers.Mount) error {
	*k.mounts = append(*k.mounts, m)
	if m.Shared != nil { // nobody serves FUSE here
		if err := os.MkdirAll(m.Shared.Lower[1], 0o755); err != nil {
			return err
		}
	}
	return k.Mounter.Mount(m)
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
	must(t, r.Init(layers.InitArgs{Opts: []string{"cvmfs.view=fuse"}}))
	if got := statusOf(r, "View"); got != "fuse (set by cvmfs.view)" {
		t.Errorf("View: %q", got)
	}
	must(t, r.Init(layers.InitArgs{Opts: []string{"cvmfs.view=auto"}}))
	if got := statusOf(r, "View"); got != auto {
		t.Errorf("View: %q", got)
	}
	if err := r.Init(layers.InitArgs{Opts: []string{"cvmfs.view=ext4"}}); err == nil ||
		!strings.Contains(err.Error(), "auto, erofs and fuse") {
		t.Error(err)
	}
	if left, err := os.ReadDir(r.run + "/views"); err != nil || len(left) > 0 {
		t.Errorf("left in views: %v, %v", left, err)
	}
}

func TestViewFuseIsChosenWhereTheKernelMountsNoImages(t *testing.T) {
	r := newRig(t)
	var mounts []layers.Mount
	r.cfg.Mounter = listing{&graphdriver.Mounter{Kernel: overlayfs.Kernel{Lack: overlayfs.NoFileBackedEROFS}}, &mounts}
	r.reopen()
	must(t, r.Init(layers.InitArgs{}))
	const old = "this kernel can't mount EROFS images from files, which takes Linux 6.12 with CONFIG_EROFS_FS: block device required"
	if got, want := statusOf(r, "View"), "fuse (erofs can't be used: "+old+")"; got != want {
		t.Errorf("View: %q, want %q", got, want)
	}
	err := r.Init(layers.InitArgs{Opts: []string{"cvmfs.view=erofs"}})
	if err == nil || !strings.Contains(err.Error(), old) || !strings.Contains(err.Error(), "cvmfs.view=fuse") {
		t.Errorf("Init with erofs: %v", err)
	}
	r.apply("thin", "", tarOf(t, file{name: "thin.json", body: `{"version":"1.0","layers":[]}`}))
	r.apply("above", "thin", tarOf(t, file{name: "f", body: "f"}))
	r.container("c", "above")
	m := mounts[len(mounts)-1]
	if m.Key == "" || len(m.Overlay.Data) > 0 || m.Overlay.Lower[len(m.Overlay.Lower)-1] != m.Shared.Target ||
		m.Shared.Lower[1] != r.run+"/fuse/view/"+m.Key {
		t.Errorf("mounted %+v of %+v", m.Overlay, m)
	}
	must(t, r.Put("c"))
	must(t, os.RemoveAll(r.run+"/fuse"))
}
