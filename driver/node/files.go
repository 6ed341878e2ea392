package node

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/objects"
)

// Fetcher makes the node the source of objects: the way to a repository's servers, as the newest settings have it.
func (n *Node) Fetcher(fqrn string) (*fetch.Fetcher, error) {
	c, err := n.configured()
	if err != nil {
		return nil, err
	}
	return c.repositories.Fetcher(fqrn)
}

// Local reports how much of a composed image is on disk, whether it is in use or not.
func (n *Node) Local(image string) (objects.Share, error) {
	c, err := n.configured()
	if err != nil {
		return objects.Share{}, err
	}
	t, err := c.composer.Peek(image)
	if err != nil {
		return objects.Share{}, err
	}
	return n.objects.Local(t), nil
}

// Complete fetches what of a composed image isn't, as objects.Store.Complete does.
func (n *Node) Complete(ctx context.Context, image string) (objects.Completion, error) {
	c, err := n.configured()
	if err != nil {
		return objects.Completion{}, err
	}
	composed, err := c.composer.Image(image)
	if err != nil {
		return objects.Completion{}, err
	}
	return n.objects.Complete(ctx, n.index, composed.Table)
}

// users returns the layers in use that read from a composed image.
func (n *Node) users(key string) (ids []string) {
	c, err := n.configured()
	if err != nil {
		return nil
	}
	for _, m := range c.face.Mounts() {
		if m.Image == key {
			ids = append(ids, m.Layer)
		}
	}
	return ids
}

// patience is how long a file is looked for that a log line is to name.
const patience = 300 * time.Millisecond

// objectUsers reports what an object is needed for: images, a file of one of them, and the layers that are mounted from
// them. With no server up many objects fail at once: files are looked for a tenth of the time, and none for longer than
// a moment.
func (n *Node) objectUsers(r objects.Ref) (attrs []any) {
	c, err := n.configured()
	if err != nil {
		return nil
	}
	var keys, ids []string
	for _, t := range n.index.Tables(r) {
		key := filepath.Base(filepath.Dir(t.Path()))
		keys, ids = append(keys, key), append(ids, n.users(key)...)
	}
	attrs = []any{"images", some(keys), "layers", some(ids)}
	if len(keys) == 0 || !n.finding.TryLock() {
		return attrs
	}
	defer n.finding.Unlock()
	began := time.Now()
	if began.Before(n.nextFinding) {
		return attrs
	}
	defer func() { n.nextFinding = time.Now().Add(9 * time.Since(began)) }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if file, err := c.composer.Find(ctx, keys[0], r); err == nil && file != "" { // else the image is asked for itself
		attrs = append(attrs, "file", file)
	}
	return attrs
}

// some spells the first of several names.
func some(names []string) string {
	const most = 3
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], " "), len(names)-most)
	}
	return strings.Join(names, " ")
}
