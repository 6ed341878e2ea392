package convert

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/convert/thinimage"
	"cvmfs-graphdriver/internal/registry"
	"cvmfs-graphdriver/thin"
)

// defaultParallel is how many layers are read at once.
const defaultParallel = 3

// Job is one image to convert.
type Job struct {
	Input  source.Reference
	Output *source.Reference // nil: only the layers and the state are published
	Wish   bool              // a wish list names it
	// Profile is the image's start profile (package objects), which is published with it; nil: the one that is there of
	// the same image stays.
	Profile []byte
	// Record has a start profile recorded once the layers are published, unless one is with the same image.
	Record bool
}

// Converter converts images into layers of one sink. Set its fields before use.
type Converter struct {
	Sink     sink.Sink
	Layout   Layout
	Input    source.Options // how originals are read
	Output   source.Options // how thin images are written
	Parallel int            // layers at once; 0: 3
	Force    bool           // convert what is unchanged too
	Refresh  Refresh        // what is done for layers that are there
	Progress func(Event)    // nil: none; called by one goroutine at a time
	// Recorder records the start of an image whose layers are published; nil: none can be recorded.
	Recorder func(ctx context.Context, image *source.Image, d *thin.Descriptor) (profile []byte, err error)

	progress    sync.Mutex
	connections registry.Connections // for all images
}

// connected are options whose connections are kept from one image to the next.
func (c *Converter) connected(o source.Options) source.Options {
	if o.Connections == nil {
		o.Connections = &c.connections
	}
	return o
}

// Convert converts an image. On an error nothing of it is published, but for a thin image that couldn't be written:
// then the layers are there, and the next run goes on from there.
func (c *Converter) Convert(ctx context.Context, job Job) (*Summary, error) {
	s, err := c.told(ctx, job)
	if err != nil {
		return nil, fmt.Errorf("convert %s: %w", job.Input, err)
	}
	return s, nil
}

// told converts an image and says how that ended. Its error doesn't name the image.
func (c *Converter) told(ctx context.Context, job Job) (*Summary, error) {
	started := time.Now()
	s, err := c.convert(ctx, job)
	e := Event{Action: ImageDone, Image: job.Input.String(), Summary: s, Elapsed: time.Since(started), Err: err}
	switch {
	case err != nil:
		e.Action = ImageFailed
	case s.Unchanged:
		e.Action = ImageUnchanged
	}
	if s != nil {
		s.Seconds = e.Elapsed.Seconds()
	}
	c.emit(e)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (c *Converter) convert(ctx context.Context, job Job) (_ *Summary, err error) {
	image, err := source.Open(ctx, job.Input, c.connected(c.Input))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	p, err := c.plan(ctx, image, job)
	if err != nil {
		return nil, err
	}
	tx, err := c.Sink.Begin(ctx)
	if err != nil {
		return nil, err
	}
	err = c.publish(ctx, tx, p)
	if err = errors.Join(err, tx.Abort()); err != nil {
		return &p.summary, err
	}
	if !p.summary.Unchanged {
		if err := c.write(ctx, p); err != nil {
			return &p.summary, err
		}
	}
	if !job.Record || p.state.Profile != "" && !c.Force {
		return &p.summary, nil
	}
	return c.convertRecorded(ctx, p)
}

// plan is what a conversion comes to.
type plan struct {
	image      *source.Image
	job        Job
	layers     []*source.Layer // to be in the sink, bottom to top, without repetitions
	profile    []byte          // to be published; nil: none, or one that is
	descriptor *thin.Descriptor
	thin       *thinimage.Image
	state      *state
	summary    Summary
}

// plan finds out which layers the thin image is made of.
func (c *Converter) plan(ctx context.Context, image *source.Image, job Job) (*plan, error) {
	d, own, err := describe(ctx, image, c.Sink.FQRN(), c.Layout)
	if err != nil {
		return nil, err
	}
	p := &plan{image: image, job: job, layers: withoutRepetitions(own), descriptor: d}
	p.state = &state{
		Image: job.Input.String(), Manifest: image.Digest.String(), Config: image.Manifest.Config.Digest.String(),
		Layers: []string{}, Wish: job.Wish,
	}
	if job.Output != nil {
		p.state.Output = job.Output.String()
	}
	p.summary = Summary{
		Image: p.state.Image, Thin: p.state.Output,
		Layers: len(image.Layers), Flattened: len(image.Layers) - len(own),
	}
	for _, l := range d.Layers {
		p.summary.Paths = append(p.summary.Paths, l.URL())
		if l.FQRN == c.Sink.FQRN() {
			p.state.Layers = append(p.state.Layers, l.Path)
		}
	}
	return p, p.build()
}

// build makes the thin image of what is planned.
func (p *plan) build() (err error) {
	if p.thin, err = thinimage.Build(p.image, p.descriptor, p.job.Output); err != nil {
		return err
	}
	p.state.Thin = p.thin.Digest.String()
	p.summary.ThinDigest = p.state.Thin
	return nil
}

// Describe returns the descriptor of an image whose layers lie in a repository, whether they are there already or not.
func Describe(ctx context.Context, image *source.Image, fqrn string, layout Layout) (*thin.Descriptor, error) {
	d, _, err := describe(ctx, image, fqrn, layout)
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", image.Reference, err)
	}
	return d, nil
}

