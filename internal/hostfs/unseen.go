package hostfs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Unseen reports whether nobody sees what is mounted below a folder although the mount it lies on is shared: no other
// mount is its peer, or none any more. Of a mount that isn't shared it is false.
//
// The kernel tells of peers only when one stops being a peer: a mount that is made a slave has a master where it has
// left some behind, and else none (mount_namespaces(7)). So something is mounted, which gets the peers that the
// folder's mount has.
func Unseen(dir string) (unseen bool, err error) {
	if shared, err := Shared(dir); err != nil || !shared {
		return false, err
	}
	probe, err := os.MkdirTemp(dir, ".new-") // as what is unfinished is named, and goes if we are killed
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.Remove(probe)) }()
	if err := unix.Mount("tmpfs", probe, "tmpfs", 0, "mode=0700,size=4k"); err != nil {
		return false, fmt.Errorf("mount a tmpfs on %s: %w", probe, err)
	}
	defer func() { err = errors.Join(unix.Unmount(probe, unix.MNT_DETACH), err) }()
	if err := unix.Mount("", probe, "", unix.MS_SLAVE, ""); err != nil {
		return false, fmt.Errorf("make %s a slave: %w", probe, err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(probe))
	if err != nil {
		return false, err
	}
	if len(mounts) != 1 {
		return false, fmt.Errorf("%s isn't in /proc/self/mountinfo", probe)
	}
	return !strings.Contains(mounts[0].Optional, "master:"), nil
}
