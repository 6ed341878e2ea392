package publishtest

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/hash"
)

// Seen is an entry as a reader sees it.
type Seen struct {
	Mode     uint32
	UID, GID uint32
	Size     int64
	Rdev     uint64
	Mtime    int64
	MtimeN   int32
	Target   string
	Xattrs   string
	Content  string // digest of a regular file's bytes
	Nlink    uint32 // of files
}

// ReadAll reads every entry below a path, all content included.
func ReadAll(t testing.TB, v *client.Revision, below string) map[string]Seen {
	t.Helper()
	all := map[string]Seen{}
	err := v.Walk(context.Background(), below, func(n *client.Node) error {
		s := Seen{
			Mode: n.Mode, UID: n.UID, GID: n.GID, Size: n.Size, Rdev: n.Rdev, Mtime: n.Mtime, MtimeN: n.MtimeN,
			Target: n.Target,
			Xattrs: xattrText(n.Xattrs), Nlink: n.Nlink,
		}
		if n.IsRegular() {
			f, err := v.Open(context.Background(), n.Path, n.Entry)
			if err != nil {
				return fmt.Errorf("%s: %w", n.Path, err)
			}
			content, err := io.ReadAll(f)
			if err = errors.Join(err, f.Close()); err != nil {
				return fmt.Errorf("%s: %w", n.Path, err)
			}
			s.Content = hash.SHA1.Digest(content).Hex()
		}
		if n.IsDir() {
			s.Nlink, s.Size = 0, 0
		}
		all[strings.TrimPrefix(strings.TrimPrefix(n.Path, below), "/")] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Chunks are those of the file at a path; none where it is one object.
func Chunks(t testing.TB, v *client.Revision, path string) (chunks []catalog.Chunk) {
	t.Helper()
	err := v.Walk(context.Background(), path, func(n *client.Node) error {
		chunks = n.Chunks
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return chunks
}

func xattrText(attrs []catalog.Xattr) string {
	var b strings.Builder
	for _, a := range attrs {
		fmt.Fprintf(&b, "%q=%q ", a.Name, a.Value)
	}
	return b.String()
}

// Expect is the model: what a reader must see of an archive without hard links, surprises in its order, or missing
// folders.
func Expect(items []Item) map[string]Seen {
	all := map[string]Seen{}
	for _, i := range items {
		s := Seen{
			Mode: uint32(i.Mode), UID: uint32(i.Uid), GID: uint32(i.Gid), Mtime: i.ModTime.Unix(),
			MtimeN: int32(i.ModTime.Nanosecond()), Target: i.Linkname, Nlink: 1,
		}
		if s.Mtime < 0 { // no engine sets it
			s.Mtime, s.MtimeN = 0, 0
		}
		switch i.Typeflag {
		case tar.TypeReg:
			s.Mode |= 0o100000
			s.Size = int64(len(i.Content))
			s.Content = hash.SHA1.Digest([]byte(i.Content)).Hex()
		case tar.TypeDir:
			s.Mode |= 0o040000
			s.Nlink = 0
		case tar.TypeSymlink:
			s.Mode |= 0o120000
			s.Size = int64(len(i.Linkname))
		case tar.TypeChar:
			s.Mode |= 0o020000
			s.Rdev = uint64(i.Devminor&0xff | i.Devmajor<<8 | (i.Devminor&^0xff)<<12)
		case tar.TypeBlock:
			s.Mode |= 0o060000
			s.Rdev = uint64(i.Devminor&0xff | i.Devmajor<<8 | (i.Devminor&^0xff)<<12)
		case tar.TypeFifo:
			s.Mode |= 0o010000
		}
		var attrs []catalog.Xattr
		for k, v := range i.PAXRecords {
			attrs = append(attrs, catalog.Xattr{Name: strings.TrimPrefix(k, "SCHILY.xattr."), Value: []byte(v)})
		}
		slices.SortFunc(attrs, func(a, b catalog.Xattr) int { return strings.Compare(a.Name, b.Name) })
		s.Xattrs = xattrText(attrs)
		all[strings.Trim(i.Name, "/")] = s
	}
	return all
}
