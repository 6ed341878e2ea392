package convert

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"path"

	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/thin"
)

// maxThinBlob bounds the blobs that may be thin layers: a descriptor, its archive, and what a bad compressor adds.
const maxThinBlob = thin.MaxSize + 64<<10

// readDescriptor returns what a layer is made of if it is a thin layer, and nil if it is an ordinary one. Only small
// layers are looked into: those are read once more if they turn out to be ordinary.
func readDescriptor(ctx context.Context, l *source.Layer) (*thin.Descriptor, error) {
	if l.Size > maxThinBlob {
		return nil, nil
	}
	c, err := l.Content(ctx, nil)
	if err != nil {
		return nil, err
	}
	d, err := descriptorIn(c)
	if err == nil && d != nil {
		err = c.Finish()
	}
	return d, errors.Join(err, c.Close())
}

// descriptorIn reads an archive whose only file is thin.json. An archive that is at fault is an ordinary layer's:
// whoever takes it in will say so.
func descriptorIn(archive io.Reader) (*thin.Descriptor, error) {
	var content []byte
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil // at fault
		}
		switch name := path.Clean("/" + h.Name); {
		case name == "/" && h.Typeflag == tar.TypeDir:
		case name == "/"+thin.FileName && h.Typeflag == tar.TypeReg && content == nil && h.Size <= thin.MaxSize:
			if content, err = io.ReadAll(r); err != nil {
				return nil, err
			}
		default:
			return nil, nil
		}
	}
	if content == nil {
		return nil, nil
	}
	d, err := thin.Parse(content)
	if errors.Is(err, thin.ErrNotThin) {
		return nil, nil
	}
	return d, err
}
