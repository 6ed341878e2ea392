package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/klauspost/compress/zlib"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/link"
	"cvmfs-graphdriver/test/stand"
)

// measureImage finds out what an image is, and which pages a start touches: it is run on the engine's own driver, on a
// file system that reads nothing ahead, and the kernel is asked what it has in memory.
func measureImage(ctx context.Context, o stand.Options, from *origin, image sampleImage) (f facts, err error) {
	disk, err := newDisk(ctx)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, disk.close()) }()
	o.Dir = disk.root
	n, err := newNode(ctx, o, from, link.Speed{}, doors[0].own)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	ref := reference(n.registry.Addr, image.name, ordinary)
	if _, err := n.Engine.Docker(ctx, "pull", "--quiet", ref); err != nil {
		return f, err
	}
	size, err := n.Engine.Docker(ctx, "image", "inspect", "--format", "{{.Size}}", ref)
	if err != nil {
		return f, err
	}
	if f.Size, err = strconv.ParseInt(strings.TrimSpace(size), 10, 64); err != nil {
		return f, err
	}
	content := from.image(image.name, ordinary)
	f.Layers = len(content.Layers)
	for _, l := range content.Layers {
		f.Compressed += l.Size
	}
	layers, err := filepath.Glob(filepath.Join(n.Engine.Data(), "overlay2", "*", "diff"))
	if err != nil {
		return f, err
	}
	if err := n.forget(ctx); err != nil {
		return f, err
	}
	if _, err := n.run(ctx, ref, image); err != nil {
		return f, err
	}
	for _, layer := range layers {
		if err := f.addTouched(layer); err != nil {
			return f, err
		}
	}
	return f, nil
}

// disk is a file system in a file, which reads nothing ahead.
type disk struct{ dir, root string }

func newDisk(ctx context.Context) (d *disk, err error) {
	dir, err := os.MkdirTemp("", "cvmfs-disk-")
	if err != nil {
		return nil, err
	}
	d = &disk{dir: dir, root: filepath.Join(dir, "d")}
	file := filepath.Join(dir, "disk")
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := os.Mkdir(d.root, 0o755); err != nil {
		return nil, err
	}
	for _, argv := range [][]string{
		{"truncate", "--size", "16G", file},
		{"mkfs.ext4", "-q", file},
		{"mount", "-o", "loop,noatime", file, d.root},
	} {
		if err := command(ctx, argv...); err != nil {
			return nil, err
		}
	}
	if err := command(ctx, "sh", "-c", `blockdev --setra 0 "$(findmnt -no SOURCE "$0")"`, d.root); err != nil {
		return nil, errors.Join(err, unix.Unmount(d.root, 0))
	}
	return d, nil
}

func (d *disk) close() error {
	if err := unix.Unmount(d.root, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.root, err)
	}
	return os.RemoveAll(d.dir)
}

func command(ctx context.Context, argv ...string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}

// addTouched adds the pages of the files below a folder that are in memory.
func (f *facts) addTouched(dir string) error {
	var compressed countingWriter
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		w := zlib.NewWriter(&compressed)
		touched, err := copyTouched(w, path)
		if err != nil || touched == 0 {
			return err
		}
		f.Touched += touched
		return w.Close()
	})
	f.Needed += compressed.n
	return err
}

type countingWriter struct{ n int64 }

func (w *countingWriter) Write(b []byte) (int, error) {
	w.n += int64(len(b))
	return len(b), nil
}

// copyTouched writes the pages of a file that are in memory, and returns how many bytes they have.
func copyTouched(w io.Writer, path string) (n int64, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOATIME, 0)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return 0, err
	}
	content, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(content)
	page := os.Getpagesize()
	in := make([]byte, (len(content)+page-1)/page)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&content[0])), uintptr(len(content)),
		uintptr(unsafe.Pointer(&in[0]))); errno != 0 {
		return 0, fmt.Errorf("mincore of %s: %w", path, errno)
	}
	for i, is := range in {
		if is&1 == 0 {
			continue
		}
		part := content[i*page : min((i+1)*page, len(content))]
		if _, err := w.Write(part); err != nil {
			return n, err
		}
		n += int64(len(part))
	}
	return n, nil
}
