package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/erofs"
	"cvmfs-graphdriver/thin"
)

// errContradiction is a record that doesn't fit what is published as its layer. Catalogs and records come from one hand
// and are equally trusted, so there is nothing by which to choose between them: an image that isn't what was converted
// is refused.
var errContradiction = errors.New("the layer's record contradicts the layer: convert the image again")

// foundRecord is where a layer's record lies.
type foundRecord struct {
	entry *catalog.Entry
	name  string // of its content: equal names, equal records
}

// recordAt returns where the record of a layer lies, of the entry beside its folder; nil if there is none.
func recordAt(e *catalog.Entry, layer string) (*foundRecord, error) {
	switch {
	case e == nil:
		return nil, nil
	case e.Size > thin.MaxRecordSize:
		return nil, fmt.Errorf("layer record: %d bytes, the limit is %d", e.Size, thin.MaxRecordSize)
	}
	o, err := objects.FromEntry(e, layer+thin.RecordSuffix)
	if err != nil {
		return nil, fmt.Errorf("layer record: %w", err)
	}
	return &foundRecord{e, o.Name()}, nil
}

// readRecord gets the layer's record; where there is none it says nothing.
func (f *folder) readRecord(ctx context.Context) (*record, error) {
	if f.record == nil {
		return newRecord(&thin.Record{})
	}
	r, err := f.revision.Open(ctx, f.path+thin.RecordSuffix, f.record.entry)
	if err != nil {
		return nil, fmt.Errorf("layer record: %w", err)
	}
	defer r.Close()
	b, err := io.ReadAll(r) // as many bytes as the entry says, which recordAt has bounded
	if err != nil {
		return nil, fmt.Errorf("layer record: %w", err)
	}
	parsed, err := thin.ParseRecord(b)
	if err != nil {
		return nil, err
	}
	return newRecord(parsed)
}

// record is a layer record while its layer is walked. Its paths have no leading slash, "" is the layer's root.
type record struct {
	*thin.Record
	groups  map[string]*linkGroup
	markers map[string]bool
	unseen  map[string]bool // what the record names and the walk hasn't met yet

	replaced map[*inode]bool // those with the extended attributes of the record
}

// linkGroup is paths that are one file.
type linkGroup struct {
	first string
	inode *inode // of the member met first; nil before
}

func newRecord(r *thin.Record) (*record, error) {
	k := &record{
		Record: r, groups: map[string]*linkGroup{}, markers: map[string]bool{}, unseen: map[string]bool{},
		replaced: map[*inode]bool{},
	}
	for _, paths := range r.Links {
		g := &linkGroup{}
		for _, path := range paths {
			if k.groups[path] != nil {
				return nil, fmt.Errorf("layer record: %.300q is linked twice: %w", path, errContradiction)
			}
			k.groups[path], k.unseen[path] = g, true
		}
	}
	for _, path := range r.Markers {
		if !catalog.IsMarker(path[strings.LastIndexByte(path, '/')+1:]) {
			return nil, fmt.Errorf("layer record: %.300q hasn't the name of a marker: %w", path, errContradiction)
		}
		k.markers[path], k.unseen[path] = true, true
	}
	for path := range r.Xattrs {
		k.unseen[path] = true
	}
	return k, nil
}

// apply returns the inode of an entry as the record has it: shared with the entries it is linked to, and with all its
// extended attributes, which of linked paths need be named for one only. linked tells that the catalog links the entry.
func (k *record) apply(path string, i *inode, linked bool) (*inode, error) {
	if !k.unseen[path] {
		return i, nil
	}
	delete(k.unseen, path)
	i.takeMarks()
	if g := k.groups[path]; g != nil {
		switch {
		case i.Mode&typeMask == typeDir:
			return nil, fmt.Errorf("%.300q is linked and a folder: %w", path, errContradiction)
		case linked:
			return nil, fmt.Errorf("%.300q is linked by the catalog, too: %w", path, errContradiction)
		case g.inode == nil:
			g.first, g.inode = path, i
		case !g.inode.same(i) ||
			!k.replaced[g.inode] && k.Xattrs[path] == nil && !slices.Equal(g.inode.Xattrs, i.Xattrs):
			return nil, fmt.Errorf("%.300q and %.300q are linked and not the same: %w", g.first, path, errContradiction)
		}
		i = g.inode
	}
	if attrs := recordedXattrs(k.Xattrs[path]); k.Xattrs[path] != nil {
		if k.replaced[i] && !slices.Equal(i.Xattrs, attrs) {
			return nil, fmt.Errorf("%.300q is linked and has other extended attributes than another link: %w", path,
				errContradiction)
		}
		i.Xattrs, k.replaced[i] = attrs, true
	}
	return i, nil
}

// complete reports whether the walk has met all that the record names.
func (k *record) complete() error {
	least, missing := "", false
	for path := range k.unseen {
		if !missing || path < least {
			least, missing = path, true
		}
	}
	if missing {
		return fmt.Errorf("%d of the paths it names are not in the layer, %.300q is one: %w", len(k.unseen), least,
			errContradiction)
	}
	return nil
}

// root returns the attributes of the layer's root folder, nil if the record says nothing of it.
func (k *record) root(ids idMaps) (*inode, error) {
	if k.Root == nil && k.Xattrs[""] == nil {
		return nil, nil
	}
	a := k.Root
	if a == nil {
		a = &thin.Attributes{Mode: 0o755}
	}
	uid, gid, err := ids.owner(a.UID, a.GID)
	if err != nil {
		return nil, fmt.Errorf("layer record: root folder: %w", err)
	}
	return &inode{Node: erofs.Node{
		Mode: typeDir | a.Mode, UID: uid, GID: gid, Mtime: a.Mtime, MtimeN: a.MtimeN,
		Xattrs: recordedXattrs(k.Xattrs[""]),
	}}, nil
}

// recordedXattrs returns the attributes an image can hold, sorted by name. Instructions to overlayfs are none: what a
// layer removes is in its catalog.
func recordedXattrs(attrs []thin.Xattr) []erofs.Xattr {
	var out []erofs.Xattr
	for _, x := range attrs {
		if _, mark := overlayXattr(x.Name); erofs.Storable(x.Name) && !mark {
			out = append(out, erofs.Xattr{Name: x.Name, Value: string(x.Value)})
		}
	}
	slices.SortFunc(out, func(a, b erofs.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// same reports whether nothing but their extended attributes and their numbers tells two inodes apart.
func (i *inode) same(j *inode) bool {
	return i.Mode == j.Mode && i.UID == j.UID && i.GID == j.GID && i.Size == j.Size && i.Mtime == j.Mtime &&
		i.MtimeN == j.MtimeN &&
		i.Rdev == j.Rdev && i.Target == j.Target && i.redirect == j.redirect && i.whiteout == j.whiteout
}
