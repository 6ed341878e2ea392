package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish/storage"
)

var (
	errReserved = errors.New("the name is that of a publisher's marker of nested catalogs")
	errClosed   = errors.New("the transaction is over")
	errNoFolder = errors.New("not a folder")
)

// MaxContent is the most bytes WriteFile and ReadFile handle.
const MaxContent = 64 << 20

// Transaction collects changes to the newest revision. Nothing of it is seen before Commit. Its methods may be called
// concurrently, but Commit and Abort only when no other runs. Paths are absolute, as in "/layers/ab".
type Transaction struct {
	repo        *Repository
	compression hash.Compression
	draft       *Draft
	index       *contentIndex
	pipeline    *pipeline
	unlock      func() error

	mu       sync.Mutex
	root     *node
	pending  map[hash.Digest]*pending // catalogs that were written and not stored
	order    []*pending               // of them, children before parents
	reserved map[string]bool          // paths layers are being ingested at
	files    int                      // that were made in tmp
	changed  bool
	closed   bool
	stats    Stats
}

// pending is a catalog that waits in tmp until what it refers to is on the disk.
type pending struct {
	digest   hash.Digest
	plain    string // path of the plain file
	stored   string
	size     int64 // stored bytes
	total    catalog.Counters
	obsolete bool // it was edited since
}

// Begin begins a transaction: it takes the lock and removes what one that was cut off left behind.
//
// Errors: ErrLocked; ErrExpired if clients would not believe the new revision; ErrReflog; those of Head.
func (r *Repository) Begin(ctx context.Context) (*Transaction, error) {
	unlock, err := r.Lock(ctx)
	if err != nil {
		return nil, err
	}
	t, err := r.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin transaction on %s: %w", r.FQRN(), errors.Join(err, unlock()))
	}
	t.unlock = unlock
	return t, nil
}

func (r *Repository) begin(ctx context.Context) (*Transaction, error) {
	d, err := r.Draft(ctx)
	if err != nil {
		return nil, err
	}
	t := &Transaction{
		repo: r, compression: r.compression, draft: d,
		pending: map[hash.Digest]*pending{}, reserved: map[string]bool{},
	}
	t.root = &node{mount: &mount{digest: d.Head.Root, published: d.Head.Root, size: d.Head.RootSize}, file: &file{}}
	if err := t.load(ctx, t.root, ""); err != nil {
		return nil, err
	}
	if t.index, err = openContentIndex(r.dir); err != nil {
		return nil, err
	}
	t.pipeline, err = newPipeline(r.storage, r.algorithm, r.compression, t.index, r.settings.largestPiece(),
		r.options.Workers)
	if err != nil {
		return nil, errors.Join(err, t.index.close())
	}
	return t, nil
}

// Abort gives the transaction up. After Commit, whatever it gave, it does nothing.
func (t *Transaction) Abort() error {
	if t.closed {
		return nil
	}
	if err := t.end(); err != nil {
		return fmt.Errorf("abort transaction on %s: %w", t.repo.FQRN(), err)
	}
	return nil
}

// end stops the workers and gives the lock back.
func (t *Transaction) end() error {
	t.closed = true
	t.pipeline.close()
	return errors.Join(t.index.close(), storage.EmptyFolder(t.repo.Temp()), t.unlock())
}

// temp returns the path of a new file in the publisher's folder.
func (t *Transaction) temp(kind string) string {
	t.files++
	return filepath.Join(t.repo.Temp(), kind+"."+strconv.Itoa(t.files))
}

// splitPath checks a path and gives its components.
func splitPath(path string) ([]string, error) {
	if !strings.HasPrefix(path, "/") || len(path) > maxLength {
		return nil, fmt.Errorf(`%.200q is not a path: want "/a/b"`, path)
	}
	names := strings.Split(path[1:], "/")
	for _, name := range names {
		if name == "" || name == "." || name == ".." || len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
			return nil, fmt.Errorf(`%.200q is not a path: want "/a/b"`, path)
		}
		if catalog.IsMarker(name) {
			return nil, fmt.Errorf("%.200q: %w", path, errReserved)
		}
	}
	return names, nil
}

// descend goes down as far as there are folders, loading catalogs on the way, and gives the folders it went through and
// the components that are left. If only one is left, it may be something in the last folder.
func (t *Transaction) descend(ctx context.Context, names []string) (chain []*node, rest []string, err error) {
	chain = []*node{t.root}
	path := ""
	for len(names) > 1 {
		at := chain[len(chain)-1]
		next := at.children[names[0]]
		if next == nil {
			break
		}
		if !next.isDir() {
			return nil, nil, fmt.Errorf("%s/%s: %w", path, names[0], errNoFolder)
		}
		path += "/" + names[0]
		if next.mount != nil && !next.mount.loaded {
			if err := t.load(ctx, next, path); err != nil {
				return nil, nil, err
			}
		}
		chain, names = append(chain, next), names[1:]
	}
	return chain, names, nil
}