// Thin returns the descriptor of a thin image.
func Thin(ctx context.Context, image *source.Image) (*thin.Descriptor, error) {
	if len(image.Layers) == 1 {
		if d, err := readDescriptor(ctx, image.Layers[0]); d != nil || err != nil {
			return d, err
		}
	}
	return nil, fmt.Errorf("%s is no thin image: convert it first", image.Reference)
}

// describe returns an image's descriptor and the layers of the image that are ordinary ones.
func describe(ctx context.Context, image *source.Image, fqrn string,
	layout Layout,
) (*thin.Descriptor, []*source.Layer, error) {
	d := &thin.Descriptor{Origin: originOf(image)}
	var ordinary []*source.Layer
	for _, l := range image.Layers {
		inner, err := readDescriptor(ctx, l)
		if err != nil {
			return nil, nil, err
		}
		if inner != nil {
			d.Layers = append(d.Layers, inner.Layers...)
			continue
		}
		d.Layers = append(d.Layers, thin.Layer{
			Digest: l.Digest.Hex, FQRN: fqrn, Path: layout.Path(l.Digest.Hex), DiffID: l.DiffID.Hex, Size: l.Size,
		})
		ordinary = append(ordinary, l)
	}
	return d, ordinary, nil
}

// withoutRepetitions keeps the first of equal layers.
func withoutRepetitions(layers []*source.Layer) []*source.Layer {
	var once []*source.Layer
	seen := map[string]bool{}
	for _, l := range layers {
		if !seen[l.Digest.Hex] {
			seen[l.Digest.Hex] = true
			once = append(once, l)
		}
	}
	return once
}

// originOf names an image for people, with its digest: tags move.
func originOf(image *source.Image) string {
	if image.Reference.Kind != source.Registry || image.Reference.Digested() {
		return image.Reference.String()
	}
	return image.Reference.String() + "@" + image.Digest.String()
}

// publish puts into a transaction what is missing, and commits it.
func (c *Converter) publish(ctx context.Context, tx sink.Transaction, p *plan) error {
	old, err := readState(ctx, tx, metadataOf(p.image))
	if err != nil && !errors.Is(err, errState) { // which is as good as none: it is written anew
		return err
	}
	if err := c.profile(p, old); err != nil {
		return err
	}
	missing, err := c.missing(ctx, tx, p)
	if err != nil {
		return err
	}
	unchanged := old.same(p.state) && len(missing) == 0 && p.profile == nil
	if unchanged && c.Refresh == NoRefresh && !c.Force && c.written(ctx, p) {
		p.summary.Unchanged = true
		return nil
	}
	c.announce(p, missing)
	if unchanged && c.Refresh == NoRefresh {
		return nil
	}
	if p.job.Output != nil { // before anything is read: what can't be written is wanted by nobody
		if err := thinimage.CheckWrite(ctx, *p.job.Output, c.connected(c.Output)); err != nil {
			return err
		}
	}
	if err := c.addLayers(ctx, tx, p, missing); err != nil {
		return err
	}
	refreshed, err := c.refresh(ctx, tx, p, missing)
	if err != nil {
		return err
	}
	if unchanged && !refreshed {
		p.summary.Unchanged = !c.Force && c.written(ctx, p)
		return nil
	}
	if err := c.writeProfile(ctx, tx, p, old); err != nil {
		return err
	}
	if err := writeState(ctx, tx, p.image, p.state); err != nil {
		return err
	}
	c.emit(Event{Action: Publishing, Image: p.state.Image})
	return tx.Commit(ctx, p.state.Image)
}

// written reports whether the thin image is where it should be. It isn't looked for outside of registries: there it is
// written again.
func (c *Converter) written(ctx context.Context, p *plan) bool {
	return p.job.Output == nil || p.thin.Published(ctx, *p.job.Output, c.connected(c.Output))
}

