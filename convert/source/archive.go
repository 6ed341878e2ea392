package source

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	maxEntries  = 100_000 // files of an archive of docker save
	maxSymlinks = 8       // from one file of it to the next
)

// savedFile is where an archive has a file, or which other one it is.
type savedFile struct {
	offset, size int64
	link         string
}

// saved is an archive of docker save: its index, and the file.
type saved struct {
	file  *os.File
	files map[string]savedFile
	links map[v1.Hash]string // files by the digest of their bytes
}

func openArchive(ctx context.Context, ref Reference, want *selector) (*Image, error) {
	f, err := os.Open(ref.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNoImage, err)
	}
	if err != nil {
		return nil, err
	}
	f, err = plainFile(ctx, f)
	if err != nil {
		return nil, err
	}
	return loadArchive(ctx, f, ref.Name, want)
}

// plainFile returns an archive uncompressed, for it is read in no order: a compressed one is written to an unnamed
// file.
func plainFile(ctx context.Context, f *os.File) (*os.File, error) {
	head := make([]byte, HeadSize)
	n, err := io.ReadFull(f, head)
	if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrDamaged, err), f.Close())
	}
	compression := Detect(head[:n])
	if compression == Uncompressed {
		return f, nil
	}
	defer f.Close()
	if compression == Unknown {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, errForm(head[:n]))
	}
	plain, stop, err := decompress(bufio.NewReaderSize(f, bufferSize), compression)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer stop()
	return spool(ctx, unpacking{plain})
}

// spool writes a stream to a file that has no name, so that nothing of it is left whatever happens.
func spool(ctx context.Context, r io.Reader) (*os.File, error) {
	f, err := os.CreateTemp("", "docker2cvmfs-")
	if err != nil {
		return nil, err
	}
	err = os.Remove(f.Name())
	if err == nil {
		_, err = io.Copy(f, contextReader{ctx, r})
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		if failed := new(fs.PathError); errors.As(err, &failed) && failed.Op == "write" {
			err = fmt.Errorf("keep the archive in %s: %w: TMPDIR chooses another folder", os.TempDir(), failed.Err)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// unpacking is a decompressor whose complaints are damage.
type unpacking struct{ r io.Reader }

func (u unpacking) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: it can't be decompressed: %w", ErrDamaged, err)
	}
	return n, err
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// loadArchive reads the image of a name from an archive, which it closes with the image or on an error.
func loadArchive(ctx context.Context, f *os.File, called string, want *selector) (*Image, error) {
	s := &saved{file: f, files: map[string]savedFile{}, links: map[v1.Hash]string{}}
	image, err := s.load(ctx, called, want)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	image.close = f.Close
	return image, nil
}

func (s *saved) load(ctx context.Context, called string, want *selector) (*Image, error) {
	if err := s.index(ctx); err != nil {
		return nil, err
	}
	raw, err := readFile(s, "manifest.json", maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return loadLayout(ctx, layout{s}, called, want)
	}
	if err != nil {
		return nil, err
	}
	entry, err := chooseSaved(raw, called)
	if err != nil {
		return nil, err
	}
	m, err := s.manifestOf(entry)
	if err != nil {
		return nil, err
	}
	return loadImage(ctx, s, m, types.DockerManifestSchema2)
}

// index finds out where each file is.
func (s *saved) index(ctx context.Context) error {
	for r := tar.NewReader(contextSeeker{contextReader{ctx, s.file}, s.file}); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if len(s.files) == maxEntries {
			return fmt.Errorf("more than %d files: it is no archive of docker save", maxEntries)
		}
		at, err := s.file.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		f := savedFile{offset: at, size: h.Size}
		clean := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
		case tar.TypeSymlink:
			f.link = path.Join(path.Dir(clean), h.Linkname) //nolint:gosec // a key of files, no path
		case tar.TypeLink:
			f.link = path.Clean(h.Linkname)
		default:
			continue
		}
		s.files[clean] = f
	}
}

