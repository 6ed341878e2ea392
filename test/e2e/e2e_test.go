// Package e2e tests the plugin, built and bundled as it is shipped, in a real Docker engine: what a user sees with the
// docker command, and what is left on the machine.
package e2e

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

func TestMain(m *testing.M) {
	engine.Main()
	if dir := os.Getenv(listVariable); dir != "" {
		if err := list(dir); err != nil {
			fmt.Fprintln(os.Stderr, "list:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if socket := os.Getenv(trialVariable); socket != "" {
		fmt.Fprintln(os.Stderr, "trial:", try(socket, os.Getenv(trialImageVariable)))
		os.Exit(1) // it is killed before
	}
	code := m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: remove what the tests share:", err)
		code = 1
	}
	os.Exit(code)
}

// shared is what is made once, when the first test needs it.
var shared fixture

type fixture struct {
	build sync.Once
	dir   string // the programs' folder
	given bool   // it was there
	built error

	set   sync.Once
	stand *stand.Stand
	stood error
}

// programsVariable, in the environment, names a folder where all of this has been built: for machines without Go.
const programsVariable = "CVMFS_TEST_PROGRAMS"

// make builds what is tested: the plugin's bundle, as users make it, and the demonstration.
func (f *fixture) make() error {
	f.build.Do(func() {
		if f.dir = os.Getenv(programsVariable); f.dir != "" {
			f.given = true
			return
		}
		if f.dir, f.built = os.MkdirTemp("", "cvmfs-e2e-"); f.built != nil {
			return
		}
		for _, argv := range [][]string{
			{"make", "--silent", "--directory", "../..", "bundle", "DIST=" + f.dir, "VERSION=0.test"},
			{"go", "build", "-buildvcs=false", "-o", f.demo(), "../demo"},
		} {
			if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
				f.built = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
				return
			}
		}
	})
	return f.built
}

func (f *fixture) converter() string { return filepath.Join(f.dir, "bin/docker2cvmfs") }
func (f *fixture) demo() string      { return filepath.Join(f.dir, "demo") }
func (f *fixture) snapshotter() string {
	return filepath.Join(f.dir, "bin/cvmfs-snapshotter")
}

func (f *fixture) bundle() string  { return filepath.Join(f.dir, "cvmfs-graphdriver-plugin-0.test") }
func (f *fixture) archive() string { return f.bundle() + "-" + runtime.GOARCH + ".tar.gz" }

func (f *fixture) close() error {
	var err error
	if f.stand != nil {
		err = f.stand.Close()
	}
	if f.dir != "" && !f.given {
		err = errors.Join(err, os.RemoveAll(f.dir))
	}
	return err
}

// tools returns the engine's programs, or skips the test where private engines can't run.
func tools(t *testing.T) *engine.Tools {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skipf("needs an amd64 machine: the reference images' program is for it, this is %s", runtime.GOARCH)
	}
	if err := engine.Supported(); err != nil {
		t.Skip(err)
	}
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	found, err := engine.Find(t.Context(), cache)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skipf("needs a Docker engine: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.make(); err != nil {
		t.Fatal(err)
	}
	return found
}

func newStand(ctx context.Context, found *engine.Tools, testdata string, o stand.Options) (*stand.Stand, error) {
	o.Tools, o.Bundle, o.Testdata = found, shared.bundle(), testdata
	return stand.New(ctx, o)
}

// user is a test with a stand: what it does with docker, and what goes wrong.
type user struct {
	*testing.T
	*stand.Stand
}

// onStand returns the stand that tests share, with both images loaded.
func onStand(t *testing.T) user {
	t.Helper()
	found := tools(t)
	testdata := testutil.Data(t)
	shared.set.Do(func() {
		if shared.stand, shared.stood = newStand(context.Background(), found, testdata,
			stand.Options{}); shared.stood != nil {
			return
		}
		for _, file := range []string{"tiny.tar", "thin_tiny.tar"} {
			if _, shared.stood = shared.stand.Engine.Docker(t.Context(), "load", "--input",
				filepath.Join(testdata, "images", file)); shared.stood != nil {
				return
			}
		}
	})
	if shared.stood != nil {
		t.Fatal(shared.stood)
	}
	u := user{t, shared.stand}
	u.logWhenFailed()
	return u
}

