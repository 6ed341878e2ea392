package policy

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"aead.dev/minisign"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/installer"
)

// PackagedDir is where packages put the bundle.
const PackagedDir = "/usr/share/cvmfs-graphdriver"

// bundle opens the bundle that is to be installed, and checks it.
func (h *Host) bundle() (*bundle.Bundle, error) {
	name := h.Bundle
	if name == "" {
		var err error
		if name, err = findBundle(h.Version); err != nil {
			return nil, err
		}
	}
	var key *minisign.PublicKey
	if h.Key != "" {
		read, err := bundle.ReadPublicKey(h.Key)
		if err != nil {
			return nil, err
		}
		key = read
	}
	verified, err := bundle.Verify(name, key)
	if err != nil {
		return nil, err
	}
	if arch := verified.Build.Arch; arch != runtime.GOARCH {
		return nil, fmt.Errorf("the bundle %s is for %s, and this machine is %s", name, arch, runtime.GOARCH)
	}
	return verified.Bundle, nil
}

// findBundle finds the bundle of this program's version, or the only one, beside this program or where packages put it.
func findBundle(version string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the bundle: %w", err)
	}
	for _, dir := range []string{filepath.Dir(self), PackagedDir} {
		ours, all, err := bundle.Archives(dir, version, runtime.GOARCH)
		switch {
		case err != nil:
			return "", err
		case len(ours) > 0:
			return ours[0], nil
		case len(all) == 1:
			return all[0], nil
		case len(all) > 1:
			return "", usagef("several bundles are in %s: name one with --bundle", dir)
		}
	}
	return "", usagef("no plugin bundle is in %s or beside this program: name one with --bundle", PackagedDir)
}

// images are those the user wants to see run. The image made here holds this program, which must then be static.
func (h *Host) images(program string) (installer.Images, error) {
	if h.Images.Ordinary != "" {
		return h.Images, nil
	}
	f, err := elf.Open(program)
	if err != nil {
		return h.Images, err
	}
	defer f.Close() // only read from
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return h.Images, usagef("this build of the program can't run in an image made here, as it needs a dynamic loader: " +
			"name one with --test-image, or build with CGO_ENABLED=0")
	}
	return h.Images, nil
}
