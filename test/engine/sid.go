package engine

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// sid is the newest engine and containerd that Debian has. Its Go programs run where bookworm's libc is. Its runc
// doesn't, and can't be run by a loader named before it as it executes itself once more: it is patched to use the
// loader and the libraries that come with it, by a patchelf that is run so.
var sid = packageSet{
	folder: "engine-sid",
	packages: []string{
		"docker.io", "docker-cli", "docker-buildx", "containerd", "runc",
		"libc6", "libseccomp2", "patchelf", "libstdc++6", "libgcc-s1",
	},
	suites: []string{"sid"},
	what:   "the engine packages of Debian sid", otherwise: "the tests on that engine will skip",
}

// Below the set's folder.
const (
	sidLibraries = "libc" // not where libraries are looked for that other programs are shown
	sidRunc      = "usr/sbin/runc"
)

func fetchSid(ctx context.Context, cache string, progress io.Writer) error {
	final := filepath.Join(cache, sid.folder)
	set := sid
	set.make = func(ctx context.Context, apt *apt, root string) error {
		if err := unpack(ctx, apt.dir, root, progress); err != nil {
			return err
		}
		return patchRunc(ctx, root, final)
	}
	return set.fetch(ctx, cache, progress, func(dir string) error { return sidWorks(ctx, dir, final) })
}

// patchRunc makes runc, unpacked below root, run from final.
func patchRunc(ctx context.Context, root, final string) error {
	found, err := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu"))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("libraries are in %q", found)
	}
	if err == nil {
		err = os.Rename(found[0], filepath.Join(root, sidLibraries))
	}
	if err != nil {
		return fmt.Errorf("find the libraries of runc: %w", err)
	}
	loader, err := sidLoader(root)
	if err != nil {
		return err
	}
	libs := filepath.Join(final, sidLibraries)
	_, err = sidRun(ctx, root, "usr/bin/patchelf", "--set-interpreter", filepath.Join(libs, loader),
		"--force-rpath", "--set-rpath", libs, filepath.Join(root, sidRunc))
	return err
}

// sidLoader returns the file name of the loader.
func sidLoader(root string) (string, error) {
	found, err := filepath.Glob(filepath.Join(root, sidLibraries, "ld-linux*.so.*"))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("there are %q", found)
	}
	if err != nil {
		return "", fmt.Errorf("find the loader of Debian sid: %w", err)
	}
	return filepath.Base(found[0]), nil
}

// sidRun runs a program of the set by its loader and gives what it says.
func sidRun(ctx context.Context, root, program string, args ...string) (string, error) {
	loader, err := sidLoader(root)
	if err != nil {
		return "", err
	}
	libs := filepath.Join(root, sidLibraries)
	out, err := exec.CommandContext(ctx, filepath.Join(libs, loader),
		append([]string{"--library-path", libs, filepath.Join(root, program)}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("run %s: %w: %s", program, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// sidWorks says what is wrong with a folder of the set, final or to become it.
func sidWorks(ctx context.Context, dir, final string) error {
	_, err := sidRun(ctx, dir, sidRunc, "--version")
	if err != nil {
		return err
	}
	interpreter, err := sidRun(ctx, dir, "usr/bin/patchelf", "--print-interpreter", filepath.Join(dir, sidRunc))
	if err != nil {
		return err
	}
	if filepath.Dir(interpreter) != filepath.Join(final, sidLibraries) {
		return fmt.Errorf("runc wants the loader %s, which is not in %s", interpreter, final)
	}
	for _, program := range []string{"usr/sbin/dockerd", "usr/bin/docker", "usr/bin/containerd", "usr/bin/ctr"} {
		if out, err := exec.CommandContext(ctx, filepath.Join(dir, program), "--version").CombinedOutput(); err != nil {
			return fmt.Errorf("run %s: %w: %s", program, err, out)
		}
	}
	return nil
}
