package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/convert/wish"
	"cvmfs-graphdriver/thin"
)

// CollectOptions say what Collect removes.
type CollectOptions struct {
	Lists  []*wish.List  // images they name stay; those made for a wish that none names any more go
	Grace  time.Duration // how long a layer is known to be unused before it goes; 0: none
	DryRun bool          // only tell
	Now    time.Time     // zero: time.Now

	KeepImages  bool          // images that were made for a wish stay, too: Lists says nothing of them
	Dropped     []string      // digests of received layers that nothing keeps any more
	ReceivedAge time.Duration // received layers that are so old go, too; 0: none
}

// CollectSummary is what Collect did, or would have done.
type CollectSummary struct {
	Images  []string `json:"images"`  // whose state went; of a received layer "received/DIGEST"
	Removed []string `json:"removed"` // layers
	Waiting []string `json:"waiting"` // layers that are unused, in their time of grace
	Kept    int      `json:"kept"`    // layers that an image names
}

const maxMetadataDepth = 32 // folders below /.metadata

var layerName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Collect removes the layers of a layout that no image's state names, in one transaction, once they were found unused
// for the time of grace; it begins with the first Collect that finds them so. Images that were converted for themselves
// stay whatever the lists say, and so do those of which only DUCC's manifest is there, and layers that a node sent,
// unless these are dropped.
func (c *Converter) Collect(ctx context.Context, o CollectOptions) (_ *CollectSummary, err error) {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	tx, err := c.Sink.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tx.Abort()) }()
	g := &collection{
		tx: tx, o: o, layout: c.Layout, named: map[string]bool{},
		summary: CollectSummary{Images: []string{}, Removed: []string{}, Waiting: []string{}},
	}
	if err := g.run(ctx); err != nil {
		return nil, fmt.Errorf("collect unused layers of %s: %w", c.Sink, err)
	}
	if o.DryRun {
		return &g.summary, nil
	}
	return &g.summary, tx.Commit(ctx, "unused layers removed")
}

type collection struct {
	tx      sink.Transaction
	o       CollectOptions
	layout  Layout
	named   map[string]bool // layers that stay
	summary CollectSummary
}

func (g *collection) run(ctx context.Context) error {
	if err := g.checkDropped(ctx); err != nil {
		return err
	}
	if err := g.images(ctx, metadataFolder, 0); err != nil {
		return err
	}
	since, err := unusedSince(ctx, g.tx)
	if err != nil {
		return err
	}
	layers, err := g.layout.Layers(ctx, g.tx)
	if err != nil {
		return err
	}
	still := map[string]time.Time{}
	for _, layer := range layers {
		if g.named[layer] {
			g.summary.Kept++
			continue
		}
		from, known := since[layer]
		if !known || from.After(g.o.Now) {
			from = g.o.Now
		}
		if g.o.Now.Sub(from) < g.o.Grace {
			still[layer] = from
			g.summary.Waiting = append(g.summary.Waiting, layer)
			continue
		}
		g.summary.Removed = append(g.summary.Removed, layer)
		if err := g.removeLayer(ctx, layer); err != nil {
			return err
		}
	}
	if maps.EqualFunc(still, since, time.Time.Equal) || g.o.DryRun {
		return nil
	}
	b, err := json.MarshalIndent(still, "", "  ")
	if err != nil {
		return err
	}
	return g.tx.WriteFile(ctx, unusedFile, append(b, '\n'))
}

// images goes through the metadata and notes which layers images name.
func (g *collection) images(ctx context.Context, folder string, depth int) error {
	if depth > maxMetadataDepth {
		return fmt.Errorf("%s: more than %d folders deep", folder, maxMetadataDepth)
	}
	entries, err := g.tx.List(ctx, folder)
	if err != nil {
		return err
	}
	// A repository and a tag may be called as one of these files: those are folders. Other files are lists of DUCC's
	// collector and of this one.
	if slices.ContainsFunc(entries, func(e sink.Entry) bool {
		return !e.Folder &&
			(e.Name == stateName || e.Name == manifestName)
	}) {
		return g.image(ctx, folder)
	}
	for _, e := range entries {
		if !e.Folder {
			continue
		}
		if err := g.images(ctx, folder+"/"+e.Name, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// image notes the layers of one image, or drops its state. A state that can't be understood stops the collection, as a
// manifest does: which layers the image needs isn't known.
func (g *collection) image(ctx context.Context, folder string) error {
	s, err := readState(ctx, g.tx, folder)
	if err != nil {
		return err
	}
	if s != nil && g.dropped(folder, s) {
		g.summary.Images = append(g.summary.Images, strings.TrimPrefix(folder, metadataFolder+"/"))
		if g.o.DryRun {
			return nil
		}
		return g.tx.Remove(ctx, folder)
	}
	if s != nil {
		for _, layer := range s.Layers {
			g.named[layer] = true
		}
	}
	return g.manifest(ctx, folder)
}

// dropped reports whether what has a state isn't wanted any more.
func (g *collection) dropped(folder string, s *state) bool {
	if s.Received != nil {
		return g.o.dropped(s.Received, path.Base(folder))
	}
	return s.Wish && !g.o.KeepImages && !g.wished(folder)
}

func (g *collection) wished(folder string) bool {
	return slices.ContainsFunc(g.o.Lists, func(l *wish.List) bool { return names(l, folder) })
}

// manifest notes the layers of DUCC's manifest. One that can't be read stops the collection: its layers aren't known.
func (g *collection) manifest(ctx context.Context, folder string) error {
	b, err := g.tx.ReadFile(ctx, folder+"/"+manifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var m publishedManifest
	if err := json.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("%s/%s: %w: mend or remove it", folder, manifestName, err)
	}
	for _, l := range m.Layers {
		if hex, found := strings.CutPrefix(l.Digest, "sha256:"); found && layerName.MatchString(hex) {
			g.named[g.layout.Path(hex)] = true
		}
	}
	return nil
}

// unusedSince returns when layers were first found unused.
func unusedSince(ctx context.Context, tx sink.Transaction) (map[string]time.Time, error) {
	b, err := tx.ReadFile(ctx, unusedFile)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]time.Time{}, nil
	}
	if err != nil {
		return nil, err
	}
	since := map[string]time.Time{}
	if json.Unmarshal(b, &since) != nil {
		return map[string]time.Time{}, nil // their time of grace begins anew
	}
	return since, nil
}

func (g *collection) removeLayer(ctx context.Context, layer string) error {
	if g.o.DryRun {
		return nil
	}
	if err := g.tx.Remove(ctx, g.layout.whole(layer)); err != nil {
		return err
	}
	if path.Base(layer) == duccRoot {
		return nil // what stands beside the layer was within the folder
	}
	return errors.Join(g.tx.Remove(ctx, layer+thin.RecordSuffix), g.tx.Remove(ctx, thin.InfoPath(layer)))
}
