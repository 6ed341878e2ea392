package target

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

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/thin"
)

// server is a repository of a release manager machine.
type server struct {
	fqrn    string
	program string
	root    string // where it is mounted
}

// needed are the settings without which a repository loses something of a layer.
var needed = []struct{ name, value, why string }{
	{"CVMFS_INCLUDE_XATTRS", "true", "extended attributes, and with them file capabilities, are dropped"},
	{"CVMFS_ENABLE_MTIME_NS", "true", "times lose their nanoseconds"},
	{"CVMFS_IGNORE_XDIR_HARDLINKS", "true", "layers with hard links across folders can't be published"},
	{"CVMFS_UNION_FS_TYPE", "overlayfs", "aufs takes whiteouts, .wh. files, for its own"},
	{"CVMFS_AUTOCATALOGS", "true", "a large layer is one huge catalog"},
}

func openServer(fqrn string, o Options) (Target, error) {
	if err := config.CheckFQRN(fqrn); err != nil {
		return nil, err
	}
	s := &server{fqrn, cmp.Or(o.Server, "cvmfs_server"), filepath.Join(cmp.Or(o.Root, "/cvmfs"), fqrn)}
	conf := filepath.Join(cmp.Or(o.Config, "/etc/cvmfs/repositories.d"), fqrn, "server.conf")
	settings, err := readSettings(conf)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w: run this on the release manager machine of %s, or use native:DIR", ErrUnfit, err, fqrn)
	}
	if err != nil {
		return nil, err
	}
	return s, checkSettings(conf, settings)
}

// checkSettings names all settings a repository lacks.
func checkSettings(conf string, settings map[string]string) error {
	var lacking []string
	for _, n := range needed {
		if !strings.EqualFold(settings[n.name], n.value) && (n.value != "true" || !strings.EqualFold(settings[n.name], "yes")) {
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

// literal gives a word's text without its quotes; of what a shell would put in, nothing.
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

// Begin opens no transaction of the repository yet: what is there already needs none.
func (s *server) Begin(context.Context) (Transaction, error) {
	return &serverTransaction{server: s}, nil
}

// call runs the server's program to its end: killed in the middle it would leave the repository for a person to mend. It gets a
// process group of its own, so that a terminal's Ctrl-C reaches this program alone. Its output is in the error.
func (s *server) call(args ...string) error {
	c := exec.Command(s.program, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %.2000s", s.program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// serverTransaction works in the repository's own folder, which a transaction of the repository makes writable.
type serverTransaction struct {
	server *server

	mu   sync.Mutex
	open bool
	err  error // that opening it gave
}

// begin opens the repository's transaction, once.
func (t *serverTransaction) begin() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.open && t.err == nil {
		if t.err = t.server.call("transaction", t.server.fqrn); t.err != nil {
			t.err = fmt.Errorf("%w: if a transaction is open, wait for whoever works in it; if nobody does, end it: cvmfs_server abort %s",
				t.err, t.server.fqrn)
		}
		t.open = t.err == nil
	}
	return t.err
}

func (t *serverTransaction) place(name string) (string, error) {
	return filepath.Join(t.server.root, filepath.FromSlash(name)), checkPath(name)
}

func (t *serverTransaction) Has(_ context.Context, name string) (bool, error) {
	place, err := t.place(name)
	if err != nil {
		return false, err
	}
	_, err = os.Lstat(place)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (t *serverTransaction) Layer(ctx context.Context, name string, archive io.Reader) (Stats, error) {
	place, err := t.place(name)
	if err == nil {
		err = t.begin()
	}
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
	stats, err := extractWithRecord(ctx, archive, place, record)
	if info, statErr := os.Stat(record.Name()); err == nil && statErr == nil && info.Size() == 0 {
		err = os.Remove(record.Name())
	}
	return stats, err
}

func (t *serverTransaction) ReadFile(_ context.Context, name string) ([]byte, error) {
	place, err := t.place(name)
	if err != nil {
		return nil, err
	}
	return readSmall(place)
}

func (t *serverTransaction) WriteFile(_ context.Context, name string, content []byte) error {
	place, err := t.place(name)
	if err != nil {
		return err
	}
	if old, err := readSmall(place); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := t.begin(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
		return err
	}
	return os.WriteFile(place, content, 0o644)
}

func (t *serverTransaction) List(_ context.Context, name string) ([]Entry, error) {
	place, err := t.place(name)
	if err != nil {
		return nil, err
	}
	return listFolder(place)
}

func (t *serverTransaction) Remove(ctx context.Context, name string) error {
	found, err := t.Has(ctx, name)
	if err != nil || !found {
		return err
	}
	place, err := t.place(name)
	if err == nil {
		err = t.begin()
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(place)
}

// Commit publishes, and drops everything where that fails.
func (t *serverTransaction) Commit(ctx context.Context, _ string) error {
	if !t.open {
		return nil
	}
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), t.Abort())
	}
	if err := t.server.call("publish", t.server.fqrn); err != nil {
		return errors.Join(err, t.Abort())
	}
	t.open = false
	return nil
}

// Abort drops the repository's transaction.
func (t *serverTransaction) Abort() error {
	if !t.open {
		return nil
	}
	t.open = false
	if err := t.server.call("abort", "-f", t.server.fqrn); err != nil {
		return fmt.Errorf("%w: end it by hand: cvmfs_server abort %s", err, t.server.fqrn)
	}
	return nil
}
