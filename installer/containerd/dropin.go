package containerd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// Options are what a containerd is told of the snapshotter.
type Options struct {
	Name   string // that images are unpacked by
	Socket string // path of the socket it answers at
	Root   string // its folder, whose file system Kubernetes measures
	// Kubernetes' images are unpacked by it.
	CRI bool
	// It shows mapped owners here: pods with a user namespace need no copies of their images.
	Mapped bool
	// Platform is that of images which ctr and nerdctl pull on containerd 2, as in "linux/amd64".
	Platform string
}

// diff is the name of the snapshotter's differ.
func (o Options) diff() string { return o.Name + "-diff" }

// builtIn is the snapshotter that containerd unpacks images by if nothing else is said, and walking its differ.
const (
	builtIn = "overlayfs"
	walking = "walking"
)

// DropIn returns the text of a file for a containerd of a version, as in "2.1.9", that is imported by a main file of a
// version, 0 for none. What isn't in it has to be in the main file's tables.
func DropIn(version string, file int, o Options) string {
	tables := o.proxies(version)
	var b strings.Builder
	b.WriteString("# The snapshotter of thin images, cvmfs-snapshotter.\n")
	if !first(version) {
		if file > 1 {
			fmt.Fprintf(&b, "version = %d\n", file)
		}
		tables = append(tables, o.plugins(version, file)...)
	}
	for _, t := range tables {
		b.WriteString("\n" + t.String())
	}
	return b.String()
}

// TellsCRI reports whether a drop-in says that Kubernetes' images are unpacked by the snapshotter.
func TellsCRI(dropIn []byte) bool {
	d, err := parse(dropIn)
	return err == nil && d.entry([]string{"plugins", newCRI, "snapshotter"}) != nil
}

// newCRI is the plugin of Kubernetes' images in containerd 2.
const newCRI = "io.containerd.cri.v1.images"

// first reports whether a version is one of containerd 1.
func first(version string) bool { return strings.HasPrefix(version, "1.") }

// differs reports whether a containerd takes a differ that isn't its own. Others don't start with one.
func differs(version string) bool {
	return !first(version) || strings.HasPrefix(version, "1.7.")
}

// proxies are the tables of the snapshotter and its differ.
func (o Options) proxies(version string) []table {
	name := func(elem ...string) []string { return append([]string{"proxy_plugins"}, elem...) }
	snapshots := []key{{"type", "snapshot"}, {"address", o.Socket}}
	if o.Mapped {
		snapshots = append(snapshots, key{"capabilities", []string{"remap-ids"}})
	}
	tables := []table{
		{path: name(o.Name), keys: snapshots},
		{path: name(o.Name, "exports"), keys: []key{
			{"root", o.Root},
			{"enable_remote_snapshot_annotations", "true"}, // a text
		}},
	}
	if differs(version) {
		tables = append(tables, table{path: name(o.diff()), keys: []key{{"type", "diff"}, {"address", o.Socket}}})
	}
	return tables
}

// plugins are the tables of containerd's own plugins which use the snapshotter.
func (o Options) plugins(version string, file int) []table {
	name := func(elem ...string) []string { return append([]string{"plugins"}, elem...) }
	diff, cri := name("io.containerd.service.v1.diff-service"), name("io.containerd.grpc.v1.cri", "containerd")
	if first(version) && file < 2 {
		diff, cri = name("diff-service"), name("cri", "containerd")
	}
	var tables []table
	if differs(version) {
		tables = append(tables, table{path: diff, keys: []key{{"default", []string{o.diff(), walking}}}})
	}
	images := []key{{"snapshotter", o.Name}, {"disable_snapshot_annotations", false}}
	if o.CRI && !first(version) {
		tables = append(tables, table{path: name(newCRI), keys: images})
	}
	if o.CRI && file < 3 {
		tables = append(tables, table{path: cri, keys: images})
	}
	if first(version) {
		return tables
	}
	for _, s := range []string{builtIn, o.Name} { // a list of ours takes the place of containerd's own
		tables = append(tables, table{
			path: name("io.containerd.transfer.v1.local", "unpack_config"), list: true,
			keys: []key{{"platform", o.Platform}, {"snapshotter", s}},
		})
	}
	return tables
}

// table is one of TOML, or an element of a list of tables.
type table struct {
	path []string
	list bool
	keys []key
}

// key has a value: a text, a list of texts, or whether something is so.
type key struct {
	name  string
	value any
}

func (t table) String() string {
	header := "[" + dotted(t.path) + "]\n"
	if t.list {
		header = "[" + strings.TrimSuffix(header, "\n") + "]\n"
	}
	var b strings.Builder
	b.WriteString(header)
	for _, k := range t.keys {
		fmt.Fprintf(&b, "  %s = %s\n", k.name, literal(k.value))
	}
	return b.String()
}

var bare = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// dotted is a path as TOML writes it.
func dotted(path []string) string {
	var elem []string
	for _, e := range path {
		if !bare.MatchString(e) {
			e = literal(e)
		}
		elem = append(elem, e)
	}
	return strings.Join(elem, ".")
}

// literal is a value as TOML writes it: for those of a key as JSON does.
func literal(value any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(value); err != nil {
		panic(err) // these types can be encoded
	}
	return strings.TrimSpace(b.String())
}
