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

	"cvmfs-graphdriver/driver/lockorder"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/internal/layertar"
	"cvmfs-graphdriver/thin"
)

// ErrBroken means that a layer was being sent content when the connection, or the server, broke.
var ErrBroken = errors.New("an archive for it is on its way or broke off: remove the layer and make it again")

// ErrTruncated means that an archive ends within an entry.
var ErrTruncated = layertar.ErrTruncated

// applyingFile is in a layer's folder from when an archive begins to come in until it has come in to its end.
const applyingFile = "applying"

// Arrival is a layer's content that has come in, and isn't the layer's yet. It must be closed.
type Arrival struct {
	ID, Parent string
	Size       int64  // bytes of its files, each hard link counted once
	Chain      []Link // of a thin layer, what it is composed of: its ancestors and itself; nil for an ordinary one

	store     *Store
	body      *wholeReader
	mark      *os.File // applyingFile, kept open: so no later file is taken for it
	temp      string   // the layer's folder to be; of an arrival that was committed the empty one it has replaced
	committed bool
}

// Receive takes the content of an empty layer, an uncompressed tar archive in the format of image layers, and brings it
// to disk. Until it is committed the layer is as empty as before; if the archive didn't come to its end but broke off,
// or this process hasn't made the layer, it takes no other: an engine whose connection broke repeats the call with what
// it has not sent yet, and where that is nothing, or begins with a new file, it looks like a whole archive.
func (s *Store) Receive(ctx context.Context, id, parent string, r io.Reader) (*Arrival, error) {
	a, err := s.beginArrival(id, parent)
	if err != nil {
		return nil, err
	}
	a.body = &wholeReader{r: r}
	if err := a.receive(ctx); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// Close ends an arrival. One that wasn't committed is forgotten if the archive came to its end, and the layer may get
// content again.
func (a *Arrival) Close() (err error) {
	if !a.committed {
		if _, broken := io.Copy(io.Discard, a.body); broken == nil {
			err = a.forget()
		}
	}
	if a.temp != "" {
		os.RemoveAll(a.temp) // the next Open removes what stays
	}
	a.mark.Close() // nothing was written
	return err
}

// madeLayers are the empty layers whose Create this process has answered. What was sent to a former process for one may
// have been lost in its connection before it could be noted: the engine repeats the call with what it has not sent yet,
// if with nothing.
type madeLayers struct {
	mu  lockorder.Mutex
	ids map[string]bool
}

func (m *madeLayers) add(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ids == nil {
		m.ids = map[string]bool{}
	}
	m.ids[id] = true
}

func (m *madeLayers) has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ids[id]
}

func (m *madeLayers) remove(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.ids, id)
}

// beginArrival marks a layer that may get content as getting it, before the first byte of it is read.
func (s *Store) beginArrival(id, parent string) (*Arrival, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	defer s.locks.Lock(id)()
	if _, err := s.checkEmpty(id, parent); err != nil {
		return nil, err
	}
	// Not synced: no engine repeats a call after power loss.
	f, err := os.OpenFile(s.dir(id, applyingFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, ErrBroken
	}
	return &Arrival{ID: id, Parent: parent, store: s, mark: f}, err
}

// forget makes the layer one that may get content again.
func (a *Arrival) forget() error {
	defer a.store.locks.Lock(a.ID)()
	if a.check() != nil {
		return nil // the mark has gone with the layer
	}
	return os.Remove(a.store.dir(a.ID, applyingFile))
}

// check refuses an archive whose layer was removed while it came in, also if one of that id was made since.
func (a *Arrival) check() error {
	mine, err := a.mark.Stat()
	if err != nil {
		return err
	}
	now, err := os.Lstat(a.store.dir(a.ID, applyingFile))
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

// receive unpacks the archive and brings it to disk.
func (a *Arrival) receive(ctx context.Context) (err error) {
	if a.temp, err = a.store.newFolder(a.ID); err != nil {
		return err
	}
	diff := filepath.Join(a.temp, diffDir(a.ID))
	c, err := a.store.unpack(ctx, a.body, a.ID, diff, layertar.Options{})
	if err != nil {
		return err
	}
	if a.Size, err = treeSize(diff); err != nil {
		return err
	}
	if err := durable.SyncFS(diff); err != nil {
		return err
	}
	d, err := descriptor(c, diff)
	if d == nil || err != nil {
		return err
	}
	a.Chain, _, err = a.store.Chain(a.Parent)
	a.Chain = append(a.Chain, Link{Thin: d})
	return err
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
	names, err := os.ReadDir(s.diff(id))
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		return nil, errors.New("it has been written to")
	}
	if !s.made.has(id) { // that is also a layer that was settled
		return nil, ErrBroken
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
func (s *Store) unpack(ctx context.Context, r io.Reader, id, dir string, o layertar.Options) (contents, error) {
	var c contents
	archive := layertar.NewReader(r)
	o.Overlay, o.Owner = true, s.owners().ToHost
	o.Seen = func(e *layertar.Entry) error {
		if e.Name != "" {
			c.entries++
		}
		c.descriptor = c.descriptor || e.Name == thin.FileName && e.Type == tar.TypeReg
		return nil
	}
	err := layertar.Unpack(ctx, dir, archive, o)
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

// Commit puts the content in the place of the empty layer. A thin layer names its composed image; "" is for one that is
// to be composed when it is needed.
func (a *Arrival) Commit(image string) error {
	s := a.store
	defer s.locks.Lock(a.ID)()
	if err := a.check(); err != nil {
		return err
	}
	l, err := s.checkEmpty(a.ID, a.Parent)
	if err != nil {
		return err
	}
	l.Thin, l.Image = a.Chain != nil, image
	l.Committed = true
	if err := durable.WriteRecord(a.temp, recordXattr, l); err != nil {
		return err
	}
	if a.committed, err = s.exchange(a.ID, a.temp); a.committed {
		s.made.remove(a.ID)
	}
	return err
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
