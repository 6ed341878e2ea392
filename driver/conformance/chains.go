package conformance

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// maxChain is the longest chain engines make, in layers.
const maxChain = 125

// LongChain: a chain of 125 layers, the most that engines make, shows the newest of each file; a thin image may be the
// first of them.
func LongChain(t *testing.T, target Target) {
	bottoms := map[string][]ThinLayer{"ordinary": nil}
	if thinImages(target) {
		bottoms["thin at the bottom"] = target.Thin
	}
	for name, bottom := range bottoms {
		t.Run(name, func(t *testing.T) {
			d := use(t, target)
			parent := ""
			var archives [][]byte
			if bottom != nil {
				archives = append(archives, descriptor(t, bottom))
			}
			for n := len(archives); n < maxChain; n++ {
				archives = append(archives, pack(t,
					regular(fmt.Sprintf("own/%d", n), fmt.Sprint(n)), regular("newest", fmt.Sprint(n)),
					whiteout(fmt.Sprintf("own/%d", n-3))))
			}
			dir := d.container("container", d.chain("layer", parent, archives...))
			names, err := os.ReadDir(filepath.Join(dir, "own"))
			must(t, err)
			got := []string{find(t, dir, "newest").Content}
			for _, e := range names {
				got = append(got, e.Name())
			}
			if want := []string{"124", "122", "123", "124"}; !slices.Equal(want, got) {
				t.Errorf("newest layer and files kept: %q, want %q", got, want)
			}
			if bottom != nil {
				plain := d.container("plain", d.chain("plain", "", archivesOf(bottom)...))
				for _, e := range tree(t, plain) {
					if e.Path == "" || e.Type == "d" {
						continue
					}
					if got := find(t, dir, e.Path); got.Content != e.Content || got.Mode != e.Mode {
						t.Errorf("%s: %+v, want %+v", e.Path, got, e)
					}
				}
			}
		})
	}
}

// descriptor returns the archive of a thin image.
func descriptor(t testing.TB, layers []ThinLayer) []byte {
	t.Helper()
	return pack(t, regular("thin.json", describeThin(t, layers)))
}

func describeThin(t testing.TB, layers []ThinLayer) string {
	t.Helper()
	list := []map[string]string{}
	for _, l := range layers {
		list = append(list, map[string]string{"digest": l.Digest, "url": l.URL})
	}
	b, err := json.Marshal(map[string]any{"version": "1.0", "origin": "conformance", "layers": list})
	must(t, err)
	return string(b)
}

func archivesOf(layers []ThinLayer) (archives [][]byte) {
	for _, l := range layers {
		archives = append(archives, l.Archive)
	}
	return archives
}

// needThin skips a test of thin images where there are none.
func needThin(t testing.TB, target Target) {
	t.Helper()
	if !thinImages(target) {
		t.Skip("this driver knows no thin images")
	}
}

// ThinAnywhereInAChain: a chain shows the same whether a thin image stands at its bottom, in the middle, on top or on
// another thin image, or the layers it stands for; also if these lie in several repositories.
func ThinAnywhereInAChain(t *testing.T, target Target) {
	needThin(t, target)
	below := pack(t, folder("data"), regular("data/a.txt", "below"), regular("data/below", "below"),
		regular("etc/below", "below"),
		folder("opt"), folder("opt/old"), regular("opt/old/below", "below"), regular("srv", "a file below"),
		link('1', "data/linked", "data/below"), link('2', "soft", "data/below"), special('3', "null", 1, 3))
	above := pack(t, folder("data"), regular("data/b.txt", "above"), whiteout("data/blob"), folder("etc"),
		opaque("etc"),
		regular("etc/above", "above"), whiteout("bin"))
	thin, n := target.Thin, len(target.Thin)
	one := func(l ThinLayer) []ThinLayer { return []ThinLayer{l} }
	for _, c := range []struct {
		name  string
		chain []any // archives, and the layers of thin images
	}{
		{"alone", []any{thin}},
		{"bottom", []any{thin, above}},
		{"top", []any{below, thin}},
		{"middle", []any{below, thin, above}},
		{"between two", []any{below, above, thin, above, below}},
		{"thin on thin", []any{thin[:n-1], one(thin[n-1])}},
		{"every layer an image", []any{below, one(thin[0]), one(thin[1]), above, thin[2:]}},
		{"thin on itself", []any{thin, above, thin}},
		{"an image of no layers", []any{below, []ThinLayer{}, above}},
		{"in another order", []any{[]ThinLayer{thin[2], thin[0], thin[1]}, above}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := use(t, target)
			var short, long [][]byte
			for _, part := range c.chain {
				switch part := part.(type) {
				case []byte:
					short, long = append(short, part), append(long, part)
				case []ThinLayer:
					short, long = append(short, descriptor(t, part)), append(long, archivesOf(part)...)
				}
			}
			got := d.container("thin", d.chain("short", "", short...))
			want := d.container("ordinary", d.chain("long", "", long...))
			same(t, "view", want, got)
			workBoth(t, d, want, got)
		})
	}
}

