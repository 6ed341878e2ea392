// Package bundle makes, reads and checks plugin bundles.
//
// The words used here:
//
//   - A bundle is config.json and rootfs/, the plugin's root file system, of one build for one architecture. It is
//     small enough to be held in memory, where nobody changes it between a check and its use.
//   - Its forms are the folder that `docker plugin create` takes, named after the version; the archive, named after
//     version and architecture, which unpacks to that folder; and in a registry config.json as the configuration, and a
//     layer of rootfs/.
//   - An output is a folder that bundles were built into: their forms, an SBOM of each (SPDX), the file SHA256SUMS over
//     all of them, and a signature of that file (minisign).
//   - The stamp is the version and commit that the linker wrote into the program ([Stamp]).
//
// The same program, version, commit and time give the same bytes: entries are sorted, belong to 0:0 and carry the one
// time given, and nothing of the machine goes in.
package bundle

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/rootfs"
)

// maxSize bounds the sum of a bundle's files: several times what there is.
const maxSize = 64 << 20

// Bundle is a plugin bundle in memory.
type Bundle struct {
	Build   rootfs.Build
	Config  rootfs.Config // what of config.json is known
	Archive *Archive      // what it was read from; nil if that wasn't an archive
	entries []Entry       // sorted by name, so that folders come before what is in them
}

// Archive is the file that a bundle was read from.
type Archive struct {
	Path   string
	Format Format
	Size   int64  // bytes
	SHA256 string // in hexadecimal digits
}

// Entry is a folder or a file of a bundle.
type Entry struct {
	Name string // slash-separated, relative to the bundle's folder, which itself is ""
	Mode fs.FileMode
	Data []byte // of a file
}

// versionPattern keeps versions usable as part of a file name.
var versionPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`)

// New makes a bundle of the plugin's program, a static ELF executable for Linux. An architecture that build names must
// be the program's.
func New(program string, build rootfs.Build) (*Bundle, error) {
	if !versionPattern.MatchString(build.Version) {
		return nil, fmt.Errorf("version %q: letters, digits and . _ + ~ - only", build.Version)
	}
	p, err := readProgram(program)
	if err != nil {
		return nil, err
	}
	if build.Arch != "" && build.Arch != p.Arch {
		return nil, fmt.Errorf("the plugin's program %s is for %s, and a bundle for %s is wanted (GOARCH=%s builds that)", program, p.Arch, build.Arch, build.Arch)
	}
	if p.Stamp != nil && *p.Stamp != (Stamp{build.Version, build.Commit}) {
		return nil, fmt.Errorf("the plugin's program %s is version %s, commit %q, and the bundle would say version %s, commit %q: take the two from one build",
			program, p.Stamp.Version, p.Stamp.Commit, build.Version, build.Commit)
	}
	build.Arch, build.Time = p.Arch, build.Time.UTC().Truncate(time.Second)
	b := &Bundle{Build: build, Config: rootfs.PluginConfig(build)}
	b.entries, err = contents(build, p.data)
	return b, err
}

// contents lists what a bundle of a build consists of.
func contents(build rootfs.Build, program []byte) ([]Entry, error) {
	config, err := EncodeConfig(rootfs.PluginConfig(build))
	if err != nil {
		return nil, err
	}
	files, err := rootfs.Files(build)
	if err != nil {
		return nil, err
	}
	entries := []Entry{
		{Mode: fs.ModeDir | 0o755},
		{Name: configName, Mode: 0o644, Data: config},
		{Name: rootfsName, Mode: fs.ModeDir | 0o755},
		{Name: programName, Mode: 0o755, Data: program},
	}
	for _, folder := range rootfs.Folders() {
		entries = append(entries, Entry{Name: path.Join(rootfsName, folder), Mode: fs.ModeDir | 0o755})
	}
	for name, data := range files {
		entries = append(entries, Entry{Name: path.Join(rootfsName, name), Mode: 0o644, Data: data})
	}
	sortEntries(entries)
	return entries, nil
}

// Names of entries.
const (
	configName  = "config.json"
	rootfsName  = "rootfs"
	programName = rootfsName + rootfs.Program
	buildName   = rootfsName + rootfs.BuildFile
)

func sortEntries(entries []Entry) {
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
}

// EncodeConfig writes config.json as bundles have it.
func EncodeConfig(c rootfs.Config) ([]byte, error) {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write config.json: %w", err)
	}
	return append(b, '\n'), nil
}

// Name is what the bundle's folder is called, in an archive too.
func (b *Bundle) Name() string { return namePrefix + b.Build.Version }

// namePrefix begins the names of all that is built.
const namePrefix = "cvmfs-graphdriver-plugin-"

// ConfigJSON is the content of config.json.
func (b *Bundle) ConfigJSON() []byte { return b.file(configName) }

// Program is the plugin's program.
func (b *Bundle) Program() []byte { return b.file(programName) }

// Unpacked is the sum of the bundle's files, in bytes.
func (b *Bundle) Unpacked() int64 {
	var n int64
	for _, e := range b.entries {
		n += int64(len(e.Data))
	}
	return n
}

// entry finds an entry by its name, or nil.
func (b *Bundle) entry(name string) *Entry {
	at, ok := slices.BinarySearchFunc(b.entries, name, func(e Entry,
		name string,
	) int {
		return strings.Compare(e.Name, name)
	})
	if !ok {
		return nil
	}
	return &b.entries[at]
}

// file returns the content of a file, or nil where there is none.
func (b *Bundle) file(name string) []byte {
	if e := b.entry(name); e != nil {
		return e.Data
	}
	return nil
}
