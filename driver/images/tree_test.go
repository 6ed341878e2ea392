package images

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/erofs"
)

// layer makes a tree of lines "TYPE PATH [MARK]": d folder, f file, e empty file, c device 0/0, l another name of the
// file before; and "s PATH TARGET", symbolic links. MARK is an extended attribute name=value. Folders come before what
// they hold, as from a walk.
func layer(t *testing.T, lines ...string) *node {
	t.Helper()
	var b builder
	var last *inode
	b.add("", &inode{Node: erofs.Node{Mode: typeDir | 0o755}})
	for _, line := range lines {
		f := strings.Fields(line)
		i := &inode{}
		switch f[0] {
		case "d":
			i.Mode = typeDir | 0o755
		case "f":
			i.Mode, i.Size, i.redirect = typeRegular|0o644, 1, "/objects/"+strings.Join(f[1:], ",")
		case "e":
			i.Mode = typeRegular | 0o644
		case "c":
			i.Mode = typeChar | 0o600
		case "l":
			i = last
		case "s":
			i.Mode, i.Target = unix.S_IFLNK|0o777, f[2]
			f = f[:2]
		default:
			t.Fatalf("bad line %q", line)
		}
		if len(f) > 2 {
			k, v, _ := strings.Cut(f[2], "=")
			i.Xattrs = append(i.Xattrs, erofs.Xattr{Name: k, Value: v})
		}
		b.add(f[1], i)
		last = i
	}
	return b.root
}

// list shows a merged tree: a line for each name below the root.
func list(n *node) []string {
	var out []string
	var visit func(path string, n *node)
	visit = func(path string, n *node) {
		for _, name := range n.sorted() {
			c := n.children[name]
			line := path + "/" + name
			if c.isDir() {
				line += "/"
			}
			for _, x := range c.Xattrs {
				line += fmt.Sprintf(" %s=%s", x.Name, x.Value)
			}
			out = append(out, line)
			if c.isDir() {
				visit(path+"/"+name, c)
			}
		}
	}
	visit("", n)
	return out
}

func TestMergeAppliesEveryWhiteoutConvention(t *testing.T) {
	base := []string{"d /d", "f /d/a", "f /d/b", "d /d/sub", "f /d/sub/x", "f /top"}
	for name, c := range map[string]struct {
		upper []string
		want  []string
	}{
		"nothing": {nil, []string{"/d/", "/d/a", "/d/b", "/d/sub/", "/d/sub/x", "/top"}},
		"aufs whiteout of a file": {
			[]string{"d /d", "e /d/.wh.a"},
			[]string{"/d/", "/d/b", "/d/sub/", "/d/sub/x", "/top"},
		},
		"aufs whiteout of a folder": {[]string{"d /d", "e /d/.wh.sub"}, []string{"/d/", "/d/a", "/d/b", "/top"}},
		"aufs whiteout at the root": {[]string{"e /.wh.d"}, []string{"/top"}},
		"aufs opaque": {
			[]string{"d /d", "e /d/.wh..wh..opq", "f /d/new"},
			[]string{"/d/", "/d/new", "/top"},
		},
		"aufs opaque after its children": {
			[]string{"d /d", "f /d/!new", "e /d/.wh..wh..opq"},
			[]string{"/d/", "/d/!new", "/top"},
		},
		"aufs opaque at the root": {[]string{"e /.wh..wh..opq", "f /only"}, []string{"/only"}},
		"aufs housekeeping": {
			[]string{"d /.wh..wh.plnk", "f /.wh..wh.plnk/1.2", "e /.wh..wh.aufs"},
			[]string{"/d/", "/d/a", "/d/b", "/d/sub/", "/d/sub/x", "/top"},
		},
		"whiteout that is a folder": {[]string{"d /.wh.d", "f /.wh.d/hidden"}, []string{"/top"}},
		"overlay whiteout device": {
			[]string{"d /d", "c /d/a"},
			[]string{"/d/", "/d/b", "/d/sub/", "/d/sub/x", "/top"},
		},
		"overlay opaque": {
			[]string{"d /d trusted.overlay.opaque=y", "f /d/new"},
			[]string{"/d/", "/d/new", "/top"},
		},
		"overlay opaque, user name space": {[]string{"d /d user.overlay.opaque=y"}, []string{"/d/", "/top"}},
		"overlay opaque x": {[]string{
			"d /d trusted.overlay.opaque=x",
			"e /d/a trusted.overlay.whiteout=",
		}, []string{"/d/", "/d/b", "/d/sub/", "/d/sub/x", "/top"}},
		"whiteout and a new file": {
			[]string{"e /.wh.d", "d /d", "f /d/new"},
			[]string{"/d/", "/d/new", "/top"},
		},
		"whiteout of nothing": {
			[]string{"e /.wh.absent", "e /.wh."},
			[]string{"/d/", "/d/a", "/d/b", "/d/sub/", "/d/sub/x", "/top"},
		},
		"folder becomes file": {[]string{"f /d"}, []string{"/d", "/top"}},
		"file becomes folder": {
			[]string{"d /top", "f /top/in"},
			[]string{"/d/", "/d/a", "/d/b", "/d/sub/", "/d/sub/x", "/top/", "/top/in"},
		},
		"other attributes stay": {
			[]string{"d /d user.keep=1"},
			[]string{"/d/ user.keep=1", "/d/a", "/d/b", "/d/sub/", "/d/sub/x", "/top"},
		},
		"redirects from outside go": {
			[]string{"f /top trusted.overlay.redirect=/objects/secret"},
			[]string{"/d/", "/d/a", "/d/b", "/d/sub/", "/d/sub/x", "/top"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tree := layer(t)
			tree.merge(layer(t, base...))
			tree.merge(layer(t, c.upper...))
			if diff := cmp.Diff(c.want, list(tree)); diff != "" {
				t.Errorf("merged tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMergeOfThreeLayersBringsBackWhatWasRemoved(t *testing.T) {
	tree := layer(t)
	for _, l := range [][]string{{"f /a", "d /d", "f /d/x"}, {"e /.wh.a", "e /.wh.d"}, {"f /a", "d /d", "f /d/y"}} {
		tree.merge(layer(t, l...))
	}
	if diff := cmp.Diff([]string{"/a", "/d/", "/d/y"}, list(tree)); diff != "" {
		t.Errorf("merged tree (-want +got):\n%s", diff)
	}
}

func TestFlattenKeepsHardLinksAndNamesEachObjectOnce(t *testing.T) {
	tree := layer(t, "d /d", "f /d/a", "l /d/b", "f /z")
	f := flatten(tree, nil)
	d := f.root.Children[0].Node
	if d.Children[0].Node != d.Children[1].Node {
		t.Error("two names of one file became two inodes")
	}
	if n := len(d.Children[0].Node.Xattrs); n != 2 {
		t.Errorf("a linked file has %d attributes, want metacopy and redirect", n)
	}
	if f.size != 2 {
		t.Errorf("size %d, want each file once", f.size)
	}
}
