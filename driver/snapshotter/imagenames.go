package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/status"
)

// How containerd's labels of content say what else it keeps: containerd.io/gc.ref.content.… names content, and
// containerd.io/gc.ref.snapshot.… the chain ID of a snapshot. Of an image's index these lead to its manifests, of a
// manifest to the configuration, and of that to what was unpacked. A referrer is another image.
const (
	keepsContent  = "containerd.io/gc.ref.content"
	keepsReferrer = "containerd.io/gc.ref.content.referrer."
	keepsSnapshot = "containerd.io/gc.ref.snapshot."
)

// namesWait is how long containerd may take to tell its names.
const namesWait = 10 * time.Second

// Names tells the names that containerd has for what composed images show. A snapshot of a thin image that no image
// keeps is told by its own name.
func (f faceOf) Names(ctx context.Context) (status.Names, error) {
	ctx, cancel := context.WithTimeout(ctx, namesWait)
	defer cancel()
	chains, err := f.chains()
	if err != nil {
		return status.Names{}, err
	}
	told := status.Names{Known: true}
	if told.Lacking, err = f.lackingNames(ctx); err != nil {
		told.Err = err.Error()
	}
	for _, namespace := range slices.Sorted(maps.Keys(chains)) {
		named, err := f.named(namespaces.WithNamespace(ctx, namespace), chains[namespace])
		if err != nil {
			told.Err = fmt.Sprintf("ask containerd for the names of images in its namespace %s: %v", namespace, err)
		}
		for _, n := range named {
			n.Namespace = namespace
			told.Images = append(told.Images, n)
		}
	}
	return told, nil
}

// chain is a committed snapshot that shows something thin.
type chain struct {
	snapshot, key string // its name, and the key of the composed image
	below         string // the chain ID of what it stands on
}

// chains returns the chains that show something thin, by namespace and chain ID.
func (s *Snapshotter) chains() (map[string]map[digest.Digest]chain, error) {
	byNamespace := map[string]map[digest.Digest]chain{}
	for _, sn := range s.table.list(func(sn *snapshot) bool { return sn.committed && !sn.hidden }) {
		namespace, _, named := strings.Cut(sn.Name, "/")
		id := digest.Digest(own(sn.Name))
		if !named || id.Validate() != nil {
			continue // a step of a build
		}
		stack, err := s.layers.Describe(sn.id)
		if errors.Is(err, layers.ErrNoLayer) {
			continue // it is being removed
		}
		if err != nil {
			return nil, err
		}
		if stack.Image == "" {
			continue
		}
		if byNamespace[namespace] == nil {
			byNamespace[namespace] = map[digest.Digest]chain{}
		}
		byNamespace[namespace][id] = chain{sn.Name, stack.Image, own(sn.below)}
	}
	return byNamespace, nil
}

// named returns what the chains of a namespace are called: all of them, also where there is an error.
func (s *Snapshotter) named(ctx context.Context, chains map[digest.Digest]chain) ([]status.Name, error) {
	named, seen, err := s.images(ctx, chains)
	unnamed := maps.Clone(chains)
	for id := range seen {
		for is := true; is; { // with all it stands on
			var c chain
			c, is = unnamed[id]
			delete(unnamed, id)
			id = digest.Digest(c.below)
		}
	}
	for _, c := range topmost(unnamed) {
		named = append(named, status.Name{Key: c.key, Snapshot: c.snapshot})
	}
	slices.SortFunc(named, func(a, b status.Name) int {
		return strings.Compare(a.Name+" "+a.Snapshot, b.Name+" "+b.Snapshot)
	})
	return named, err
}

// topmost returns the chains that none of the others stands on.
func topmost(chains map[digest.Digest]chain) map[digest.Digest]chain {
	top := maps.Clone(chains)
	for _, c := range chains {
		delete(top, digest.Digest(c.below))
	}
	return top
}

// images returns containerd's images whose chains are among some, and these.
func (s *Snapshotter) images(ctx context.Context, chains map[digest.Digest]chain) (named []status.Name,
	seen map[digest.Digest]bool, err error,
) {
	if s.cfg.Containerd == nil {
		return nil, nil, errors.New("there is no connection to containerd")
	}
	list, err := imagesapi.NewImagesClient(s.cfg.Containerd).List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, nil, err
	}
	kept := map[digest.Digest]content.Info{}
	store := contentproxy.NewContentStore(contentapi.NewContentClient(s.cfg.Containerd))
	if err := store.Walk(ctx, func(info content.Info) error {
		kept[info.Digest] = info
		return nil
	}); err != nil {
		return nil, nil, err
	}
	seen = map[digest.Digest]bool{}
	for _, image := range list.GetImages() {
		target := digest.Digest(image.GetTarget().GetDigest())
		for id, path := range snapshotsOf(target, kept) {
			if c, ok := chains[id]; ok {
				seen[id] = true
				named = append(named, status.Name{Key: c.key, Name: image.GetName(), IDs: path})
			}
		}
	}
	return named, seen, nil
}

// snapshotsOf returns the chain IDs that a piece of content keeps, by itself or by way of what it names, each with the
// digests of what led to it.
func snapshotsOf(from digest.Digest, kept map[digest.Digest]content.Info) map[digest.Digest][]string {
	found, seen := map[digest.Digest][]string{}, map[digest.Digest]bool{}
	var visit func(digest.Digest, []string)
	visit = func(at digest.Digest, path []string) {
		if seen[at] {
			return
		}
		seen[at] = true
		path = append(slices.Clip(path), at.String())
		for label, value := range kept[at].Labels {
			switch {
			case strings.HasPrefix(label, keepsSnapshot):
				found[digest.Digest(value)] = path
			case strings.HasPrefix(label, keepsContent) && !strings.HasPrefix(label, keepsReferrer):
				visit(digest.Digest(value), path)
			}
		}
	}
	visit(from, nil)
	return found
}