// onOwnStand returns a stand of the test's own, without images. Such tests run side by side.
func onOwnStand(t *testing.T) user {
	t.Helper()
	return onStandWith(t, tools(t), stand.Options{})
}

// onStandWith returns a stand of the test's own with the engine and the options given, as onOwnStand does.
func onStandWith(t *testing.T, found *engine.Tools, o stand.Options) user {
	t.Helper()
	t.Parallel()
	return own(t, func() (*stand.Stand, error) { return newStand(t.Context(), found, testutil.Data(t), o) })
}

// onPlainStand returns a stand of the test's own whose engine has no plugin. Such tests run side by side.
func onPlainStand(t *testing.T, found *engine.Tools, o stand.Options) user {
	t.Helper()
	t.Parallel()
	o.Tools, o.Bundle, o.Testdata = found, shared.bundle(), testutil.Data(t)
	return own(t, func() (*stand.Stand, error) { return stand.NewPlain(t.Context(), o) })
}

// own makes a stand that lives as long as the test.
func own(t *testing.T, build func() (*stand.Stand, error)) user {
	t.Helper()
	s, err := build()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	u := user{t, s}
	u.logWhenFailed()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// logWhenFailed shows what the engine and the plugin logged during a test that fails.
func (u user) logWhenFailed() {
	if u.Engine == nil {
		return
	}
	logs := map[string]func() string{"engine": u.Engine.Log}
	if u.Engine.Containerd != nil {
		logs["containerd"] = u.Engine.Containerd.Log
	}
	if u.Snapshotter != nil {
		logs["snapshotter"] = u.Snapshotter.Log
	}
	for who, log := range logs {
		before := len(log())
		u.Cleanup(func() {
			if u.Failed() {
				u.Logf("the %s's log:\n%s", who, log()[before:])
			}
		})
	}
}

// docker runs the client, which must succeed, and gives its output without white space around it.
func (u user) docker(args ...string) string {
	u.Helper()
	out, err := u.Engine.Docker(u.Context(), args...)
	if err != nil {
		u.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// must ends the test for an error.
func (u user) must(err error) {
	u.Helper()
	if err != nil {
		u.Fatal(err)
	}
}

// load loads an image of the reference data.
func (u user) load(file string) {
	u.Helper()
	u.docker("load", "--input", testutil.Data(u, "images", file))
}

// run runs a container to its end and gives what it says.
func (u user) run(image string, args ...string) string {
	u.Helper()
	return u.docker(append([]string{"run", "--rm", "--network", "none", image}, args...)...)
}

// create makes a container, which goes with the test, and gives its id.
func (u user) create(image string, args ...string) string {
	u.Helper()
	id := u.docker(append([]string{"create", "--network", "none", image}, args...)...)
	u.removeLater("rm", id)
	return id
}

// put writes a file into a container.
func (u user) put(container, name, content string) {
	u.Helper()
	file := filepath.Join(u.TempDir(), path.Base(name))
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		u.Fatal(err)
	}
	u.docker("cp", file, container+":"+name)
}

// file is what tells files of a container apart. Link counts are not in it: files that are links of each other in one
// image are equal files in its twin.
type file struct {
	Type     byte
	Mode     int64
	UID, GID int
	Size     int64
	ModTime  int64
	Target   string // of a symbolic link
	Content  string
}

// export lists the files of a container by path.
func (u user) export(container string) map[string]file {
	u.Helper()
	archive := filepath.Join(u.TempDir(), "export.tar")
	u.docker("export", "--output", archive, container)
	f, err := os.Open(archive)
	if err != nil {
		u.Fatal(err)
	}
	defer f.Close()
	files := map[string]file{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			u.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			u.Fatal(err)
		}
		name := path.Clean("/" + h.Name)
		if h.Typeflag == tar.TypeLink {
			files[name] = files[path.Clean("/"+h.Linkname)]
			continue
		}
		files[name] = file{h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.ModTime.Unix(), h.Linkname, string(content)}
	}
}

// within fails the test if what it does takes longer than it may.
func (u user) within(limit time.Duration, what string, do func(ctx context.Context)) {
	u.Helper()
	ctx, cancel := context.WithTimeout(u.Context(), limit)
	defer cancel()
	do(ctx)
	if ctx.Err() != nil {
		u.Errorf("%s took more than %v", what, limit)
	}
}
