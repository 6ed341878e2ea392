package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
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
	"time"

	"github.com/dustin/go-humanize"

	"cvmfs-graphdriver/installer/service"
	"cvmfs-graphdriver/internal/durable"
)

const (
	maxFile    = 1 << 20          // bytes of each file that are taken
	maxListed  = 5000             // names of the plugin's folder
	maxDepth   = 4                // of these
	logSince   = 24 * time.Hour   // how far back the engine's log is taken
	logWait    = 15 * time.Second // for that
	maxEntries = 500              // files of the configuration
)

func size(bytes uint64) string { return humanize.IBytes(bytes) }

func revisions(of map[string]uint64) string {
	var all []string
	for _, fqrn := range slices.Sorted(maps.Keys(of)) {
		all = append(all, fmt.Sprintf("%s@%d", fqrn, of[fqrn]))
	}
	return strings.Join(all, " ")
}

// Archive writes the report and what it was made from as a .tar.gz that only its owner can read, complete or not at
// all.
func (r Report) Archive(ctx context.Context, file string) error {
	content, err := r.pack(ctx)
	if err == nil {
		err = durable.Replace(file, 0o600, content)
	}
	if err != nil {
		return fmt.Errorf("write the report for support %s: %w", file, err)
	}
	return nil
}

// pack makes the archive.
func (r Report) pack(ctx context.Context) ([]byte, error) {
	files, secrets := r.files(ctx)
	for name, text := range files {
		files[name] = secrets.Redact(text)
	}
	for name, v := range map[string]any{"facts.json": r.Facts, "findings.json": r.Findings} {
		text, err := secrets.RedactJSON(v)
		if err != nil {
			return nil, err
		}
		files[name] = text
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text := files[name]
		h := &tar.Header{
			Name: path.Join("cvmfs-graphdriver-report", name), Mode: 0o600, Size: int64(len(text)),
			ModTime: r.Facts.Time, Typeflag: tar.TypeReg,
		}
		if err := t.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := t.Write(text); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// files collects the archive's files, with their secrets, and what is known of these.
func (r Report) files(ctx context.Context) (map[string][]byte, *Redactor) {
	files := map[string][]byte{}
	secrets := new(Redactor)
	take := func(name, source string) {
		b, err := head(source)
		if err != nil {
			b = []byte(err.Error() + "\n")
		}
		files[name] = b
	}
	files["program.txt"] = fmt.Appendf(nil, "%s %s\n", r.Version, r.Commit)
	var findings bytes.Buffer
	r.Write(&findings) // to memory
	files["findings.txt"] = findings.Bytes()

	take("daemon.json", r.Facts.File.Path)
	secrets.Learn(files["daemon.json"])
	for name, source := range map[string]string{
		"host/version": "/proc/version", "host/filesystems": "/proc/filesystems", "host/mounts": "/proc/self/mountinfo",
		"host/os-release": "/etc/os-release",
	} {
		take(name, source)
	}
	if m := r.Facts.Minio; m != nil {
		take("minio-config.json", m.File)
		secrets.Learn(files["minio-config.json"])
	}
	for name, source := range configurationFiles(r.Facts.Configuration.Dir) {
		take(name, source)
	}
	files["engine.log"] = []byte(r.log(ctx))
	if g := r.Facts.Plugin; g.Dir != "" {
		files["plugin/files.txt"] = list(filepath.Join(g.Dir, "propagated-mount"))
		take("plugin/layout", filepath.Join(g.Dir, "propagated-mount", "layout"))
	}
	for _, b := range files {
		secrets.LearnAddresses(b)
	}
	return files, secrets
}

// head reads the beginning of a regular file, or of one of the kernel's.
func head(name string) ([]byte, error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// configurationFiles are the files of a CernVM-FS configuration folder that are worth seeing, by their names in the
// archive. Of keys only the public ones are.
func configurationFiles(dir string) map[string]string {
	found := map[string]string{}
	if dir == "" {
		return found
	}
	// What can't be read is missing.
	_ = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // missing
		}
		if len(found) >= maxEntries {
			return fs.SkipAll
		}
		switch filepath.Ext(name) {
		case ".conf", ".local", ".pub":
			if rel, err := filepath.Rel(dir, name); err == nil && !entry.IsDir() {
				found[path.Join("cvmfs", rel)] = name
			}
		}
		return nil
	})
	return found
}

// list lists what is in a folder: mode, size, time and name of each entry.
func list(dir string) []byte {
	var b bytes.Buffer
	n := 0
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintf(&b, "%v\n", err)
			return nil
		}
		if n++; n > maxListed {
			b.WriteString("…\n")
			return fs.SkipAll
		}
		rel, _ := filepath.Rel(dir, name) // name is below dir
		if info, err := entry.Info(); err == nil {
			fmt.Fprintf(&b, "%v %12d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), rel)
		}
		if entry.IsDir() && strings.Count(rel, "/")+1 >= maxDepth {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		fmt.Fprintf(&b, "%v\n", err)
	}
	return b.Bytes()
}

// log returns the engine's newest log, or why it can't be had.
func (r Report) log(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, logWait)
	defer cancel()
	running, _ := service.Find(ctx, r.Facts.Engine.Host) // one that doesn't run has a log all the same
	text, _ := service.FindLog(ctx, running, r.LogFile, r.Facts.Time.Add(-logSince))
	if text == "" {
		return "not found\n"
	}
	return text
}
