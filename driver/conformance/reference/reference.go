// Package reference is a storage driver made of the least there is: layers are folders, containers are overlays mounted
// by mount(2) as one would by hand, archives are read and written by the engine's own library with the options its
// overlay2 gives. It is what other drivers are compared with, and the control of the conformance suite. It knows no
// thin images, syncs nothing, checks little, and survives nothing.
package reference

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"
)

// Driver answers the engine's calls. Its folder's path must be short: mount(2) takes a page of text.
type Driver struct {
	dir string

	mu     sync.Mutex // guards the following, and is held during every call but the streams'
	layers map[string]*layer
	last   int // number of the newest layer, the name of its folder
}

type layer struct {
	parent  string
	number  int
	applied bool
	refs    int
}

// New makes a driver with no layers in an empty folder.
func New(dir string) *Driver { return &Driver{dir: dir, layers: map[string]*layer{}} }

// Close unmounts what is mounted.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	for _, l := range d.layers {
		if l.refs > 0 {
			err = errors.Join(err, unix.Unmount(d.merged(l), unix.MNT_DETACH))
		}
	}
	return err
}

func (d *Driver) diff(l *layer) string   { return filepath.Join(d.dir, fmt.Sprint(l.number)) }
func (d *Driver) work(l *layer) string   { return d.diff(l) + "w" }
func (d *Driver) merged(l *layer) string { return d.diff(l) + "m" }

type request struct{ ID, Parent string }

type answer struct {
	Err     string           `json:",omitempty"`
	Dir     string           `json:",omitempty"`
	Exists  bool             `json:",omitempty"`
	Changes []archive.Change `json:",omitempty"`
	Size    int64            `json:",omitempty"`
}

// ServeHTTP answers one call.
func (d *Driver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method := strings.TrimPrefix(r.URL.Path, "/GraphDriver.")
	req := request{ID: r.URL.Query().Get("id"), Parent: r.URL.Query().Get("parent")}
	var a answer
	var err error
	if method != "ApplyDiff" {
		err = json.NewDecoder(r.Body).Decode(&req)
	}
	switch {
	case err != nil:
	case method == "Diff":
		err = d.export(w, req)
		if err == nil {
			return
		}
	case method == "ApplyDiff":
		a.Size, err = d.apply(req, r.Body)
		if err != nil {
			_, _ = io.Copy(io.Discard, r.Body) // an engine that still sends would not look at the answer
		}
	default:
		a, err = d.call(method, req)
	}
	if err != nil {
		a = answer{Err: err.Error()}
	}
	_ = json.NewEncoder(w).Encode(a) // the caller has gone if it fails
}

func (d *Driver) call(method string, r request) (a answer, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.layers[r.ID]
	switch method {
	case "Init":
		return a, nil
	case "Create", "CreateReadWrite":
		return a, d.create(r)
	case "Exists":
		return answer{Exists: l != nil}, nil
	case "Put":
		return a, d.put(l)
	case "Remove":
		return a, d.remove(r.ID)
	}
	if l == nil {
		return a, fmt.Errorf("no layer %s", r.ID)
	}
	switch method {
	case "Get":
		a.Dir, err = d.get(l)
	case "Changes":
		a.Changes, err = d.changes(l)
	case "DiffSize":
		a.Size, err = size(d.diff(l))
	default:
		err = fmt.Errorf("no method %s", method)
	}
	return a, err
}

func (d *Driver) create(r request) error {
	if l := d.layers[r.ID]; l != nil {
		if l.parent != r.Parent {
			return fmt.Errorf("layer %s exists with another parent", r.ID)
		}
		return nil
	}
	if r.Parent != "" && d.layers[r.Parent] == nil {
		return fmt.Errorf("no layer %s", r.Parent)
	}
	d.last++
	l := &layer{parent: r.Parent, number: d.last}
	for _, dir := range []string{d.diff(l), d.work(l), d.merged(l)} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	d.layers[r.ID] = l
	return nil
}

func (d *Driver) remove(id string) error {
	l := d.layers[id]
	if l == nil {
		return nil
	}
	if l.refs > 0 {
		if err := unix.Unmount(d.merged(l), unix.MNT_DETACH); err != nil {
			return err
		}
	}
	delete(d.layers, id)
	return errors.Join(os.RemoveAll(d.diff(l)), os.RemoveAll(d.work(l)), os.RemoveAll(d.merged(l)))
}

