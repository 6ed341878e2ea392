// Package hostfs tells what a host's file systems are: their kinds, whether their folders list names with types, and
// who sees what is mounted there.
package hostfs

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// names are the kinds of file systems by the magic numbers of statfs(2), as in the kernel's linux/magic.h and, of those
// that are no part of it, their sources. ext2, ext3 and ext4 have one number, which the engine calls extfs.
var names = map[uint32]string{
	unix.EXT4_SUPER_MAGIC:      "extfs",
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.RAMFS_MAGIC:           "ramfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	unix.NFS_SUPER_MAGIC:       "nfs",
	unix.FUSE_SUPER_MAGIC:      "fuse",
	unix.V9FS_MAGIC:            "9p",
	unix.AFS_SUPER_MAGIC:       "afs",
	unix.CEPH_SUPER_MAGIC:      "ceph",
	unix.CIFS_SUPER_MAGIC:      "cifs",
	unix.SMB_SUPER_MAGIC:       "smb",
	unix.SMB2_SUPER_MAGIC:      "smb2",
	unix.ECRYPTFS_SUPER_MAGIC:  "ecryptfs",
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	unix.REISERFS_SUPER_MAGIC:  "reiserfs",
	unix.EROFS_SUPER_MAGIC_V1:  "erofs",
	unix.SQUASHFS_MAGIC:        "squashfs",
	0x61756673:                 "aufs",
	unix.MSDOS_SUPER_MAGIC:     "vfat",
	0x2fc12fc1:                 "zfs",
	0xca451a4e:                 "bcachefs",
	0x01161970:                 "gfs2",
	0x7461636f:                 "ocfs2",
	0x3153464a:                 "jfs",
	0x0bd00bd0:                 "lustre",
	0x47504653:                 "gpfs",
	0x2011bab0:                 "exfat",
	0x7366746e:                 "ntfs3",
}

// Kind names the file system a folder lies on, as the engine does where it knows it; others are their number in
// hexadecimal.
func Kind(dir string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if name := names[uint32(st.Type)]; name != "" {
		return name, nil
	}
	return fmt.Sprintf("0x%x", uint32(st.Type)), nil
}

// Name is Kind for people: where the kind can't be told it says why.
func Name(dir string) string {
	kind, err := Kind(dir)
	if err != nil {
		return "unknown: " + err.Error()
	}
	return kind
}

// Typed reports whether the first names of a folder are listed with their types, which overlayfs needs (d_type).
func Typed(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b := make([]byte, 4096)
	n, err := unix.Getdents(int(f.Fd()), b)
	if err != nil {
		return false, &os.PathError{Op: "getdents", Path: dir, Err: err}
	}
	return typesKnown(b[:n]), nil
}

// typesKnown reports whether every entry has its type; getdents64(2): inode 8, position 8, length 2, type 1, name.
func typesKnown(b []byte) bool {
	const lengthAt, typeAt = 16, 18
	for len(b) > typeAt {
		if b[typeAt] == unix.DT_UNKNOWN {
			return false
		}
		n := int(binary.NativeEndian.Uint16(b[lengthAt:]))
		if n <= typeAt || n > len(b) {
			break
		}
		b = b[n:]
	}
	return true
}
