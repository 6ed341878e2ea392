package layertar

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/erofs"
	"cvmfs-graphdriver/internal/overlayfs"
)

const (
	maxName  = 255              // bytes, NAME_MAX
	maxPath  = unix.PathMax - 1 // bytes without the NUL, of paths and of symbolic links' targets
	maxValue = 1 << 16          // bytes of an extended attribute, XATTR_SIZE_MAX

	xattrKey = "SCHILY.xattr." // begins the pax records of extended attributes

	maxWhiteout = maxName + len(WhiteoutPrefix) // bytes: of one that hides the longest name
)

// The marks of the AUFS convention, which container images use. Other names that begin with WhiteoutMeta mean something
// to AUFS alone.
const (
	WhiteoutPrefix = ".wh."         // and the name in the folder that is hidden
	WhiteoutMeta   = ".wh..wh."     // begins the marks that hide no name
	WhiteoutOpaque = ".wh..wh..opq" // hides all that the layers below have in the folder
)

// Entry is what an archive says of one name.
type Entry struct {
	Name   string    // relative to the layer's root and clean; "" is the root
	Type   byte      // tar.TypeReg, TypeDir, TypeSymlink, TypeLink, TypeChar, TypeBlock or TypeFifo
	Mode   uint32    // permission bits, set-id and sticky bits
	UID    int       // as the archive has it, which may be no id; see Owner
	GID    int       //
	Size   int64     // of a regular file, in bytes; else 0
	Mtime  time.Time // within what engines set
	Atime  time.Time // likewise; no earlier than Mtime
	Target string    // of a symbolic link as it stands; of a hard link like Name
	Major  int64     // of a device, as the archive has it; see Device
	Minor  int64     //
	Xattrs []Xattr   // sorted by name, none by which overlayfs is instructed

	Hides  string // of a whiteout: the name in its folder that it hides
	Opaque bool   // of the opaque whiteout
}

// Xattr is one extended attribute with its full name.
type Xattr struct{ Name, Value string }

// Whiteout reports whether the entry is a whiteout of either kind. It is a folder, or else an empty regular file.
func (e *Entry) Whiteout() bool { return e.Hides != "" || e.Opaque }

// IsWhiteoutName reports whether entries of this last name are whiteouts.
func IsWhiteoutName(base string) bool { return strings.HasPrefix(base, WhiteoutPrefix) }

// Owner returns user and group as the kernel would set them on a file that has the owner uid and gid.
func (e *Entry) Owner(uid, gid uint32) (uint32, uint32) { return owner(e.UID, uid), owner(e.GID, gid) }

func owner(id int, was uint32) uint32 {
	if uint32(id) == math.MaxUint32 {
		return was
	}
	return uint32(id)
}

// Device is the device's number as the kernel makes a node of it, in the encoding of st_rdev.
func (e *Entry) Device() uint64 {
	return unix.Mkdev(uint32(e.Major)&(1<<12-1), uint32(e.Minor)&(1<<20-1))
}

// Showable says why a composed image can't show the entry.
func (e *Entry) Showable() error {
	if len(path.Base(e.Name)) > maxName {
		return fmt.Errorf("a repository has no place for a whiteout of a name of %d bytes", len(e.Hides))
	}
	n := erofs.Node{Mode: unix.S_IFREG, Size: e.Size, Xattrs: Storable(e.Xattrs)}
	if e.Type == tar.TypeChar || e.Type == tar.TypeBlock {
		if uint64(e.Major) > math.MaxUint32 || uint64(e.Minor) > math.MaxUint32 {
			return fmt.Errorf("device number %d:%d is out of range", e.Major, e.Minor)
		}
		n.Mode, n.Rdev = unix.S_IFCHR, unix.Mkdev(uint32(e.Major), uint32(e.Minor))
	}
	if err := n.Check(); err != nil {
		return fmt.Errorf("a thin image can't show it: %w", err)
	}
	return nil
}

// Storable returns the extended attributes that a composed image has, as it has them.
func Storable(attrs []Xattr) (out []erofs.Xattr) {
	for _, x := range attrs {
		if erofs.Storable(x.Name) {
			out = append(out, erofs.Xattr(x))
		}
	}
	return out
}

// newEntry makes an entry of a header; nil of one that says nothing. note takes what it says and is left out.
func newEntry(h *tar.Header, note func(what string)) (*Entry, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil, nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return nil, err
	}
	e := &Entry{
		Name: name, Type: h.Typeflag, Mode: uint32(h.Mode) & 0o7777, UID: h.Uid, GID: h.Gid,
		Mtime: bounded(h.ModTime), Major: h.Devmajor, Minor: h.Devminor,
	}
	if e.Atime = bounded(h.AccessTime); e.Atime.Before(e.Mtime) {
		e.Atime = e.Mtime
	}
	if name == "" && h.Typeflag != tar.TypeDir {
		note("an entry for the layer's root that is no folder")
		return nil, nil
	}
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || id > math.MaxUint32 {
			note(fmt.Sprintf("of the owner %d all but its low 32 bits", id))
		}
	}
	if err := e.setType(h); err != nil {
		return nil, err
	}
	if err := e.setWhiteout(); err != nil {
		return nil, err
	}
	if e.Whiteout() {
		return e, nil
	}
	return e, e.setXattrs(h.PAXRecords, note)
}

