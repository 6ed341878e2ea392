package layers

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/internal/layertar"
	"cvmfs-graphdriver/thin"
)

// ErrBroken means that a layer was being sent content when the connection, or the server, broke.
var ErrBroken = errors.New("an archive for it is on its way or broke off: remove the layer and make it again")

// ErrTruncated means that an archive ends within an entry.
var ErrTruncated = layertar.ErrTruncated

// applyingFile is in a layer's folder from when an archive begins to come in until it has come in to its end.
const applyingFile = "applying"

// ApplyDiff returns an empty layer its content, an uncompressed tar archive in the format of image layers, and returns
// its size: the bytes of its files, each hard link counted once. After an error the layer is as empty as before; if the
// archive didn't come to its end but broke off, or this process hasn't made the layer, it takes no other: an engine
// whose connection broke repeats the call with what it has not sent yet, and where that is nothing, or begins with a
// new file, it looks like a whole archive.
//
// A thin layer is composed right away. Where its repository can't be reached for now it is accepted, and composed when
// it is needed first; one that may not be used, or whose descriptor or folders are wrong, is refused.
func (s *Store) ApplyDiff(ctx context.Context, id, parent string, r io.Reader) (int64, error) {
	_, settings, err := s.ready()
	if err != nil {
		return 0, err
	}
	a, err := s.beginApply(id, parent)
	if err != nil {
		return 0, fmt.Errorf("apply layer %s: %w", id, err)
	}
	defer a.mark.Close()
	body := &wholeReader{r: r}
	size, err := s.apply(ctx, a, settings, body)
	if err == nil {
		return size, nil
	}
	if _, broken := io.Copy(io.Discard, body); broken == nil {
		err = errors.Join(err, s.endApply(a))
	}
	return 0, fmt.Errorf("apply layer %s: %w", id, err)
}

// arrival is the coming in of a layer's archive.
type arrival struct {
	id, parent string
	mark       *os.File // applyingFile, kept open: so no later file is taken for it
}

// made are the empty layers whose Create this process has answered. What was sent to a former process for one may have
// been lost in its connection before it could be noted: the engine repeats the call with what it has not sent yet, if
// with nothing.
type made struct {
	mu  mutex
	ids map[string]bool
}

func (m *made) add(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ids == nil {
		m.ids = map[string]bool{}
	}
	m.ids[id] = true
}

func (m *made) has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ids[id]
}

func (m *made) remove(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.ids, id)
}

// beginApply marks a layer that may get content as getting it, before the first byte of it is read.
func (s *Store) beginApply(id, parent string) (*arrival, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	defer s.locks.lock(id)()
	if _, err := s.checkEmpty(id, parent); err != nil {
		return nil, err
	}
	if !s.made.has(id) {
		return nil, ErrBroken
	}
	// Not synced: no engine repeats a call after power loss.
	f, err := os.OpenFile(s.dir(id, applyingFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, ErrBroken
	}
	return &arrival{id, parent, f}, err
}

// endApply makes a layer one that may get content again.
func (s *Store) endApply(a *arrival) error {
	defer s.locks.lock(a.id)()
	if s.checkArrival(a) != nil {
		return nil // the mark has gone with the layer
	}
	return os.Remove(s.dir(a.id, applyingFile))
}

// checkArrival refuses an archive whose layer was removed while it came in, also if one of that id was made since.
func (s *Store) checkArrival(a *arrival) error {
	mine, err := a.mark.Stat()
	if err != nil {
		return err
	}
	now, err := os.Lstat(s.dir(a.id, applyingFile))
	if err == nil && !os.SameFile(mine, now) {
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		return errReplaced
	}
	return err
}

var errReplaced = errors.New("the layer was removed while its archive came in")

// wholeReader remembers how reading ended: a body that broke off must not be found to end when read again.
type wholeReader struct {
	r   io.Reader
	err error
}

func (w *wholeReader) Read(p []byte) (n int, err error) {
	if w.err != nil {
		return 0, w.err
	}
	n, w.err = w.r.Read(p)
	return n, w.err
}

func (s *Store) apply(ctx context.Context, a *arrival, settings Settings, r io.Reader) (int64, error) {
	temp, err := s.newFolder(a.id, settings)
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(temp) // after all went well it holds the empty layer this one replaced
	diff := filepath.Join(temp, diffDir(a.id))
	c, err := s.unpack(ctx, r, a.id, diff, settings.IDs)
	if err != nil {
		return 0, err
	}
	size, err := treeSize(diff)
	if err != nil {
		return 0, err
	}
	if err := syncFS(diff); err != nil {
		return 0, err
	}
	d, err := descriptor(c, diff)
	if err != nil {
		return 0, err
	}
	if d == nil {
		return size, s.commit(a, temp, nil)
	}
	return size, s.applyThin(ctx, a, temp, d)
}

// checkEmpty returns the record of a layer that may get content now.
func (s *Store) checkEmpty(id, parent string) (*layer, error) {
	l, err := s.load(id)
	if err != nil {
		return nil, err
	}
	if l.Parent != parent {
		return nil, fmt.Errorf("its parent is %q, not %q", l.Parent, parent)
	}
	if l.Committed {
		return nil, errors.New("it has its content already")
	}
	if s.opened(id).Refs > 0 {
		return nil, errors.New("it is mounted")
	}
	names, err := os.ReadDir(s.diff(id))
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		return nil, errors.New("it has been written to")
	}
	return l, nil
}

