package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/images"
)

// touchedFile is a file of which a start touches pages. A line of a list is its path, a tab, and its ranges of pages,
// of 4 KiB, separated by commas: "/usr/bin/python3.11	0-3,17".
type touchedFile struct {
	path  string
	pages [][2]int64 // first and last of each range
}

const pageSize = 4096

// touches reports whether a page of a range of bytes is touched.
func (t *touchedFile) touches(offset, size int64) bool {
	return slices.ContainsFunc(t.pages, func(r [2]int64) bool {
		return r[0]*pageSize < offset+size && (r[1]+1)*pageSize > offset
	})
}

func readTouched(name string) (list []touchedFile, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		path, ranges, ok := strings.Cut(lines.Text(), "\t")
		t := touchedFile{path: path}
		for text := range strings.SplitSeq(ranges, ",") {
			var r [2]int64
			n, err := fmt.Sscanf(text, "%d-%d", &r[0], &r[1])
			if n == 1 {
				r[1] = r[0]
			}
			if n == 0 {
				return nil, fmt.Errorf("%s: line %.100q: %w", name, lines.Text(), err)
			}
			t.pages = append(t.pages, r)
		}
		if !ok {
			return nil, fmt.Errorf("%s: line %.100q: no pages", name, lines.Text())
		}
		list = append(list, t)
	}
	return list, lines.Err()
}

// recordTouched runs the image's program with nothing read ahead, and writes the list.
func recordTouched(ctx context.Context, dir string, image *images.Image, name string) (err error) {
	disk, root := filepath.Join(dir, "disk"), filepath.Join(dir, "root")
	if err := errors.Join(os.Mkdir(root, 0o755), command(ctx, "truncate", "-s", "4G", disk),
		command(ctx, "mkfs.ext4", "-q", disk)); err != nil {
		return err
	}
	if err := command(ctx, "mount", "-o", "loop", disk, root); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, command(context.WithoutCancel(ctx), "umount", root)) }()
	for _, blob := range image.Layers {
		if err := command(ctx, "tar", "-xzf", blob.Path, "-C", root); err != nil {
			return err
		}
	}
	// What was written is in memory: mounted again, nothing is.
	if err := errors.Join(command(ctx, "umount", root), command(ctx, "mount", "-o", "loop,noatime", disk, root),
		command(ctx, "sh", "-c", `blockdev --setra 0 "$(findmnt -no SOURCE "$0")"`, root)); err != nil {
		return err
	}
	start := exec.CommandContext(ctx, "chroot", root, "python3", "/opt/analysis/run.py")
	start.Env = []string{
		"PATH=/usr/local/bin:/usr/bin:/usr/sbin", "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1",
		"OPENBLAS_NUM_THREADS=1",
	}
	if out, err := start.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", start, err, out)
	}
	return writeTouched(root, name)
}

func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// writeTouched writes the list of what is in memory of the files below root.
func writeTouched(root, name string) error {
	var text strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		pages, err := pagesInMemory(path)
		if len(pages) > 0 {
			fmt.Fprintf(&text, "%s\t%s\n", strings.TrimPrefix(path, root), strings.Join(pages, ","))
		}
		return err
	})
	if err != nil {
		return err
	}
	return os.WriteFile(name, []byte(text.String()), 0o644)
}

// pagesInMemory returns the ranges of pages of a file that the kernel has in memory.
func pagesInMemory(path string) (ranges []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return nil, err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(m)
	in := make([]byte, (len(m)+pageSize-1)/pageSize)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)),
		uintptr(unsafe.Pointer(&in[0]))); errno != 0 {
		return nil, fmt.Errorf("mincore of %s: %w", path, errno)
	}
	for i := 0; i < len(in); i++ {
		first := i
		for i < len(in) && in[i]&1 == 1 {
			i++
		}
		switch i - first {
		case 0:
		case 1:
			ranges = append(ranges, fmt.Sprint(first))
		default:
			ranges = append(ranges, fmt.Sprintf("%d-%d", first, i-1))
		}
	}
	return ranges, nil
}
