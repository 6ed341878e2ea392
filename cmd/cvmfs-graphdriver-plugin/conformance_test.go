package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/conformance"
	"cvmfs-graphdriver/driver/conformance/reference"
	"cvmfs-graphdriver/test/referenceimage"
	"cvmfs-graphdriver/test/testutil"
)

func TestConformance(t *testing.T) {
	forRungs(t, func(t *testing.T, r rung) {
		t.Parallel()
		conformance.Run(t, r.target(t, inMemory(t)))
	})
}

// inMemory returns a folder to keep layers in that doesn't wait for a disk, as other tests sync to one: ext4 in a file
// in memory.
func inMemory(t *testing.T) string {
	t.Helper()
	testutil.NeedRoot(t)
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		return t.TempDir()
	}
	memory, dir := t.TempDir(), t.TempDir()
	must(t, unix.Mount("tmpfs", memory, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(memory, unix.MNT_DETACH)) })
	disk := filepath.Join(memory, "disk")
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, 2<<30))
	for _, command := range [][]string{
		{mkfs, "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-N", "500000", disk},
		{"mount", "-o", "loop,noinit_itable", disk, dir},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) }) // frees the loop device, too
	return dir
}

// target starts the plugin as a target of the conformance suite, on a folder for its layers.
func (r rung) target(t *testing.T, mnt string) conformance.Target {
	t.Helper()
	urls := map[string]string{}
	for _, name := range []string{fqrn, referenceimage.Second} {
		urls[name] = testutil.ServeReference(t, name)
	}
	start := func() *instance { return startWith(t, mnt, urls, "CVMFS_WITHOUT="+r.without) }
	p := start()
	p.init(r, object{}) // skips the rungs this kernel hasn't got
	return conformance.Target{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", p.root+socket)
		},
		Path: func(dir string) string { return p.root + dir },
		// Of FUSE the kernel knows no name that would last (a UUID), and an overlay gives no handles of its files to
		// the one on top of it.
		InodesChange: testutil.ViewWords(p.view()) != "erofs",
		Options:      []string{"cvmfs.view=" + r.view},
		Thin:         referenceimage.Layers(t),
		Restart: func(testing.TB) {
			p.stop()
			p = start()
		},
		Kill: func(t testing.TB) { must(t, syscall.Kill(p.status().PID, syscall.SIGKILL)) },
	}
}

// Random work on the plugin gives what it gives on overlays mounted by hand, in every view.
func TestRandomSequencesOfLayerOperations(t *testing.T) {
	for _, r := range []rung{{view: "erofs"}, {view: "fuse"}, {"erofs", "metacopy=off"}} {
		t.Run(r.String(), func(t *testing.T) {
			conformance.Sequences(t, r.target(t, inMemory(t)), reference.Target(t), 40)
		})
	}
}
