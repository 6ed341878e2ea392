package node

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"cvmfs-graphdriver/cvmfs/objects"
)

// cachedImages tells the object store which images there are.
type cachedImages struct{ *Node }

// Images lists the composed images on disk. Mounted is what mounts of the face read from, and what a shared overlay of
// the erofs view shows, which keeps the files it has looked up. One of the FUSE view keeps none. Both stay mounted when
// the last container has ended. Before Configure that isn't known, and all images count as mounted.
func (c cachedImages) Images() (list []objects.Image, err error) {
	entries, err := os.ReadDir(c.Path("images"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	now, notReady := c.configured()
	mounted := map[string]bool{}
	if notReady == nil {
		if mounted, err = now.face.Images(); err != nil {
			return nil, err
		}
	}
	shared, err := os.ReadDir(c.run("shared"))
	if err != nil {
		return nil, err
	}
	for _, e := range shared {
		if key, ok := strings.CutSuffix(e.Name(), erofsSuffix); ok {
			mounted[key] = true
		}
	}
	for _, e := range entries {
		if key := e.Name(); !strings.HasPrefix(key, ".") { // else half-written
			t := c.Path("images", key, "objects")
			list = append(list, objects.Image{Key: key, Table: t, Mounted: notReady != nil || mounted[key]})
		}
	}
	return list, nil
}
