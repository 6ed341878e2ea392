package installer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// HelloCommand is the command with which a program of the test image calls [Hello]; the word follows.
const HelloCommand = "hello"

// wordFile is what a container of the test image writes.
const wordFile = "/word"

// Hello is what happens in a container of the test image: a file is written and read, and the word in it told.
func Hello(out io.Writer, word string) error {
	if err := os.WriteFile(wordFile, []byte(word), 0o600); err != nil {
		return err
	}
	b, err := os.ReadFile(wordFile)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", b)
	return err
}

// testImage returns an image whose only file is a program that knows [HelloCommand].
func testImage(program string) (v1.Image, error) {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return piped(func(w io.Writer) error { return packProgram(w, program) }), nil
	})
	if err != nil {
		return nil, err
	}
	image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Entrypoint: []string{"/hello", HelloCommand}, Labels: map[string]string{label: "1"}},
	})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(image, layer)
}

// testArchive returns that image as an archive that docker load takes.
func testArchive(program, ref string) (io.ReadCloser, error) {
	tag, err := name.NewTag(ref)
	if err != nil {
		return nil, err
	}
	image, err := testImage(program)
	if err != nil {
		return nil, err
	}
	return piped(func(w io.Writer) error { return tarball.Write(tag, image, w) }), nil
}

// piped returns what write writes, to be read as it comes.
func piped(write func(io.Writer) error) io.ReadCloser {
	r, w := io.Pipe()
	go func() { w.CloseWithError(write(w)) }()
	return r
}

// packProgram writes a program as an archive of one file, /hello.
func packProgram(w io.Writer, program string) error {
	f, err := os.Open(program)
	if err != nil {
		return err
	}
	defer f.Close() // only read from
	info, err := f.Stat()
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	if err := t.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: "hello", Mode: 0o755,
		Size: info.Size(),
	}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return errors.Join(err, t.Close())
}
