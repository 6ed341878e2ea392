// Package bundle makes plugin bundles: the folder that `docker plugin create` takes and the same as an archive.
//
// A bundle is config.json and rootfs/, the plugin's root file system. Its folder is named after the version, the archive
// after version and architecture; the archive unpacks to the folder. The same program, version and time give the same
// bytes: entries are sorted, belong to 0:0 and carry the one time given, and nothing of the machine goes in.
package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"cvmfs-graphdriver/rootfs"
)

// Options say what to bundle.
type Options struct {
	Program string    // path of the plugin's program, a static ELF executable for Linux
	Version string    // letters, digits and . _ + ~ -
	Output  string    // folder that receives the bundle; made if it is missing
	Time    time.Time // of every entry; to the second
}

// Bundle is what was made.
type Bundle struct {
	Folder  string // Output/cvmfs-graphdriver-plugin-VERSION
	Archive string // Output/cvmfs-graphdriver-plugin-VERSION-ARCH.tar.gz
	Arch    string // as in GOARCH
}

// versionPattern keeps versions usable as part of a file name.
var versionPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`)

// architectures are the machines the plugin is built for.
var architectures = map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}

// Write makes a bundle, in place of one of the same name. A bundle is complete or absent: both parts are made under
// temporary names beside their places, which a failure removes.
func Write(o Options) (*Bundle, error) {
	b, err := write(o)
	if err != nil {
		return nil, fmt.Errorf("make a plugin bundle in %s: %w", o.Output, err)
	}
	return b, nil
}

func write(o Options) (*Bundle, error) {
	if !versionPattern.MatchString(o.Version) {
		return nil, fmt.Errorf("version %q: letters, digits and . _ + ~ - only", o.Version)
	}
	arch, err := architecture(o.Program)
	if err != nil {
		return nil, err
	}
	entries, err := contents(o.Program)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Output, 0o755); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(o.Output, ".bundle-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)

	name := "cvmfs-graphdriver-plugin-" + o.Version
	archive := name + "-" + arch + ".tar.gz"
	if err := writeFolder(filepath.Join(work, name), entries, o.Time); err != nil {
		return nil, err
	}
	if err := writeArchive(filepath.Join(work, archive), name, entries, o.Time); err != nil {
		return nil, err
	}
	b := &Bundle{Folder: filepath.Join(o.Output, name), Archive: filepath.Join(o.Output, archive), Arch: arch}
	if err := os.RemoveAll(b.Folder); err != nil {
		return nil, err
	}
	if err := os.Rename(filepath.Join(work, name), b.Folder); err != nil {
		return nil, err
	}
	return b, os.Rename(filepath.Join(work, archive), b.Archive)
}

// architecture checks that a program can run in the plugin, where there is no loader and no library, and gives its GOARCH.
func architecture(program string) (string, error) {
	f, err := elf.Open(program)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the plugin's program is missing (build it: make build): %w", err)
	}
	if err != nil {
		return "", fmt.Errorf("the plugin's program %s: %w", program, err)
	}
	defer f.Close()
	arch, ok := architectures[f.Machine]
	if !ok {
		return "", fmt.Errorf("the plugin's program %s is for %v; amd64 and arm64 are supported", program, f.Machine)
	}
	for _, segment := range f.Progs {
		if segment.Type == elf.PT_INTERP {
			return "", fmt.Errorf("the plugin's program %s needs a dynamic loader (build it with CGO_ENABLED=0)", program)
		}
	}
	return arch, nil
}

// entry is a folder or a file of a bundle.
type entry struct {
	name   string // slash-separated, relative to the bundle's folder, which itself is ""
	mode   fs.FileMode
	data   []byte // of a file
	source string // where the file's content lies, in place of data
}

// contents lists a bundle's entries, sorted by name, so that folders come before what is in them.
func contents(program string) ([]entry, error) {
	config, err := json.MarshalIndent(rootfs.PluginConfig(), "", "  ")
	if err != nil {
		return nil, err
	}
	entries := []entry{
		{mode: fs.ModeDir | 0o755},
		{name: "config.json", mode: 0o644, data: append(config, '\n')},
		{name: "rootfs", mode: fs.ModeDir | 0o755},
		{name: path.Join("rootfs", rootfs.Program), mode: 0o755, source: program},
	}
	for _, folder := range rootfs.Folders() {
		mode := fs.ModeDir | 0o755
		if folder == "tmp" {
			mode = fs.ModeDir | fs.ModeSticky | 0o777
		}
		entries = append(entries, entry{name: path.Join("rootfs", folder), mode: mode})
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

// open gives a file's content and its size.
func (e *entry) open() (io.ReadCloser, int64, error) {
	if e.source == "" {
		return io.NopCloser(bytes.NewReader(e.data)), int64(len(e.data)), nil
	}
	f, err := os.Open(e.source)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// writeFolder lays the entries out below dir, which must not exist.
func writeFolder(dir string, entries []entry, when time.Time) error {
	for _, e := range entries {
		name := filepath.Join(dir, filepath.FromSlash(e.name))
		var err error
		if e.mode.IsDir() {
			err = os.Mkdir(name, 0o755)
		} else {
			err = e.writeFile(name)
		}
		if err == nil {
			err = os.Chmod(name, e.mode) // whatever the umask
		}
		if err != nil {
			return err
		}
	}
	// Times last and from the end: what is made in a folder changes the folder's time.
	for _, e := range slices.Backward(entries) {
		if err := os.Chtimes(filepath.Join(dir, filepath.FromSlash(e.name)), when, when); err != nil {
			return err
		}
	}
	return nil
}

func (e *entry) writeFile(name string) error {
	content, _, err := e.open()
	if err != nil {
		return err
	}
	defer content.Close()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

// writeArchive writes the entries, below a folder of the given name, as a compressed tar archive.
func writeArchive(file, folder string, entries []entry, when time.Time) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	t := tar.NewWriter(z)
	for _, e := range entries {
		if err != nil {
			break
		}
		err = writeEntry(t, folder, e, when)
	}
	return errors.Join(err, t.Close(), z.Close(), f.Close())
}

func writeEntry(t *tar.Writer, folder string, e entry, when time.Time) error {
	h := &tar.Header{
		Name:    path.Join(folder, e.name),
		Mode:    int64(e.mode.Perm()),
		ModTime: when.Truncate(time.Second),
		Format:  tar.FormatPAX,
	}
	if e.mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	if e.mode.IsDir() {
		h.Typeflag = tar.TypeDir
		h.Name += "/"
		return t.WriteHeader(h)
	}
	content, size, err := e.open()
	if err != nil {
		return err
	}
	defer content.Close()
	h.Typeflag, h.Size = tar.TypeReg, size
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t, content)
	return err
}

// SourceDate is the time for a bundle's entries: that of $SOURCE_DATE_EPOCH (reproducible-builds.org), or the start of 1970.
func SourceDate() (time.Time, error) {
	value := os.Getenv("SOURCE_DATE_EPOCH")
	if value == "" {
		return time.Unix(0, 0), nil
	}
	seconds, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: want seconds since 1970: %w", err)
	}
	return time.Unix(seconds, 0), nil
}
