package containerd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
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

// DropIn returns the text of a file for a containerd of a version, as in "2.1.9", that a main file imports. What isn't
// in it has to be in the main file's tables.
func DropIn(version string, main []byte, o Options) (string, error) {
	file, err := Version(main)
	if err != nil {
		return "", err
	}
	tables := o.proxies(version)
	var b strings.Builder
	b.WriteString("# The snapshotter of thin images, cvmfs-snapshotter.\n")
	if !first(version) {
		if file > 1 {
			fmt.Fprintf(&b, "version = %d\n", file)
		}
		more, err := o.plugins(version, main)
		if err != nil {
			return "", err
		}
		tables = append(tables, more...)
	}
	for _, t := range tables {
		b.WriteString("\n" + t.String())
	}
	return b.String(), nil
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

// plugins are the tables of containerd's own plugins which use the snapshotter, beside what a main file has in them.
func (o Options) plugins(version string, main []byte) (tables []table, err error) {
	var says config
	if err := toml.Unmarshal(main, &says); err != nil {
		return nil, fmt.Errorf("its plugins aren't understood (%w): set it by hand", err)
	}
	name := func(elem ...string) []string { return append([]string{"plugins"}, elem...) }
	diff, cri := name("io.containerd.service.v1.diff-service"), name("io.containerd.grpc.v1.cri", "containerd")
	if first(version) && says.Version < 2 {
		diff, cri = name("diff-service"), name("cri", "containerd")
	}
	if differs(version) {
		tables = append(tables, table{path: diff, keys: []key{{"default", o.differs(says.Plugins)}}})
	}
	images := []key{{"snapshotter", o.Name}, {"disable_snapshot_annotations", false}}
	if o.CRI && !first(version) {
		tables = append(tables, table{path: name(newCRI), keys: images})
	}
	if o.CRI && says.Version < 3 {
		tables = append(tables, table{path: cri, keys: images})
	}
	if first(version) {
		return tables, nil
	}
	return append(tables, o.unpacks(says.Plugins.Transfer.Unpack)...), nil
}

// config is what a main file says that ours stands beside: a list in a drop-in takes the place of the main file's.
type config struct {
	Version int
	Plugins plugins
}

type plugins struct {
	Diff     diffService `toml:"io.containerd.service.v1.diff-service"`
	OldDiff  diffService `toml:"diff-service"` // in files of version 1
	Transfer struct {
		Unpack []map[string]any `toml:"unpack_config"`
	} `toml:"io.containerd.transfer.v1.local"`
}

type diffService struct{ Default []string }

// differs are the differs that containerd asks, one after another.
func (o Options) differs(p plugins) []string {
	theirs := slices.Concat(p.Diff.Default, p.OldDiff.Default)
	if len(theirs) == 0 {
		theirs = []string{walking}
	}
	return append([]string{o.diff()}, slices.DeleteFunc(theirs, func(d string) bool { return d == o.diff() })...)
}

// unpacks are the tables of the snapshotters which images may be pulled for.
func (o Options) unpacks(theirs []map[string]any) (tables []table) {
	if len(theirs) == 0 { // a list of ours takes the place of containerd's own
		theirs = []map[string]any{{"platform": o.Platform, "snapshotter": builtIn}}
	}
	ours := map[string]any{"platform": o.Platform, "snapshotter": o.Name}
	theirs = slices.DeleteFunc(theirs, func(t map[string]any) bool {
		return t["platform"] == o.Platform && t["snapshotter"] == o.Name
	})
	for _, said := range append(theirs, ours) {
		t := table{path: []string{"plugins", "io.containerd.transfer.v1.local", "unpack_config"}, list: true}
		for _, name := range slices.Sorted(maps.Keys(said)) {
			t.keys = append(t.keys, key{name, said[name]})
		}
		tables = append(tables, t)
	}
	return tables
}

// table is one of TOML, or an element of a list of tables.
type table struct {
	path []string
	list bool
	keys []key
}

// key has a value that TOML and JSON write alike: no table.
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
