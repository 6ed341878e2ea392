package publish

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/hash"
)

const testFQRN = "publish.example.org"

// smallChunks let tests have chunked files of a few thousand bytes.
func smallChunks(s Settings) Settings {
	s.FQRN, s.MinChunk, s.AvgChunk, s.MaxChunk = testFQRN, 4096, 8192, 16384
	return s
}

// keys is a folder whose keys the tests' repositories share: making them takes a second.
var keys string

func TestMain(m *testing.M) {
	if dir := os.Getenv(publisherEnv); dir != "" {
		publishForever(dir)
	}
	var err error
	if keys, err = os.MkdirTemp("", "publish-keys-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(keys)
	os.Exit(code)
}

// newRepo makes an empty repository.
func newRepo(t testing.TB, s Settings) *Repository {
	t.Helper()
	return newRepoIn(t, t.TempDir(), s)
}

func newRepoIn(t testing.TB, parent string, s Settings) *Repository {
	t.Helper()
	dir := filepath.Join(parent, "repo")
	s.Keys = keys
	if err := Create(t.Context(), dir, s, Options{}); err != nil {
		t.Fatal(err)
	}
	r, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// begin begins a transaction that ends with the test at the latest.
func begin(t testing.TB, r *Repository) *Transaction {
	t.Helper()
	tx, err := r.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Abort() })
	return tx
}

func commit(t testing.TB, tx *Transaction) *Summary {
	t.Helper()
	s, err := tx.Commit(context.Background(), CommitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// reader is our client, reading the repository over HTTP, with an empty cache.
func reader(t testing.TB, r *Repository) *client.Revision {
	t.Helper()
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(r.Dir(), "www"))))
	t.Cleanup(server.Close)
	return revisionAt(t, r, server.URL+"/cvmfs/"+r.FQRN(), t.TempDir())
}

