package node_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/node/nodetest"
	"cvmfs-graphdriver/pushback/receive"
	"cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/thin"
)

const pushToken = "a-token-of-a-node-0123456789"

// pushes is a node that pushes back to a service of its own, whose repository has an image of one layer.
type pushes struct {
	*testing.T
	*node.Node
	cfg        node.Config
	repository *publish.Repository
	served     sync.Map // paths that the repository's server was asked for
	base       *thin.Descriptor
	address    string // of the service
}

func newPushes(t *testing.T) *pushes {
	t.Helper()
	p := &pushes{T: t, repository: publishtest.New(t, publishtest.Small(publish.Settings{}))}
	p.publishBase()
	files := http.FileServer(http.Dir(filepath.Join(p.repository.Dir(), "www")))
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.served.Store(r.URL.Path, true)
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(site.Close)
	dir := t.TempDir()
	p.cfg = nodetest.Config(t, dir, nil)
	p.cfg.NewComposer, p.cfg.Configuration = nil, filepath.Join(dir, "etc")
	p.cfg.Defaults = func() ([]byte, error) { return nil, nil }
	p.cfg.PushBack = filepath.Join(dir, "push-back/config.json")
	p.write(p.cfg.Configuration+"/default.local", "CVMFS_HTTP_PROXY=DIRECT\nCVMFS_MAX_RETRIES=0\n")
	p.write(p.cfg.Configuration+"/config.d/"+publishtest.FQRN+".conf", fmt.Sprintf("CVMFS_SERVER_URL=%s/cvmfs/%s\n"+
		"CVMFS_PUBLIC_KEY=%s\n", site.URL, publishtest.FQRN, p.repository.MasterKeyFile()))
	p.serve(dir)
	p.settings("10s")
	p.open()
	t.Cleanup(func() {
		if err := errors.Join(p.UnmountImages(), p.Close()); err != nil {
			t.Error(err)
		}
	})
	p.image("image", "", p.base)
	return p
}

// publishBase publishes the layer of the image that containers run.
func (p *pushes) publishBase() {
	p.Helper()
	archive := publishtest.Pack(p.T, publishtest.File("old", "old"))
	sum := sha256.Sum256(archive)
	l := thin.Layer{Digest: hex.EncodeToString(sum[:]), FQRN: publishtest.FQRN}
	l.Path = "/layers/" + l.Digest
	tx := publishtest.Begin(p.T, p.repository)
	publishtest.Ingest(p.T, tx, l.Path, archive)
	publishtest.Commit(p.T, tx)
	p.base = &thin.Descriptor{Version: thin.Version, Origin: "registry.example.org/x:1", Layers: []thin.Layer{l}}
}

// open opens the node, as a start of its program does.
func (p *pushes) open() {
	p.Helper()
	var err error
	if p.Node, err = node.Open(p.cfg); err == nil {
		err = p.Configure(node.Settings{}, face{})
	}
	if err != nil {
		p.Fatal(err)
	}
}

// serve runs the service until the test ends.
func (p *pushes) serve(dir string) {
	p.Helper()
	p.write(dir+"/tokens", "node7 "+pushToken+"\n")
	c, err := receive.Read(strings.NewReader(fmt.Sprintf("version: 1\ntarget: native:%s\nlisten: 127.0.0.1:0\n"+
		"tokens: %s/tokens\nstate: %s/state\n", p.repository.Dir(), dir, dir)))
	if err != nil {
		p.Fatal(err)
	}
	service, err := receive.New(c, slog.New(slog.NewTextHandler(p.Output(), nil)))
	if err != nil {
		p.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan net.Addr), make(chan error)
	go func() { ended <- service.Run(ctx, func(a net.Addr) { ready <- a }) }()
	select {
	case a := <-ready:
		p.address = a.String()
	case err := <-ended:
		p.Fatal(err)
	}
	p.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, service.Close()); err != nil {
			p.Error(err)
		}
	})
}

// settings has the node push layers back, and wait so long.
func (p *pushes) settings(wait string) {
	p.Helper()
	p.write(p.cfg.PushBack, fmt.Sprintf(`{"CvmfsRepo": %q, "PublishStatusURL": "http://%s/status", "Token": %q, "Wait": %q}`,
		publishtest.FQRN, p.address, pushToken, wait))
}

func (p *pushes) write(file, text string) {
	p.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		p.Fatal(err)
	}
}

// image makes a thin layer.
func (p *pushes) image(id, parent string, d *thin.Descriptor) {
	p.Helper()
	descriptor, err := d.Encode()
	if err != nil {
		p.Fatal(err)
	}
	archive, err := thin.Archive(descriptor)
	if err != nil {
		p.Fatal(err)
	}
	p.layer(id, parent, archive)
}

// layer makes a read-only layer of an archive.
func (p *pushes) layer(id, parent string, archive []byte) {
	p.Helper()
	if err := p.Layers().Create(layers.CreateArgs{ID: id, Parent: parent}); err != nil {
		p.Fatal(err)
	}
	if _, err := p.Apply(p.Context(), id, parent, bytes.NewReader(archive)); err != nil {
		p.Fatal(err)
	}
}

