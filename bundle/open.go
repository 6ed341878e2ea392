package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// maxEntries bounds the number of a bundle's entries: many times what there are.
const maxEntries = 1000

var errTooLarge = fmt.Errorf("larger than any bundle (%d MiB)", maxSize>>20)

// Open reads a bundle: its folder, or an archive. What it gives is well formed, whoever made it: folders and files
// only, none of them outside of the bundle, a size that can be, a program that can run in a plugin, and build.json that
// agrees with it. Whether it asks for no more than it should is told by [Bundle.Check].
func Open(name string) (*Bundle, error) {
	b, err := open(name)
	if err != nil {
		return nil, fmt.Errorf("open plugin bundle %s: %w", name, err)
	}
	return b, nil
}

func open(name string) (*Bundle, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if info.IsDir() {
		entries, err := readFolder(name)
		if err != nil {
			return nil, err
		}
		return parse(entries)
	}
	packed, err := readFile(name, maxSize)
	if err != nil {
		return nil, err
	}
	stream, format, err := decompress(packed)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	entries, err := readTar(stream)
	if err != nil {
		return nil, err
	}
	folder, entries, err := withoutTop(entries)
	if err != nil {
		return nil, err
	}
	b, err := parse(entries)
	if err != nil {
		return nil, err
	}
	if folder != b.Name() {
		return nil, fmt.Errorf("unpacks to %.100q, and a bundle of version %s to %q", folder, b.Build.Version, b.Name())
	}
	sum := sha256.Sum256(packed)
	b.Archive = &Archive{Path: name, Format: format, Size: int64(len(packed)), SHA256: hex.EncodeToString(sum[:])}
	return b, nil
}

// Read makes a bundle of its parts as registries keep them: config.json, and a tar stream of the root file system. It
// is as particular as [Open].
func Read(config []byte, root io.Reader) (*Bundle, error) {
	entries, err := readTar(root)
	if err != nil {
		return nil, fmt.Errorf("read plugin bundle: %w", err)
	}
	for i := range entries {
		entries[i].Name = path.Join(rootfsName, entries[i].Name)
	}
	entries = append(entries, Entry{Name: configName, Mode: 0o644, Data: config})
	b, err := parse(entries)
	if err != nil {
		return nil, fmt.Errorf("read plugin bundle: %w", err)
	}
	return b, nil
}

// parse makes a bundle of its entries.
func parse(entries []Entry) (*Bundle, error) {
	for _, folder := range []string{"", rootfsName} {
		if !slices.ContainsFunc(entries, func(e Entry) bool { return e.Name == folder }) {
			entries = append(entries, Entry{Name: folder, Mode: fs.ModeDir | 0o755})
		}
	}
	sortEntries(entries)
	b := &Bundle{entries: entries}
	for i, e := range entries[1:] {
		if e.Name == entries[i].Name {
			return nil, fmt.Errorf("%.100q is there twice", e.Name)
		}
		if parent := b.entry(parentOf(e.Name)); parent == nil || !parent.Mode.IsDir() {
			return nil, fmt.Errorf("%.100q has no folder", e.Name)
		}
	}
	for _, name := range []string{configName, buildName, programName} {
		if e := b.entry(name); e == nil || e.Mode.IsDir() {
			return nil, fmt.Errorf("has no %s: not a bundle, or not a whole one", name)
		}
	}
	if err := json.Unmarshal(b.file(configName), &b.Config); err != nil {
		return nil, fmt.Errorf("%s: %w", configName, err)
	}
	if err := json.Unmarshal(b.file(buildName), &b.Build); err != nil {
		return nil, fmt.Errorf("%s: %w", buildName, err)
	}
	b.Build.Time = b.Build.Time.UTC()
	p, err := parseProgram(b.Program())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", programName, err)
	}
	switch {
	case !versionPattern.MatchString(b.Build.Version):
		return nil, fmt.Errorf("%s: version %.100q: letters, digits and . _ + ~ - only", buildName, b.Build.Version)
	case p.Arch != b.Build.Arch:
		return nil, fmt.Errorf("%s is for %s, and %s says %.100q", programName, p.Arch, buildName, b.Build.Arch)
	case p.Stamp != nil && *p.Stamp != Stamp{b.Build.Version, b.Build.Commit}:
		return nil, fmt.Errorf("%s is version %.100q, commit %.100q, and %s says version %s, commit %.100q",
			programName, p.Stamp.Version, p.Stamp.Commit, buildName, b.Build.Version, b.Build.Commit)
	}
	return b, nil
}

// parentOf is the folder of an entry; that of the bundle is "".
func parentOf(name string) string {
	if dir := path.Dir(name); dir != "." {
		return dir
	}
	return ""
}