func revisionAt(t testing.TB, r *Repository, url, dir string) *client.Revision {
	t.Helper()
	c, err := client.Open(&config.Config{
		FQRN: r.FQRN(), Servers: []string{url}, ProxyGroups: [][]string{{config.Direct}}, PublicKeys: []string{r.key(".pub")},
	}, client.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	revision, err := c.Newest(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

// seen is an entry as a reader sees it.
type seen struct {
	Mode     uint32
	UID, GID uint32
	Size     int64
	Rdev     uint64
	Mtime    int64
	MtimeN   int32
	Target   string
	Xattrs   string
	Content  string // digest of a regular file's bytes
	Nlink    uint32 // of files
}

// readAll reads every entry below a path, all content included.
func readAll(t testing.TB, v *client.Revision, below string) map[string]seen {
	t.Helper()
	all := map[string]seen{}
	err := v.Walk(context.Background(), below, func(n *client.Node) error {
		s := seen{
			Mode: n.Mode, UID: n.UID, GID: n.GID, Size: n.Size, Rdev: n.Rdev, Mtime: n.Mtime, MtimeN: n.MtimeN,
			Target: n.Target,
			Xattrs: xattrText(n.Xattrs), Nlink: n.Nlink,
		}
		if n.IsRegular() {
			f, err := v.Open(context.Background(), n.Entry)
			if err != nil {
				return fmt.Errorf("%s: %w", n.Path, err)
			}
			content, err := io.ReadAll(f)
			if err = errors.Join(err, f.Close()); err != nil {
				return fmt.Errorf("%s: %w", n.Path, err)
			}
			s.Content = hash.SHA1.Digest(content).Hex()
		}
		if n.IsDir() {
			s.Nlink, s.Size = 0, 0
		}
		all[strings.TrimPrefix(strings.TrimPrefix(n.Path, below), "/")] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func xattrText(attrs []catalog.Xattr) string {
	var b strings.Builder
	for _, a := range attrs {
		fmt.Fprintf(&b, "%q=%q ", a.Name, a.Value)
	}
	return b.String()
}

// item is an entry of an archive to be made, with its content.
type item struct {
	tar.Header
	content string
}

// at is a time with nanoseconds.
var at = time.Unix(1_700_000_000, 123_456_789)

func file644(name, content string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: at}, content}
}

func folder755(name string) item {
	return item{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: at}, ""}
}

func hardLink(name, to string) item {
	return item{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Mode: 0o644, ModTime: at}, ""}
}

// pack makes an archive.
func pack(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := packTo(&b, items); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packTo(to io.Writer, items []item) error {
	w := tar.NewWriter(to)
	for _, i := range items {
		h := i.Header
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(i.content))
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := io.WriteString(w, i.content); err != nil && h.Typeflag == tar.TypeReg {
			return err
		}
	}
	return w.Close()
}

// expect is the model: what a reader must see of an archive without hard links, surprises in its order, or missing
// folders.
func expect(items []item) map[string]seen {
	all := map[string]seen{}
	for _, i := range items {
		s := seen{
			Mode: uint32(i.Mode), UID: uint32(i.Uid), GID: uint32(i.Gid), Mtime: i.ModTime.Unix(),
			MtimeN: int32(i.ModTime.Nanosecond()), Target: i.Linkname, Nlink: 1,
		}
		if s.Mtime < 0 { // no engine sets it
			s.Mtime, s.MtimeN = 0, 0
		}
		switch i.Typeflag {
		case tar.TypeReg:
			s.Mode |= 0o100000
			s.Size = int64(len(i.content))
			s.Content = hash.SHA1.Digest([]byte(i.content)).Hex()
		case tar.TypeDir:
			s.Mode |= 0o040000
			s.Nlink = 0
		case tar.TypeSymlink:
			s.Mode |= 0o120000
			s.Size = int64(len(i.Linkname))
		case tar.TypeChar:
			s.Mode |= 0o020000
			s.Rdev = uint64(i.Devminor&0xff | i.Devmajor<<8 | (i.Devminor&^0xff)<<12)
		case tar.TypeBlock:
			s.Mode |= 0o060000
			s.Rdev = uint64(i.Devminor&0xff | i.Devmajor<<8 | (i.Devminor&^0xff)<<12)
		case tar.TypeFifo:
			s.Mode |= 0o010000
		}
		var attrs []catalog.Xattr
		for k, v := range i.PAXRecords {
			attrs = append(attrs, catalog.Xattr{Name: strings.TrimPrefix(k, "SCHILY.xattr."), Value: []byte(v)})
		}
		slices.SortFunc(attrs, func(a, b catalog.Xattr) int { return strings.Compare(a.Name, b.Name) })
		s.Xattrs = xattrText(attrs)
		all[strings.Trim(i.Name, "/")] = s
	}
	return all
}

// everything is one of each kind.
func everything() []item {
	long := strings.Repeat("long name ", 20)
	return []item{
		folder755("bin/"),
		{tar.Header{
			Typeflag: tar.TypeReg, Name: "bin/sudo", Mode: 0o4755, Uid: 0, Gid: 27, ModTime: at,
			PAXRecords: map[string]string{
				"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00", "SCHILY.xattr.user.empty": "",
			},
		}, "#!sudo"},
		{tar.Header{
			Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777, Uid: 4_000_000_000, Gid: 4_294_967_294,
			ModTime: time.Unix(-5, 1),
		}, ""},
		file644("bin/empty", ""),
		file644("bin/exactly", strings.Repeat("x", 4096)),
		file644("bin/one more", strings.Repeat("x", 4097)),
		file644("bin/chunked", string(sample(100_000))),
		file644("bin/zeros", string(make([]byte, 65_536))),
		file644("bin/"+long, "long"),
		file644("bin/\xff\xfe", "no UTF-8"),
		file644("bin/.wh.gone", ""),
		file644("bin/.wh..wh..opq", ""),
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "usr/lib", Mode: 0o777, ModTime: at}, ""},
		{tar.Header{
			Typeflag: tar.TypeSymlink, Name: "bin/far", Linkname: strings.Repeat("/far", 1000), Mode: 0o777,
			ModTime: at,
		}, ""},
		folder755("dev/"),
		{tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: at}, ""},
		{tar.Header{Typeflag: tar.TypeChar, Name: "dev/gone", Mode: 0, ModTime: at}, ""},
		{tar.Header{
			Typeflag: tar.TypeBlock, Name: "dev/disk", Mode: 0o660, Devmajor: 259, Devminor: 70_000,
			ModTime: at,
		}, ""},
		{tar.Header{Typeflag: tar.TypeFifo, Name: "dev/pipe", Mode: 0o600, ModTime: at}, ""},
	}
}

func ingest(t testing.TB, tx *Transaction, path string, archive []byte) *Layer {
	t.Helper()
	l, err := tx.Ingest(context.Background(), path, bytes.NewReader(archive), LayerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLayerReadsBackEntryByEntry(t *testing.T) {
	for _, algorithm := range []string{"sha1", "shake128"} {
		for _, compression := range []string{"zlib", "none"} {
			t.Run(algorithm+" "+compression, func(t *testing.T) {
				r := newRepo(t, smallChunks(Settings{Algorithm: algorithm, Compression: compression}))
				tx := begin(t, r)
				layer := ingest(t, tx, "/layers/one", pack(t, everything()...))
				if diff := cmp.Diff(Leftover{}, layer.Leftover); diff != "" {
					t.Errorf("leftover (-want +got):\n%s", diff)
				}
				if s := commit(t, tx); !s.Changed || s.Revision != 1 {
					t.Errorf("summary %+v", s)
				}
				got := readAll(t, reader(t, r), "/layers/one")
				want := expect(everything())
				newest := seen{Mode: 0o040755, Mtime: at.Unix(), MtimeN: int32(at.Nanosecond())}
				want[""] = newest
				want[".cvmfscatalog"] = seen{
					Mode: 0o100644, Mtime: newest.Mtime, MtimeN: newest.MtimeN, Nlink: 1,
					Content: hash.SHA1.Digest(nil).Hex(),
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		}
	}
}
