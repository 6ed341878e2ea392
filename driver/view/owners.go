package view

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/moby/sys/user"
)

// Map shows an image, which must have been added, a second time, with mapped owners: as the folder
// view/<key>.<mapping>. The mapping's name stands for what it maps.
func (f *FS) Map(key, mapping string, ids user.IdentityMapping) error {
	name, tag := mapped(key, mapping)
	f.mu.Lock()
	defer f.mu.Unlock()
	if shown, err := f.shown(name, tag); shown || err != nil {
		return err
	}
	for _, i := range f.images {
		if i.name == key {
			f.images[tag] = &image{Reader: i.Reader, key: key, name: name, tag: tag, ids: ids}
			return nil
		}
	}
	return fmt.Errorf("show image %s with mapped owners: it isn't shown", key)
}

// mapped returns the name of an image with mapped owners, and the tag in its node ids.
func mapped(key, mapping string) (name string, tag uint64) {
	name = key + "." + mapping
	sum := sha256.Sum256([]byte(name))
	tag, _ = tagOf(hex.EncodeToString(sum[:])) // of a digest there is one
	return name, tag
}

// Unmap ends the showing of an image with mapped owners.
func (f *FS) Unmap(key, mapping string) {
	name, tag := mapped(key, mapping)
	f.remove(func(i *image) bool { return i.tag == tag && i.name == name })
}

// nobody is whom the kernel shows in the place of an owner that a mapping leaves out.
const nobody = 65534

// owner maps an owner in the image to the one that is shown.
func (i *image) owner(uid, gid uint32) (uint32, uint32) {
	if i.ids.Empty() {
		return uid, gid
	}
	u, _, uerr := user.IdentityMapping{UIDMaps: i.ids.UIDMaps}.ToHost(int(uid), 0)
	_, g, gerr := user.IdentityMapping{GIDMaps: i.ids.GIDMaps}.ToHost(0, int(gid))
	if uerr != nil {
		u = nobody
	}
	if gerr != nil {
		g = nobody
	}
	return uint32(u), uint32(g)
}

// bound returns the value of an attribute as it is with mapped owners: a file capability counts in the user namespace
// of the mapped root alone, which takes the revision 3 of it (linux/capability.h).
func (i *image) bound(name string, value []byte) []byte {
	const revisionAt, revision2, revision3, size2 = 3, 2, 3, 20
	if name != "security.capability" || i.ids.Empty() || len(value) != size2 || value[revisionAt] != revision2 {
		return value
	}
	root, _ := i.owner(0, 0)
	value = binary.LittleEndian.AppendUint32(append([]byte(nil), value...), root)
	value[revisionAt] = revision3
	return value
}
