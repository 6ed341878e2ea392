package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
)

// refName is the annotation that holds an image's tag in an OCI layout.
const refName = "org.opencontainers.image.ref.name"

// files are the files of a layout or an archive, by their slash-separated names.
type files interface {
	open(name string) (io.ReadCloser, int64, error)
}

// folder is a layout's folder. No symbolic link leads out of it.
type folder struct{ root *os.Root }

func (f folder) open(name string) (io.ReadCloser, int64, error) {
	r, err := f.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := r.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, r.Close())
	}
	return r, info.Size(), nil
}

// layout has the blobs of an OCI image layout.
type layout struct{ files files }

func openLayout(ctx context.Context, ref Reference, want *selector) (*Image, error) {
	root, err := os.OpenRoot(ref.Path)
	if err != nil {
		return nil, err
	}
	image, err := loadLayout(ctx, layout{folder{root}}, ref.Tag, want)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	image.close = root.Close
	return image, nil
}

func loadLayout(ctx context.Context, in layout, tag string, want *selector) (*Image, error) {
	raw, err := readFile(in.files, "index.json", maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no index.json: it is no OCI image layout", ErrNoImage)
	}
	if err != nil {
		return nil, err
	}
	list, err := parseList(raw)
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var tags []string
	for _, d := range list {
		tags = append(tags, d.Annotations[refName])
	}
	named := list
	if tag != "" {
		named = slices.DeleteFunc(slices.Clone(list),
			func(d v1.Descriptor) bool { return d.Annotations[refName] != tag })
	}
	switch {
	case len(named) == 0:
		return nil, fmt.Errorf("%w %q: there are %.500q", ErrNoTag, tag, tags)
	case len(named) == 1:
		return load(ctx, in, named[0], want)
	case tag == "" && !alternatives(named, want):
		return nil, fmt.Errorf("%w: it holds several: choose one of the tags %.500q", ErrNoTag, tags)
	}
	d, err := choose(ctx, in, named, want)
	if err != nil {
		return nil, err
	}
	return load(ctx, in, d, want)
}

// alternatives reports whether the images of a layout are one for several platforms: they have one tag, or none, or one
// alone is said to be for the platform asked for.
func alternatives(list []v1.Descriptor, want *selector) bool {
	fitting := 0
	for _, d := range list {
		if p := d.Platform; p != nil &&
			want.Match(specs.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}) {
			fitting++
		}
	}
	return fitting == 1 || !slices.ContainsFunc(list,
		func(d v1.Descriptor) bool { return d.Annotations[refName] != list[0].Annotations[refName] })
}

// blobName is where a layout has a blob.
func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func (l layout) manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	return readFile(l.files, blobName(d.Digest), maxManifest)
}

func (l layout) blob(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	return openAt(l.files, blobName(d.Digest), offset)
}

func (l layout) attempts() int { return 0 }

// openAt opens a file and skips its beginning.
func openAt(in files, name string, offset int64) (io.ReadCloser, error) {
	r, _, err := in.open(name)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, r, offset); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// readFile reads a file of at most limit bytes.
func readFile(in files, name string, limit int64) ([]byte, error) {
	r, size, err := in.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, fmt.Errorf("%s: %d bytes, the limit is %d", strings.TrimSpace(name), size, limit)
	}
	return io.ReadAll(io.LimitReader(r, limit))
}
