package erofs

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxName   = 255              // bytes of a name, NAME_MAX
	maxTarget = unix.PathMax - 1 // bytes of a symbolic link's target
	maxMajor  = 1<<12 - 1        // of a device number, as the kernel keeps it
	maxMinor  = 1<<20 - 1        // likewise
	maxTimes  = 4096             // distinct times that are counted to find the commonest
	maxPath   = 1024             // bytes of a path in an error
	second    = 1_000_000_000    // nanoseconds
)

// image is a tree made ready to be written.
type image struct {
	inodes []inode          // in the order of their nids; the root is first
	dirs   []dir            // the folders among them, in the same order
	index  map[*Node]uint32 // positions in inodes
	xattrs int              // how many there are on all inodes together
	times  map[timestamp]int
	epoch  timestamp
	shared shared

	contentPos uint64 // offset of the plain content
	sharedPos  uint64 // offset of the shared attributes
	end        uint64 // size of the image
}

// inode is what the writer finds out about a node.
type inode struct {
	node     *Node
	nid      uint64
	nlink    uint32
	icount   uint16 // size of the attributes as i_xattr_icount says it
	extended bool
	inline   bool
}

func (n *inode) is(kind uint32) bool { return n.node.Mode&unix.S_IFMT == kind }

// all are the positions of the inodes, each with the folder that it is, or else nil.
func (im *image) all() iter.Seq2[int, *dir] {
	return func(yield func(int, *dir) bool) {
		next := 0
		for i := range im.inodes {
			var d *dir
			if im.inodes[i].is(unix.S_IFDIR) {
				d = &im.dirs[next]
				next++
			}
			if !yield(i, d) {
				return
			}
		}
	}
}

type timestamp struct {
	sec  int64
	nsec uint32
}

// scan lists the inodes of a tree and counts their links. It refuses what the format has no room for.
func scan(root *Node) (*image, error) {
	im := &image{index: make(map[*Node]uint32), times: make(map[timestamp]int)}
	if root == nil || root.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, &NodeError{"/", "the root of a tree must be a folder"}
	}
	if err := im.add(root, 0, ""); err != nil {
		return nil, err
	}
	for todo := []uint32{0}; len(todo) > 0; {
		d, first := todo[len(todo)-1], len(im.dirs)
		todo = todo[:len(todo)-1]
		if err := im.descend(d); err != nil {
			return nil, err
		}
		for sub := len(im.dirs) - 1; sub >= first; sub-- {
			todo = append(todo, uint32(sub))
		}
	}
	im.epoch = commonest(im.times)
	return im, nil
}

// descend adds the entries of folder d.
func (im *image) descend(d uint32) error {
	im.dirs[d].sort(im.inodes[im.dirs[d].inode].node.Children)
	children := im.dirs[d].children
	for i, c := range children {
		switch {
		case c.Name == "" || c.Name == "." || c.Name == ".." || strings.ContainsAny(c.Name, "/\x00"):
			return im.fault(d, c.Name, "a name may not be empty, . or .., nor contain / or NUL")
		case len(c.Name) > maxName:
			return im.fault(d, c.Name, fmt.Sprintf("the name has %d bytes, at most %d are possible", len(c.Name),
				maxName))
		case i > 0 && children[i-1].Name == c.Name:
			return im.fault(d, c.Name, "two entries of a folder have this name")
		case c.Node == nil:
			return im.fault(d, c.Name, "the entry has no node")
		}
		if err := im.add(c.Node, d, c.Name); err != nil {
			return err
		}
	}
	im.dirs[d].pack()
	return nil
}

