package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"cvmfs-graphdriver/test/engine"
)

// Debian is what the image with Python's scientific programs is called: about 450 MB of files in seven layers.
const Debian = "example/analysis:1"

// DebianSays is what the image's program says.
const DebianSays = "mean 0.4994, variance 0.0831, largest eigenvalue 99.9"

// Packages is an image that is made of Debian packages of one release, a stage a layer, and kept in the cache folder.
// Nothing is installed and no script of a package is run; the few things such scripts do that programs need are done
// here.
type Packages struct {
	Name    string // of the image, with its tag
	Folder  string // in the cache folder; its number counts up when the image is made of other things, or otherwise
	Stages  [][]string
	Without []string // packages that are left out, with what only they need
	Config  Config
	Top     []Layer // above those of the packages
}

// debian is what the image is made of. SciPy needs Pythran, which needs compilers, to build extensions only.
func debian() *Packages {
	return &Packages{
		Name: Debian, Folder: "image-debian-3", Without: []string{"python3-pythran"},
		Stages: [][]string{
			{"?essential"},
			{"python3"},
			{"python3-numpy", "libopenblas0-pthread"},
			{"python3-scipy"},
			{"python3-pandas"},
			{"python3-sympy", "python3-astropy"},
		},
		Config: Config{
			"Env": []string{
				"PATH=/usr/local/bin:/usr/bin:/usr/sbin", "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1",
				"OPENBLAS_NUM_THREADS=1",
			},
			"Cmd": []string{"python3", "/opt/analysis/run.py"}, "WorkingDir": "/opt/analysis",
			"Labels": map[string]string{"example": "analysis"},
		},
		Top: []Layer{Archive(writeAnalysis)},
	}
}

// FetchDebian brings the image with Python's scientific programs into the cache folder, as [Packages.Fetch] does.
func FetchDebian(ctx context.Context, cache string, progress io.Writer) (*Image, error) {
	return debian().Fetch(ctx, cache, progress)
}

// FindDebian returns the image in the cache folder; errors.Is(err, engine.ErrNotFetched) when [FetchDebian] would help.
func FindDebian(cache string) (*Image, error) { return debian().Find(cache) }

// Fetch brings the image into the cache folder unless it is there: Debian's packages are fetched as those of the engine
// are, and each stage's files become a layer.
func (p *Packages) Fetch(ctx context.Context, cache string, progress io.Writer) (*Image, error) {
	u := &engine.Userland{Folder: p.Folder, Suite: "bookworm", Stages: p.Stages, Without: p.Without}
	u.Works = func(dir string) error {
		_, err := Open(dir)
		return err
	}
	u.Make = func(ctx context.Context, dir string, stages [][]string) error {
		fmt.Fprintf(progress, "make the image %s\n", p.Name)
		var layers []Layer
		for n, debs := range stages {
			layers = append(layers, Archive(func(w *tar.Writer) error { return writePackages(ctx, w, debs, n == 0) }))
		}
		_, err := Make(ctx, dir, p.Name, p.Config, append(layers, p.Top...)...)
		return err
	}
	if err := u.Fetch(ctx, cache, progress); err != nil {
		return nil, err
	}
	return p.Find(cache)
}

// Find returns the image in the cache folder; errors.Is(err, engine.ErrNotFetched) when [Packages.Fetch] would help.
func (p *Packages) Find(cache string) (*Image, error) {
	image, err := Open(filepath.Join(cache, p.Folder))
	if err != nil {
		return nil, fmt.Errorf("find the image %s: %w: %w", p.Name, engine.ErrNotFetched, err)
	}
	return image, nil
}

// merged are the folders that Debian has moved into /usr, as links are made for them.
var merged = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// alternatives are links that scripts of packages make, by the ends of the files' paths they lead to.
var alternatives = map[string]string{
	"/openblas-pthread/libblas.so.3":     "../libblas.so.3",
	"/openblas-pthread/liblapack.so.3":   "../liblapack.so.3",
	"/openblas-pthread/libopenblas.so.0": "../libopenblas.so.0",
	"usr/bin/mawk":                       "awk",
}

// accounts are files that a script of base-passwd makes as copies.
var accounts = map[string]string{
	"usr/share/base-passwd/passwd.master": "etc/passwd",
	"usr/share/base-passwd/group.master":  "etc/group",
}

// packer writes the files of packages as one layer.
type packer struct {
	w    *tar.Writer
	done map[string]bool
}