// container makes a container's layers above an image, which has written some files.
func (p *pushes) container(id, image string, files map[string]string) {
	p.Helper()
	for _, l := range [][2]string{{id + node.InitSuffix, image}, {id, id + node.InitSuffix}} {
		err := p.Layers().Create(layers.CreateArgs{ID: l[0], Parent: l[1], Writable: true})
		if err != nil {
			p.Fatal(err)
		}
	}
	for name, text := range files {
		p.write(filepath.Join(p.Layers().Content(id), name), text)
	}
}

// commit returns the descriptor that a commit of a container gives; nil where it gives an ordinary layer.
func (p *pushes) commit(id string) (*thin.Descriptor, error) {
	p.Helper()
	archive, err := p.PushBack(p.Context(), id+node.InitSuffix, func() (io.ReadCloser, error) {
		return p.Layers().Diff(p.Context(), id, id+node.InitSuffix)
	})
	if archive == nil || err != nil {
		return nil, err
	}
	r := tar.NewReader(bytes.NewReader(archive))
	if _, err := r.Next(); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return thin.Parse(b)
}

func urls(list []thin.Layer) (urls []string) {
	for _, l := range list {
		urls = append(urls, l.URL())
	}
	return urls
}

// A commit's layer is the last of the descriptor, and the image made thin later is the same.
func TestWhatStandsOnAThinImageBecomesThin(t *testing.T) {
	p := newPushes(t)
	p.container("c", "image", map[string]string{"new": "new", "deep/er": "1"})
	committed, err := p.commit("c")
	if err != nil {
		t.Fatal(err)
	}
	if got := urls(committed.Layers); len(got) != 2 || got[0] != p.base.Layers[0].URL() {
		t.Fatalf("the layers are %v", got)
	}
	p.image("committed", "image", committed)

	p.layer("bottom", "", publishtest.Pack(t, publishtest.File("bottom", "b")))
	p.image("upon", "bottom", p.base)
	p.layer("empty", "upon", publishtest.Pack(t))
	p.layer("one", "empty", publishtest.Pack(t, publishtest.File("one", "1")))
	p.layer("two", "one", publishtest.Pack(t, publishtest.File("two", "2")))
	p.layer("grown", "committed", publishtest.Pack(t, publishtest.File("one", "1")))
	for top, want := range map[string]struct {
		keep, added int
		on          *thin.Descriptor
	}{
		"two":   {1, 2, p.base},
		"grown": {0, 1, committed}, // the image's own thin layer says nothing that the commit's doesn't
		"empty": {1, 0, p.base},
	} {
		t.Run(top, func(t *testing.T) {
			var told control.ThinProgress
			q := control.LayerID{Layer: top}
			made, err := p.ThinLayer(t.Context(), q, func(p control.ThinProgress) { told = p })
			if err != nil {
				t.Fatal(err)
			}
			d, err := thin.Parse(made.Descriptor)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(append(urls(want.on.Layers), made.Added...), urls(d.Layers)); diff != "" ||
				made.Keep != want.keep || len(made.Added) != want.added || told.Published != told.Of {
				t.Errorf("it keeps %d layers, adds %v; %+v told (-want +layers):\n%s", made.Keep, made.Added, told, diff)
			}
		})
	}
}

func TestWhatCannotBecomeThinIsRefusedWithTheRemedy(t *testing.T) {
	p := newPushes(t)
	p.layer("ordinary", "", publishtest.Pack(t, publishtest.File("f", "1")))
	p.layer("above", "image", publishtest.Pack(t, publishtest.File("f", "1")))
	for id, want := range map[string]string{
		"ordinary": "docker2cvmfs make-thin", "image": "a thin image already", "none": "no such layer", "../x": "layer id",
	} {
		if _, err := p.ThinLayer(t.Context(), control.LayerID{Layer: id}, nil); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", id, err, want)
		}
	}
	if err := os.Remove(p.cfg.PushBack); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ThinLayer(t.Context(), control.LayerID{Layer: "above"}, nil); err == nil ||
		!strings.Contains(err.Error(), "docs/pushback.md") {
		t.Errorf("without settings: %v", err)
	}
}

// imageOf makes the image of a commit, and returns how its objects come here, when all are wanted.
func (p *pushes) imageOf(id string, d *thin.Descriptor) objects.Completion {
	p.Helper()
	p.image(id, "image", d)
	_, key, err := p.Layers().Chain(id)
	if err != nil {
		p.Fatal(err)
	}
	done, err := p.CachePrewarm(p.Context(), key, func(objects.Completion) {})
	if err != nil {
		p.Fatal(err)
	}
	return done
}

// servedOf returns how many of the stored objects of a layer's files the repository's server was asked for.
func (p *pushes) servedOf(l thin.Layer) (served, of int) {
	p.Helper()
	err := publishtest.Newest(p.T, p.repository).Walk(p.Context(), l.Path, func(n *client.Node) error {
		if !n.IsRegular() || n.Size == 0 {
			return nil
		}
		o, err := objects.FromEntry(n.Entry, n.Path)
		for _, stored := range o.Stored() {
			of++
			if _, is := p.served.Load("/cvmfs/" + l.FQRN + "/" + stored.Digest.Path(stored.Suffix)); is {
				served++
			}
		}
		return err
	})
	if err != nil {
		p.Fatal(err)
	}
	return served, of
}

