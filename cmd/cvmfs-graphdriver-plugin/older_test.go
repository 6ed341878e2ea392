package main

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/older"
	"cvmfs-graphdriver/test/testutil"
)

// olderHost is a host that an older version has served, and its repository.
type olderHost struct {
	t        *testing.T
	commit   string
	data     string // the plugin's propagated mount
	config   string
	site     *testutil.Faulty
	expected map[string][]string
}

func newOlderHost(t *testing.T, commit string) *olderHost {
	t.Helper()
	testutil.NeedRoot(t)
	dir := t.TempDir()
	h := &olderHost{t: t, commit: commit, data: filepath.Join(dir, "data"), config: testutil.Configure(t, nil)}
	publisher := filepath.Join(dir, "publisher")
	must(t, older.Unpack(h.file("data.tar.gz"), h.data))
	must(t, older.Unpack(h.file("publisher.tar.gz"), publisher))
	must(t, json.NewDecoder(h.open("expected.json.gz")).Decode(&h.expected))
	h.site = testutil.NewFaulty(t, http.FileServer(http.Dir(filepath.Join(publisher, "www"))))
	must(t, os.Mkdir(filepath.Join(h.config, "config.d"), 0o755))
	must(t, os.WriteFile(filepath.Join(h.config, "config.d", older.FQRN+".conf"),
		[]byte("CVMFS_SERVER_URL="+h.site.URL+"/cvmfs/"+older.FQRN+"\nCVMFS_PUBLIC_KEY="+filepath.Join(publisher,
			"keys", older.FQRN+".pub")+"\n"), 0o644))
	return h
}

func (h *olderHost) file(name string) string { return testutil.Data(h.t, "older", h.commit, name) }

// open opens a compressed file.
func (h *olderHost) open(name string) io.Reader {
	h.t.Helper()
	f, err := os.Open(h.file(name))
	must(h.t, err)
	h.t.Cleanup(func() { f.Close() })
	z, err := gzip.NewReader(f)
	must(h.t, err)
	return z
}

// archives are those of the older version's images: of the ordinary one's layers, and of the thin one's.
func (h *olderHost) archives() map[string][]byte {
	h.t.Helper()
	archives := map[string][]byte{}
	add := func(open tarball.Opener, ids ...string) {
		image, err := tarball.Image(open, (*name.Tag)(nil))
		must(h.t, err)
		layers, err := image.Layers()
		must(h.t, err)
		if len(layers) != len(ids) {
			h.t.Fatalf("%d layers, want %v", len(layers), ids)
		}
		for n, l := range layers {
			r, err := l.Uncompressed()
			must(h.t, err)
			defer r.Close()
			archives[ids[n]], err = io.ReadAll(r)
			must(h.t, err)
		}
	}
	add(func() (io.ReadCloser, error) { return io.NopCloser(h.open("image.tar.gz")), nil }, "base", "top")
	add(func() (io.ReadCloser, error) { return os.Open(h.file("thin.tar")) }, "thin")
	return archives
}

// list describes what a layer shows while it is mounted.
func (p *instance) list(id string) []string {
	p.t.Helper()
	dir, _ := p.ok("Get", object{"ID": id})["Dir"].(string)
	lines, err := older.List(p.root + dir)
	must(p.t, err)
	p.ok("Put", object{"ID": id})
	return lines
}

// rootTime is the time of the root folder of a layer that an archive was unpacked to.
var rootTime = regexp.MustCompile(`^("/" .*) \d+\.\d+$`)

func withoutRootTime(lines []string) []string {
	lines = append([]string(nil), lines...)
	lines[0] = rootTime.ReplaceAllString(lines[0], "$1")
	return lines
}

// A host is upgraded: nothing that is on it is lost, or needs the network.
func TestWhatOlderVersionsWroteWorks(t *testing.T) {
	for _, commit := range older.Commits() {
		for _, view := range []string{"erofs", "fuse"} {
			t.Run(commit+"/"+view, func(t *testing.T) { upgrade(t, commit, rung{view: view}) })
		}
	}
}

