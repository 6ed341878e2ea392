package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/test/debian"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/vm"
)

// arch is the machines' architecture.
const arch = "amd64"

// inputs are what all machines have in common.
type inputs struct {
	emulator *vm.Emulator
	root     string // disk with a Debian
	tests    string // disk with the test programs
	guest    []byte // the machines' first process
	hash     string // of all of it
}

// Names below the module's folder in a machine, for what the source tree hasn't got.
const (
	built  = ".guest/programs" // what `make bundle` makes
	cached = ".guest/cache"    // the cache folder
)

// makeInputs makes the disks, and builds what is on them in a folder of its own.
func makeInputs(ctx context.Context, cache, module, work string, programs []program,
	progress io.Writer,
) (*inputs, error) {
	emulator, err := vm.Find(ctx, cache, arch)
	if err != nil {
		return nil, err
	}
	in := &inputs{emulator: emulator, tests: filepath.Join(work, "tests.ext4")}
	if in.root, err = rootDisk(ctx, emulator, cache); err != nil {
		return nil, err
	}
	tree := filepath.Join(work, "tree")
	fmt.Fprintln(progress, "kernels: build the test programs")
	if err := buildTree(ctx, cache, module, tree, programs); err != nil {
		return nil, err
	}
	guest := filepath.Join(work, "guest")
	if err := command(ctx, module, "go", "build", "-trimpath", "-buildvcs=false", "-o", guest,
		"./test/vm/guest"); err != nil {
		return nil, err
	}
	if in.guest, err = os.ReadFile(guest); err != nil {
		return nil, err
	}
	sum := sha256.New()
	sum.Write(in.guest)
	fmt.Fprintln(sum, filepath.Base(in.root))
	size, err := hashTree(sum, tree)
	if err != nil {
		return nil, err
	}
	in.hash = hex.EncodeToString(sum.Sum(nil))
	if err := emulator.MakeDisk(ctx, in.tests, tree, size+size/4+(64<<20)); err != nil {
		return nil, err
	}
	return in, os.RemoveAll(tree)
}

// rootDisk returns the disk with a Debian, made once for each.
func rootDisk(ctx context.Context, emulator *vm.Emulator, cache string) (string, error) {
	dir, err := debian.Root(cache, debian.Docker)
	if err != nil {
		return "", err
	}
	disk := dir + ".ext4"
	if _, err := os.Stat(disk); err == nil {
		return disk, nil
	}
	return disk, emulator.MakeDisk(ctx, disk, dir, 12<<30)
}

// buildTree makes a folder that has, where the module has its source, what tests read of it, and test programs.
func buildTree(ctx context.Context, cache, module, tree string, programs []program) error {
	if err := copyTestdata(module, tree); err != nil {
		return err
	}
	folders := map[string]string{}
	for _, p := range programs {
		folders[p.folder] = p.name()
	}
	var builds errgroup.Group
	builds.SetLimit(2)
	for folder, name := range folders {
		builds.Go(func() error {
			// The tag is that of tests which are for virtual machines alone.
			return command(ctx, module, "go", "test", "-c", "-buildvcs=false", "-tags", "guest", "-o",
				filepath.Join(tree, folder, name), "./"+folder)
		})
	}
	// Equal programs of different commits are equal.
	builds.Go(func() error {
		return command(ctx, module, "make", "--silent", "bundle", "DIST="+filepath.Join(tree, built),
			"VERSION=0.test", "COMMIT=test", "SOURCE_DATE_EPOCH=0")
	})
	if err := builds.Wait(); err != nil {
		return err
	}
	if len(hosts(programs)) > 0 {
		if err := buildPackages(ctx, module, filepath.Join(tree, built)); err != nil {
			return err
		}
	}
	busybox, err := engine.FindProgram(cache, "busybox")
	if err != nil {
		return err
	}
	// Where engine.FindProgram looks for it.
	place := strings.TrimPrefix(busybox, cache+string(filepath.Separator))
	return copyFile(busybox, filepath.Join(tree, cached, place), 0o755)
}

func command(ctx context.Context, dir string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}

// copyTestdata copies the module's folders named testdata, and makes those of its packages.
func copyTestdata(module, tree string) error {
	return filepath.WalkDir(module, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(module, name)
		if err != nil {
			return err
		}
		inside := slices.Contains(strings.Split(rel, "/"), "testdata")
		switch {
		case d.IsDir() && !inside && rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "dist"):
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(tree, rel), 0o755)
		case inside && d.Type().IsRegular():
			info, err := d.Info()
			if err != nil {
				return err
			}
			return copyFile(name, filepath.Join(tree, rel), info.Mode().Perm())
		case inside:
			return fmt.Errorf("%s: neither folder nor regular file", name)
		}
		return nil
	})
}

func copyFile(from, to string, mode fs.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, b, mode)
}

// hashTree adds the names, modes and content of a folder's files to a sum, in order, and gives their size.
func hashTree(sum io.Writer, dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		fmt.Fprintf(sum, "%q %v %d\n", strings.TrimPrefix(name, dir), info.Mode(), info.Size())
		n, err := io.Copy(sum, f)
		size += n
		return err
	})
	return size, err
}
