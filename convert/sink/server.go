package sink

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"mvdan.cc/sh/v3/syntax"

	"cvmfs-graphdriver/cvmfs/fqrn"
	"cvmfs-graphdriver/thin"
)

// server is a repository of a release manager machine.
type server struct {
	fqrn    string
	program string
	root    string // where it is mounted
	conf    string // its settings' file, which is locked while a run of this program works in it
	spool   string // where it is worked on
	note    string // Options.Note
	entries int    // Options.MaxEntries
}

var (
	// errOpen refuses what lies in the repository's folder while somebody works in it: it isn't published, and may
	// never be.
	errOpen = errors.New("a transaction is open, and readers don't see what is in it")
	// errMoved refuses a transaction on another revision than the one that was looked at.
	errMoved = errors.New("another revision was published while this run looked at the one before: run it again")
)

// needed are the settings without which a repository loses something of a layer.
var needed = []struct{ name, value, why string }{
	{"CVMFS_INCLUDE_XATTRS", "true", "extended attributes, and with them file capabilities, are dropped"},
	{"CVMFS_ENABLE_MTIME_NS", "true", "times lose their nanoseconds"},
	{"CVMFS_IGNORE_XDIR_HARDLINKS", "true", "layers with hard links across folders can't be published"},
	{"CVMFS_UNION_FS_TYPE", "overlayfs", "aufs takes whiteouts, .wh. files, for its own"},
	{"CVMFS_AUTOCATALOGS", "true", "a large layer is one huge catalog"},
}

func openServer(name string, o Options) (Sink, error) {
	if err := fqrn.Check(name); err != nil {
		return nil, err
	}
	s := &server{
		fqrn: name, program: cmp.Or(o.Server, "cvmfs_server"), root: filepath.Join(cmp.Or(o.Root, "/cvmfs"), name),
		conf:  filepath.Join(cmp.Or(o.Config, "/etc/cvmfs/repositories.d"), name, "server.conf"),
		spool: filepath.Join(cmp.Or(o.Spool, "/var/spool/cvmfs"), name),
		note:  o.Note, entries: o.MaxEntries,
	}
	settings, err := readSettings(s.conf)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w: run this on the release manager machine of %s, or use native:DIR", ErrUnfit,
			err, name)
	}
	if err != nil {
		return nil, err
	}
	if dir := settings["CVMFS_SPOOL_DIR"]; filepath.IsAbs(dir) {
		s.spool = dir
	}
	return s, checkSettings(s.conf, settings)
}

// checkSettings names all settings a repository lacks.
func checkSettings(conf string, settings map[string]string) error {
	var lacking []string
	for _, n := range needed {
		if !strings.EqualFold(settings[n.name], n.value) && (n.value != "true" ||
			!strings.EqualFold(settings[n.name], "yes")) {
			lacking = append(lacking, fmt.Sprintf("%s=%s (else %s)", n.name, n.value, n.why))
		}
	}
	if len(lacking) == 0 {
		return nil
	}
	return fmt.Errorf("%w: set in %s: %s", ErrUnfit, conf, strings.Join(lacking, ", "))
}

// readSettings reads the plain assignments of a shell file; the last of a name counts. Nothing of it is executed.
func readSettings(conf string) (map[string]string, error) {
	b, err := readSmall(conf)
	if err != nil {
		return nil, err
	}
	file, err := syntax.NewParser().Parse(bytes.NewReader(b), conf)
	if err != nil {
		return nil, err
	}
	settings := map[string]string{}
	syntax.Walk(file, func(n syntax.Node) bool {
		if a, ok := n.(*syntax.Assign); ok && a.Name != nil && a.Value != nil {
			settings[a.Name.Value] = literal(a.Value)
		}
		return true
	})
	return settings, nil
}

// literal returns a word's text without its quotes; of what a shell would put in, nothing.
func literal(w *syntax.Word) string {
	var b strings.Builder
	syntax.Walk(w, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.Lit:
			b.WriteString(n.Value)
		case *syntax.SglQuoted:
			b.WriteString(n.Value)
		}
		return true
	})
	return b.String()
}