// workBoth changes two equal views the same way and compares what the driver makes of it.
func workBoth(t testing.TB, d *driver, want, got string) {
	t.Helper()
	for _, dir := range []string{want, got} {
		must(t, os.RemoveAll(filepath.Join(dir, "data")))
		must(t, os.MkdirAll(filepath.Join(dir, "data"), 0o755))
		must(t, write(filepath.Join(dir, "data/new"), "new"))
		for _, e := range tree(t, dir) {
			if e.Type != "-" || strings.HasPrefix(e.Path, "data/") {
				continue
			}
			name := filepath.Join(dir, e.Path)
			must(t, os.Chmod(name, 0o600)) // copies up
			must(t, os.Chtimes(name, moment, moment))
		}
	}
	same(t, "view after changes", want, got)
	equal(t, "changes", d.changes("ordinary"), d.changes("thin"))
	equal(t, "archives", contents(t, d.diff("ordinary")), contents(t, d.diff("thin")))
}

// ThinImagesShareLayers: of two thin images with layers in common each shows its own, and goes on when the other is
// removed, even while a container runs.
func ThinImagesShareLayers(t *testing.T, target Target) {
	needThin(t, target)
	d := use(t, target)
	first, second := target.Thin, target.Thin[:len(target.Thin)-1]
	d.chain("first", "", descriptor(t, first))
	d.chain("second", "", descriptor(t, second))
	d.chain("twin", "", descriptor(t, first))
	plain := d.container("plain second", d.chain("plain", "", archivesOf(second)...))
	one := d.container("container 1", "first 0")
	two := d.container("container 2", "second 0")
	three := d.container("container 3", "twin 0")
	same(t, "second image", plain, two)
	before := tree(t, one)
	d.put("container 1")
	d.remove("container 1")
	d.remove("first 0")
	same(t, "second image after the first was removed", plain, two)
	equal(t, "twin of the image removed", before, tree(t, three))
	equal(t, "container made after that", before, tree(t, d.container("container 4", "twin 0")))
}

// ThinLayerKeepsItsBytes: a thin layer is exported as it came, though containers don't see its descriptor.
func ThinLayerKeepsItsBytes(t *testing.T, target Target) {
	needThin(t, target)
	d := use(t, target)
	text := describeThin(t, target.Thin) + "\n\n"
	d.layer("thin", "", regular("./thin.json", text))
	equal(t, "file of the layer", text, string(mustRead(t, filepath.Join(d.get("thin"), "thin.json"))))
	items := unpack(t, d.export(object{"ID": d.id("thin"), "Parent": ""}))
	if len(items) != 1 || items[0].Name != "thin.json" || items[0].body != text {
		t.Errorf("exported: %+v", items)
	}
	dir := d.container("container", "thin")
	if _, err := os.Lstat(filepath.Join(dir, "thin.json")); !os.IsNotExist(err) {
		t.Errorf("the container sees the descriptor: %v", err)
	}
}

func mustRead(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return b
}

// DescriptorAmongOtherFilesIsAFile: a layer is ordinary unless a descriptor is all it holds.
func DescriptorAmongOtherFilesIsAFile(t *testing.T, target Target) {
	text := `{"version":"1.0","layers":[]}`
	long := summary(text)
	for _, c := range []struct {
		name  string
		items []item
		want  []string
	}{
		{"another file", []item{regular("thin.json", text), regular("a", "a")}, []string{"thin.json=" + long, "a=a"}},
		{"a folder", []item{folder("dir"), regular("thin.json", text)}, []string{"thin.json=" + long, "dir/"}},
		{"a whiteout", []item{regular("thin.json", text), whiteout("x")}, []string{"thin.json=" + long}},
		{"deeper", []item{regular("dir/thin.json", text)}, []string{"dir/", "dir/thin.json=" + long}},
		{"a folder of that name", []item{folder("thin.json")}, []string{"thin.json/"}},
		{"a link of that name", []item{link('2', "thin.json", "/x")}, []string{"thin.json->/x"}},
		{"no descriptor", []item{regular("thin.json", "{}")}, []string{"thin.json={}"}},
		{"no text", []item{regular("thin.json", "")}, []string{"thin.json="}},
	} {
		if target.skips(t, "DescriptorAmongOtherFilesIsAFile/"+c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			d := use(t, target)
			d.layer("image", "", c.items...)
			shows(t, d.container("container", "image"), c.want...)
		})
	}
}

// DescriptorThatCannotBeUsedIsRefused: by name, soon, and leaving a layer that can be given other content.
func DescriptorThatCannotBeUsedIsRefused(t *testing.T, target Target) {
	needThin(t, target)
	d := use(t, target)
	digest := strings.Repeat("0", 64)
	for _, c := range []struct{ name, text, want string }{
		{"newer format", `{"version":"9.0","min_version":"9.0","layers":[]}`, "9.0"},
		{"unknown repository", `{"version":"1.0","layers":[{"digest":"` + digest +
			`","url":"cvmfs://nobody.example.net/layers/x"}]}`, "nobody.example.net"},
		{"path that leads out", `{"version":"1.0","layers":[{"digest":"` + digest +
			`","url":"cvmfs://x.example.net/layers/../../etc"}]}`, ".."},
		{
			"missing folder", describeThin(t, []ThinLayer{{Digest: digest, URL: target.Thin[0].URL + "-missing"}}),
			"-missing",
		},
		{"another scheme", `{"version":"1.0","layers":[{"digest":"` + digest +
			`","url":"http://x.example.net/layers/x"}]}`, "http://"},
	} {
		began := time.Now()
		_, err := d.apply(c.name, "", pack(t, regular("thin.json", c.text)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want it to name %q", c.name, err, c.want)
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("%s: refused after %v", c.name, took)
		}
		_, err = d.send(c.name, "", strings.NewReader(string(pack(t, regular("a", "a")))))
		must(t, err)
		shows(t, d.container(c.name+" container", c.name), "a=a")
	}
}
