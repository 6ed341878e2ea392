package daemonjson

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// edited returns the file of a path with the driver "thin" set.
func edited(t *testing.T, path string) *File {
	t.Helper()
	f, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	next, err := f.Edit(f.Wanted(Wishes{Driver: "thin"})...)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// install backs up and writes. The backup has been through a journal.
func install(t *testing.T, next *File) *Backup {
	t.Helper()
	b, err := next.Backup(noon)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Write(); err != nil {
		t.Fatal(err)
	}
	return journalled(t, b)
}

func journalled(t *testing.T, b *Backup) *Backup {
	t.Helper()
	record, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	read := new(Backup)
	if err := json.Unmarshal(record, read); err != nil {
		t.Fatal(err)
	}
	return read
}

// snapshot is what a folder holds: path → mode, owner, attributes, and target or content.
func snapshot(t *testing.T, dir string) map[string][]any {
	t.Helper()
	found := map[string][]any{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil {
			return err
		}
		entry := []any{stat.Mode, stat.Uid, stat.Gid}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			entry = append(entry, link)
		case d.Type().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			value := make([]byte, 100)
			n, err := unix.Lgetxattr(path, "user.note", value)
			if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
				return err
			}
			entry = append(entry, string(content), string(value[:max(n, 0)]))
		}
		found[path] = entry
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAFileIsWrittenAndPutBackExactly(t *testing.T) {
	for _, place := range []struct {
		name string
		make func(t *testing.T, dir string) (path string)
	}{
		{"a file", func(t *testing.T, dir string) string {
			path := filepath.Join(dir, "daemon.json")
			write(t, path, "{\n\t\"mtu\": 9\n}", 0o640)
			if os.Getuid() == 0 {
				if err := os.Chown(path, 12, 34); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Setxattr(path, "user.note", []byte("kept"), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
				t.Fatal(err)
			}
			return path
		}},
		{"an empty file", func(t *testing.T, dir string) string {
			write(t, filepath.Join(dir, "daemon.json"), "", 0o600)
			return filepath.Join(dir, "daemon.json")
		}},
		{"no file", func(_ *testing.T, dir string) string { return filepath.Join(dir, "daemon.json") }},
		{"no folders", func(_ *testing.T, dir string) string {
			return filepath.Join(dir, "etc", "docker",
				"daemon.json")
		}},
		{"a link", func(t *testing.T, dir string) string {
			if err := os.Mkdir(filepath.Join(dir, "dotfiles"), 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "dotfiles", "docker.json"), "{}\n", 0o644)
			link(t, "dotfiles/docker.json", filepath.Join(dir, "second"))
			link(t, filepath.Join(dir, "second"), filepath.Join(dir, "daemon.json"))
			return filepath.Join(dir, "daemon.json")
		}},
		{"a link to nowhere", func(t *testing.T, dir string) string {
			link(t, "missing/docker.json", filepath.Join(dir, "daemon.json"))
			return filepath.Join(dir, "daemon.json")
		}},
	} {
		t.Run(place.name, func(t *testing.T) {
			dir := t.TempDir()
			path := place.make(t, dir)
			before := snapshot(t, dir)
			next := edited(t, path)
			if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
				t.Fatalf("an edit changed the disk: %s", diff)
			}
			b := install(t, next)
			during := snapshot(t, dir)
			content, err := os.ReadFile(path)
			if err != nil || string(content) != string(next.content) {
				t.Fatalf("written: %q, %v", content, err)
			}
			// All but the content is as it was; beside it there is the backup.
			for name, entry := range before {
				is := during[name]
				if name == next.Target {
					is = append([]any{}, is...)
					is[3] = entry[3]
				}
				if diff := cmp.Diff(entry, is); diff != "" {
					t.Errorf("%s changed: %s", name, diff)
				}
			}
			if backup := next.Target + ".20261128T120000Z.bak"; b.File != "" {
				if diff := cmp.Diff(before[next.Target], during[backup]); b.File != backup || diff != "" {
					t.Errorf("the backup %s: %s", b.File, diff)
				}
			}
			for range 2 { // it may be cut off and called again
				r, err := b.Restore()
				if err != nil || r.Edited {
					t.Fatal(r, err)
				}
				if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
					t.Errorf("restored: %s", diff)
				}
			}
		})
	}
}