// lower lists the folders of a chain, topmost first, relative to the driver's.
func (d *Driver) lower(id string) string {
	var dirs []string
	for id != "" {
		l := d.layers[id]
		dirs = append(dirs, fmt.Sprint(l.number))
		id = l.parent
	}
	return strings.Join(dirs, ":"+d.dir+"/")
}

func (d *Driver) get(l *layer) (string, error) {
	if l.parent == "" || l.applied {
		return d.diff(l), nil
	}
	if l.refs == 0 {
		options := fmt.Sprintf("lowerdir=%s/%s,upperdir=%s,workdir=%s,redirect_dir=off,metacopy=off,index=off",
			d.dir, d.lower(l.parent), d.diff(l), d.work(l))
		if err := unix.Mount("overlay", d.merged(l), "overlay", 0, options); err != nil {
			return "", fmt.Errorf("mount overlay: %w", err)
		}
	}
	l.refs++
	return d.merged(l), nil
}

func (d *Driver) put(l *layer) error {
	if l == nil || l.refs == 0 {
		return nil
	}
	if l.refs--; l.refs > 0 {
		return nil
	}
	return unix.Unmount(d.merged(l), unix.MNT_DETACH)
}

// changes compares the two views name by name, as the engine's overlay2 does.
func (d *Driver) changes(l *layer) ([]archive.Change, error) {
	before, undo, err := d.view(d.lower(l.parent))
	if err != nil {
		return nil, err
	}
	defer undo()
	own := fmt.Sprint(l.number)
	if l.parent != "" {
		own += ":" + d.dir + "/" + d.lower(l.parent)
	}
	after, undo, err := d.view(own)
	if err != nil {
		return nil, err
	}
	defer undo()
	return archive.ChangesDirs(after, before)
}

// view mounts folders on top of each other, read-only, until undo is called.
func (d *Driver) view(lower string) (dir string, undo func(), err error) {
	base, err := os.MkdirTemp(d.dir, "v")
	if err != nil {
		return "", nil, err
	}
	empty, dir := filepath.Join(base, "e"), filepath.Join(base, "v")
	undo = func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH) // not mounted if mounting failed
		_ = os.RemoveAll(base)                 // the driver's folder is removed as a whole
	}
	if err = errors.Join(os.Mkdir(empty, 0o755), os.Mkdir(dir, 0o755)); err == nil {
		if lower == "" {
			return dir, undo, nil
		}
		err = unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY,
			"redirect_dir=off,lowerdir="+empty+":"+d.dir+"/"+lower)
	}
	if err != nil {
		undo()
	}
	return dir, undo, err
}

// find returns a layer and its parent's id.
func (d *Driver) find(r request) (*layer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.layers[r.ID]
	if l == nil || l.parent != r.Parent {
		return nil, fmt.Errorf("no layer %s on %q", r.ID, r.Parent)
	}
	return l, nil
}

// export answers Diff; it answers nothing where it fails at once.
func (d *Driver) export(w http.ResponseWriter, r request) error {
	l, err := d.find(r)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return err
	}
	a, err := archive.TarWithOptions(d.diff(l), &archive.TarOptions{WhiteoutFormat: archive.OverlayWhiteoutFormat})
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return err
	}
	defer a.Close()
	if _, err := io.Copy(w, a); err != nil {
		panic(http.ErrAbortHandler) // the one way net/http has of cutting the connection
	}
	return nil
}

func (d *Driver) apply(r request, body io.Reader) (int64, error) {
	l, err := d.find(r)
	if err != nil {
		return 0, err
	}
	if err := archive.UntarUncompressed(body, d.diff(l),
		&archive.TarOptions{WhiteoutFormat: archive.OverlayWhiteoutFormat}); err != nil {
		return 0, err
	}
	d.mu.Lock()
	l.applied = true
	d.mu.Unlock()
	return size(d.diff(l))
}

// size adds up the sizes of what isn't a folder, each inode once.
func size(dir string) (n int64, err error) {
	seen := map[uint64]bool{}
	err = filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if ino := info.Sys().(*syscall.Stat_t).Ino; !seen[ino] {
			seen[ino] = true
			n += info.Size()
		}
		return nil
	})
	return n, err
}
