package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/fusetest"
	"cvmfs-graphdriver/test/testutil"
)

const underTest = "CVMFS_GRAPHDRIVER_UNDER_TEST" // in the environment: be the program

func TestMain(m *testing.M) {
	if os.Getenv(underTest) != "" || slices.Contains(os.Args, "evaluate-pac") {
		main()
	}
	os.Exit(m.Run())
}

// mountRepo runs `repo mount`, in a process of its own as a process that serves a mount must not use it itself, until
// the test ends and gives the folder that is mounted on.
func mountRepo(t *testing.T, url, folder string, args ...string) string {
	t.Helper()
	fusetest.Require(t)
	dir := t.TempDir()
	fqrn, _ := folderArg(folder)
	args = append([]string{
		"repo", "mount", "--config-dir", t.TempDir(), "--server-url", url, "--public-key", testutil.PublicKey(t, fqrn),
		"--proxy", "DIRECT",
	}, args...)
	var out, errOut testutil.Buffer
	cmd := exec.Command(os.Args[0], append(args, folder, dir)...)
	cmd.Env = append(os.Environ(), underTest+"=1")
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan int, 1)
	go func() {
		_ = cmd.Wait() // the exit code says it all
		ended <- cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		if code := <-ended; code != 0 && !t.Skipped() {
			t.Errorf("exit code %d: %s", code, errOut.String())
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left on the mount point: %v, %v", left, err)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(out.String(),
		"is mounted on "+dir); time.Sleep(10 * time.Millisecond) {
		select {
		case code := <-ended:
			ended <- 0
			if strings.Contains(errOut.String(), "this kernel") {
				t.Skip("needs another kernel: ", errOut.String())
			}
			t.Fatalf("exit code %d: %s", code, errOut.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("not mounted: %s", errOut.String())
		}
	}
	return dir
}

// Both views show what the reference client shows.
func TestMountShowsWhatTheReferenceClientDoes(t *testing.T) {
	for _, fqrn := range []string{features, "shake.example.org", "images.example.org"} {
		for _, view := range []string{"erofs", "fuse"} {
			t.Run(fqrn+" "+view, func(t *testing.T) {
				dir := mountRepo(t, testutil.ServeReference(t, fqrn), fqrn, "--view", view)
				n := 0
				for line := range strings.Lines(testutil.Expected(t, fqrn)) {
					compareMounted(t, dir, line)
					n++
				}
				seen := 0
				if err := filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error {
					seen++
					return err
				}); err != nil || seen != n {
					t.Errorf("%d names, want %d; %v", seen, n, err)
				}
			})
		}
	}
}

// compareMounted compares a mounted file with its line of a listing.
func compareMounted(t *testing.T, dir, line string) {
	t.Helper()
	var want struct {
		Path, Mode, Type, Target, SHA256 string
		UID, GID                         uint32
		Mtime, Size                      int64
		Nlink                            uint64
	}
	if err := json.Unmarshal([]byte(line), &want); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(want.Path, "\ufffd") {
		return // not UTF-8: JSON readers can't tell
	}
	name := filepath.Join(dir, want.Path)
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		t.Errorf("%s: %v", want.Path, err)
		return
	}
	if st.Uid != want.UID || st.Gid != want.GID || st.Mtim.Sec != want.Mtime {
		t.Errorf("%s: %d:%d at %d, want %s", want.Path, st.Uid, st.Gid, st.Mtim.Sec, line)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if target, err := os.Readlink(name); err != nil || target != want.Target {
			t.Errorf("%s -> %q, %v, want %q", want.Path, target, err, want.Target)
		}
	case unix.S_IFREG:
		b, err := os.ReadFile(name)
		if sum := sha256.Sum256(b); err != nil || int64(len(b)) != want.Size ||
			hex.EncodeToString(sum[:]) != want.SHA256 {
			t.Errorf("%s: %d bytes, %v, want %s", want.Path, len(b), err, line)
		}
	}
}

func TestMountOfAFolderKeepsWhatItFetched(t *testing.T) {
	fusetest.Require(t)
	url := testutil.ServeReference(t, features)
	cache := t.TempDir()
	t.Run("first", func(t *testing.T) {
		dir := mountRepo(t, url, features+"/small/", "--cache", cache)
		if b, err := os.ReadFile(dir + "/hello.txt"); err != nil || len(b) == 0 {
			t.Errorf("%q, %v", b, err)
		}
		if err := os.WriteFile(dir+"/new", nil, 0o600); err == nil {
			t.Error("the mount can be written to")
		}
		other := run(context.Background(), []string{
			"cvmfs-graphdriver", "repo", "mount", "--cache", cache, "--server-url", url, "--public-key",
			testutil.PublicKey(t, features),
			"--proxy", "DIRECT", features, t.TempDir(),
		}, new(bytes.Buffer), new(bytes.Buffer))
		if other != 1 {
			t.Errorf("a second mount with the same cache: exit code %d", other)
		}
	})
	kept := 0
	if err := filepath.WalkDir(cache+"/store/objects", func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			kept++
		}
		return err
	}); err != nil || kept == 0 {
		t.Errorf("%d objects kept, %v", kept, err)
	}
	mountRepo(t, url, features+"/small", "--cache", cache, "--view", "fuse")
}
