package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/layers/layerstest"
	"cvmfs-graphdriver/driver/metrics"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/node/nodetest"
	"cvmfs-graphdriver/driver/status"
)

// face mounts nothing.
type face struct{}

func (face) Mounts() []status.Mount                      { return nil }
func (face) Kubernetes() bool                            { return false }
func (face) Names(context.Context) (status.Names, error) { return status.Names{}, nil }
func (face) Images() (map[string]bool, error)            { return map[string]bool{}, nil }
func (face) Mapped() ([]node.Mapped, error)              { return nil, nil }

// watched is a composer that is told when something is taken into use, or read whole.
type watched struct {
	nodetest.Composer
	used []string
}

func (w *watched) Image(key string) (*images.Image, error) {
	w.used = append(w.used, "Image")
	return w.Composer.Image(key)
}

func (w *watched) Peek(key string) (*objects.Table, error) {
	w.used = append(w.used, "Peek")
	return w.Composer.Peek(key)
}

// Describe doesn't take into use.
func (w *watched) Describe(key string) (*images.Image, error) { return w.Composer.Image(key) }

// scraped is a node with some images of so many objects each, half of which are on disk, and what scrapes it.
func scraped(t testing.TB, n, each int) (*node.Node, *watched, *http.Client) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "node-") // t.TempDir is too long a path for a socket
	must(err)
	t.Cleanup(func() { must(os.RemoveAll(dir)) })
	w := &watched{}
	node, err := node.Open(nodetest.Config(t, dir, w))
	must(err)
	t.Cleanup(func() { must(node.Close()) })
	socket := filepath.Join(dir, "m.sock")
	must(node.Configure(settings(socket), face{}))
	parent := ""
	for i := range n {
		id := fmt.Sprintf("thin%d", i+1)
		must(node.Layers().Create(layers.CreateArgs{ID: id, Parent: parent}))
		body := fmt.Sprintf(`{"version":"1.0","min_version":"1.0","origin":"https://r.example.org/image:%d",`+
			`"layers":[{"digest":"%064d","url":"cvmfs://a.example.org/%d"}]}`, i+1, i, i)
		archive := layerstest.Tar(t, layerstest.File{Name: "thin.json", Body: body})
		_, err := node.Apply(t.Context(), id, parent, bytes.NewReader(archive))
		must(err)
		parent = id
	}
	for i := range n {
		key := fmt.Sprintf("key%d", i+1)
		w.Images[key].Objects, w.Images[key].Size = each, int64(1000*each)
		writeTable(t, node, key, i, each)
	}
	w.used = nil
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return node, w, &http.Client{Transport: tr}
}

func settings(socket string) node.Settings {
	return node.Settings{View: node.ViewFUSE, Metrics: metrics.Listen{Network: "unix", Address: socket}}
}

