package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"cvmfs-graphdriver/test/debian"
)

// hostDisk is the disk of a host, which is kept from one of its lives to the next.
func (r *runner) hostDisk(k *kernel, kind debian.Kind) string {
	return filepath.Join(r.work, k.name+"-"+kind.String()+".ext4")
}

// makeHost makes the disk of a host as Debian's installer leaves it, with the kernel's modules.
func (r *runner) makeHost(ctx context.Context, k *kernel, i *image, kind debian.Kind) error {
	root, err := debian.Root(r.cache, kind)
	if err != nil {
		return err
	}
	tree := filepath.Join(r.work, "host")
	defer os.RemoveAll(tree)
	for _, argv := range [][]string{
		{"cp", "--archive", root, tree},
		{"mkdir", "--parents", tree + "/usr/lib/modules"},
		{"cp", "--archive", i.modules, tree + "/usr/lib/modules/"},
		{"chroot", tree, "depmod", i.release},
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("make the disk of a host: %s: %w: %s", argv[0], err, out)
		}
	}
	if err := os.RemoveAll(r.hostDisk(k, kind)); err != nil {
		return err
	}
	return r.in.emulator.MakeDisk(ctx, r.hostDisk(k, kind), tree, 12<<30)
}

// hosts returns what the hosts are made of on which programs are run.
func hosts(programs []program) (kinds []debian.Kind) {
	seen := map[string]bool{}
	for _, p := range programs {
		if p.host != "" && !seen[p.on.String()] {
			seen[p.on.String()] = true
			kinds = append(kinds, p.on)
		}
	}
	return kinds
}

// versions are those that a host has packages of, to be upgraded.
var versions = []string{"1.0.0", "2.0.0"}

// buildPackages makes Debian packages, each in a folder named after its version.
func buildPackages(ctx context.Context, module, dir string) error {
	for _, version := range versions {
		work := filepath.Join(dir, version+".build")
		if err := command(ctx, module, "make", "--silent", "bundle", "DIST="+work, "VERSION="+version, "COMMIT=test",
			"SOURCE_DATE_EPOCH=0"); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(work, "bin"), filepath.Join(work, arch)); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
			return err
		}
		if err := command(ctx, module, "env", "SOURCE_DATE_EPOCH=1", "go", "run", "./packaging", "-version", version,
			"-arch", arch, "-maintainer", "Tests <tests@example.org>",
			"-programs", work, "-bundles", work, "-output", filepath.Join(dir, version)); err != nil {
			return err
		}
		if err := os.RemoveAll(work); err != nil {
			return err
		}
	}
	return nil
}
