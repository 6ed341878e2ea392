package erofs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/erofs"
	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/test/testutil"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write writes a file and the folders above it.
func write(t *testing.T, name, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o755))
	must(t, os.WriteFile(name, []byte(text), 0o600))
}

// mountOverlay mounts an overlay until the test's end.
func mountOverlay(t *testing.T, k *overlayfs.Kernel, s *overlayfs.Spec) string {
	t.Helper()
	dir := t.TempDir()
	must(t, k.Mount(dir, s))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

func TestOverlayShowsContentOfDataOnlyLayers(t *testing.T) {
	const now = 1_700_000_000
	content := strings.Repeat("content ", 5000)
	store := t.TempDir()
	write(t, filepath.Join(store, "objects/ab/cdef.z.40000"), content)
	write(t, filepath.Join(store, "objects/12/34.r.3"), "abc")
	file := func(mode uint32, size int, redirect string) *erofs.Node {
		return &erofs.Node{Mode: unix.S_IFREG | mode, Mtime: now, Size: int64(size), Xattrs: []erofs.Xattr{
			{Name: overlayfs.XattrMetacopy}, {Name: overlayfs.XattrRedirect, Value: redirect},
		}}
	}
	folder := func(children ...erofs.Child) *erofs.Node {
		return &erofs.Node{Mode: unix.S_IFDIR | 0o755, Mtime: now, Children: children}
	}
	big, small := file(0o644, len(content), "/objects/ab/cdef.z.40000"), file(0o4755, 3, "/objects/12/34.r.3")
	small.UID = 70000
	root := folder(
		erofs.Child{Name: "big", Node: big}, erofs.Child{Name: "hard", Node: big},
		erofs.Child{Name: "empty", Node: &erofs.Node{Mode: unix.S_IFREG | 0o644, Mtime: now}},
		erofs.Child{Name: "link", Node: &erofs.Node{Mode: unix.S_IFLNK | 0o777, Mtime: now, Target: "usr/small"}},
		erofs.Child{Name: "usr", Node: folder(erofs.Child{Name: "small", Node: small})},
	)
	name := filepath.Join(t.TempDir(), "image.erofs")
	f, err := os.Create(name)
	must(t, err)
	_, err = erofs.Write(f, root, erofs.Options{})
	must(t, err)
	must(t, f.Close())
	image := testutil.MountEROFS(t, name, "noacl")

	k := &overlayfs.Kernel{}
	support, err := k.Probe(t.TempDir())
	must(t, err)
	spec := &overlayfs.Spec{Lower: []string{image}, Data: []string{store}}
	if way, _ := support.Way(); way != overlayfs.ByOne {
		spec.Metacopy = true
		spec = &overlayfs.Spec{Lower: []string{mountOverlay(t, k, spec)}}
	}
	base := t.TempDir()
	above := filepath.Join(base, "above")
	write(t, filepath.Join(above, "usr/ordinary"), "ordinary")
	spec.Lower = append([]string{above}, spec.Lower...)
	spec.Upper, spec.Work = filepath.Join(base, "upper"), filepath.Join(base, "work")
	must(t, os.Mkdir(spec.Upper, 0o755))
	must(t, os.Mkdir(spec.Work, 0o755))
	merged := mountOverlay(t, k, spec)

	readAll := func() {
		t.Helper()
		for name, text := range map[string]string{
			"big": content, "hard": content, "empty": "", "link": "abc", "usr/small": "abc", "usr/ordinary": "ordinary",
		} {
			if b, err := os.ReadFile(filepath.Join(merged, name)); err != nil || string(b) != text {
				t.Errorf("%s: %d bytes, %v; want %d bytes", name, len(b), err, len(text))
			}
		}
	}
	readAll()
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(merged, "usr/small"), &st))
	if st.Mode != small.Mode || st.Uid != small.UID || st.Size != 3 || st.Mtim.Sec != now {
		t.Errorf("usr/small: %+v; want the attributes of the image", st)
	}
	must(t, os.Chmod(filepath.Join(merged, "big"), 0o600))
	readAll()
	if b, err := os.ReadFile(filepath.Join(spec.Upper, "big")); err != nil || string(b) != content {
		t.Errorf("copied up: %d bytes, %v; want the whole content", len(b), err)
	}
}