// contents is what was seen of an archive.
type contents struct {
	entries    int  // but for the root folder
	descriptor bool // a regular file with the name of a thin image descriptor was among them
}

// unpack brings an archive into a folder, in overlayfs' form. What an archive means, and what of it is
// refused, is package layertar's to say.
func (s *Store) unpack(ctx context.Context, r io.Reader, id, dir string, ids user.IdentityMapping) (contents, error) {
	var c contents
	archive := layertar.NewReader(r)
	err := layertar.Unpack(ctx, dir, archive, layertar.Options{
		Overlay: true,
		Owner:   ids.ToHost,
		Seen: func(e *layertar.Entry) error {
			if e.Name != "" {
				c.entries++
			}
			c.descriptor = c.descriptor || e.Name == thin.FileName && e.Type == tar.TypeReg
			return nil
		},
	})
	if first, all := archive.Notes(); all > 0 && err == nil {
		s.cfg.Log.Warn("something of the layer was left out", "layer", id, "what", first, "all", all)
	}
	return c, err
}

// descriptor returns the descriptor of a thin layer, nil for an ordinary one.
func descriptor(c contents, diff string) (*thin.Descriptor, error) {
	if c.entries != 1 || !c.descriptor {
		return nil, nil
	}
	d, err := readDescriptor(diff)
	if errors.Is(err, thin.ErrNotThin) {
		return nil, nil
	}
	return d, err
}

func readDescriptor(diff string) (*thin.Descriptor, error) {
	f, err := os.Open(filepath.Join(diff, thin.FileName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, thin.MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > thin.MaxSize {
		return nil, fmt.Errorf("%s has more than %d bytes, the limit", thin.FileName, thin.MaxSize)
	}
	return thin.Parse(b)
}

// applyThin composes the chain that ends with a new thin layer and commits the layer.
func (s *Store) applyThin(ctx context.Context, a *arrival, temp string, d *thin.Descriptor) error {
	chain, err := s.chain(a.parent)
	if err != nil {
		return err
	}
	_, err = s.compose(ctx, append(chain, images.Layer{Thin: d}), func(key string) error {
		defer s.locks.lock(a.id)()
		return s.claimImage(key, func() error { return s.replace(a, temp, &layer{Thin: true, Image: key}) })
	})
	if unreachable(err) {
		s.cfg.Log.Warn("a repository can't be reached: the layer is accepted and composed when it is needed", "layer",
			a.id, "err", err)
		return s.commit(a, temp, &layer{Thin: true})
	}
	return err
}

// unreachable tells an error that says nothing about the layer, only about the network at this moment.
func unreachable(err error) bool { return errors.Is(err, fetch.ErrUnavailable) }

// commit puts a folder that holds a layer's content in the place of the empty layer. thinRecord is nil for an ordinary
// layer.
func (s *Store) commit(a *arrival, temp string, thinRecord *layer) error {
	defer s.locks.lock(a.id)()
	return s.replace(a, temp, thinRecord)
}

// replace is commit for a caller that holds the layer's lock.
func (s *Store) replace(a *arrival, temp string, thinRecord *layer) error {
	if err := s.checkArrival(a); err != nil {
		return err
	}
	l, err := s.checkEmpty(a.id, a.parent)
	if err != nil {
		return err
	}
	if thinRecord != nil {
		l.Writable, l.Thin, l.Image = false, thinRecord.Thin, thinRecord.Image
	}
	l.Committed = !l.Writable
	if err := writeRecord(temp, recordXattr, l); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, s.dir(a.id), unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("put the layer in place: %w", err)
	}
	s.made.remove(a.id)
	return syncDir(filepath.Dir(temp))
}

// treeSize adds up the sizes of what isn't a folder, each inode once: the size of a layer as overlay2 reports it.
func treeSize(dir string) (int64, error) {
	var size int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				st := info.Sys().(*syscall.Stat_t)
				if st.Nlink < 2 || !seen[st.Ino] {
					size += st.Size
				}
				if st.Nlink > 1 {
					seen[st.Ino] = true
				}
			}
		}
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil // a container deletes while we look
		}
		return err
	})
	return size, err
}

// syncFS brings to disk what the file system of a path holds in memory: one call for any number of files.
func syncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", path, err)
	}
	return nil
}