// missing returns the layers that the sink doesn't have.
func (c *Converter) missing(ctx context.Context, tx sink.Transaction, p *plan) ([]*source.Layer, error) {
	var missing []*source.Layer
	for _, l := range p.layers {
		found, err := tx.Has(ctx, c.Layout.Path(l.Digest.Hex))
		if err != nil {
			return nil, err
		}
		if !found {
			missing = append(missing, l)
		}
	}
	p.summary.Present = len(p.layers) - len(missing)
	return missing, nil
}

// announce says what will be done.
func (c *Converter) announce(p *plan, missing []*source.Layer) {
	e := Event{Action: ImageStarted, Image: p.state.Image, Layers: len(missing)}
	for _, l := range missing {
		e.Total += l.Size
	}
	c.emit(e)
	for _, l := range p.layers {
		if !slices.Contains(missing, l) {
			c.emit(Event{Action: LayerPresent, Image: p.state.Image, Digest: l.Digest.String(), Total: l.Size})
		}
	}
}

// addLayers reads layers, several at once, into the transaction.
func (c *Converter) addLayers(ctx context.Context, tx sink.Transaction, p *plan, layers []*source.Layer) error {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cmp.Or(c.Parallel, defaultParallel))
	for _, l := range layers {
		g.Go(func() error {
			stats, err := c.addLayer(ctx, tx, p, l)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				p.summary.Added++
				p.summary.Read += l.Size
				p.summary.Stats.Add(stats)
			}
			return err
		})
	}
	return g.Wait()
}

// addLayer reads one layer into the transaction, and says so.
func (c *Converter) addLayer(ctx context.Context, tx sink.Transaction, p *plan, l *source.Layer) (sink.Stats, error) {
	if ctx.Err() != nil {
		return sink.Stats{}, context.Cause(ctx)
	}
	e := Event{Image: p.state.Image, Digest: l.Digest.String(), Path: c.Layout.Path(l.Digest.Hex), Total: l.Size}
	started := e
	started.Action = LayerStarted
	c.emit(started)
	begin := time.Now()
	e.Stats, e.Err = c.ingest(ctx, tx, p, l)
	e.Action, e.Elapsed = LayerDone, time.Since(begin)
	if e.Err != nil {
		e.Action = LayerFailed
	}
	c.emit(e)
	return e.Stats, e.Err
}

// ingest reads a layer into the transaction, after what stands beside it: where the layer is, all is.
func (c *Converter) ingest(ctx context.Context, tx sink.Transaction, p *plan, l *source.Layer) (sink.Stats, error) {
	if err := c.annotate(ctx, tx, p, l); err != nil {
		return sink.Stats{}, err
	}
	content, err := l.Content(ctx, func(n int) {
		c.emit(Event{Action: LayerProgress, Image: p.state.Image, Digest: l.Digest.String(), Bytes: int64(n)})
	})
	if err != nil {
		return sink.Stats{}, err
	}
	path := c.Layout.Path(l.Digest.Hex)
	stats, err := tx.Layer(ctx, path, content, func(s sink.Stats) (*sink.File, error) {
		if err := content.Finish(); err != nil {
			return nil, err
		}
		return fileOf(path, infoOf(l, content, s.Entries))
	})
	if err != nil {
		err = fmt.Errorf("layer %s: %w", l.Digest, err)
	}
	return stats, errors.Join(err, content.Close())
}

// annotate writes what DUCC's layout has beside a layer.
func (c *Converter) annotate(ctx context.Context, tx sink.Transaction, p *plan, l *source.Layer) error {
	if !c.Layout.DUCC {
		return nil
	}
	for _, marker := range c.Layout.markers(l.Digest.Hex) {
		if err := tx.WriteFile(ctx, marker, nil); err != nil {
			return err
		}
	}
	origin := fmt.Sprintf(`{"origin":[%q]}`, p.state.Config)
	return tx.WriteFile(ctx, c.Layout.whole(c.Layout.Path(l.Digest.Hex))+"/.metadata/origin.json", []byte(origin))
}

// write puts the thin image where it is wanted.
func (c *Converter) write(ctx context.Context, p *plan) error {
	if p.job.Output == nil {
		return nil
	}
	written, err := p.thin.Write(ctx, *p.job.Output, c.connected(c.Output))
	if err != nil {
		return err
	}
	p.summary.ThinDigest = written.Digest.String()
	c.emit(Event{Action: ImageWritten, Image: p.state.Image, Digest: p.summary.ThinDigest, Note: written.Note})
	return nil
}
