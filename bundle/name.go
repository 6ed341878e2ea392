package bundle

import (
	"fmt"
	"slices"

	"github.com/distribution/reference"
)

// own are the engine's own storage drivers on Linux, of all versions that take plugins. A plugin of such a name is
// never asked.
var own = []string{"aufs", "btrfs", "devicemapper", "fuse-overlayfs", "overlay", "overlay2", "vfs", "zfs"}

// CheckName reports whether a plugin of a name, as `docker plugin create` or `install --alias` is given it, can be a
// storage driver, and gives what "storage-driver" in daemon.json has to be. Any name of an image will do, with slashes,
// a registry and a tag; "X" and "X:latest" are one plugin, but the engine keeps a list of images for each of the two
// strings.
func CheckName(name string) (storageDriver string, err error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", fmt.Errorf("plugin name %.300q: %w: want [REGISTRY/]NAME[:TAG] in lower case, such as cvmfs-graphdriver", name, err)
	}
	if digested, ok := ref.(reference.Digested); ok {
		return "", fmt.Errorf("plugin name %.300q: the engine finds no plugin by a digest: leave out @%s", name,
			digested.Digest())
	}
	storageDriver = reference.FamiliarString(ref)
	if slices.Contains(own, storageDriver) {
		return "", fmt.Errorf("plugin name %q: the engine has a storage driver of its own of that name: take another, such as cvmfs-graphdriver", name)
	}
	return storageDriver, nil
}
