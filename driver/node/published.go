package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/thin"
)

// Published returns where the newest revision of a repository has the layer of a blob (SHA-256, hex), with the diffID
// that the repository says. It is fs.ErrNotExist where the repository hasn't got the layer, or says no diffID that can
// be made out. What this needs of catalogs is fetched.
func (n *Node) Published(ctx context.Context, fqrn, digest string) (thin.Layer, error) {
	c, err := n.configured()
	if err != nil {
		return thin.Layer{}, err
	}
	if c.repositories == nil {
		return thin.Layer{}, fs.ErrNotExist
	}
	r, err := c.repositories.Repository(fqrn)
	if err != nil {
		return thin.Layer{}, err
	}
	v, err := r.Newest(ctx)
	if err != nil {
		return thin.Layer{}, err
	}
	return n.published(ctx, v, digest)
}

// Gone returns the layer whose folder a repository hasn't got any more, or yet, if that is why something could not be
// composed.
func Gone(err error) (thin.Layer, bool) {
	var gone *images.GoneError
	if !errors.As(err, &gone) {
		return thin.Layer{}, false
	}
	return gone.Layer, true
}

// HasImage reports whether a composed image is on disk.
func (n *Node) HasImage(key string) bool {
	c, err := n.configured()
	if err == nil {
		_, err = c.composer.Describe(key)
	}
	return err == nil
}

// errInfo means that what a repository says of a layer can't be made out. That is the fault of one layer, and not of
// the repository.
var errInfo = errors.New("malformed info of a layer")

func (n *Node) published(ctx context.Context, v *client.Revision, digest string) (thin.Layer, error) {
	for _, path := range []string{"/layers/" + digest, "/.layers/" + digest[:2] + "/" + digest + "/layerfs"} {
		l, err := publishedAt(ctx, v, path, digest)
		switch {
		case errors.Is(err, errInfo):
			n.cfg.Log.Warn("a layer isn't taken from the repository", "repository", v.FQRN, "path", path, "err", err)
		case !errors.Is(err, fs.ErrNotExist):
			return l, err
		}
	}
	return thin.Layer{}, fs.ErrNotExist
}

// publishedAt returns the layer of a folder.
func publishedAt(ctx context.Context, v *client.Revision, path, digest string) (thin.Layer, error) {
	e, err := v.Lookup(ctx, path)
	if err == nil && !e.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return thin.Layer{}, err
	}
	info, err := infoOf(ctx, v, path, digest)
	if err != nil {
		return thin.Layer{}, err
	}
	return thin.Layer{Digest: digest, FQRN: v.FQRN, Path: path, DiffID: info.DiffID, Size: info.Size}, nil
}

// infoOf reads what the repository says of the layer in a folder.
func infoOf(ctx context.Context, v *client.Revision, path, digest string) (*thin.LayerInfo, error) {
	file := thin.InfoPath(path)
	e, err := v.Lookup(ctx, file)
	if err != nil {
		return nil, err
	}
	if !e.IsRegular() || e.Size > thin.MaxInfoSize {
		return nil, fmt.Errorf("%w: %s is no file, or has more than %d bytes", errInfo, file, thin.MaxInfoSize)
	}
	content, err := v.Open(ctx, file, e)
	if err != nil {
		return nil, err
	}
	defer content.Close()
	b, err := io.ReadAll(content) // as many bytes as the entry says
	if err != nil {
		return nil, err
	}
	info, err := thin.ParseInfo(b, digest)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errInfo, file, err)
	}
	return info, nil
}
