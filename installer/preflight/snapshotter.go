package preflight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/installer/containerd"
)

// Snapshotter is the node of the snapshotter.
type Snapshotter struct {
	Socket string `json:"socket"`
	State  *State `json:"state"`
	// images that were pulled without all of their layers, which a repository has
	Lacking []status.Lacking `json:"lacking,omitempty"`
	// what containerd knows of its snapshots; nil where that isn't known
	Known *containerd.Known `json:"known,omitempty"`
}

// silent tells of a snapshotter that doesn't answer though this host has one.
func silent(f *Facts, p *Plan) []Finding {
	if f.Snapshotter != nil || p.Install {
		return nil
	}
	return one(Error, "snapshotter.silent", "the snapshotter doesn't answer at "+p.Snapshotter,
		"start it: \"systemctl restart cvmfs-snapshotter\"; its log says why it ended: \"journalctl --unit cvmfs-snapshotter\"")
}

// lacking tells of images that can't be saved yet.
func lacking(f *Facts, _ *Plan) (found []Finding) {
	if f.Snapshotter == nil {
		return nil
	}
	for _, l := range f.Snapshotter.Lacking {
		found = append(found, one(Note, "snapshotter.blobs", fmt.Sprintf(
			"%s (%s) can't be saved, and pushed only where its layers are: %d of them came from a repository", l.Name,
			l.Namespace, l.Blobs), "the snapshotter downloads them in the background; if that doesn't end, its log says "+
			"why: \"journalctl -u cvmfs-snapshotter\"")...)
	}
	return found
}

// lost tells of data of one side that the other one goes on with.
func lost(f *Facts, p *Plan) []Finding {
	if f.Snapshotter == nil || f.Snapshotter.Known == nil {
		return nil
	}
	known := f.Snapshotter.Known
	if n := len(known.Lost); n > 0 {
		return with(one(Error, "snapshotter.lost", fmt.Sprintf("the snapshotter hasn't got %d snapshots that containerd knows of: "+
			"its folder, %s, was removed, emptied or replaced; what stands on them can't be started, and pulls don't bring "+
			"them back", n, p.DataRoot), "put the folder back, with the snapshotter stopped; or remove the containers that it had and "+
			"their images, and pull these again, while it runs: nothing of containerd's names what is lost then"),
			strings.Join(known.Lost, "\n"))
	}
	if s := f.Snapshotter.State; s.Version != "" && s.Layers > 0 && known.There == 0 {
		return one(Warning, "snapshotter.unknown", fmt.Sprintf("containerd knows none of the %d snapshots that the snapshotter keeps: "+
			"its data were removed or replaced", s.Layers), "put them back, with containerd stopped; or pull the images again: "+
			"what was before goes when containerd next removes an image or a container of the snapshotter's")
	}
	return nil
}

// Answers reports whether a node answers.
func Answers(ctx context.Context, node *control.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	_, err := control.CacheStatus.Ask(ctx, node, control.None{})
	return !errors.Is(err, control.ErrSilent)
}

// askSnapshotter asks the snapshotter of a plan for its state, and containerd for what it knows of it; nil if there is
// none.
func askSnapshotter(ctx context.Context, p Plan) *Snapshotter {
	node := control.NewClient(p.Snapshotter)
	if !Answers(ctx, node) {
		return nil
	}
	s := &Snapshotter{Socket: p.Snapshotter, State: askNode(ctx, p.Snapshotter)}
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	if told, err := control.Names.Do(ctx, node, control.None{}, nil); err == nil { // else keys are shown
		s.State.nameImages(NamesByKey(told))
		s.Lacking = told.Lacking
	}
	if p.Containerd != "" {
		s.Known = askContainerd(ctx, p.Containerd, p.Name)
	}
	return s
}

// askContainerd returns nil where a containerd doesn't answer, which others tell.
func askContainerd(ctx context.Context, socket, snapshotter string) *containerd.Known {
	c, err := containerd.Connect(socket)
	if err != nil {
		return nil
	}
	defer c.Close()
	known, err := c.Known(ctx, snapshotter)
	if err != nil {
		return nil
	}
	return &known
}

// NamesByKey returns names as people read them, by the key of the composed image. Outside of Docker's namespace they
// come with theirs, and a snapshot that no image keeps is called by its chain ID.
func NamesByKey(told status.Names) map[string][]string {
	names := map[string][]string{}
	for _, n := range told.Images {
		names[n.Key] = append(names[n.Key], shown(n))
	}
	for _, list := range names {
		slices.Sort(list)
	}
	return names
}

// docker reports whether a namespace of containerd's is Docker's: with remapped users the ids come behind it.
func docker(namespace string) bool {
	return namespace == "moby" || strings.HasPrefix(namespace, "moby-")
}

func shown(n status.Name) string {
	name := n.Name
	switch {
	case name == "":
		const digits = len("sha256:") + 12
		name = n.Snapshot[strings.LastIndexByte(n.Snapshot, '/')+1:]
		name = "snapshot " + name[:min(digits, len(name))]
	case docker(n.Namespace):
		if ref, err := reference.ParseNormalizedNamed(name); err == nil {
			return reference.FamiliarString(ref)
		}
		return name
	}
	return name + " (" + n.Namespace + ")"
}

// leastID is how many digits of an id name an image at least.
const leastID = 4

// KeysOf returns the keys of the composed images that somebody may mean, as NamesOf has it.
func KeysOf(told status.Names, image string) (keys []string) {
	for _, n := range NamesOf(told, image) {
		if !slices.Contains(keys, n.Key) {
			keys = append(keys, n.Key)
		}
	}
	return keys
}

// NamesOf returns the names of what somebody may mean: by a name as it is told or shown, by the beginning of an id, or
// by a snapshot's name or chain ID.
func NamesOf(told status.Names, image string) (names []status.Name) {
	full := image
	if ref, err := reference.ParseNormalizedNamed(image); err == nil {
		full = reference.TagNameOnly(ref).String()
	}
	id := strings.TrimPrefix(image, "sha256:")
	for _, n := range told.Images {
		if n.Name != "" && (n.Name == image || n.Name == full) || shown(n) == image || n.Snapshot == image ||
			n.Snapshot != "" && strings.HasSuffix(n.Snapshot, "/"+image) ||
			len(id) >= leastID && slices.ContainsFunc(n.IDs, func(of string) bool {
				return strings.HasPrefix(of, "sha256:"+id)
			}) {
			names = append(names, n)
		}
	}
	return names
}