func write(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func TestARestoreBeforeTheWriteRemovesTheBackup(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "daemon.json")
	write(t, path, "{}", 0o644)
	before := snapshot(t, dir)
	b, err := edited(t, path).Backup(noon)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := journalled(t, b).Restore(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestBackupsOfOneSecondDontMeet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	write(t, path, "{}", 0o644)
	next := edited(t, path)
	first, err := next.Backup(noon)
	if err != nil {
		t.Fatal(err)
	}
	// Cut off here, the next run takes what is there.
	if again, err := next.Backup(noon.Add(time.Hour)); err != nil || again.File != first.File {
		t.Fatal(again, err)
	}
	if err := next.Write(); err != nil {
		t.Fatal(err)
	}
	f, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := f.Backup(noon)
	if err != nil || first.File == second.File {
		t.Fatal(second, err)
	}
	for b, want := range map[*Backup]string{first: "{}", second: string(next.content)} {
		if content, err := os.ReadFile(b.File); err != nil || string(content) != want {
			t.Errorf("%s: %q, %v", b.File, content, err)
		}
		if err := errors.Join(b.Discard(), b.Discard()); err != nil {
			t.Error(err)
		}
	}
	if left := snapshot(t, filepath.Dir(path)); len(left) != 2 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWhatOthersEditedStaysWhenOursIsUndone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	write(t, path, "{\n  \"storage-driver\": \"overlay2\",\n  \"storage-opts\": [\"overlay2.size=1G\"],\n  \"mtu\": 1400\n}\n", 0o644)
	f, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	next, err := f.Edit(f.Wanted(Wishes{Driver: "thin", DataRoot: "/data", Debug: new(true)})...)
	if err != nil {
		t.Fatal(err)
	}
	b := install(t, next)
	theirs, err := next.Edit(Set("mtu", "no number"), Set("data-root", "/theirs"),
		Set("dns", []string{"10.0.0.1", "10.0.0.2"}), Delete("debug"))
	if err != nil {
		t.Fatal(err)
	}
	theirs.disk = next.content
	if err := theirs.Write(); err != nil {
		t.Fatal(err)
	}
	r, err := b.Restore()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Restored{Edited: true, Kept: []string{"data-root"}}, r); diff != "" {
		t.Error(diff)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "{\n  \"storage-driver\": \"overlay2\",\n  \"mtu\": \"no number\",\n  \"data-root\": \"/theirs\",\n  \"dns\": [\"10.0.0.1\", \"10.0.0.2\"],\n  \"storage-opts\": [\"overlay2.size=1G\"]\n}\n"
	if diff := cmp.Diff(want, string(content)); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(b.File); err != nil {
		t.Errorf("the backup: %v", err)
	}
}

func TestAFileOfOursThatOthersAddedToStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	b := install(t, edited(t, path))
	f, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if f, err = f.Edit(Set("debug", true)); err != nil {
		t.Fatal(err)
	}
	if err := f.Write(); err != nil {
		t.Fatal(err)
	}
	if r, err := b.Restore(); err != nil || !r.Edited {
		t.Fatal(r, err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "{\n  \"debug\": true\n}\n" {
		t.Errorf("%q, %v", content, err)
	}
}

func TestAFileThatChangedMeanwhileIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	write(t, path, "{}", 0o644)
	next := edited(t, path)
	write(t, path, "{ }", 0o644)
	if err := next.Write(); err == nil || !strings.Contains(err.Error(), "somebody changed it in the meantime") {
		t.Error(err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "{ }" {
		t.Errorf("%q, %v", content, err)
	}
}

func TestTwoWritersDontMeet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	next := edited(t, path)
	unlock, err := lock(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Write(); err == nil || !strings.Contains(err.Error(), "another installer") {
		t.Error(err)
	}
	unlock()
	if err := next.Write(); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNoFileIsAnError(t *testing.T) {
	dir := t.TempDir()
	fifo, loop, large := filepath.Join(dir, "fifo"), filepath.Join(dir, "loop"), filepath.Join(dir, "large")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	link(t, "loop", loop)
	write(t, large, strings.Repeat(" ", maxSize+1), 0o644)
	for path, want := range map[string]string{
		dir:                              "is no regular file but a folder",
		fifo:                             "is no regular file but a named pipe",
		"/dev/null":                      "is no regular file but a device",
		loop:                             "too many levels of symbolic links",
		large:                            "has more than 1048576 bytes",
		filepath.Join(large, "file"):     "not a directory",
		"/proc/self/mem/../attr/current": "not a directory",
	} {
		if f, err := Read(path); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("Read(%s) = %v, %v, want an error with %q", path, f, err, want)
		}
	}
}

func TestAReadOnlyFileSystemIsToldAndNothingChanges(t *testing.T) {
	dir := testutil.SmallDisk(t, "1m")
	path := filepath.Join(dir, "daemon.json")
	write(t, path, "{}", 0o644)
	next, absent := edited(t, path), edited(t, filepath.Join(dir, "docker", "daemon.json"))
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	_, err := next.Backup(noon)
	for _, err := range []error{err, next.Write(), absent.Write()} {
		if err == nil || !strings.Contains(err.Error(), "read-only file system (mount it writable") {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestAFullDiskIsToldAndNothingChanges(t *testing.T) {
	dir := testutil.SmallDisk(t, "64k")
	path := filepath.Join(dir, "daemon.json")
	write(t, path, "{}", 0o644)
	next := edited(t, path)
	b, err := next.Backup(noon)
	if err != nil {
		t.Fatal(err)
	}
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	if err := next.Write(); err == nil || !strings.Contains(err.Error(), "no space left on device (make room") {
		t.Error(err)
	}
	if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
		t.Error(diff)
	}
	if _, err := b.Restore(); err != nil {
		t.Errorf("going back needs no room: %v", err)
	}
}

func TestAnImmutableFileIsTold(t *testing.T) {
	testutil.NeedRoot(t)
	path := filepath.Join(t.TempDir(), "daemon.json")
	write(t, path, "{}", 0o644)
	if out, err := exec.Command("chattr", "+i", path).CombinedOutput(); err != nil {
		t.Logf("the file system has no such attribute: %s", out)
		return
	}
	defer exec.Command("chattr", "-i", path).Run() // for the removal of the folder, which tells
	next := edited(t, path)
	_, err := next.Backup(noon)
	for _, err := range []error{err, next.Write()} {
		if err == nil || !strings.Contains(err.Error(), "immutable") {
			t.Error(err)
		}
	}
}

func TestDiffShowsWhatChanges(t *testing.T) {
	f := found(t, "{\n  \"debug\": true\n}\n")
	next, err := f.Edit(Set("experimental", true))
	if err != nil {
		t.Fatal(err)
	}
	want := "--- " + f.Path + "\n+++ " + f.Path +
		"\n@@ -1,3 +1,4 @@\n {\n-  \"debug\": true\n+  \"debug\": true,\n+  \"experimental\": true\n }\n"
	if diff := cmp.Diff(want, Diff(f, next)); diff != "" {
		t.Error(diff)
	}
	if Diff(f, f) != "" {
		t.Error("a file differs from itself")
	}
	none, err := Read(filepath.Join(t.TempDir(), "daemon.json"))
	if err != nil {
		t.Fatal(err)
	}
	if d := Diff(none, next); !strings.HasPrefix(d, "--- /dev/null\n+++ "+f.Path+"\n@@ -0,0 +1,4 @@\n+{\n") {
		t.Error(d)
	}
}
