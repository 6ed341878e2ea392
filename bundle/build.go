package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/rootfs"
)

// Options say what to build.
type Options struct {
	Programs []string             // paths of the plugin's program, one an architecture
	Build    rootfs.Build         // version, commit and time; the architectures are the programs'
	Output   string               // folder that receives everything; made if it is missing
	Formats  []Format             // at least one
	Key      *minisign.PrivateKey // signs SHA256SUMS; nil: no signature
}

// Build builds bundles of programs, their SBOMs, SHA256SUMS and its signature, in place of what has their names, and
// gives the paths of what was made. Each file or folder is complete or absent: all are made in a hidden folder of the
// output, which a failure removes, and then renamed, SHA256SUMS and its signature last. Lines of a former SHA256SUMS
// remain if they are of files of the same version or of none of ours. Two builds into one output at once are refused.
//
// The folder of a bundle for another architecture than this machine's has the architecture in its name.
func Build(ctx context.Context, o Options) ([]string, error) {
	made, err := build(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("build plugin bundles in %s: %w", o.Output, err)
	}
	return made, nil
}

func build(ctx context.Context, o Options) ([]string, error) {
	bundles, err := newBundles(o)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Output, 0o755); err != nil {
		return nil, err
	}
	out, err := openOutput(o.Output)
	if err != nil {
		return nil, err
	}
	defer out.close()
	for _, b := range bundles {
		if err := out.add(ctx, b, o.Formats); err != nil {
			return nil, err
		}
	}
	if err := out.addSums(o.Build.Version, o.Key); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return out.place()
}

// newBundles makes the bundles in memory.
func newBundles(o Options) ([]*Bundle, error) {
	if len(o.Programs) == 0 || len(o.Formats) == 0 {
		return nil, errors.New("no program, or no format")
	}
	var bundles []*Bundle
	for _, program := range o.Programs {
		b, err := New(program, o.Build)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(bundles, func(other *Bundle) bool { return other.Build.Arch == b.Build.Arch }) {
			return nil, fmt.Errorf("two programs are for %s: give one for each architecture", b.Build.Arch)
		}
		bundles = append(bundles, b)
	}
	return bundles, nil
}

// output is a folder that is built into, which we have for ourselves.
type output struct {
	dir  string
	lock *os.File
	work string            // hidden folder in dir
	made []string          // names of what lies in work, in the order of being made
	sums map[string]string // SHA-256 by the name of a file, relative to dir
}

// workPrefix begins the name of the hidden folder.
const workPrefix = ".bundle-"

func openOutput(dir string) (*output, error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close() // the error that is told is the first one
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.New("another build is at work there: wait for its end, or give another folder")
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	// What a build left that was killed.
	left, err := filepath.Glob(filepath.Join(globQuote(dir), workPrefix+"*"))
	for _, name := range left {
		err = errors.Join(err, os.RemoveAll(name))
	}
	var work string
	if err == nil {
		work, err = os.MkdirTemp(dir, workPrefix)
	}
	if err != nil {
		lock.Close() // the error that is told is the first one
		return nil, err
	}
	return &output{dir: dir, lock: lock, work: work, sums: map[string]string{}}, nil
}

// close leaves nothing but what was placed.
func (o *output) close() {
	_ = os.RemoveAll(o.work) // the next build tries again
	o.lock.Close()           // nothing was written to it
}

// add makes a bundle's forms and its SBOM.
func (o *output) add(ctx context.Context, b *Bundle, formats []Format) error {
	base := b.Name() + "-" + b.Build.Arch
	for _, format := range formats {
		var err error
		if format == Folder {
			err = o.addFolder(b)
		} else {
			err = o.addFile(ctx, base+"."+string(format), func(w io.Writer) error { return b.WriteArchive(w, format) })
		}
		if err != nil {
			return err
		}
	}
	sbom, err := b.SBOM()
	if err != nil {
		return err
	}
	return o.addFile(ctx, base+sbomSuffix, func(w io.Writer) error {
		_, err := w.Write(sbom)
		return err
	})
}

func (o *output) addFolder(b *Bundle) error {
	name := b.Name()
	if b.Build.Arch != runtime.GOARCH {
		name += "-" + b.Build.Arch
	}
	if err := b.WriteFolder(filepath.Join(o.work, name)); err != nil {
		return err
	}
	for _, e := range b.entries {
		if !e.Mode.IsDir() {
			sum := sha256.Sum256(e.Data)
			o.sums[name+"/"+e.Name] = hex.EncodeToString(sum[:])
		}
	}
	o.made = append(o.made, name)
	return nil
}

func (o *output) addFile(ctx context.Context, name string, write func(w io.Writer) error) error {
	sum := sha256.New()
	if err := writeFile(filepath.Join(o.work, name), func(f io.Writer) error {
		return write(&stoppable{ctx, io.MultiWriter(f, sum)})
	}); err != nil {
		return err
	}
	o.sums[name] = hex.EncodeToString(sum.Sum(nil))
	o.made = append(o.made, name)
	return nil
}

// stoppable is a writer that ends with its context.
type stoppable struct {
	ctx context.Context
	w   io.Writer
}

func (s *stoppable) Write(p []byte) (int, error) {
	if err := context.Cause(s.ctx); err != nil {
		return 0, err
	}
	return s.w.Write(p)
}

// addSums makes SHA256SUMS and, with a key, its signature.
func (o *output) addSums(version string, key *minisign.PrivateKey) error {
	former, err := readSums(filepath.Join(o.dir, SumsName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: remove the file, or give another folder", err)
	}
	for name, sum := range former {
		_, made := o.sums[name]
		if _, err := os.Lstat(filepath.Join(o.dir, name)); !made && err == nil && staysWith(name, version, o.made) {
			o.sums[name] = sum
		}
	}
	text := formatSums(o.sums)
	if err := o.write(SumsName, text); err != nil || key == nil {
		return err
	}
	return o.write(SignatureName, sign(text, version, *key))
}

func (o *output) write(name string, text []byte) error {
	o.made = append(o.made, name)
	return writeFile(filepath.Join(o.work, name), func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
}

// place renames everything to where it belongs. A signature that is there is of the former SHA256SUMS and goes first.
func (o *output) place() ([]string, error) {
	if err := os.Remove(filepath.Join(o.dir, SignatureName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return o.rename()
}

// rename gives what was made, which is on disk, its place.
func (o *output) rename() ([]string, error) {
	var paths []string
	for _, name := range o.made {
		to := filepath.Join(o.dir, name)
		if err := replace(filepath.Join(o.work, name), to); err != nil {
			return nil, err
		}
		paths = append(paths, to)
	}
	return paths, durable.SyncDir(o.dir)
}

// replace renames a file or a folder, in place of what has the name.
func replace(from, to string) error {
	// A folder that isn't empty can't be renamed over: the two change places, or, where a file system can't do that,
	// the former goes first.
	if info, err := os.Lstat(to); err == nil && info.IsDir() {
		if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE); err == nil {
			return os.RemoveAll(from)
		}
		if err := os.RemoveAll(to); err != nil {
			return err
		}
	}
	return os.Rename(from, to)
}

// SourceDate is the time for a bundle's entries: that of $SOURCE_DATE_EPOCH (reproducible-builds.org), or the start of
// 1970.
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
