package images

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/thin"
)

// row is an entry of a layer in a repository: its path in the layer, "" for the root, and what isn't usual about it.
type row struct {
	path    string
	mode    uint32 // 0: a regular file of one byte, or a folder if others lie in it
	content byte
	link    uint64
	xattrs  []catalog.Xattr
	flags   catalog.Flags
}

// walked is a layer's tree made of its rows, as a walk gives them, and its record.
func walked(r *thin.Record, rows ...row) (*node, error) {
	k, err := newRecord(r)
	if err != nil {
		return nil, err
	}
	w := newFolderWalk(&folder{path: "/layers/l", ids: idMaps{repository: &config.Config{}}}, k)
	for _, r := range append([]row{{mode: typeDir | 0o700}}, rows...) {
		e := &catalog.Entry{
			Name: path.Base("/" + r.path), Mode: r.mode, Xattrs: r.xattrs, Flags: r.flags, UID: 7,
			Mtime: 9,
		}
		if e.Mode == 0 {
			e.Mode, e.Size, e.Digest = typeRegular|0o644, 1, hash.SHA1.Digest([]byte{r.content})
		}
		if err := w.add(&client.Node{
			Path: strings.TrimSuffix("/layers/l/"+r.path, "/"), Entry: e,
			Link: r.link,
		}); err != nil {
			return nil, err
		}
	}
	return w.finish()
}

func dirRow(path string) row { return row{path: path, mode: typeDir | 0o755} }

// groups returns the paths of a tree that share an inode.
func groups(root *node) [][]string {
	byInode := map[*inode][]string{}
	var visit func(path string, n *node)
	visit = func(path string, n *node) {
		for _, name := range n.sorted() {
			c := n.children[name]
			byInode[c.inode] = append(byInode[c.inode], path+name)
			visit(path+name+"/", c)
		}
	}
	visit("", root)
	var out [][]string
	for _, paths := range byInode {
		if len(paths) > 1 {
			out = append(out, paths)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i][0] < out[j][0] })
	return out
}

func TestRecordedLinksAreOneFileAgain(t *testing.T) {
	big := []thin.Xattr{{Name: "user.big", Value: bytes.Repeat([]byte("x"), 300)}}
	device := func(path string) row { return row{path: path, mode: typeChar | 0o600} }
	rows := []row{
		dirRow("a"),
		{path: "a/one"},
		{path: "a/other", content: 'b'},
		device("a/.dev"), dirRow("b"),
		{path: "b/one"},
		device("b/.dev"),
		dirRow("c"),
		{path: "c/.wh.gone", content: 'w'},
		{path: "c/in1", link: 5},
		{path: "c/in2", link: 5},
		{path: "c/one"},
		dirRow("d"),
		{path: "d/.wh.too", content: 'w'},
	}
	group := []string{"a/one", "b/one", "c/one"}
	for name, r := range map[string]*thin.Record{
		"plain":                   {Links: [][]string{group}},
		"attributes of the first": {Links: [][]string{group}, Xattrs: map[string][]thin.Xattr{"a/one": big}},
		"attributes of one amid":  {Links: [][]string{group}, Xattrs: map[string][]thin.Xattr{"b/one": big}},
		"attributes of all": {
			Links:  [][]string{group},
			Xattrs: map[string][]thin.Xattr{"a/one": big, "b/one": big, "c/one": big},
		},
		"attributes of the catalog's link": {Links: [][]string{group}, Xattrs: map[string][]thin.Xattr{"c/in2": big}},
		"whiteouts of either kind, linked": {Links: [][]string{
			group,
			{"c/.wh.gone", "d/.wh.too"},
			{"a/.dev", "b/.dev"},
		}},
		"no attributes": {Links: [][]string{group}, Xattrs: map[string][]thin.Xattr{"a/other": {}}},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := walked(r, rows...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([][]string{group, {"c/in1", "c/in2"}}, groups(tree)); diff != "" {
				t.Errorf("link groups (-want +got):\n%s", diff)
			}
			f := flatten(tree, nil)
			if f.size != 3 {
				t.Errorf("%d bytes of files, want each inode's once: 3", f.size)
			}
			for path := range r.Xattrs {
				dir, file, _ := strings.Cut(path, "/")
				n := tree.children[dir].children[file]
				if want := len(r.Xattrs[path]) + 2; len(n.Xattrs) != want {
					t.Errorf("%s has the attributes %v, want %d", path, n.Xattrs, want)
				}
			}
			if removed := tree.children["c"].removed; !removed["gone"] ||
				tree.children["d"].children[".wh.too"] != nil {
				t.Error("a linked whiteout is none any more")
			}
		})
	}
}