// add enters a node that stands in folder d, or one more link to it.
func (im *image) add(n *Node, d uint32, name string) error {
	isDir := n.Mode&unix.S_IFMT == unix.S_IFDIR
	if i, ok := im.index[n]; ok {
		if isDir {
			return im.fault(d, name, "a folder may stand in one place only")
		}
		im.inodes[i].nlink++
		return nil
	}
	for _, reason := range [...]string{n.check(), checkXattrs(n.Xattrs)} {
		if reason != "" {
			return im.fault(d, name, reason)
		}
	}
	i := uint32(len(im.inodes))
	im.index[n] = i
	in := inode{node: n, nlink: 1}
	if isDir {
		in.nlink = 2
		if i > 0 {
			im.inodes[im.dirs[d].inode].nlink++
		}
		im.dirs = append(im.dirs, dir{name: name, parent: d, inode: i})
	}
	im.inodes = append(im.inodes, in)
	im.xattrs += len(n.Xattrs)
	t := timestamp{n.Mtime, n.MtimeN}
	if _, known := im.times[t]; known || len(im.times) < maxTimes {
		im.times[t]++
	}
	return nil
}

// Check tells why a node, its entries aside, can't stand in an image, whatever else is in it. It leaves room for the
// extended attributes by which overlayfs finds the content of a file. What publishes trees checks them by it: what an
// image can't hold is refused before anybody depends on it.
func (n *Node) Check() error {
	for _, reason := range [...]string{n.check(), checkXattrs(n.Xattrs)} {
		if reason != "" {
			return errors.New(reason)
		}
	}
	if icount(xattrSize(nil, n.Xattrs)+headroom) > maxIcount {
		return errors.New(xattrsTooLong)
	}
	return nil
}

// check tells why the attributes of a node can't stand in an image. It leaves out the extended ones.
func (n *Node) check() string {
	kind := n.Mode & unix.S_IFMT
	switch {
	case n.Mode > math.MaxUint16:
		return fmt.Sprintf("mode %#o has more than 16 bits", n.Mode)
	case n.MtimeN >= second:
		return fmt.Sprintf("%d nanoseconds are more than a second", n.MtimeN)
	case len(n.Children) > 0 && kind != unix.S_IFDIR:
		return "only a folder has entries"
	}
	switch kind {
	case unix.S_IFDIR, unix.S_IFIFO, unix.S_IFSOCK:
	case unix.S_IFREG:
		if n.Size < 0 || n.Size > MaxFileSize {
			return fmt.Sprintf("a file of %d bytes, at most %d are possible", n.Size, int64(MaxFileSize))
		}
	case unix.S_IFLNK:
		if n.Target == "" || len(n.Target) > maxTarget || strings.Contains(n.Target, "\x00") {
			return fmt.Sprintf("the target of a symbolic link has 1 to %d bytes, none of them NUL; this one has %d",
				maxTarget, len(n.Target))
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if unix.Major(n.Rdev) > maxMajor || unix.Minor(n.Rdev) > maxMinor {
			return fmt.Sprintf("device number %d:%d, at most %d:%d is possible", unix.Major(n.Rdev), unix.Minor(n.Rdev),
				maxMajor, maxMinor)
		}
	default:
		return fmt.Sprintf("mode %#o says no file type", n.Mode)
	}
	return ""
}

// commonest is the time that stands on the most inodes; the earliest of several.
func commonest(times map[timestamp]int) (best timestamp) {
	most := 0
	for t, n := range times {
		if n > most || n == most && (t.sec < best.sec || t.sec == best.sec && t.nsec < best.nsec) {
			best, most = t, n
		}
	}
	return best
}

// fault names the entry of folder d that is at fault; an empty name means the folder itself.
func (im *image) fault(d uint32, name, reason string) error {
	elems := []string{name}
	for size := 0; d != 0 && size < maxPath; d = im.dirs[d].parent {
		elems = append(elems, im.dirs[d].name)
		size += len(im.dirs[d].name) + 1
	}
	slices.Reverse(elems)
	path := strings.Join(elems, "/")
	if len(path) > maxPath {
		return &NodeError{"…" + path[len(path)-maxPath:], reason}
	}
	return &NodeError{"/" + path, reason}
}
