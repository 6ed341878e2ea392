package images_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

const (
	imagesFQRN   = "images.example.org"
	featuresFQRN = "features.example.org"
)

// repositories serves reference repositories, each from a copy of the test's own.
func repositories(t *testing.T, fqrns ...string) *client.Repositories {
	t.Helper()
	urls := map[string]string{}
	for _, fqrn := range fqrns {
		urls[fqrn] = testutil.ServeReference(t, fqrn)
	}
	return configured(t, urls)
}

func configured(t *testing.T, urls map[string]string) *client.Repositories {
	t.Helper()
	return client.NewRepositories(config.Folder{Dir: testutil.Configure(t, urls)}, nil,
		client.Options{Dir: t.TempDir()})
}

func composer(t *testing.T, cfg images.Config) (*images.Composer, *objects.Index) {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Index = objects.NewIndex([16]byte{1})
	c, err := images.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, cfg.Index
}

// tiny is the descriptor of the reference thin image.
func tiny(t *testing.T) *thin.Descriptor {
	t.Helper()
	b, err := os.ReadFile(testutil.Data(t, "images", thin.FileName))
	if err != nil {
		t.Fatal(err)
	}
	d, err := thin.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// folderOf is a chain of one thin layer: a folder of the features repository.
func folderOf(path string) []images.Layer {
	return []images.Layer{{Thin: &thin.Descriptor{Layers: []thin.Layer{{Digest: "0", FQRN: featuresFQRN, Path: path}}}}}
}

// mount mounts an image for the test.
func mount(t *testing.T, image *images.Image) string {
	t.Helper()
	return testutil.MountEROFS(t, image.Meta, "noacl")
}

// show lists a mounted image as the reference listings do, and each file's redirect.
func show(t *testing.T, dir string) ([]entry, map[string]string) {
	t.Helper()
	var entries []entry
	redirects := map[string]string{}
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // overlayfs lists whiteouts that stand in a folder of one layer only, and then doesn't find them
		}
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(name, &st); errors.Is(err, fs.ErrNotExist) {
			return nil // the same
		} else if err != nil {
			return err
		}
		path := strings.TrimPrefix(name, dir)
		e := entry{
			Path: path, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint64(st.Nlink), Mtime: st.Mtim.Sec,
			Xattrs: map[string]string{},
		}
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			e.Size = st.Size
		case syscall.S_IFLNK:
			e.Target, err = os.Readlink(name)
		}
		if st.Mode&syscall.S_IFMT != syscall.S_IFDIR && st.Nlink > 1 {
			if inodes[st.Ino] == "" {
				inodes[st.Ino] = path
			}
			e.Same = inodes[st.Ino]
		}
		for _, x := range listXattrs(t, name) {
			switch {
			case x.name == "trusted.overlay.redirect":
				redirects[path] = x.value
			case x.name != "trusted.overlay.metacopy":
				e.Xattrs[x.name] = hex.EncodeToString([]byte(x.value))
			}
		}
		entries = append(entries, e)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Path < entries[j].Path })
	return entries, redirects
}

type xattr struct{ name, value string }

func listXattrs(t *testing.T, path string) []xattr {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(err)
	}
	var out []xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, xattr{name, string(value[:n])})
	}
	return out
}

type entry struct {
	Path         string
	Mode         uint32
	UID, GID     uint32
	Nlink        uint64
	Mtime        int64
	Size         int64
	Target, Same string
	Xattrs       map[string]string
}