func TestRecordedAttributesReplaceTheCatalogs(t *testing.T) {
	value := bytes.Repeat([]byte("x"), 5000)
	tree, err := walked(&thin.Record{Xattrs: map[string][]thin.Xattr{"f": {
		{Name: "user.z", Value: []byte("1")},
		{Name: "user.big", Value: value},
		{Name: "trusted.overlay.redirect", Value: []byte("/objects/x")},
		{Name: "system.nfs4_acl"},
	}}}, row{path: "f", xattrs: []catalog.Xattr{
		{Name: "user.old", Value: []byte("0")},
		{Name: "user.z", Value: []byte("0")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range tree.children["f"].Xattrs {
		got = append(got, fmt.Sprint(x.Name, " ", len(x.Value)))
	}
	if diff := cmp.Diff([]string{"user.big 5000", "user.z 1"}, got); diff != "" {
		t.Errorf("attributes and their lengths (-want +got):\n%s", diff)
	}
}

func TestRecordedMarkersAreFilesOfTheLayer(t *testing.T) {
	rows := []row{
		{path: ".cvmfscatalog"},
		{path: "own", mode: typeDir | 0o755, flags: catalog.NestedRoot},
		{path: "own/.cvmfscatalog"},
		{path: "split", mode: typeDir | 0o755, flags: catalog.NestedRoot},
		{path: "split/.cvmfsautocatalog"},
		{path: "split/.cvmfscatalog"},
	}
	for name, c := range map[string]struct {
		markers []string
		want    []string
	}{
		"none": {nil, []string{"/own/", "/split/"}},
		"one":  {[]string{"own/.cvmfscatalog"}, []string{"/own/", "/own/.cvmfscatalog", "/split/"}},
		"all": {
			[]string{".cvmfscatalog", "own/.cvmfscatalog", "split/.cvmfsautocatalog", "split/.cvmfscatalog"},
			[]string{
				"/.cvmfscatalog", "/own/", "/own/.cvmfscatalog", "/split/", "/split/.cvmfsautocatalog",
				"/split/.cvmfscatalog",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := walked(&thin.Record{Markers: c.markers}, rows...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, list(tree)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheRootIsThatOfTheTopmostLayerWithARecord(t *testing.T) {
	recorded := func(a *thin.Attributes, attrs ...thin.Xattr) *node {
		r := &thin.Record{Root: a}
		if attrs != nil {
			r.Xattrs = map[string][]thin.Xattr{"": attrs}
		}
		tree, err := walked(r)
		if err != nil {
			t.Fatal(err)
		}
		return tree
	}
	low := &thin.Attributes{Mode: 0o1777, UID: 1, GID: 2, Mtime: 3, MtimeN: 4}
	high := &thin.Attributes{Mode: 0o750, UID: 5, Mtime: 6}
	for name, c := range map[string]struct {
		layers []*node
		want   string
	}{
		"no layer":             {nil, "40755 0:0 0.0 0"},
		"no record":            {[]*node{recorded(nil), recorded(nil)}, "40755 0:0 9.0 0"},
		"record at the bottom": {[]*node{recorded(low), recorded(nil)}, "41777 1:2 3.4 0"},
		"record at the top":    {[]*node{recorded(nil), recorded(low)}, "41777 1:2 3.4 0"},
		"two records": {
			[]*node{recorded(low, thin.Xattr{Name: "user.low"}), recorded(high)},
			"40750 5:0 6.0 0",
		},
		"attributes of the top": {
			[]*node{recorded(low), recorded(high, thin.Xattr{Name: "user.high"}), recorded(nil)},
			"40750 5:0 6.0 1",
		},
		"extended ones alone": {[]*node{recorded(nil, thin.Xattr{Name: "user.high"})}, "40755 0:0 0.0 1"},
	} {
		t.Run(name, func(t *testing.T) {
			i := mergeAll((&Composer{}).root(), c.layers)
			if got := fmt.Sprintf("%o %d:%d %d.%d %d", i.Mode, i.UID, i.GID, i.Mtime, i.MtimeN,
				len(i.Xattrs)); got != c.want {
				t.Errorf("mode, owner, time and number of extended attributes are %s, want %s", got, c.want)
			}
		})
	}
}

func TestRecordsThatContradictTheirLayerAreRefused(t *testing.T) {
	two := func(a, b string) map[string][]thin.Xattr {
		return map[string][]thin.Xattr{
			a: {{Name: "user.a", Value: []byte("1")}},
			b: {{Name: "user.a", Value: []byte("2")}},
		}
	}
	rows := []row{
		dirRow("d"),
		{path: "d/f"},
		{path: "d/in1", link: 1},
		{path: "d/in2", link: 1},
		dirRow("d/opq"),
		{path: "d/opq/.wh..wh..opq"},
		dirRow("e"),
		{path: "e/f"},
		{path: "e/g", content: 'g'},
		{path: "e/mode", mode: typeRegular | 0o600},
		{path: "e/xattr", xattrs: []catalog.Xattr{{Name: "user.a"}}},
	}
	for name, c := range map[string]struct {
		record thin.Record
		says   string
	}{
		"a link that isn't there":   {thin.Record{Links: [][]string{{"d/f", "d/absent"}}}, `"d/absent"`},
		"a link below a file":       {thin.Record{Links: [][]string{{"d/f", "e/f/x"}}}, `"e/f/x"`},
		"linked folders":            {thin.Record{Links: [][]string{{"d", "e"}}}, "folder"},
		"a folder linked to a file": {thin.Record{Links: [][]string{{"d/f", "e"}}}, "folder"},
		"other content":             {thin.Record{Links: [][]string{{"d/f", "e/g"}}}, "not the same"},
		"another mode and size":     {thin.Record{Links: [][]string{{"d/f", "e/mode"}}}, "not the same"},
		"other extended attributes": {thin.Record{Links: [][]string{{"d/f", "e/xattr"}}}, "not the same"},
		"a whiteout linked to a file": {
			thin.Record{Links: [][]string{{"d/opq/.wh..wh..opq", "e/g"}}},
			"not the same",
		},
		"twice in a group": {thin.Record{Links: [][]string{{"d/f", "d/f"}}}, "linked twice"},
		"in two groups": {
			thin.Record{Links: [][]string{{"d/f", "e/f"}, {"e/f", "e/g"}}},
			"linked twice",
		},
		"linked by the catalog, too":     {thin.Record{Links: [][]string{{"d/in1", "e/f"}}}, "by the catalog"},
		"attributes of what isn't there": {thin.Record{Xattrs: two("d/f", "d/absent")}, `"d/absent"`},
		"two values of a link's attribute": {thin.Record{
			Links:  [][]string{{"d/f", "e/f"}},
			Xattrs: two("d/f", "e/f"),
		}, "other extended attributes"},
		"two values, linked by the catalog": {
			thin.Record{Xattrs: two("d/in1", "d/in2")},
			"other extended attributes",
		},
		"a marker that isn't there": {
			thin.Record{Markers: []string{"d/.cvmfscatalog"}},
			`"d/.cvmfscatalog"`,
		},
		"a marker that hasn't a marker's name": {thin.Record{Markers: []string{"d/f"}}, "name of a marker"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := walked(&c.record, rows...)
			if !errors.Is(err, errContradiction) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want a contradiction and %q in its text", err, c.says)
			}
		})
	}
}
