// Package testutil is what the tests of several packages share: the reference repositories, servers for them, and the
// facilities of the machine a test needs.
package testutil

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"
)

// Root is the folder of the module's source tree.
func Root(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("testutil: the source tree's place is not known (built with -trimpath?)")
	}
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Stride is how far the points are apart that a test tries which is for every one of many: 1, or with Go's -short 5.
func Stride() int {
	if testing.Short() {
		return 5
	}
	return 1
}

// Data is the path of a file below the module's testdata folder.
func Data(t testing.TB, elem ...string) string {
	t.Helper()
	return filepath.Join(append([]string{Root(t), "testdata"}, elem...)...)
}

// PublicKey is the path of the master public key of a reference repository.
func PublicKey(t testing.TB, fqrn string) string { return Data(t, "keys", fqrn+".pub") }

// references are the reference repositories that the process has read: an fstest.MapFS by name.
var references sync.Map

// Reference is a reference repository, .cvmfspublished and data/, in memory. All tests of the process share it: nothing
// of it may be changed.
func Reference(t testing.TB, fqrn string) fstest.MapFS {
	t.Helper()
	if known, ok := references.Load(fqrn); ok {
		return known.(fstest.MapFS)
	}
	files, now := fstest.MapFS{}, time.Now()
	for name, b := range Files(t, Data(t, "repositories", fqrn+".tar.gz")) {
		files[strings.TrimPrefix(name, fqrn+"/")] = &fstest.MapFile{Data: b, Mode: 0o644, ModTime: now}
	}
	references.Store(fqrn, files)
	return files
}

// Repository unpacks a reference repository and gives the folder that holds .cvmfspublished and data/. The copy is the
// test's own, to be tampered with at will: 1500 files, where [Reference] writes none. Its parent serves as the folder
// above several repositories.
func Repository(t testing.TB, fqrn string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), fqrn)
	for name, f := range Reference(t, fqrn) {
		write(t, dir, name, f.Data)
	}
	return dir
}

// Unpack extracts the regular files of a .tar.gz of ours.
func Unpack(t testing.TB, archive, dir string) {
	t.Helper()
	for name, b := range Files(t, archive) {
		write(t, dir, name, b)
	}
}

// write writes a file below a folder, whose own folder it makes if there is none.
func write(t testing.TB, dir, name string, b []byte) {
	t.Helper()
	name = filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Files reads the regular files of a .tar.gz of ours, by name.
func Files(t testing.TB, archive string) map[string][]byte {
	t.Helper()
	z, closeAll := gunzip(t, archive)
	defer closeAll()
	files := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err == nil && h.Typeflag == tar.TypeReg {
			files[path.Clean(h.Name)], err = io.ReadAll(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Expected is what the reference client shows of a reference repository: one JSON line an entry, sorted by path.
func Expected(t testing.TB, fqrn string) string {
	t.Helper()
	z, closeAll := gunzip(t, Data(t, "expected", fqrn+".jsonl.gz"))
	defer closeAll()
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func gunzip(t testing.TB, path string) (r io.Reader, closeAll func()) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	return z, func() { f.Close() } // only read from
}

// Serve serves the folder dir (one repository) as URL/cvmfs/<name of dir> and gives that address.
func Serve(t testing.TB, dir string) string {
	t.Helper()
	return serve(t, filepath.Base(dir), os.DirFS(dir))
}

// ServeReference serves a reference repository as URL/cvmfs/FQRN and gives that address.
func ServeReference(t testing.TB, fqrn string) string {
	t.Helper()
	return serve(t, fqrn, Reference(t, fqrn))
}

func serve(t testing.TB, fqrn string, files fs.FS) string {
	t.Helper()
	prefix := "/cvmfs/" + fqrn + "/"
	s := httptest.NewServer(http.StripPrefix(prefix, http.FileServerFS(files)))
	t.Cleanup(s.Close)
	return s.URL + prefix[:len(prefix)-1]
}

// Configure makes a folder of client configuration, as /etc/cvmfs, with reference repositories and the addresses they
// are served at.
func Configure(t testing.TB, urls map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "default.local", []byte("CVMFS_HTTP_PROXY=DIRECT\nCVMFS_TIMEOUT_DIRECT=2\nCVMFS_MAX_RETRIES=0\n"))
	for fqrn, url := range urls {
		write(t, dir, "config.d/"+fqrn+".conf",
			[]byte("CVMFS_SERVER_URL="+url+"\nCVMFS_PUBLIC_KEY="+PublicKey(t, fqrn)+"\n"))
	}
	return dir
}

// NeedRoot skips a test that mounts where it can't.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts file systems")
	}
}

// SmallDisk mounts an empty file system of a size, as in "8m", for the time of the test, and gives its folder. It needs
// root.
func SmallDisk(t testing.TB, size string) string {
	t.Helper()
	NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}
