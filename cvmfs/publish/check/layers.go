package check

import (
	"bytes"
	"context"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/thin"
)

// besideLayer is a file beside a layer: its record, or its info.
type besideLayer struct {
	at      string
	size    int64
	objects []objectCheck
	judge   func([]byte) error
}

var sha256Name = regexp.MustCompile(`^[0-9a-f]{64}$`)

// notLayers are folders in which DUCC has folders that are called as layers are, and aren't.
var notLayers = []string{"/.chains/", "/.dirty-chains/", "/.flat/"}

// layerDigest returns the digest of the blob of the layer in a folder, going by its name; "" if it is none. What is
// below a layer is none.
func layerDigest(folder string) string {
	if slices.ContainsFunc(notLayers, func(prefix string) bool { return strings.HasPrefix(folder, prefix) }) {
		return ""
	}
	above, ducc := strings.CutSuffix(folder, "/layerfs")
	name := path.Base(above)
	if !sha256Name.MatchString(name) || !ducc && strings.HasPrefix(folder, "/.layers/") {
		return ""
	}
	for above = path.Dir(above); above != "/" && above != "."; above = path.Dir(above) {
		if sha256Name.MatchString(path.Base(above)) {
			return ""
		}
	}
	return name
}

// noteLayer takes note of a layer, which is a catalog's root, and of what is beside layers.
func (s *catalogScan) noteLayer(r *checkRow, at string) {
	if r.isDir() {
		if at == s.checked.path && layerDigest(at) != "" {
			s.c.mu.Lock()
			s.c.layers[at] = true
			s.c.mu.Unlock()
		}
		return
	}
	b := besideLayer{at: at, size: r.size}
	limit := int64(thin.MaxInfoSize)
	layer := thin.InfoOf(at)
	digest := layerDigest(layer)
	switch record, is := strings.CutSuffix(at, thin.RecordSuffix); {
	case is && layerDigest(record) != "":
		limit = thin.MaxRecordSize
		b.judge = func(b []byte) error {
			_, err := thin.ParseRecord(b)
			return err
		}
	case layer != "" && digest != "":
		s.c.mu.Lock()
		s.c.described[layer] = true
		s.c.mu.Unlock()
		b.judge = func(b []byte) error {
			_, err := thin.ParseInfo(b, digest)
			return err
		}
	default:
		return
	}
	switch {
	case !r.regular() || r.external():
		s.c.problem(RuleLayer, at, "it is no file of this repository")
		return
	case r.size > limit:
		s.c.problem(RuleLayer, at, "%d bytes, the limit is %d", r.size, limit)
		return
	}
	if b.objects = s.objectsOf(r, at); b.objects == nil {
		return // which is told of elsewhere
	}
	s.c.mu.Lock()
	s.c.beside = append(s.c.beside, b)
	s.c.mu.Unlock()
}

// objectsOf returns the objects of a file's content in order; nil if its row is broken.
func (s *catalogScan) objectsOf(r *checkRow, at string) []objectCheck {
	parts := r.chunks
	if !r.chunked() {
		parts = []chunkRow{{size: r.size, sum: r.hash}}
	}
	var objects []objectCheck
	for _, p := range parts {
		d, err := hash.FromRaw(r.algorithm(), p.sum)
		if err != nil || !r.algorithm().Valid() || !r.compression().Valid() || p.size < 0 || p.size > r.size {
			return nil
		}
		objects = append(objects, objectCheck{objectName{d, r.chunked(), r.compression()}, p.size, at})
	}
	return objects
}

// checkLayers reads what is beside layers, and counts the layers whose info is missing: older versions wrote none.
func (c *checker) checkLayers(ctx context.Context) error {
	for layer := range c.layers {
		if !c.described[layer] {
			c.summary.Undescribed++
		}
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(c.o.Workers)
	for _, b := range c.beside {
		work.Go(func() error { return c.checkBeside(ctx, b) })
	}
	return work.Wait()
}

func (c *checker) checkBeside(ctx context.Context, b besideLayer) error {
	var content bytes.Buffer
	for _, o := range b.objects {
		suffix := hash.File
		if o.chunk {
			suffix = hash.Chunk
		}
		if _, err := storage.CopyObject(ctx, &content, c.from, o.digest, suffix, o.compression, o.size); err != nil {
			return c.flaw(RuleLayer, b.at, err)
		}
	}
	if err := b.judge(content.Bytes()); err != nil {
		c.problem(RuleLayer, b.at, "%v", err)
	}
	return nil
}