// What was committed here runs here without fetching what is here: its files, large ones in chunks too, are taken from
// the archive. Who changes files while the archive is made changes nothing of that.
func TestWhatWasCommittedHereIsNotFetched(t *testing.T) {
	p := newPushes(t)
	large := make([]byte, 100_000)
	rand.NewChaCha8([32]byte{}).Read(large)
	p.container("c", "image", map[string]string{
		"a/b": "nested", "a-b": "sorted otherwise", "a.d/e": "e", "large": string(large), "empty": "", "twice": "nested",
	})
	content := p.Layers().Content("c")
	if err := os.Link(content+"/large", content+"/a/link"); err != nil {
		t.Fatal(err)
	}
	p.write(content+"/replaced/.git/config", "of an opaque folder")
	if err := unix.Setxattr(content+"/replaced", "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(content+"/+hidden", unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	p.write(content+"/+new", "behind a whiteout")
	committed, err := p.commit("c")
	if err != nil {
		t.Fatal(err)
	}
	if done := p.imageOf("committed", committed); done.Here != 6 || done.Fetched != 1 {
		t.Errorf("%d objects are here, %d were fetched: want 6, and that of the image below", done.Here, done.Fetched)
	}
	if served, of := p.servedOf(committed.Layers[1]); served > 0 || of < 10 {
		t.Errorf("%d of the layer's %d stored objects were fetched", served, of)
	}
	if served, of := p.servedOf(committed.Layers[0]); served != 1 || of != 1 {
		t.Errorf("%d of the %d stored objects of the layer below were fetched", served, of)
	}
	again, err := p.commit("c")
	if err != nil || !cmp.Equal(urls(again.Layers), urls(committed.Layers)) {
		t.Errorf("again: %v, %v", again, err)
	}
	if left, err := os.ReadDir(p.Path("push-back")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Isolated images share no objects: those of a commit have the repository's number.
func TestIsolatedObjectsAreTakenInUnderTheirName(t *testing.T) {
	p := newPushes(t)
	if err := p.Configure(node.Settings{Isolate: true}, face{}); err != nil {
		t.Fatal(err)
	}
	p.container("c", "image", map[string]string{"new": "new"})
	committed, err := p.commit("c")
	if err != nil {
		t.Fatal(err)
	}
	if done := p.imageOf("committed", committed); done.Here != 1 || done.Fetched != 1 {
		t.Errorf("%+v", done)
	}
}

// A service may say of a layer that it is where another one is: what runs would not be what was committed.
func TestAnotherLayerIsNotTakenForTheCommits(t *testing.T) {
	p := newPushes(t)
	p.container("one", "image", map[string]string{"one": "1"})
	one, err := p.commit("one")
	if err != nil {
		t.Fatal(err)
	}
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"status":"done","digest":%q,"url":%q}`, path.Base(r.URL.Path), one.Layers[1].URL())
	}))
	t.Cleanup(liar.Close)
	p.address = strings.TrimPrefix(liar.URL, "http://")
	p.settings("10s")
	p.container("two", "image", map[string]string{"two": "2"})
	if d, err := p.commit("two"); err == nil || !strings.Contains(err.Error(), "isn't the layer that was sent") {
		t.Errorf("%v, %v", d, err)
	}
}

// What this host can't show afterwards is not published.
func TestNothingIsPublishedWhereImagesMayNotNameIt(t *testing.T) {
	p := newPushes(t)
	p.container("c", "image", map[string]string{"new": "new"})
	if err := p.Configure(node.Settings{Repositories: []string{"other.example.org"}}, face{}); err != nil {
		t.Fatal(err)
	}
	before := publishtest.Newest(t, p.repository).Number
	if d, err := p.commit("c"); err == nil || !strings.Contains(err.Error(), "images here can't use") {
		t.Errorf("%v, %v", d, err)
	}
	if after := publishtest.Newest(t, p.repository).Number; after != before {
		t.Error("something was published")
	}
	if err := p.Configure(node.Settings{}, face{}); err != nil {
		t.Fatal(err)
	}
	full := *p.base
	for len(full.Layers) < thin.MaxLayers {
		full.Layers = append(full.Layers, p.base.Layers[0])
	}
	// The image is composed when it is needed, which it isn't here: so many layers take their time.
	err := p.Layers().Create(layers.CreateArgs{ID: "full", Writable: true})
	if err == nil {
		err = p.Layers().FillThin("full", &full)
	}
	if err == nil {
		err = p.Layers().Seal("full", true, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	p.container("f", "full", map[string]string{"new": "new"})
	if d, err := p.commit("f"); err == nil || !strings.Contains(err.Error(), "fewer layers") {
		t.Errorf("%v, %v", d, err)
	}
}