// writeTable writes the table of an image, and every other of the objects that a sample may consist of.
func writeTable(t testing.TB, n *node.Node, key string, image, each int) {
	t.Helper()
	object := func(i int) *objects.Object {
		return &objects.Object{Digest: hash.SHA1.Digest(fmt.Appendf(nil, "%d %d", image, i)), Size: 10}
	}
	var b bytes.Buffer
	err := objects.WriteTable(&b, []string{"a.example.org"}, false, func(yield func(*objects.Object, int) bool) {
		for i := range each {
			if !yield(object(i), 0) {
				return
			}
		}
	})
	file := n.Path("images", key, "objects")
	err = errors.Join(err, os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, b.Bytes(), 0o600))
	const sample = 256
	for i := 0; i < min(each, sample); i += 2 {
		at := n.Path("store", "objects", object(i*each/min(each, sample)).Path())
		err = errors.Join(err, os.WriteFile(at, make([]byte, 10), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// scrape returns what a scrape gets, once the node listens.
func scrape(t testing.TB, c *http.Client) string {
	t.Helper()
	for {
		resp, err := c.Get("http://node" + metrics.Path)
		if err != nil {
			if t.Context().Err() != nil {
				t.Fatal(err)
			}
			continue // it doesn't listen yet
		}
		b, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status, err)
		}
		return string(b)
	}
}

func TestImagesAreToldByTheirOriginWithTheirLocalShare(t *testing.T) {
	n, w, c := scraped(t, 3, 1000)
	text := scrape(t, c)
	for _, line := range []string{
		`cvmfs_image_size_bytes{origin="https://r.example.org/image:2",image="key2"} 1000000`,
		`cvmfs_image_local_bytes{origin="https://r.example.org/image:2",image="key2"} 500000`,
		`cvmfs_image_local_objects{origin="https://r.example.org/image:3",image="key3"} 500`,
		"cvmfs_images 3", "cvmfs_saved_bytes 1500000", "cvmfs_state_unknown 0", "cvmfs_compose_duration_seconds_count 3",
		`cvmfs_layers{kind="thin"} 3`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	w.Fail(errors.New("no"))
	if err := n.Layers().Create(layers.CreateArgs{ID: "bad", Parent: "thin3"}); err != nil {
		t.Fatal(err)
	}
	body := `{"version":"1.0","min_version":"1.0","layers":[]}`
	archive := layerstest.Tar(t, layerstest.File{Name: "thin.json", Body: body})
	if _, err := n.Apply(t.Context(), "bad", "thin3", bytes.NewReader(archive)); err == nil {
		t.Fatal("composed")
	}
	if st := n.Status(); st.Compose.Failed != 1 || st.Metrics == nil || st.Metrics.Err != "" {
		t.Errorf("%+v, %+v", st.Compose, st.Metrics)
	}
}

// An origin is what whoever made the image likes: it must not swell each answer.
func TestOriginsAreBounded(t *testing.T) {
	n, _, _ := scraped(t, 1, 10)
	if err := n.Layers().Create(layers.CreateArgs{ID: "long", Parent: "thin1"}); err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(`{"version":"1.0","origin":%q,"layers":[{"digest":"%064d","url":"cvmfs://a.example.org/x"}]}`,
		strings.Repeat("é", 400_000), 7)
	archive := layerstest.Tar(t, layerstest.File{Name: "thin.json", Body: body})
	if _, err := n.Apply(t.Context(), "long", "thin1", bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	long := 0
	for _, image := range n.Status().Store.Images {
		if strings.HasPrefix(image.Origin, "é") {
			long = len(image.Origin)
			if !utf8.ValidString(image.Origin) {
				t.Errorf("%q", image.Origin)
			}
		}
	}
	if long == 0 || long > 512 {
		t.Errorf("an origin of %d bytes is told", long)
	}
}

// A scrape takes no image into use, reads no table whole, and leaves disk and state as they are.
func TestScrapesHaveNoEffects(t *testing.T) {
	n, w, c := scraped(t, 2, 1000)
	scrape(t, c)
	before, list := n.Status(), layerstest.List(t, n.Path())
	for range 3 {
		scrape(t, c)
	}
	after := n.Status()
	for _, st := range []*status.Node{&before, &after} {
		st.Memory, st.Cache.Free = status.Memory{}, 0 // others use memory and disk, too
	}
	if d := cmp.Diff(before, after); d != "" || len(w.used) > 0 {
		t.Errorf("calls %q, -before +after\n%s", w.used, d)
	}
	if d := cmp.Diff(list, layerstest.List(t, n.Path())); d != "" {
		t.Errorf("on disk, -before +after\n%s", d)
	}
}

// BenchmarkScrape is what a scrape costs a node with ten images and a million objects, over its socket.
func BenchmarkScrape(b *testing.B) {
	_, _, c := scraped(b, 10, 100_000)
	size := len(scrape(b, c))
	for b.Loop() {
		scrape(b, c)
	}
	b.ReportMetric(float64(size), "bytes")
}

func (face) ThinImage(context.Context, control.ImageToThin, func([]string) (control.ThinLayer, error)) (
	control.ThinImage, error,
) {
	return control.ThinImage{}, errors.New("no engine")
}
