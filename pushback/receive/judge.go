package receive

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"

	"cvmfs-graphdriver/internal/layertar"
)

// archive is a layer's uncompressed archive while it is read. Its end is io.EOF only if digest and diffID are right.
type archive struct {
	ctx      context.Context
	r        *Record
	file     *os.File
	zip      *gzip.Reader
	sum      hash.Hash // of the file
	plainSum hash.Hash
	plain    int64 // bytes that were read
	most     int64
	broke    error // what went wrong with the file, if anything did
}

// openArchive opens the file of a layer, of whose content no more than most bytes are read.
func openArchive(ctx context.Context, name string, r *Record, most int64) (*archive, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	a := &archive{ctx: ctx, r: r, file: f, sum: sha256.New(), plainSum: sha256.New(), most: most}
	if a.zip, err = gzip.NewReader(bufio.NewReaderSize(a.stored(), 256<<10)); err != nil {
		return nil, errors.Join(a.explain(err), f.Close())
	}
	return a, nil
}

// stored reads the file as it is.
func (a *archive) stored() io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		n, err := a.file.Read(p)
		a.sum.Write(p[:n])
		if err != nil && !errors.Is(err, io.EOF) {
			a.broke = err
		}
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (r readerFunc) Read(p []byte) (int, error) { return r(p) }

// explain finds out whose a fault is: this machine's, or that of what was sent.
func (a *archive) explain(err error) error {
	if a.broke != nil {
		return a.broke
	}
	return refusef("it is no whole gzip file: %w", err)
}

func (a *archive) Read(p []byte) (int, error) {
	if a.ctx.Err() != nil { // a few bytes of a file may become any number of these
		return 0, context.Cause(a.ctx)
	}
	n, err := a.zip.Read(p)
	a.plainSum.Write(p[:n])
	a.plain += int64(n)
	switch {
	case a.plain > a.most:
		return 0, refusef("its content has more than %d bytes", a.most)
	case errors.Is(err, io.EOF):
		return n, a.finish()
	case err != nil:
		return n, a.explain(err)
	}
	return n, nil
}

func (a *archive) finish() error {
	if digest := hex.EncodeToString(a.sum.Sum(nil)); digest != a.r.Digest {
		return refusef("its digest is %s: send it again", digest)
	}
	if diffID := a.diffID(); a.r.DiffID != "" && diffID != a.r.DiffID {
		return refusef("its diffID is %s, not %s", diffID, a.r.DiffID)
	}
	return io.EOF
}

func (a *archive) diffID() string { return hex.EncodeToString(a.plainSum.Sum(nil)) }

func (a *archive) Close() error { return a.file.Close() }

// judge reads an archive to its end, by the rules and limits that a conversion has, and completes its record. What it
// refuses is [permanent].
func judge(ctx context.Context, name string, r *Record, l Limits) (err error) {
	a, err := openArchive(ctx, name, r, l.Content)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	entries := layertar.NewReader(a)
	entries.MaxEntries, entries.MaxBytes = l.Entries, l.Content
	for {
		e, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := e.Showable(); err != nil {
			return refusef("%.300q: %w", e.Name, err)
		}
		if e.Type == tar.TypeChar && e.Device() == 0 {
			return refusef("%.300q is overlayfs's form of a whiteout, as nodes of 2017 send it: upgrade the node", e.Name)
		}
	}
	r.DiffID, r.Plain = a.diffID(), a.plain
	return nil
}

// permanent reports whether an error is the fault of what was sent: trying again leads to the same.
func permanent(err error) bool {
	return errors.Is(err, errRefused) || errors.Is(err, layertar.ErrArchive)
}