// reference reads what the reference client shows below a folder.
func reference(t *testing.T, fqrn, folder string) []entry {
	t.Helper()
	types := map[string]uint32{
		"dir": syscall.S_IFDIR, "file": syscall.S_IFREG, "symlink": syscall.S_IFLNK,
		"fifo": syscall.S_IFIFO,
	}
	var entries []entry
	for line := range strings.SplitSeq(strings.TrimSuffix(testutil.Expected(t, fqrn), "\n"), "\n") {
		var l struct {
			Path, Type, Mode, Target string
			Same                     string `json:"same_inode_as"`
			UID, GID                 uint32
			Nlink                    uint64
			Mtime, Size              int64
			Xattrs                   map[string]string `json:"xattrs_hex"`
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		path, ok := strings.CutPrefix(l.Path, folder)
		if !ok || path != "" && path[0] != '/' {
			continue
		}
		var mode uint32
		fmt.Sscanf(l.Mode, "%o", &mode)
		e := entry{
			path, mode | types[l.Type], l.UID, l.GID, l.Nlink, l.Mtime, l.Size, l.Target,
			strings.TrimPrefix(l.Same, folder), l.Xattrs,
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		entries = append(entries, e)
	}
	return entries
}

func TestComposedFolderIsWhatTheReferenceClientShows(t *testing.T) {
	c, index := composer(t, images.Config{Repositories: repositories(t, featuresFQRN)})
	for _, folder := range []string{
		"/big", "/dir", "/empty-dir", "/hard", "/links", "/many", "/names", "/nested", "/owner", "/small", "/special",
		"/time", "/xattr",
	} {
		t.Run(folder[1:], func(t *testing.T) {
			image, err := c.Compose(t.Context(), folderOf(folder))
			if err != nil {
				t.Fatal(err)
			}
			got, redirects := show(t, mount(t, image))
			var want []entry
			for _, e := range reference(t, featuresFQRN, folder) {
				switch {
				case e.Path == "":
					e.Mode, e.UID, e.GID, e.Xattrs = syscall.S_IFDIR|0o755, 0, 0, map[string]string{}
				case filepath.Base(e.Path) == ".cvmfscatalog":
					continue
				case e.Path == "/variant":
					e.Target = "$(CVMFS_TEST_VARIANT:-fallback)/bin"
				}
				want = append(want, e)
				if e.Size > 0 {
					checkRedirect(t, index, e, redirects[e.Path])
				} else if redirects[e.Path] != "" {
					t.Errorf("%s has no content but a redirect", e.Path)
				}
			}
			for i := range got {
				if strings.HasPrefix(got[i].Target, "$(") {
					got[i].Target = "$(CVMFS_TEST_VARIANT:-fallback)/bin"
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("composed image (-reference +got):\n%s", diff)
			}
		})
	}
}

// checkRedirect finds the file's object in the index.
func checkRedirect(t *testing.T, index *objects.Index, e entry, redirect string) {
	t.Helper()
	path, ok := strings.CutPrefix(redirect, "/objects/")
	ref, found := index.Lookup(filepath.Base(path))
	if !ok || !found || ref.Path() != path || ref.Size() != e.Size {
		t.Errorf("%s of %d bytes is redirected to %q: found %v", e.Path, e.Size, redirect, found)
	}
}

// What a container of the reference thin image sees, and how that differs from the layers as published.
func TestComposeAppliesTheWhiteoutsOfPublishedLayers(t *testing.T) {
	c, _ := composer(t, images.Config{Repositories: repositories(t, imagesFQRN)})
	image, err := c.Compose(t.Context(), []images.Layer{{Thin: tiny(t)}})
	if err != nil {
		t.Fatal(err)
	}
	entries, _ := show(t, mount(t, image))
	var paths []string
	for _, e := range entries {
		paths = append(paths, e.Path)
		if e.Target != "" && e.Mode&0o777 != 0o777 {
			t.Errorf("symbolic link %s has mode %o", e.Path, e.Mode)
		}
	}
	want := []string{
		"", "/bin", "/bin/hello", "/bin/hi", "/bin/suid-hello", "/data", "/data/a.txt", "/data/b-again.txt",
		"/data/b.txt", "/data/blob",
		"/data/owned", "/data/ünïcode-名前", "/etc", "/etc/os-release", "/etc/passwd", "/opt", "/opt/old", "/opt/old/z",
		"/srv",
		"/srv/dir-becomes-file", "/srv/file-becomes-dir", "/srv/file-becomes-dir/inside", "/tmp",
	}
	if diff := cmp.Diff(want, paths); diff != "" {
		t.Errorf("merged tree (-want +got):\n%s", diff)
	}
	if len(image.Layers) != 3 || image.Layers[0].Revision == 0 || image.Layers[0].Certificate == "" {
		t.Errorf("the image doesn't record what it was made of: %+v", image.Layers)
	}
}

func TestImagesAreSharedAndOutliveTheComposer(t *testing.T) {
	dir, repos := t.TempDir(), repositories(t, imagesFQRN)
	c, _ := composer(t, images.Config{Dir: dir, Repositories: repos})
	chain := []images.Layer{{Thin: tiny(t)}}
	var wg sync.WaitGroup
	keys := make([]string, 8)
	for i := range keys {
		wg.Go(func() {
			image, err := c.Compose(t.Context(), chain)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = image.Key
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatalf("one chain gave several images: %v", keys)
		}
	}
	// Half-written images of a life that was cut short, and a new life.
	for _, name := range []string{".new-123", strings.Repeat("0", 64)} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	again, index := composer(t, images.Config{Dir: dir, Repositories: repos})
	if found, err := again.Sweep(); err != nil || !slices.Equal(found, keys[:1]) {
		t.Errorf("the sweep found %v, %v, want %v", found, err, keys[:1])
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("the folder holds %v, want the one image", entries)
	}
	image, err := again.Image(keys[0])
	if err != nil {
		t.Fatal(err)
	}
	table, err := objects.OpenTable(filepath.Join(dir, image.Key, "objects"))
	if err != nil {
		t.Fatal(err)
	}
	object, _ := table.At(0)
	if _, ok := index.Lookup(object.Name()); !ok || table.Len() != image.Objects {
		t.Errorf("object %s of %d is not in the index after a restart", object.Name(), image.Objects)
	}
	if err := again.Remove(image.Key); err != nil {
		t.Fatal(err)
	}
	if _, ok := index.Lookup(object.Name()); ok {
		t.Error("a removed image's objects are still in the index")
	}
	if _, err := again.Image(image.Key); !errors.Is(err, images.ErrNoImage) {
		t.Errorf("a removed image gives %v", err)
	}
}

// After a change of the option images of both kinds stand side by side, and neither is taken for the other.
func TestIsolatedImagesAreOfTheirOwnKind(t *testing.T) {
	dir, repos := t.TempDir(), repositories(t, imagesFQRN, featuresFQRN)
	chain := []images.Layer{{Thin: tiny(t)}}
	shared, _ := composer(t, images.Config{Dir: dir, Repositories: repos})
	before, err := shared.Compose(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	isolated, index := composer(t, images.Config{Dir: dir, Repositories: repos, Isolate: true})
	after, err := isolated.Compose(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	if before.Key == after.Key || before.Isolated || !after.Isolated {
		t.Errorf("before %+v, after %+v", before, after)
	}
	table := after.Table
	for i := range table.Len() {
		o, repo := table.At(i)
		if _, ok := index.Lookup(o.Name()); ok {
			t.Errorf("%s is shared", o.Name())
		}
		ref, ok := index.Lookup(filepath.Base(o.IsolatedPath(repo)))
		if !ok || ref.Repo() != imagesFQRN {
			t.Fatalf("%s isn't in the index", o.IsolatedPath(repo))
		}
		if name, err := isolated.Find(t.Context(), after.Key, ref); err != nil || name == "" {
			t.Errorf("no file of the image has %s: %v", ref.Path(), err)
		}
	}
	// The older image stays in use, with its objects as they were.
	if _, err := isolated.Image(before.Key); err != nil {
		t.Error(err)
	}
	o, _ := table.At(0)
	if _, ok := index.Lookup(o.Name()); !ok {
		t.Error("an image of before lacks its objects")
	}
}

func TestComposeMergesOrdinaryLayersBelow(t *testing.T) {
	testutil.NeedRoot(t)
	diff := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(diff, "below"), []byte("below"), 0o640))
	must(os.Link(filepath.Join(diff, "below"), filepath.Join(diff, "below-too")))
	must(os.Chown(filepath.Join(diff, "below"), 7, 8))
	must(os.Mkdir(filepath.Join(diff, "data"), 0o700))
	must(os.WriteFile(filepath.Join(diff, "data", "c.txt"), []byte("removed by the thin layer"), 0o600))
	must(os.WriteFile(filepath.Join(diff, "data", "kept"), []byte("kept"), 0o600))
	must(os.WriteFile(filepath.Join(diff, "empty"), nil, 0o600))
	c, _ := composer(t, images.Config{Repositories: repositories(t, imagesFQRN)})
	image, err := c.Compose(t.Context(), []images.Layer{{ID: "abc", Diff: diff}, {Thin: tiny(t)}})
	must(err)
	entries, redirects := show(t, mount(t, image))
	by := map[string]entry{}
	for _, e := range entries {
		by[e.Path] = e
	}
	if e := by["/below"]; e.UID != 7 || e.GID != 8 || e.Mode&0o7777 != 0o640 || e.Size != 5 ||
		by["/below-too"].Same != "/below" {
		t.Errorf("a file of the ordinary layer became %+v and %+v", e, by["/below-too"])
	}
	if _, there := by["/data/c.txt"]; there {
		t.Error("the thin layer's whiteout had no effect on the ordinary layer")
	}
	want := map[string]string{
		"/below": "/graph/abc/diff/below", "/data/kept": "/graph/abc/diff/data/kept",
		"/empty": "",
	}
	for path, redirect := range want {
		if redirects[path] != redirect {
			t.Errorf("%s is redirected to %q, want %q", path, redirects[path], redirect)
		}
	}
}

func TestOwnersAreShifted(t *testing.T) {
	testutil.NeedRoot(t) // before anything is published
	ids := user.IdentityMapping{
		UIDMaps: []user.IDMap{{ID: 0, ParentID: 100000, Count: 65536}},
		GIDMaps: []user.IDMap{{ID: 0, ParentID: 200000, Count: 65536}},
	}
	repos := repositories(t, featuresFQRN)
	c, _ := composer(t, images.Config{Repositories: repos, IDs: ids})
	image, err := c.Compose(t.Context(), folderOf("/owner"))
	if err != nil {
		t.Fatal(err)
	}
	entries, _ := show(t, mount(t, image))
	for _, e := range entries {
		switch e.Path {
		case "", "/sticky":
			if e.UID != 100000 || e.GID != 200000 {
				t.Errorf("%q belongs to %d:%d", e.Path, e.UID, e.GID)
			}
		case "/by-1000":
			if e.UID != 101000 || e.GID != 201000 {
				t.Errorf("%q belongs to %d:%d", e.Path, e.UID, e.GID)
			}
		}
	}
	ids.UIDMaps[0].Count = 100
	c, _ = composer(t, images.Config{Repositories: repos, IDs: ids})
	if _, err := c.Compose(t.Context(), folderOf("/owner")); err == nil ||
		!strings.Contains(err.Error(), "/etc/subuid") {
		t.Errorf("an owner outside the ranges gives %v", err)
	}
}

func TestComposeSaysWhatIsWrong(t *testing.T) {
	repos := repositories(t, imagesFQRN)
	c, _ := composer(t, images.Config{Repositories: repos})
	chain := func(fqrn, path string) []images.Layer {
		return []images.Layer{{Thin: &thin.Descriptor{Layers: []thin.Layer{{Digest: "0", FQRN: fqrn, Path: path}}}}}
	}
	for _, x := range []struct{ fqrn, path, want string }{
		{imagesFQRN, "/layers/absent", "not in revision"},
		{imagesFQRN, "/layers/" + tiny(t).Layers[0].Digest + "/bin/hello", "no folder"},
		{"other.example.org", "/layers/x", "other.example.org"},
	} {
		_, err := c.Compose(t.Context(), chain(x.fqrn, x.path))
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s%s: %v, want an error with %q", x.fqrn, x.path, err, x.want)
		}
	}
}

func TestComposeTakesNothingUnverified(t *testing.T) {
	dir := testutil.Repository(t, imagesFQRN)
	gone := "http://127.0.0.1:1/cvmfs/" + imagesFQRN
	c, _ := composer(t, images.Config{Repositories: configured(t, map[string]string{imagesFQRN: gone})})
	if _, err := c.Compose(t.Context(), []images.Layer{{Thin: tiny(t)}}); !errors.Is(err, fetch.ErrUnavailable) {
		t.Errorf("with no server: %v, want ErrUnavailable", err)
	}
	// A tampered nested catalog: no layer is shown of which not everything is verified.
	tamper(t, dir, "C")
	repos := configured(t, map[string]string{imagesFQRN: testutil.Serve(t, dir)})
	c, _ = composer(t, images.Config{Repositories: repos})
	if _, err := c.Compose(t.Context(), []images.Layer{{Thin: tiny(t)}}); !errors.Is(err, fetch.ErrBadData) {
		t.Errorf("with tampered catalogs: %v, want ErrBadData", err)
	}
}

// tamper flips a byte in all objects with a suffix.
func tamper(t *testing.T, dir, suffix string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "data"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, suffix) {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		b[len(b)/2] ^= 1
		return os.WriteFile(name, b, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestComposerThatIsReplacedLetsGoOfItsObjects(t *testing.T) {
	repos, dir := repositories(t, imagesFQRN), t.TempDir()
	former, index := composer(t, images.Config{Dir: dir, Repositories: repos})
	image, err := former.Compose(t.Context(), []images.Layer{{Thin: tiny(t)}})
	if err != nil {
		t.Fatal(err)
	}
	next, err := images.New(images.Config{Dir: dir, Repositories: repos, Index: index})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := next.Image(image.Key); err != nil {
		t.Fatal(err)
	}
	o, _ := image.Table.At(0)
	former.Close()
	if _, ok := index.Lookup(o.Name()); !ok {
		t.Error("an object of the composer in use has gone")
	}
	for name, err := range map[string]error{
		"Image":  second(former.Image(image.Key)),
		"Remove": former.Remove(image.Key),
	} {
		if !errors.Is(err, images.ErrClosed) {
			t.Errorf("%s of the former: %v", name, err)
		}
	}
	next.Close()
	if _, ok := index.Lookup(o.Name()); ok {
		t.Error("an object is left in the index")
	}
}

func second[T any](_ T, err error) error { return err }