func (s *server) FQRN() string   { return s.fqrn }
func (s *server) String() string { return "cvmfs_server:" + s.fqrn }

// Begin locks the repository against other runs of this program and makes sure that nobody works in it. It opens no
// transaction of the repository yet, for what is there already needs none, unless there is no other way to find out
// whether one is open.
func (s *server) Begin(context.Context) (Transaction, error) {
	lock, err := os.Open(s.conf)
	if err != nil {
		return nil, fmt.Errorf("begin in %s: %w", s.fqrn, err)
	}
	t := &serverTransaction{server: s, lock: lock}
	if err = lockFile(lock); err == nil {
		err = s.endLeft()
	}
	if err == nil {
		err = t.look()
	}
	if err != nil {
		return nil, fmt.Errorf("begin in %s: %w", s.fqrn, errors.Join(err, t.Abort()))
	}
	return t, nil
}

// look takes note of the revision that readers see.
func (t *serverTransaction) look() error {
	if _, err := os.Stat(t.server.spool); errors.Is(err, fs.ErrNotExist) {
		return t.begin()
	} else if err != nil {
		return err
	}
	if err := t.server.checkClosed(); err != nil {
		return err
	}
	var err error
	t.revision, err = t.server.revision()
	return err
}

// checkClosed finds out whether anybody has a transaction open, as the server's program does: by a file, which is
// called one way or the other by its version, and outlives a power cut.
func (s *server) checkClosed() error {
	for _, name := range openFiles {
		_, err := os.Lstat(filepath.Join(s.spool, name))
		if err == nil {
			return fmt.Errorf("%w: %s", errOpen, s.whenOpen())
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (s *server) whenOpen() string {
	return "wait for whoever works in it; if nobody does, a run was cut off: end it by cvmfs_server abort " + s.fqrn
}

// revision is the root hash the repository is mounted with; "" where a publisher doesn't note it.
func (s *server) revision() (string, error) {
	settings, err := readSettings(filepath.Join(s.spool, "client.local"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return settings["CVMFS_ROOT_HASH"], err
}

// call runs the server's program to its end: killed in the middle it would leave the repository for a person to mend.
// It gets a process group of its own, so that a terminal's Ctrl-C reaches this program alone. Its output is in the
// error. What is noted of the transaction is completed by what tells the program's process.
func (s *server) call(n note, args ...string) error {
	c := exec.Command(s.program, args...) //nolint:noctx // see above
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out := &bytes.Buffer{}
	c.Stdout, c.Stderr = out, out
	err := c.Start()
	if err == nil {
		n.PID, n.Start = c.Process.Pid, startOf(c.Process.Pid)
		noted := n.write(s.note)
		err = errors.Join(c.Wait(), noted)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %.2000s", s.program, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// serverTransaction works in the repository's own folder, which a transaction of the repository makes writable.
type serverTransaction struct {
	uncut

	server   *server
	lock     *os.File
	revision string // that was looked at

	mu   sync.Mutex
	open bool
	err  error // that opening it gave
}

// begin opens the repository's transaction, once.
func (t *serverTransaction) begin() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.open && t.err == nil {
		if t.err = (note{Transaction: opening}).write(t.server.note); t.err != nil {
			return t.err
		}
		if t.err = t.server.call(note{Transaction: opening}, "transaction", t.server.fqrn); t.err != nil {
			t.err = fmt.Errorf("%w: if a transaction is open, %s", t.err, t.server.whenOpen())
			return errors.Join(t.err, t.server.forget())
		}
		t.open = true
		if t.err = (note{Transaction: t.server.identity()}).write(t.server.note); t.err != nil {
			return t.err
		}
		now, err := t.server.revision()
		if t.err = err; err == nil && t.revision != "" && now != t.revision {
			t.err = errMoved
		}
	}
	return t.err
}

// published looks at a path as readers see it, or as this transaction has changed it. What somebody else's transaction
// has there is refused: looking takes far less time than opening one, so that it is enough to ask before and
// afterwards.
func (t *serverTransaction) published(name string, look func(place string) error) error {
	place, err := t.place(name)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open {
		return look(place)
	}
	if err := t.server.checkClosed(); err != nil {
		return err
	}
	err = look(place)
	if open := t.server.checkClosed(); open != nil {
		return open // whatever was found: a path may be missing in that transaction alone
	}
	return err
}

func (t *serverTransaction) place(name string) (string, error) {
	return filepath.Join(t.server.root, filepath.FromSlash(name)), checkPath(name)
}

// change returns where a path lies that is about to be changed, and opens the repository's transaction for it.
func (t *serverTransaction) change(name string) (string, error) {
	place, err := t.place(name)
	if err == nil {
		err = t.begin()
	}
	return place, err
}

func (t *serverTransaction) Has(_ context.Context, name string) (bool, error) {
	err := t.published(name, func(place string) error {
		_, err := os.Lstat(place)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (t *serverTransaction) Layer(ctx context.Context, name string, archive io.Reader,
	read func(Stats) (*File, error),
) (Stats, error) {
	place, err := t.change(name)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(place), 0o755)
	}
	if err == nil {
		err = os.Mkdir(place, 0o755)
	}
	if err != nil {
		return Stats{}, err
	}
	record, err := os.OpenFile(place+thin.RecordSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return Stats{}, err
	}
	stats, err := extractWithRecord(ctx, archive, place, record, t.server.entries)
	if info, statErr := os.Stat(record.Name()); err == nil && statErr == nil && info.Size() == 0 {
		err = os.Remove(record.Name())
	}
	if err == nil {
		err = writeFile(ctx, t, stats, read)
	}
	return stats, err
}

func (t *serverTransaction) ReadFile(_ context.Context, name string) (b []byte, err error) {
	err = t.published(name, func(place string) (err error) {
		b, err = readSmall(place)
		return err
	})
	return b, err
}

func (t *serverTransaction) WriteFile(ctx context.Context, name string, content []byte) error {
	old, err := t.ReadFile(ctx, name)
	switch {
	case err == nil && bytes.Equal(old, content):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	place, err := t.change(name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
		return err
	}
	return os.WriteFile(place, content, 0o644)
}

func (t *serverTransaction) List(_ context.Context, name string) (all []Entry, err error) {
	err = t.published(name, func(place string) (err error) {
		all, err = listFolder(place)
		return err
	})
	return all, err
}

func (t *serverTransaction) Remove(ctx context.Context, name string) error {
	found, err := t.Has(ctx, name)
	if err != nil || !found {
		return err
	}
	place, err := t.change(name)
	if err != nil {
		return err
	}
	return os.RemoveAll(place)
}

// Commit publishes, and drops everything where that fails.
func (t *serverTransaction) Commit(ctx context.Context, _ string) error {
	return errors.Join(t.commit(ctx), t.Abort())
}

func (t *serverTransaction) commit(ctx context.Context) error {
	switch {
	case t.err != nil:
		return t.err
	case !t.open:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	err := t.server.call(note{Transaction: t.server.identity()}, "publish", t.server.fqrn)
	if t.open = err != nil; t.open {
		return err
	}
	return t.server.forget()
}

// Revision isn't known: the publisher's program doesn't tell it.
func (t *serverTransaction) Revision() uint64 { return 0 }

// Abort drops the repository's transaction and gives the lock back.
func (t *serverTransaction) Abort() error {
	if t.lock == nil {
		return nil
	}
	var err error
	if t.open {
		if err = t.server.call(note{Transaction: t.server.identity()}, "abort", "-f", t.server.fqrn); err != nil {
			err = fmt.Errorf("%w: end it by hand: cvmfs_server abort %s", err, t.server.fqrn)
		} else {
			err = t.server.forget()
		}
	}
	err = errors.Join(err, t.lock.Close())
	t.open, t.lock = false, nil
	return err
}