// clean returns a path as the engines do, which change their root before they unpack: relative to it, and leading
// nowhere else.
func clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("a name with a NUL")
	}
	name = path.Clean("/" + name)[1:]
	if len(name) > maxPath {
		return "", fmt.Errorf("a path of %d bytes, the limit is %d", len(name), maxPath)
	}
	if len(name) <= maxName {
		return name, nil
	}
	dir, base := path.Split(name)
	if len(base) > maxName && len(base) <= maxWhiteout && IsWhiteoutName(base) {
		base = "" // it becomes no file
	}
	for part := range strings.SplitSeq(dir+base, "/") {
		if len(part) > maxName {
			return "", fmt.Errorf("a name of %d bytes, the limit is %d", len(part), maxName)
		}
	}
	return name, nil
}

// bounded returns a time that engines set: those that 64 bits of nanoseconds since 1970 can't say are 1970's first
// second.
func bounded(t time.Time) time.Time {
	if first, last := time.Unix(0, 0), time.Unix(0, math.MaxInt64); t.Before(first) || t.After(last) {
		return first
	}
	return t
}

// setType sets what goes with the entry's type.
func (e *Entry) setType(h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Type, e.Size = tar.TypeReg, h.Size
		if e.Size < 0 {
			return fmt.Errorf("a size of %d bytes", e.Size)
		}
	case tar.TypeSymlink:
		e.Target = h.Linkname
		if e.Target == "" || len(e.Target) > maxPath || strings.IndexByte(e.Target, 0) >= 0 {
			return fmt.Errorf("a symbolic link with a target of %d bytes, want 1 to %d and no NUL", len(e.Target),
				maxPath)
		}
	case tar.TypeLink:
		if IsWhiteoutName(path.Base(e.Name)) {
			return nil // what a whiteout links to means nothing
		}
		return e.setLink(h.Linkname)
	case tar.TypeDir, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return fmt.Errorf("type %q is unknown", h.Typeflag)
	}
	return nil
}

func (e *Entry) setLink(to string) (err error) {
	e.Target, err = clean(to)
	switch {
	case err != nil:
	case e.Target == "":
		err = errors.New("it is the layer's root")
	case IsWhiteoutName(path.Base(e.Target)):
		err = errors.New("it is a whiteout")
	}
	if err != nil {
		return fmt.Errorf("hard link to %.300q: %w", to, err)
	}
	return nil
}

// setWhiteout finds out whether the entry is a whiteout. Its name alone counts.
func (e *Entry) setWhiteout() error {
	hidden, is := strings.CutPrefix(path.Base(e.Name), WhiteoutPrefix)
	if !is {
		return nil
	}
	switch {
	case hidden == "" || hidden == "." || hidden == "..":
		return errors.New("a whiteout of no name")
	case path.Base(e.Name) == WhiteoutOpaque:
		e.Opaque = true
	default:
		e.Hides = hidden
	}
	if e.Type != tar.TypeDir {
		e.Type, e.Size, e.Target, e.Major, e.Minor = tar.TypeReg, 0, "", 0, 0
	}
	return nil
}

// setXattrs takes the extended attributes out of pax records.
func (e *Entry) setXattrs(records map[string]string, note func(what string)) error {
	for key, value := range records {
		name, is := strings.CutPrefix(key, xattrKey)
		if !is || strings.HasPrefix(name, overlayfs.XattrPrefix) || strings.HasPrefix(name, overlayfs.XattrUserPrefix) {
			continue
		}
		switch {
		case name == "" || len(name) > maxName || strings.IndexByte(name,
			0) >= 0 || len(value) > maxValue || bare(name):
			return fmt.Errorf("extended attribute %.60q of %d bytes: no Linux takes it", name, len(value))
		case !Has(e.Type, name):
			note(fmt.Sprintf("extended attribute %.60q: such a file can't have it", name))
			continue
		}
		e.Xattrs = append(e.Xattrs, Xattr{name, value})
	}
	slices.SortFunc(e.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// bare reports whether an attribute's name is a namespace alone.
func bare(name string) bool {
	return slices.Contains([]string{"user.", "trusted.", "security."}, name)
}

// Has reports whether a file of a type, as in Entry, can have an extended attribute of that name; see xattr(7). What a
// hard link names is not known by its type.
func Has(typeflag byte, name string) bool {
	switch typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeLink:
		return true
	case tar.TypeSymlink:
		return !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl_")
	}
	return !strings.HasPrefix(name, "user.")
}