// decompress recognises an archive by its first bytes.
func decompress(packed []byte) (io.ReadCloser, Format, error) {
	switch {
	case bytes.HasPrefix(packed, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(bytes.NewReader(packed))
		return r, TarGz, err
	case bytes.HasPrefix(packed, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderMaxMemory(maxSize))
		if err != nil {
			return nil, "", err
		}
		return r.IOReadCloser(), TarZst, nil
	}
	return nil, "", errors.New("neither a folder nor a .tar.gz or .tar.zst archive")
}

// readTar reads the entries of a tar stream to its end.
func readTar(stream io.Reader) ([]Entry, error) {
	limited := &io.LimitedReader{R: stream, N: maxSize}
	t := tar.NewReader(limited)
	var entries []Entry
	room := int64(maxSize) // holes of files count, too
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, broken(limited, err)
		}
		e := Entry{Name: strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/"), Mode: h.FileInfo().Mode()}
		if err := acceptable(h, e.Name, len(entries)); err != nil {
			return nil, err
		}
		if room -= h.Size; room < 0 {
			return nil, errTooLarge
		}
		if h.Typeflag == tar.TypeReg {
			if e.Data, err = io.ReadAll(t); err != nil {
				return nil, broken(limited, fmt.Errorf("%.100q: %w", e.Name, err))
			}
		}
		entries = append(entries, e)
	}
	// What follows the end is padding; reading it checks the sums of the compression.
	rest, err := io.ReadAll(limited)
	switch {
	case err != nil || limited.N == 0:
		return nil, broken(limited, err)
	case len(bytes.Trim(rest, "\x00")) > 0:
		return nil, errors.New("there is something behind the end of the archive")
	}
	return entries, nil
}

// broken says why a stream couldn't be read.
func broken(limited *io.LimitedReader, err error) error {
	if limited.N == 0 {
		return errTooLarge
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("cut off: %w", err)
	}
	return err
}

// acceptable tells why an entry of an archive can't be a bundle's.
func acceptable(h *tar.Header, name string, before int) error {
	switch {
	case before >= maxEntries:
		return fmt.Errorf("more than %d entries", maxEntries)
	case path.IsAbs(h.Name) || name != path.Clean(name) && name != "" || name == ".." || strings.HasPrefix(name, "../"):
		return fmt.Errorf("%.100q isn't the name of an entry: it leads out of the bundle, or nowhere", h.Name)
	case h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir:
		return fmt.Errorf("%.100q is neither a folder nor a file, and a bundle has nothing else", h.Name)
	case h.Uid != 0 || h.Gid != 0:
		return fmt.Errorf("%.100q belongs to %d:%d; everything in a bundle belongs to 0:0", h.Name, h.Uid, h.Gid)
	case slices.ContainsFunc(slices.Collect(maps.Keys(h.PAXRecords)),
		func(key string) bool { return strings.HasPrefix(key, "SCHILY.xattr.") }):
		return fmt.Errorf("%.100q has extended attributes, and nothing in a bundle has", h.Name)
	}
	return nil
}

// withoutTop takes the one folder that an archive unpacks to off the entries' names.
func withoutTop(entries []Entry) (folder string, rest []Entry, err error) {
	for i, e := range entries {
		top, name, _ := strings.Cut(e.Name, "/")
		if i == 0 {
			folder = top
		}
		if top != folder || top == "" {
			return "", nil, fmt.Errorf("unpacks to more than one folder: %.100q", e.Name)
		}
		if name == "" && !e.Mode.IsDir() {
			return "", nil, fmt.Errorf("unpacks to a file: %.100q", e.Name)
		}
		entries[i].Name = name
	}
	return folder, entries, nil
}

// readFolder reads the entries below a folder, following no link.
func readFolder(dir string) ([]Entry, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() // only read
	var entries []Entry
	room := int64(maxSize)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case len(entries) >= maxEntries:
			return fmt.Errorf("more than %d entries", maxEntries)
		case !info.IsDir() && !info.Mode().IsRegular():
			return fmt.Errorf("%s is neither a folder nor a file, and a bundle has nothing else",
				filepath.Join(dir, name))
		}
		e := Entry{Name: name, Mode: info.Mode()}
		if name == "." {
			e.Name = ""
		}
		if info.Mode().IsRegular() {
			f, err := root.Open(name)
			if err != nil {
				return err
			}
			e.Data, err = io.ReadAll(io.LimitReader(f, room+1))
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
			if room -= int64(len(e.Data)); room < 0 {
				return errTooLarge
			}
		}
		entries = append(entries, e)
		return nil
	})
	return entries, err
}
