package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"cvmfs-graphdriver/test/engine"
)

// Emulator is what runs machines of an architecture, and makes what they need: programs of Debian packages in the cache
// folder.
type Emulator struct {
	program  string   // qemu-system-…
	firmware []string // folders of what it loads
	root     string   // of the packages
	env      []string // has it find its libraries, besides the environment
}

// Fetch brings the emulator for an architecture into the cache folder, as [engine.Fetch] does.
func Fetch(ctx context.Context, cache, arch string, progress io.Writer) error {
	a, ok := arches[arch]
	if !ok {
		return fmt.Errorf("emulate %s: not one of the architectures known here", arch)
	}
	u := &engine.Unpacked{
		Folder: folder(arch), What: "Debian's qemu for " + arch,
		// With the makers of file systems and the decompressor of modules, which a small Debian may lack.
		Packages: []string{a.packages, "e2fsprogs", "xz-utils"}, Needs: true,
		Works: func(dir string) error {
			_, err := find(ctx, dir, arch)
			return err
		},
	}
	return u.Fetch(ctx, cache, progress)
}

func folder(arch string) string { return "qemu-" + arch }

// Find returns the emulator for an architecture from the cache folder; errors.Is(err, engine.ErrNotFetched) when
// [Fetch] would help.
func Find(ctx context.Context, cache, arch string) (*Emulator, error) {
	e, err := find(ctx, filepath.Join(cache, folder(arch)), arch)
	if err != nil {
		return nil, fmt.Errorf("find the emulator of %s: %w: %w", arch, engine.ErrNotFetched, err)
	}
	return e, nil
}

func find(ctx context.Context, root, arch string) (*Emulator, error) {
	libs, err := engine.Libraries(root)
	if err != nil {
		return nil, err
	}
	e := &Emulator{program: filepath.Join(root, "usr/bin", arches[arch].program), root: root}
	path := []string{
		filepath.Join(root, "usr/bin"), filepath.Join(root, "usr/sbin"), filepath.Join(root, "bin"),
		filepath.Join(root, "sbin"),
	}
	e.env = []string{
		"LD_LIBRARY_PATH=" + strings.Join(libs, ":"),
		"PATH=" + strings.Join(path, ":") + ":" + os.Getenv("PATH"),
		"MKE2FS_CONFIG=" + filepath.Join(root, "etc/mke2fs.conf"),
	}
	for _, dir := range []string{"usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"} {
		if dir := filepath.Join(root, dir); exists(dir) {
			e.firmware = append(e.firmware, dir)
		}
	}
	// Each is tried: one that lacks a library is found here.
	for _, argv := range [][]string{
		{e.program, "--version"},
		{e.tool("mkfs.ext4"), "-V"},
		{e.tool("xz"), "--version"},
	} {
		if out, err := e.command(ctx, argv...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("run %s: %w: %s", argv[0], err, out)
		}
	}
	return e, nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// tool returns the path of a program of the packages.
func (e *Emulator) tool(name string) string {
	for _, dir := range []string{"usr/bin", "usr/sbin", "bin", "sbin"} {
		if file := filepath.Join(e.root, dir, name); exists(file) {
			return file
		}
	}
	return name
}

func (e *Emulator) command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), e.env...)
	return cmd
}

// MakeDisk makes a disk of a size in bytes, in a new file, with an ext4 file system of a folder's content. It needs
// root for owners to be right. A file that is there is whole.
func (e *Emulator) MakeDisk(ctx context.Context, file, dir string, size int64) (err error) {
	part := file + ".part"
	defer func() { err = errors.Join(err, remove(part)) }()
	if err := os.WriteFile(part, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(part, size); err != nil {
		return err
	}
	cmd := e.command(ctx, e.tool("mkfs.ext4"), "-q", "-F", "-d", dir, part)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make a disk of %s: %w: %s", dir, err, out)
	}
	return os.Rename(part, file)
}

// remove removes a file that may be there.
func remove(file string) error {
	if err := os.Remove(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Modules returns the modules of a kernel, of the folder lib/modules/RELEASE, that loading the named ones takes, in the
// order to load them, uncompressed. A name without a module is taken for a part of the kernel itself.
func (e *Emulator) Modules(ctx context.Context, dir string, names ...string) ([]File, error) {
	return modulesOf(dir, e.decompress(ctx), names...)
}

// decompress returns the content of a file that xz has compressed.
func (e *Emulator) decompress(ctx context.Context) func(file string) ([]byte, error) {
	return func(file string) ([]byte, error) {
		out, err := e.command(ctx, e.tool("xz"), "--decompress", "--stdout", file).Output()
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return out, err
	}
}
