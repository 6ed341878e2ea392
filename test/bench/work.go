package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// workload is the first argument of the program in a container.
const workload = "workload"

// timing is how long a part of the workload took.
type timing struct {
	Name    string
	Seconds float64
}

// part is a part of the workload: what is done, how often, and what comes before each time and isn't counted. The
// median of the passes counts.
type part struct {
	name   string
	passes int
	before func() error
	do     func() error
}

// parts are what is measured in a container whose files are in nobody's memory when it starts.
func parts() []part {
	find := func(tree string) func() error { return func() error { return walk("/"+tree, nil) } }
	read := func() error { return errors.Join(walk("/"+sharedTree, readFile), walk("/"+ownTree, readFile)) }
	return []part{
		{"find + stat, folders of many layers, cold", 1, nil, find(sharedTree)},
		{"find + stat, folders of many layers, warm", 9, nil, find(sharedTree)},
		{"find + stat, folders of one layer, cold", 1, nil, find(ownTree)},
		{"find + stat, folders of one layer, warm", 9, nil, find(ownTree)},
		{"open + read of small files, cold", 1, nil, read},
		{"open + read of small files, warm", 5, nil, read},
		{"sequential read of 256 MiB, cold", 5, dropLarge, readLarge},
		{"sequential read of 256 MiB, warm", 9, nil, readLarge},
	}
}

// work does what the arguments say and prints how long each part took.
func work() {
	if len(os.Args) < 3 || os.Args[2] != "all" {
		return
	}
	var times []timing
	for _, p := range parts() {
		seconds, err := p.measure()
		if err != nil {
			fmt.Fprintf(os.Stderr, "workload: %s: %v\n", p.name, err)
			os.Exit(1)
		}
		times = append(times, timing{p.name, seconds})
	}
	if err := json.NewEncoder(os.Stdout).Encode(times); err != nil {
		os.Exit(1)
	}
}

func (p part) measure() (float64, error) {
	var seconds []float64
	for range p.passes {
		if p.before != nil {
			if err := p.before(); err != nil {
				return 0, err
			}
		}
		begin := time.Now()
		if err := p.do(); err != nil {
			return 0, err
		}
		seconds = append(seconds, time.Since(begin).Seconds())
	}
	slices.Sort(seconds)
	return seconds[len(seconds)/2], nil
}

// walk asks for the attributes of everything below a folder as find(1) does: by names relative to open folders. Each
// file is handed to visit, by its name in an open folder.
func walk(dir string, visit func(fd int, name string) error) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return walkOpen(fd, visit)
}

func walkOpen(fd int, visit func(fd int, name string) error) error {
	defer unix.Close(fd)
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n == 0 {
			return err
		}
		for entries := buf[:n]; len(entries) > 0; {
			size := binary.NativeEndian.Uint16(entries[16:]) // d_reclen; d_name begins at 19 (getdents64(2))
			name, _, _ := bytes.Cut(entries[19:size], []byte{0})
			entries = entries[size:]
			if s := string(name); s != "." && s != ".." {
				if err := walkEntry(fd, s, visit); err != nil {
					return fmt.Errorf("%s: %w", s, err)
				}
			}
		}
	}
}

func walkEntry(fd int, name string, visit func(fd int, name string) error) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if visit == nil {
			return nil
		}
		return visit(fd, name)
	}
	sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return walkOpen(sub, visit)
}

// readFile reads a small file whole.
func readFile(dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var buf [16 << 10]byte
	for {
		if n, err := unix.Read(fd, buf[:]); err != nil || n == 0 {
			return err
		}
	}
}

// large is the file that is read in one go.
const large = "/large"

// dropLarge takes the large file out of memory.
func dropLarge() error {
	f, err := os.Open(large)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

func readLarge() error {
	f, err := os.Open(large)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(onlyWriter{io.Discard}, f, make([]byte, 1<<20))
	return err
}

// onlyWriter hides the ways around CopyBuffer's buffer.
type onlyWriter struct{ io.Writer }
