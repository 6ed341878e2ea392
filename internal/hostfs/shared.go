package hostfs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Shared reports whether what is mounted below a folder is seen in other mount namespaces, too: the mount it lies on is
// shared (mount_namespaces(7)).
func Shared(dir string) (bool, error) {
	group, err := PeerGroup(dir)
	return group != "", err
}

// PeerGroup returns the number of the peer group of the mount that a folder lies on, "" where that isn't shared.
func PeerGroup(dir string) (string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return "", err
	}
	var holder *mountinfo.Info // the last of the mounts at the longest path
	for _, m := range mounts {
		if holder == nil || len(m.Mountpoint) >= len(holder.Mountpoint) {
			holder = m
		}
	}
	if holder == nil {
		return "", fmt.Errorf("no mount is known that %s lies on", dir)
	}
	return peerGroup(holder), nil
}

// HasPeer reports whether in the mount namespace of a process, 0 for this one, a mount of that peer group shows what is
// mounted below a folder, a path there: one that the folder lies on, whatever lies on top of it.
func HasPeer(pid int, dir, group string) (bool, error) {
	name := "self"
	if pid != 0 {
		name = strconv.Itoa(pid)
	}
	table, err := os.Open(filepath.Join("/proc", name, "mountinfo"))
	if err != nil {
		return false, err
	}
	defer table.Close()
	mounts, err := mountinfo.GetMountsFromReader(table, mountinfo.ParentsFilter(dir))
	return slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return peerGroup(m) == group }), err
}

// peerGroup returns the number of a mount's peer group, "" of one that isn't shared.
func peerGroup(m *mountinfo.Info) string {
	for tag := range strings.FieldsSeq(m.Optional) {
		if group, ok := strings.CutPrefix(tag, "shared:"); ok {
			return group
		}
	}
	return ""
}