// find returns what is at a path; nil if there is nothing.
func (t *Transaction) find(ctx context.Context, path string) (*node, error) {
	names, err := splitPath(path)
	if err != nil {
		return nil, err
	}
	chain, rest, err := t.descend(ctx, names)
	if err != nil || len(rest) != 1 {
		return nil, err
	}
	return chain[len(chain)-1].children[rest[0]], nil
}

// Has reports whether there is something at a path.
func (t *Transaction) Has(ctx context.Context, path string) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.find(ctx, path)
	if err != nil && !errors.Is(err, errNoFolder) {
		return false, fmt.Errorf("look up %s: %w", path, err)
	}
	return n != nil, nil
}

// ReadFile returns a file's content, at most MaxContent bytes. The error is fs.ErrNotExist if there is nothing at the
// path.
func (t *Transaction) ReadFile(ctx context.Context, path string) ([]byte, error) {
	b, err := t.readFile(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

func (t *Transaction) readFile(ctx context.Context, path string) ([]byte, error) {
	t.mu.Lock()
	n, err := t.find(ctx, path)
	t.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case n == nil:
		return nil, fs.ErrNotExist
	case !n.file.IsRegular():
		return nil, errors.New("not a regular file")
	case n.file.Size > MaxContent:
		return nil, fmt.Errorf("%d bytes, more than %d", n.file.Size, MaxContent)
	}
	var all bytes.Buffer
	err = t.copyContent(ctx, &all, &n.file.Entry)
	return all.Bytes(), err
}

// folder returns the folders down to a path's parent, made if missing, and the last component. The caller holds mu.
func (t *Transaction) folder(ctx context.Context, path string) (chain []*node, name string, err error) {
	names, err := splitPath(path)
	if err != nil {
		return nil, "", err
	}
	chain, rest, err := t.descend(ctx, names)
	if err != nil {
		return nil, "", err
	}
	for ; len(rest) > 1; rest = rest[1:] {
		chain = append(chain, t.makeFolder(chain, rest[0]))
	}
	return chain, rest[0], nil
}

// makeFolder makes a folder in the last of a chain.
func (t *Transaction) makeFolder(chain []*node, name string) *node {
	n := newFolder(name, t.draft.Now.Unix(), 0)
	t.put(chain, n)
	return n
}

// put puts a node into the last folder of a chain, and takes note of what that changes.
func (t *Transaction) put(chain []*node, n *node) {
	at := chain[len(chain)-1]
	at.children[n.name] = n
	t.touched(chain)
}

// touched takes note that the last folder of a chain was changed: its catalog and those above are written anew.
func (t *Transaction) touched(chain []*node) {
	at := chain[len(chain)-1]
	at.file.Mtime, at.file.MtimeN = t.draft.Now.Unix(), 0
	for _, n := range chain {
		if n.mount != nil {
			t.obsolete(n.mount)
			n.mount.dirty = true
		}
	}
	t.changed = true
}

// obsolete takes note that a catalog written in this transaction won't be stored.
func (t *Transaction) obsolete(m *mount) {
	if p := t.pending[m.digest]; p != nil && !m.dirty {
		p.obsolete = true
		delete(t.pending, m.digest)
	}
}

// Mkdir makes a folder and those above, 0755 and root's. One that is there stays as it is.
func (t *Transaction) Mkdir(ctx context.Context, path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	chain, name, err := t.folder(ctx, path)
	if err == nil {
		old := chain[len(chain)-1].children[name]
		switch {
		case old == nil:
			t.makeFolder(chain, name)
		case !old.isDir():
			err = fs.ErrExist
		}
	}
	if err != nil {
		return fmt.Errorf("make folder %s: %w", path, err)
	}
	return nil
}

// Symlink makes a symbolic link, or replaces one. Readers expand $(NAME) in targets.
func (t *Transaction) Symlink(ctx context.Context, target, path string) error {
	err := t.replace(ctx, path,
		&file{Entry: catalog.Entry{Mode: typeLink | 0o777, Size: int64(len(target)), Target: target}})
	if err != nil {
		return fmt.Errorf("make symbolic link %s: %w", path, err)
	}
	return nil
}

// WriteFile makes or replaces a file of at most MaxContent bytes; folders above are made. The mode's permission bits
// count. One that has this content and mode already stays as it is.
func (t *Transaction) WriteFile(ctx context.Context, path string, content []byte, mode uint32) error {
	if err := t.writeFile(ctx, path, content, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func (t *Transaction) writeFile(ctx context.Context, path string, content []byte, mode uint32) error {
	if len(content) > MaxContent {
		return fmt.Errorf("%d bytes, more than %d", len(content), MaxContent)
	}
	if _, err := splitPath(path); err != nil {
		return err
	}
	f := &file{Entry: catalog.Entry{Mode: typeFile | mode&0o7777, Size: int64(len(content))}}
	in := t.newIntake(ctx)
	if err := in.wait(in.content(f, bytes.NewReader(content))); err != nil {
		return err
	}
	t.count(in.stats.NewObjects, in.stats.NewBytes)
	return t.replace(ctx, path, f)
}

// replace puts a file where there is none, or in the place of another.
func (t *Transaction) replace(ctx context.Context, path string, f *file) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	chain, name, err := t.folder(ctx, path)
	if err != nil {
		return err
	}
	f.Nlink, f.Mtime = 1, t.draft.Now.Unix()
	if old := chain[len(chain)-1].children[name]; old != nil {
		if old.isDir() {
			return errors.New("there is a folder")
		}
		if old.file.same(f) {
			return nil
		}
	}
	t.put(chain, &node{name: name, file: f})
	return nil
}

// same reports whether two files have the same content and attributes, times apart.
func (f *file) same(o *file) bool {
	same := f.Mode == o.Mode && f.UID == o.UID && f.GID == o.GID && f.Size == o.Size && f.Target == o.Target &&
		f.Digest == o.Digest && f.Compression == o.Compression && len(f.Chunks) == len(o.Chunks)
	for i := 0; same && i < len(f.Chunks); i++ {
		same = f.Chunks[i] == o.Chunks[i]
	}
	return same && len(f.Xattrs) == 0 && len(o.Xattrs) == 0
}

// Remove removes what is at a path, folders with all they hold. The error is fs.ErrNotExist if there is nothing.
func (t *Transaction) Remove(ctx context.Context, path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.remove(ctx, path); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

func (t *Transaction) remove(ctx context.Context, path string) error {
	names, err := splitPath(path)
	if err != nil {
		return err
	}
	chain, rest, err := t.descend(ctx, names)
	if err != nil {
		return err
	}
	at := chain[len(chain)-1]
	n := at.children[rest[0]]
	if len(rest) > 1 || n == nil {
		return fs.ErrNotExist
	}
	for reserved := range t.reserved {
		if reserved == path || strings.HasPrefix(reserved, path+"/") {
			return fmt.Errorf("layer %s is being ingested", reserved)
		}
	}
	owner := chain[0].mount
	for _, folder := range chain {
		if folder.mount != nil {
			owner = folder.mount
		}
	}
	if err := t.forget(ctx, n, owner); err != nil {
		return err
	}
	delete(at.children, n.name)
	t.touched(chain)
	return nil
}

// forget takes note of the catalogs at and below a node that is removed from the catalog owner.
func (t *Transaction) forget(ctx context.Context, n *node, owner *mount) error {
	if n.mount == nil {
		return n.within("", func(_ string, c *node) error {
			if c.mount == nil {
				return nil
			}
			return t.forget(ctx, c, owner)
		})
	}
	t.obsolete(n.mount) // those nested in it are stored all the same, and are garbage: nothing leads to them
	if n.mount.published.IsZero() {
		return nil
	}
	if n.mount.loaded {
		owner.removed = owner.removed.Add(n.mount.base.Total())
		return nil
	}
	stats, err := t.statistics(ctx, n.mount.published)
	if err != nil {
		return err
	}
	owner.removed = owner.removed.Add(stats.Total())
	return nil
}

// statistics reads the counters of a published catalog.
func (t *Transaction) statistics(ctx context.Context, d hash.Digest) (stats catalog.Statistics, err error) {
	path := t.temp("catalog")
	if err := t.repo.fetchCatalog(ctx, d, path); err != nil {
		return stats, err
	}
	defer os.Remove(path) // best effort: the folder is emptied at the end
	c, err := catalog.Open(path)
	if err != nil {
		return stats, err
	}
	defer c.Close()
	return c.Statistics()
}

// reserve makes sure that there is nothing at a path and that no other layer gets there.
func (t *Transaction) reserve(ctx context.Context, path string) (release func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errClosed
	}
	n, err := t.find(ctx, path)
	if err != nil {
		return nil, err
	}
	if n != nil || t.reserved[path] {
		return nil, fs.ErrExist
	}
	t.reserved[path] = true
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.reserved, path)
	}, nil
}

// attach puts a layer's root into the tree.
func (t *Transaction) attach(ctx context.Context, path string, root *node) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	chain, name, err := t.folder(ctx, path)
	if err != nil {
		return err
	}
	if chain[len(chain)-1].children[name] != nil {
		return fs.ErrExist
	}
	t.put(chain, root)
	return nil
}