func writePackages(ctx context.Context, w *tar.Writer, debs []string, first bool) error {
	p := &packer{w: w, done: map[string]bool{}}
	if first {
		for _, dir := range merged {
			if err := p.link(dir, "usr/"+dir, time.Unix(0, 0)); err != nil {
				return err
			}
		}
	}
	for _, deb := range debs {
		if err := p.unpack(ctx, deb); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(deb), err)
		}
	}
	return nil
}

// unpack copies the files of a package.
func (p *packer) unpack(ctx context.Context, deb string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = p.copy(tar.NewReader(out))
	if err == nil {
		_, err = io.Copy(io.Discard, out) // the padding
	} else {
		out.Close() // so that the program ends
	}
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = fmt.Errorf("dpkg-deb: %w: %s", werr, complaint.Bytes())
	}
	return err
}

func (p *packer) copy(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := inUsr(h.Name)
		if name == "" || p.done[name] {
			continue // folders come with many packages
		}
		p.done[name] = true
		h.Name = name
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = inUsr(h.Linkname)
		}
		if err := p.add(name, h, r); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// inUsr returns a path in a package as it is in the image: without "./", and in /usr where Debian has moved it.
func inUsr(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for _, dir := range merged {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return "usr/" + name
		}
	}
	return name
}

// add writes an entry and what scripts make of it.
func (p *packer) add(name string, h *tar.Header, content io.Reader) error {
	for end, link := range alternatives {
		if strings.HasSuffix(name, end) {
			at := path.Join(path.Dir(name), link)
			target := strings.TrimPrefix(name, path.Dir(at)+"/")
			if err := p.link(at, target, h.ModTime); err != nil {
				return err
			}
		}
	}
	if copied := accounts[name]; copied != "" {
		b, err := io.ReadAll(content)
		if err != nil {
			return err
		}
		twin := *h
		twin.Name = copied
		if err := p.file(&twin, bytes.NewReader(b)); err != nil {
			return err
		}
		content = bytes.NewReader(b)
	}
	return p.file(h, content)
}

func (p *packer) file(h *tar.Header, content io.Reader) error {
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(p.w, content)
	return err
}

func (p *packer) link(name, target string, at time.Time) error {
	p.done[name] = true
	return p.w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777,
		ModTime: at,
	})
}

// analysis is the image's program: it reads what a program of its kind reads, and says the same each time.
const analysis = `import numpy
import pandas
import scipy.linalg

numbers = numpy.random.default_rng(1).random((200, 200))
frame = pandas.DataFrame(numbers)
largest = abs(scipy.linalg.eigvals(numbers)).max()
print(f"mean {frame.stack().mean():.4f}, variance {frame.stack().var():.4f}, largest eigenvalue {largest:.1f}")
`

// writeAnalysis is the top layer: the program, and the removal of what it doesn't need, of a folder and of what is in
// one.
func writeAnalysis(w *tar.Writer) error {
	at := time.Unix(1_600_000_000, 123_456_789)
	for _, e := range []struct {
		name    string
		content string
	}{
		{"opt/", ""},
		{"opt/analysis/", ""},
		{"opt/analysis/run.py", analysis},
		{"usr/", ""},
		{"usr/share/", ""},
		{"usr/share/.wh.doc", ""},
		{"usr/share/man/", ""},
		{"usr/share/man/.wh..wh..opq", ""},
	} {
		h := &tar.Header{Name: e.name, Mode: 0o755, Size: int64(len(e.content)), ModTime: at, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			return err
		}
	}
	return nil
}

// Busybox is what the image of one layer with one program is called.
const Busybox = "example/busybox:1"

// MakeBusybox makes the image of one layer, of a busybox that needs no library.
func MakeBusybox(ctx context.Context, dir, program string) (*Image, error) {
	return Make(ctx, dir, Busybox, Config{"Cmd": []string{"sh"}, "Env": []string{"PATH=/bin"}}, BusyboxLayer(program))
}

// BusyboxLayer is a layer of a busybox that needs no library, in /bin.
func BusyboxLayer(program string) Layer {
	return Archive(func(w *tar.Writer) error { return writeBusybox(w, program) })
}

// writeBusybox writes /bin.
func writeBusybox(w *tar.Writer, program string) error {
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	at := time.Unix(1_600_000_000, 0)
	err = errors.Join(
		w.WriteHeader(&tar.Header{Name: "bin/", Mode: 0o755, ModTime: at}),
		w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(b)), ModTime: at}))
	if err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	for _, name := range []string{"cat", "ls", "sh", "sleep", "true"} {
		if err := w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeLink, Name: "bin/" + name, Linkname: "bin/busybox",
			Mode: 0o755, ModTime: at,
		}); err != nil {
			return err
		}
	}
	return nil
}
