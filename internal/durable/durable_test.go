package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// holds checks that a folder holds these files, of such content, and nothing else.
func holds(t testing.TB, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != len(want) {
		t.Errorf("%d entries, want %d: %v", len(entries), len(want), entries)
	}
	for name, content := range want {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != content {
			t.Errorf("%s holds %.40q (%v), want %.40q", name, b, err, content)
		}
	}
}

func TestReplaceMakesAndReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	must(t, Replace(path, 0o666, []byte("one"))) // umask would take something off
	must(t, Replace(path, 0o640, []byte("two")))
	holds(t, dir, map[string]string{"f": "two"})
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode() != 0o640 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestReplaceTakesThePlaceOfALinkNotOfWhatItPointsTo(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "other"), []byte("kept"), 0o600))
	must(t, os.Symlink("other", filepath.Join(dir, "f")))
	must(t, Replace(filepath.Join(dir, "f"), 0o600, []byte("new")))
	holds(t, dir, map[string]string{"f": "new", "other": "kept"})
}

func TestNewReplacesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	must(t, New(path, 0o644, []byte("one")))
	if err := New(path, 0o644, []byte("two")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v, want %v", err, fs.ErrExist)
	}
	holds(t, dir, map[string]string{"f": "one"})
}

func TestWhatFailsLeavesTheFormerFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	must(t, Replace(path, 0o600, []byte("former")))
	fault := errors.New("fault")
	err := ReplaceBy(path, 0o600, func(w io.Writer) error {
		_, err := io.WriteString(w, "half")
		return errors.Join(err, fault)
	})
	if !errors.Is(err, fault) {
		t.Errorf("%v, want %v", err, fault)
	}
	if err := Replace(filepath.Join(dir, "missing", "f"), 0o600, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want %v", err, fs.ErrNotExist)
	}
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	if err := Replace(filepath.Join(dir, "folder"), 0o600, []byte("x")); err == nil {
		t.Error("a file took the place of a folder")
	}
	must(t, os.Remove(filepath.Join(dir, "folder")))
	f, err := Create(path)
	must(t, err)
	must(t, f.Close())
	must(t, f.Close())
	holds(t, dir, map[string]string{"f": "former"})
}

func TestFullDiskLeavesTheFormerFile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a small file system")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	path := filepath.Join(dir, "f")
	must(t, Replace(path, 0o600, []byte("former")))
	if err := Replace(path, 0o600, make([]byte, 1<<20)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v, want ENOSPC", err)
	}
	holds(t, dir, map[string]string{"f": "former"})
}

func TestOneOfSeveralWritersWins(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	var made sync.Map
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			content := strings.Repeat(fmt.Sprint(n), 100_000)
			if err := Replace(path, 0o600, []byte(content)); err != nil {
				t.Error(err)
			}
			if New(filepath.Join(dir, "once"), 0o600, []byte(content)) == nil {
				made.Store(n, content)
			}
		})
	}
	all.Wait()
	b, err := os.ReadFile(path)
	must(t, err)
	if len(b) != 100_000 || strings.Trim(string(b), string(b[:1])) != "" {
		t.Errorf("%d bytes of several writers", len(b))
	}
	winners := 0
	made.Range(func(_, content any) bool {
		winners++
		holds(t, dir, map[string]string{"f": string(b), "once": content.(string)})
		return true
	})
	if winners != 1 {
		t.Errorf("%d made a file that wasn't to be there", winners)
	}
}

func TestFolderIsThereWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	create := func() *Folder {
		f, err := CreateFolder(dir)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(f.Path(), "f"), []byte("x"), 0o600))
		return f
	}
	f := create()
	must(t, f.New("folder"))
	must(t, f.Close())
	second := create()
	if err := second.New("folder"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v, want %v", err, fs.ErrExist)
	}
	must(t, second.Close())
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
	holds(t, filepath.Join(dir, "folder"), map[string]string{"f": "x"})
}

func TestFolderThatIsRemovedGoesWhole(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"folder", prefix + "folder"} { // the second was left by a removal cut short
		must(t, os.MkdirAll(filepath.Join(dir, name, "sub"), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, name, "sub", "f"), []byte("x"), 0o600))
	}
	must(t, RemoveFolder(filepath.Join(dir, "folder")))
	holds(t, dir, nil)
	if err := RemoveFolder(filepath.Join(dir, "folder")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want %v", err, fs.ErrNotExist)
	}
}

func TestRemoveSaysWhatIsMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	must(t, Replace(path, 0o600, nil))
	must(t, Remove(path))
	if err := Remove(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want %v", err, fs.ErrNotExist)
	}
}

func TestSweepRemovesWhatAKilledProcessLeft(t *testing.T) {
	if dir := os.Getenv("DURABLE_KILLED_IN"); dir != "" {
		f, err := Create(filepath.Join(dir, "f"))
		must(t, err)
		_, err = f.WriteString("half")
		must(t, err)
		_, err = CreateFolder(dir)
		must(t, err)
		must(t, unix.Kill(os.Getpid(), unix.SIGKILL))
	}
	dir := t.TempDir()
	must(t, Replace(filepath.Join(dir, "f"), 0o600, []byte("former")))
	killed := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	killed.Env = append(os.Environ(), "DURABLE_KILLED_IN="+dir)
	if err := killed.Run(); err == nil {
		t.Fatal("wasn't killed")
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 3 {
		t.Errorf("left: %v", entries)
	}
	must(t, Sweep(dir))
	holds(t, dir, map[string]string{"f": "former"})
}
