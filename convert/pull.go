package convert

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/internal/durable"
)

// Pull downloads an image into a folder: "manifest.json", "config.json", and each layer's blob as the source has it,
// called by its digest and by how it is compressed: "<hex>.tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2" or ".tar", or by
// its digest alone. A file that is there and complete stays. It gives the layers' files, bottom to top.
func Pull(ctx context.Context, image *source.Image, dir string, parallel int, progress func(Event)) ([]string, error) {
	p := &pulling{image: image, dir: dir, progress: progress, names: make([]string, len(image.Layers))}
	if err := p.run(ctx, parallel); err != nil {
		return nil, fmt.Errorf("pull %s into %s: %w", image.Reference, dir, err)
	}
	return p.names, nil
}

type pulling struct {
	image    *source.Image
	dir      string
	progress func(Event)
	names    []string
	mu       sync.Mutex
}

func (p *pulling) run(ctx context.Context, parallel int) error {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	first := map[string]int{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(parallel, 1))
	for i, l := range p.image.Layers {
		if _, again := first[l.Digest.Hex]; again {
			continue
		}
		first[l.Digest.Hex] = i
		g.Go(func() (err error) {
			if p.names[i], err = p.layer(ctx, l); err != nil {
				err = fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, l := range p.image.Layers {
		p.names[i] = p.names[first[l.Digest.Hex]]
	}
	// The manifest comes last: where it is, all is.
	for _, f := range []struct {
		name    string
		content []byte
	}{{"config.json", p.image.RawConfig}, {manifestName, p.image.Raw}} {
		if err := durable.Replace(filepath.Join(p.dir, f.name), 0o644, f.content); err != nil {
			return err
		}
	}
	return nil
}

// suffixes are those of a layer's file.
var suffixes = map[source.Compression]string{
	source.Gzip: ".tar.gz", source.Zstd: ".tar.zst", source.XZ: ".tar.xz", source.Bzip2: ".tar.bz2",
	source.Uncompressed: ".tar", source.Unknown: "",
}

// layer downloads a blob, unless it is there.
func (p *pulling) layer(ctx context.Context, l *source.Layer) (string, error) {
	for _, suffix := range suffixes {
		name := l.Digest.Hex + suffix
		if complete(filepath.Join(p.dir, name), l) {
			p.emit(Event{Action: LayerPresent, Digest: l.Digest.String(), Total: l.Size})
			return name, nil
		}
	}
	p.emit(Event{Action: LayerStarted, Digest: l.Digest.String(), Total: l.Size})
	name, err := p.download(ctx, l)
	action := LayerDone
	if err != nil {
		action = LayerFailed
	}
	p.emit(Event{Action: action, Digest: l.Digest.String(), Path: name, Total: l.Size, Err: err})
	return name, err
}

func (p *pulling) emit(e Event) {
	if p.progress == nil {
		return
	}
	e.Time, e.Image = time.Now(), p.image.Reference.String()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress(e)
}

// complete reports whether a file is a layer's blob.
func complete(file string, l *source.Layer) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(f, l.Size+1))
	return err == nil && n == l.Size && hex.EncodeToString(sum.Sum(nil)) == l.Digest.Hex
}

func (p *pulling) download(ctx context.Context, l *source.Layer) (name string, err error) {
	blob := l.Blob(ctx)
	defer func() { err = errors.Join(err, blob.Close()) }()
	counted := bufio.NewReaderSize(io.TeeReader(blob, writerFunc(func(b []byte) {
		p.emit(Event{Action: LayerProgress, Digest: l.Digest.String(), Bytes: int64(len(b))})
	})), 1<<16)
	head, err := counted.Peek(source.HeadSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	name = l.Digest.Hex + suffixes[source.Detect(head)]
	return name, durable.ReplaceBy(filepath.Join(p.dir, name), 0o644, func(to io.Writer) error {
		_, err := counted.WriteTo(to)
		return err
	})
}

type writerFunc func([]byte)

func (w writerFunc) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}