func upgrade(t *testing.T, commit string, r rung) {
	h := newOlderHost(t, commit)
	p := startConfigured(t, h.data, h.config)
	h.site.Set(testutil.Fault{Refuse: true})
	p.init(r, object{})
	if s := p.status(); s.Store.Layers != len(older.Layers())+2*len(older.Containers()) || s.Store.Thin != 2 ||
		len(s.Store.Images) != 2 || len(s.Store.Mounts) != 0 {
		t.Errorf("status: %+v", s.Store)
	}
	for _, image := range older.Images() {
		for id, want := range map[string][]string{
			"c-" + image:           h.expected["c-"+image],
			"c-" + image + "-init": h.expected[image],
		} {
			if d := cmp.Diff(want, p.list(id)); d != "" {
				t.Errorf("%s: -then +now\n%s", id, d)
			}
		}
		if m, _ := p.ok("GetMetadata", object{"ID": "c-" + image})["Metadata"].(object); strings.Contains(image,
			"thin") && m["Repositories"] != older.FQRN+"@1" {
			t.Errorf("metadata of c-%s: %v", image, m)
		}
	}
	if d := p.ok("DiffSize", object{"ID": "top", "Parent": "base"}); d["Size"] == nil {
		t.Errorf("size of a layer: %v", d)
	}
	if said := p.said.lines("level=ERROR"); len(said) > 0 {
		t.Errorf("the plugin complains: %s", said)
	}

	// Images of the older version's making are pulled anew.
	h.site.Set()
	archives := h.archives()
	for _, l := range []older.Layer{{ID: "base"}, {ID: "top", Parent: "new-base"}, {ID: "thin"}} {
		if text := p.apply("new-"+l.ID, l.Parent, archives[l.ID]); text != "" {
			t.Fatalf("%s: %s", l.ID, text)
		}
	}
	for _, image := range []string{"top", "thin"} {
		p.container("n-"+image, "new-"+image)
		p.ok("Put", object{"ID": "n-" + image})
		if d := cmp.Diff(withoutRootTime(h.expected[image]), withoutRootTime(p.list("n-"+image))); d != "" {
			t.Errorf("%s, pulled anew: -then +now\n%s", image, d)
		}
	}
	h.removeAll(p)
}

// The engine goes on through the upgrade (live-restore), and with it the containers: what an older version noted of
// their mounts counts.
func TestContainersOfOlderVersionsLiveThroughAnUpgrade(t *testing.T) {
	for _, commit := range older.Commits() {
		t.Run(commit, func(t *testing.T) {
			h := newOlderHost(t, commit)
			noted := map[string][]byte{}
			const xattr = "trusted.cvmfs-graphdriver.open"
			for _, id := range older.Open() {
				noted[id] = make([]byte, 4096)
				n, err := unix.Lgetxattr(filepath.Join(h.data, "layers", id), xattr, noted[id])
				must(t, err)
				noted[id] = noted[id][:n]
			}
			m := newMachineOn(t, h.data, h.config)
			p := m.boot()
			p.erofs()
			for _, id := range older.Open() { // as the older version mounted them
				p.ok("Get", object{"ID": id})
			}
			p.kill()
			for _, id := range older.Open() {
				must(t, unix.Lsetxattr(filepath.Join(h.data, "layers", id), xattr, noted[id], 0))
			}
			h.site.Set(testutil.Fault{Refuse: true})

			p = m.boot() // the newer version, which no engine has initialised
			for _, id := range older.Open() {
				lines, err := older.List(p.root + rootDir + "/mnt/" + id)
				must(t, err)
				if d := cmp.Diff(h.expected[id], lines); d != "" {
					t.Errorf("%s, running: -then +now\n%s", id, d)
				}
			}
			if mounts := p.status().Store.Mounts; len(mounts) != len(older.Open()) {
				t.Errorf("mounts: %+v", mounts)
			}
			p.erofs() // the engine has been restarted
			for _, id := range older.Open() {
				if d := cmp.Diff(h.expected[id], p.list(id)); d != "" {
					t.Errorf("%s, after the engine's restart: -then +now\n%s", id, d)
				}
				p.ok("Put", object{"ID": id}) // that of the container which outlived the former engine
			}
			if mounts := p.status().Store.Mounts; len(mounts) != 0 {
				t.Errorf("left mounted: %+v", mounts)
			}
			h.removeAll(p)
		})
	}
}

// removeAll removes all layers, as engines do, topmost first, and looks at what is left.
func (h *olderHost) removeAll(p *instance) {
	h.t.Helper()
	var ids []string
	for _, prefix := range []string{"c-", "n-"} {
		for _, image := range older.Images() {
			ids = append(ids, prefix+image, prefix+image+"-init")
		}
	}
	ids = append(ids, "above", "mixed", "below", "thin", "top", "base", "new-thin", "new-top", "new-base")
	for _, id := range ids {
		p.ok("Remove", object{"ID": id})
	}
	for _, folder := range []string{"layers", "images", "mnt"} {
		if left, err := os.ReadDir(filepath.Join(h.data, folder)); err != nil || len(left) > 0 {
			h.t.Errorf("left in %s: %v, %v", folder, left, err)
		}
	}
}
