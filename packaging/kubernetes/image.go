package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/internal/durable"
)

// programs are those of the image, the one that it runs first.
var programs = []string{"cvmfs-node", "cvmfs-snapshotter", "cvmfs-graphdriver"}

// image returns the image for all architectures.
func (o *options) image() (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range o.archs {
		image, err := o.imageFor(arch)
		if err != nil {
			return nil, fmt.Errorf("for %s: %w", arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        image,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	return index, nil
}

func (o *options) imageFor(arch string) (v1.Image, error) {
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	for _, name := range programs {
		path := filepath.Join(o.programs, arch, name)
		got, err := bundle.ProgramArch(path)
		if err != nil {
			return nil, err
		}
		if got != arch {
			return nil, fmt.Errorf("the program %s is for %s", path, got)
		}
		content, err := os.ReadFile(path)
		if err == nil {
			err = add(w, name, 0o755, content, o)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image, err := mutate.ConfigFile(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON),
		types.OCIManifestSchema1), &v1.ConfigFile{
		OS: "linux", Architecture: arch, Created: v1.Time{Time: o.date},
		Config: v1.Config{Entrypoint: []string{"/" + programs[0]}, Cmd: []string{"pod"}, Labels: map[string]string{
			"org.opencontainers.image.title": "cvmfs-snapshotter", "org.opencontainers.image.version": o.version,
		}},
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(image, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: o.date}}})
}

// add adds a file to an archive, the same whoever makes it and when.
func add(w *tar.Writer, name string, mode int64, content []byte, o *options) error {
	err := w.WriteHeader(&tar.Header{
		Name: name, Mode: mode, Size: int64(len(content)), ModTime: o.date, Typeflag: tar.TypeReg,
		Format: tar.FormatUSTAR,
	})
	if err == nil {
		_, err = w.Write(content)
	}
	return err
}

// writeArchive writes an image as an archive of an OCI layout.
func (o *options) writeArchive(to string, index v1.ImageIndex) error {
	dir, err := os.MkdirTemp("", "image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = p.AppendIndex(index, layout.WithAnnotations(map[string]string{
			"org.opencontainers.image.ref.name": o.version,
			"io.containerd.image.name":          placeholder + ":" + o.version,
		}))
	}
	if err != nil {
		return err
	}
	return durable.ReplaceBy(to, 0o644, func(out io.Writer) error { return archive(out, os.DirFS(dir), "", o, nil) })
}

// archive writes the files of a folder below a name, in the order of their paths, each after edit if there is one.
func archive(out io.Writer, files fs.FS, below string, o *options,
	edit func(path string, content []byte) []byte,
) error {
	w := tar.NewWriter(out)
	err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, path)
		if err != nil {
			return err
		}
		if edit != nil {
			content = edit(path, content)
		}
		return add(w, below+path, 0o644, content, o)
	})
	if err != nil {
		return err
	}
	return w.Close()
}

// writeChart writes the chart with the release's version.
func (o *options) writeChart(to string) error {
	files, err := fs.Sub(chart, "chart")
	if err != nil {
		return err
	}
	return durable.ReplaceBy(to, 0o644, func(out io.Writer) error {
		z := gzip.NewWriter(out)
		err := archive(z, files, "cvmfs-snapshotter/", o, func(path string, content []byte) []byte {
			if path != "Chart.yaml" {
				return content
			}
			return chartVersions.ReplaceAllFunc(content, func(line []byte) []byte {
				if bytes.HasPrefix(line, []byte("app")) {
					return fmt.Appendf(nil, "appVersion: %s", quoted(o.version))
				}
				return fmt.Appendf(nil, "version: %s", quoted(chartVersion(o.version)))
			})
		})
		if err != nil {
			return err
		}
		return z.Close()
	})
}

var chartVersions = regexp.MustCompile(`(?m)^(version|appVersion): .*$`)

// semantic is what a chart's version has to be.
var semantic = regexp.MustCompile(`^\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?$`)

// chartVersion makes a version of the programs one of a chart: what no release comes before is older than any.
func chartVersion(version string) string {
	if semantic.MatchString(version) {
		return version
	}
	return "0.0.0-g" + version
}

func quoted(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string can be encoded
	}
	return string(text)
}
