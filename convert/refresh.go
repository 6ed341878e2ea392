package convert

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"time"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/internal/layertar"
	"cvmfs-graphdriver/thin"
)

// Refresh says whether layers that are there already get the info that older versions didn't write.
type Refresh int

// The ways of refreshing. An image's configuration is no ground for an info: it may claim another diffID than that of
// the blob it names, and clients take a layer for what its info says.
const (
	NoRefresh Refresh = iota
	// RefreshKnown writes what follows without reading blobs, and tells which must be read.
	RefreshKnown
	// RefreshAll reads blobs again.
	RefreshAll
)

// compressions are those of blobs by the names that infos have for them.
var compressions = map[source.Compression]thin.Compression{
	source.Uncompressed: thin.Uncompressed, source.Gzip: thin.Gzip, source.Zstd: thin.Zstd, source.XZ: thin.XZ,
	source.Bzip2: thin.Bzip2,
}

// infoOf is the info of a layer whose content was read to its end.
func infoOf(l *source.Layer, content *source.Content, entries int64) *thin.LayerInfo {
	return &thin.LayerInfo{
		Digest: l.Digest.Hex, DiffID: l.DiffID.Hex, Size: l.Size, DiffSize: content.Size(), Entries: entries,
		Compression: compressions[content.Compression()],
	}
}

// fileOf is the file of the info of the layer in a folder.
func fileOf(layer string, i *thin.LayerInfo) (*sink.File, error) {
	b, err := i.Encode()
	if err != nil {
		return nil, err
	}
	return &sink.File{Path: thin.InfoPath(layer), Content: b}, nil
}

// refresh writes the infos that layers lack which were in the sink before, and reports whether it wrote any.
func (c *Converter) refresh(ctx context.Context, tx sink.Transaction, p *plan, missing []*source.Layer) (bool, error) {
	if c.Refresh == NoRefresh {
		return false, nil
	}
	seen := map[string]bool{}
	for _, l := range p.descriptor.Layers {
		if l.FQRN != c.Sink.FQRN() || seen[l.Path] {
			continue
		}
		seen[l.Path] = true
		i := slices.IndexFunc(p.layers, func(own *source.Layer) bool { return c.Layout.Path(own.Digest.Hex) == l.Path })
		var own *source.Layer // nil: it is of the image this one was built from
		if i >= 0 {
			own = p.layers[i]
		}
		if own != nil && slices.Contains(missing, own) {
			continue
		}
		if err := c.refreshLayer(ctx, tx, p, l, own); err != nil {
			return false, err
		}
	}
	return p.summary.Refreshed > 0, nil
}

// refreshLayer writes the info of one layer, unless it is there or isn't known.
func (c *Converter) refreshLayer(ctx context.Context, tx sink.Transaction, p *plan, l thin.Layer,
	own *source.Layer,
) error {
	b, err := tx.ReadFile(ctx, thin.InfoPath(l.Path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		if _, err := thin.ParseInfo(b, l.Digest); err == nil {
			return nil
		}
	}
	var info *thin.LayerInfo
	switch {
	case own != nil && own.DiffID == own.Digest: // the blob is the archive
		info = &thin.LayerInfo{Digest: l.Digest, DiffID: l.Digest, Compression: thin.Uncompressed}
	case own != nil && c.Refresh == RefreshAll:
		if info, err = c.readInfo(ctx, p, own); err != nil {
			return err
		}
	default:
		c.emit(Event{
			Action: LayerLacking, Image: p.state.Image, Digest: "sha256:" + l.Digest, Path: l.Path, Total: l.Size,
		})
		p.summary.Lacking = append(p.summary.Lacking, l.Path)
		return nil
	}
	f, err := fileOf(l.Path, info)
	if err != nil {
		return err
	}
	p.summary.Refreshed++
	return tx.WriteFile(ctx, f.Path, f.Content)
}

// readInfo reads a blob to find out what an info says of it.
func (c *Converter) readInfo(ctx context.Context, p *plan, l *source.Layer) (_ *thin.LayerInfo, err error) {
	e := Event{Image: p.state.Image, Digest: l.Digest.String(), Path: c.Layout.Path(l.Digest.Hex), Total: l.Size}
	started := e
	started.Action = LayerStarted
	c.emit(started)
	begin := time.Now()
	content, err := l.Content(ctx, func(n int) {
		c.emit(Event{Action: LayerProgress, Image: p.state.Image, Digest: l.Digest.String(), Bytes: int64(n)})
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, content.Close()) }()
	r := layertar.NewReader(content)
	for err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := content.Finish(); err != nil {
		return nil, err
	}
	p.summary.Read += l.Size
	e.Action, e.Elapsed, e.Stats.Entries = LayerDone, time.Since(begin), int64(r.Entries())
	c.emit(e)
	return infoOf(l, content, int64(r.Entries())), nil
}
