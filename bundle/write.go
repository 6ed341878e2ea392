package bundle

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Format is a form of a bundle on disk.
type Format string

// Formats.
const (
	Folder Format = "dir"
	TarGz  Format = "tar.gz"
	TarZst Format = "tar.zst"
)

// Formats are all there are.
func Formats() []Format { return []Format{Folder, TarGz, TarZst} }

// WriteContext writes the bundle as the tar stream that the engine's PluginCreate takes: config.json and rootfs/.
func (b *Bundle) WriteContext(w io.Writer) error {
	return writeTar(w, b.entries[1:], b.Build.Time, func(name string) string { return name })
}

// WriteRootfs writes rootfs/ as a tar stream of its own, the layer that registries keep.
func (b *Bundle) WriteRootfs(w io.Writer) error {
	below := slices.DeleteFunc(slices.Clone(b.entries),
		func(e Entry) bool { return !strings.HasPrefix(e.Name, rootfsName+"/") })
	return writeTar(w, below, b.Build.Time,
		func(name string) string { return strings.TrimPrefix(name, rootfsName+"/") })
}

// WriteArchive writes the bundle as a compressed tar archive.
func (b *Bundle) WriteArchive(w io.Writer, format Format) error {
	var z io.WriteCloser
	var err error
	switch format {
	case TarGz:
		var g *gzip.Writer
		if g, err = gzip.NewWriterLevel(w, gzip.BestCompression); err == nil {
			g.ModTime = time.Unix(0, 0) // none: the zero time would be written, as one in 2042
			z = g
		}
	case TarZst:
		// One thread: the bytes must not depend on the machine.
		z, err = zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	default:
		err = fmt.Errorf("%q is no format of an archive", format)
	}
	if err != nil {
		return err
	}
	err = writeTar(z, b.entries, b.Build.Time, func(name string) string { return path.Join(b.Name(), name) })
	return errors.Join(err, z.Close())
}

// writeTar writes entries under the names that named gives them.
func writeTar(w io.Writer, entries []Entry, when time.Time, named func(string) string) error {
	t := tar.NewWriter(w)
	for _, e := range entries {
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: named(e.Name), Mode: int64(e.Mode.Perm()), Size: int64(len(e.Data)),
			ModTime: when, Format: tar.FormatPAX,
		}
		if e.Mode.IsDir() {
			h.Typeflag = tar.TypeDir
			h.Name += "/"
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(e.Data); err != nil {
			return err
		}
	}
	return t.Close()
}

// WriteFolder lays the bundle out as the folder dir, which must not exist.
func (b *Bundle) WriteFolder(dir string) error {
	for _, e := range b.entries {
		name := filepath.Join(dir, filepath.FromSlash(e.Name))
		var err error
		if e.Mode.IsDir() {
			err = os.Mkdir(name, 0o755)
		} else {
			err = writeFile(name, func(w io.Writer) error {
				_, err := w.Write(e.Data)
				return err
			})
		}
		if err == nil {
			err = os.Chmod(name, e.Mode) // whatever the umask
		}
		if err != nil {
			return err
		}
	}
	// Times last and from the end: what is made in a folder changes the folder's time.
	for _, e := range slices.Backward(b.entries) {
		if err := os.Chtimes(filepath.Join(dir, filepath.FromSlash(e.Name)), b.Build.Time, b.Build.Time); err != nil {
			return err
		}
	}
	return nil
}

// writeFile makes a file that must not exist, of mode 0644 whatever the umask.
func writeFile(name string, write func(w io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Chmod(0o644), f.Sync(), f.Close())
}