// contextSeeker lets the tar reader skip files.
type contextSeeker struct {
	contextReader
	io.Seeker
}

func (s *saved) open(file string) (io.ReadCloser, int64, error) {
	file = path.Clean(file)
	for range maxSymlinks {
		f, found := s.files[file]
		if !found {
			return nil, 0, &fs.PathError{Op: "open", Path: file, Err: fs.ErrNotExist}
		}
		if f.link == "" {
			return io.NopCloser(io.NewSectionReader(s.file, f.offset, f.size)), f.size, nil
		}
		file = f.link
	}
	return nil, 0, fmt.Errorf("%.100q: too many links", file)
}

// savedImage is an image as manifest.json lists it.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func chooseSaved(raw []byte, called string) (*savedImage, error) {
	var all []savedImage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if called == "" && len(all) == 1 {
		return &all[0], nil
	}
	var tags []string
	for i := range all {
		for _, t := range all[i].RepoTags {
			if called != "" && sameName(t, called) {
				return &all[i], nil
			}
			tags = append(tags, t)
		}
	}
	if called == "" {
		return nil, fmt.Errorf("%w: the archive holds %d images: name one of %.500q behind a colon", ErrNoImage,
			len(all), tags)
	}
	return nil, fmt.Errorf("%w %q: the archive holds %.500q", ErrNoImage, called, tags)
}

// sameName compares names as Docker does: registry, library/ and :latest may be left out.
func sameName(a, b string) bool {
	x, errX := name.ParseReference(a)
	y, errY := name.ParseReference(b)
	return a == b || errX == nil && errY == nil && x.Name() == y.Name()
}

// manifestOf makes the manifest that the archive doesn't have.
func (s *saved) manifestOf(image *savedImage) ([]byte, error) {
	if len(image.Layers) > maxLayers {
		return nil, fmt.Errorf("%d layers, the limit is %d", len(image.Layers), maxLayers)
	}
	raw, err := readFile(s, image.Config, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	config, err := parseConfig(raw)
	if err != nil {
		return nil, err
	}
	if len(config.RootFS.DiffIDs) != len(image.Layers) {
		return nil, fmt.Errorf("%d layers, but the configuration names %d", len(image.Layers),
			len(config.RootFS.DiffIDs))
	}
	digest, n, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	s.links[digest] = image.Config
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.DockerManifestSchema2, Layers: []v1.Descriptor{},
		Config: v1.Descriptor{MediaType: types.DockerConfigJSON, Digest: digest, Size: n},
	}
	for i, file := range image.Layers {
		d, err := s.describe(file, config.RootFS.DiffIDs[i])
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		m.Layers = append(m.Layers, d)
	}
	return json.Marshal(m)
}

// describe says what a layer's file is. An uncompressed one is checked when it is read: its digest is the diffID.
func (s *saved) describe(file string, diffID v1.Hash) (v1.Descriptor, error) {
	r, size, err := s.open(file)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer r.Close()
	in := bufio.NewReader(r)
	head, err := in.Peek(HeadSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: types.DockerUncompressedLayer, Digest: diffID, Size: size}
	compression, form := Detect(head), errForm(head)
	if compression != Uncompressed {
		d.MediaType = cmp.Or(map[Compression]types.MediaType{Zstd: types.OCILayerZStd}[compression], types.DockerLayer)
		if d.Digest, _, err = v1.SHA256(in); err != nil {
			return v1.Descriptor{}, err
		}
	}
	if compression == Unknown {
		return v1.Descriptor{}, fmt.Errorf("%s: its digest is %s, and %w", file, d.Digest, form)
	}
	s.links[d.Digest] = file
	return d, nil
}

func (s *saved) manifest(context.Context, v1.Descriptor) ([]byte, error) {
	return nil, errors.New("an archive of docker save has no manifests")
}

func (s *saved) blob(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	return openAt(s, s.links[d.Digest], offset)
}

func (s *saved) attempts() int { return 0 }
