package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
)

// Published returns the image of a folder of a repository ("" for all of it) as people know it from other clients, and
// not as a layer: nothing is hidden, whiteouts are files, owners and the root's attributes are the repository's,
// variables in the targets of symbolic links are replaced, and CVMFS_WORLD_READABLE counts. Only instructions to
// overlayfs are left out, as the kernel would follow them.
func (c *Composer) Published(ctx context.Context, r *client.Repository, v *client.Revision, fqrn,
	path string,
) (*Image, error) {
	holder, err := v.Holder(ctx, path)
	if err != nil {
		return nil, err
	}
	what := fmt.Appendf(nil, "published %d %q %q %s", format, fqrn, path, holder)
	if mode := r.ShownMode(0); mode != 0 {
		what = fmt.Appendf(what, " %o", mode)
	}
	sum := sha256.Sum256(what)
	key := hex.EncodeToString(sum[:])
	if image, err := c.Image(key); err == nil || !errors.Is(err, ErrNoImage) {
		return image, err
	}
	began := time.Now()
	f := &folder{
		revision: v, holder: holder, fqrn: fqrn, path: path, ids: idMaps{repository: &config.Config{}},
		tells: r.TellsPaths(), expand: r.Expand, mode: r.ShownMode,
	}
	tree, err := f.read(ctx)
	if err != nil {
		return nil, err
	}
	flat := flatten(tree, nil)
	image := &Image{
		Key: key, Meta: filepath.Join(c.cfg.Dir, key, metaFile), Objects: len(flat.table), Size: flat.size,
		Layers:  []Pin{{fqrn, path, v.Number, v.Certificate}},
		Created: began.UTC().Format(time.RFC3339),
	}
	if err := flat.write(c.cfg.Dir, image); err != nil {
		return nil, fmt.Errorf("compose cvmfs://%s%s: %w", fqrn, path, err)
	}
	return c.Image(key)
}
