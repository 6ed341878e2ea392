package hostfs

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Shared reports whether what is mounted below a folder is seen in other mount namespaces, too: the mount it lies on is
// shared (mount_namespaces(7)).
func Shared(dir string) (bool, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return false, err
	}
	var holder *mountinfo.Info // the last of the mounts at the longest path
	for _, m := range mounts {
		if holder == nil || len(m.Mountpoint) >= len(holder.Mountpoint) {
			holder = m
		}
	}
	if holder == nil {
		return false, fmt.Errorf("no mount is known that %s lies on", dir)
	}
	return strings.Contains(" "+holder.Optional+" ", " shared:"), nil
}
