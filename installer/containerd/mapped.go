package containerd

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"cvmfs-graphdriver/internal/overlayfs"
)

// Maps reports whether a snapshotter with its folder there, which need not be there yet, can show mapped owners: the
// same mounts decide that it makes then.
func Maps(root string) bool {
	for ; root != filepath.Dir(root); root = filepath.Dir(root) {
		if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	var kernel overlayfs.Kernel
	support, err := kernel.Probe(root)
	return err == nil && kernel.ProbeMapped(root, support.EROFS.Works()) == nil
}
