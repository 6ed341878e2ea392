package e2e

import (
	"context"
	"crypto/md5"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// files is how many files a container under load has to read, each another object.
const files = 400

// reading is a script that reads all of an image's files over and over, and says how many it has read, and which of
// them were wrong.
const reading = `cd /load; n=0
while :; do
	while read -r sum name; do
		[ "$(/bin/busybox md5sum <"$name" 2>>/errors)" = "$sum  -" ] || echo "$name" >>/errors
		n=$((n+1)); echo $n >/progress
	done </sums
done`

// loaded is a container that reads.
type loaded struct {
	survivor
	u user
}

func (u user) reads(image string) loaded {
	u.Helper()
	id := u.docker("run", "--detach", "--network", "none", "--entrypoint", "/bin/busybox", image, "sh", "-c", reading)
	return loaded{u.survive(id), u}
}

// file is one of the container's, which is seen where its program runs.
func (l loaded) file(name string) string { return filepath.Join("/proc", l.pid, "root", name) }

// read returns how many files the container has read.
func (l loaded) read() (n int) {
	text, err := os.ReadFile(l.file("progress"))
	if err == nil {
		n, _ = strconv.Atoi(strings.TrimSpace(string(text))) // the shell is writing it
	}
	return n
}

// readsOn waits until the container has read that many files more.
func (l loaded) readsOn(more int) {
	l.u.Helper()
	want := l.read() + more
	l.u.eventually("the container reads on", func() error {
		if n := l.read(); n < want {
			return fmt.Errorf("it has read %d files", n)
		}
		return nil
	})
}

// Containers read files, most of which were never read before, while everything below them is killed, one after the
// other, and comes back. Not one read fails or gives something else. What becomes of reads when the supervisor goes,
// too, is a matter of who keeps its descriptors (see the tests of cmd/cvmfs-snapshotter, and test/host with systemd):
// nobody does here, so all is on disk then.
func TestContainersReadOnWhileEverythingIsKilled(t *testing.T) {
	for _, view := range []string{"erofs", "fuse"} {
		t.Run(view, func(t *testing.T) {
			u := onSnapshotter(t, engine.Stack29on21, stand.Options{
				Settings: liveRestore, Driver: []string{"cvmfs.view=" + view},
			})
			image := u.loadImage()
			reader, other := u.reads(image), u.reads(image)
			reader.readsOn(1)
			alive := func(what string) {
				t.Helper()
				reader.readsOn(10)
				if now := u.survive(reader.id); now != reader.survivor {
					t.Errorf("%s: the container was %v, is %v", what, reader.survivor, now)
				}
				if errors, err := os.ReadFile(reader.file("errors")); err != nil || len(errors) > 0 {
					t.Fatalf("%s: wrong or failed: %s, %v", what, errors, err)
				}
			}
			for _, victim := range u.victims() {
				u.must(victim.kill())
				u.must(victim.start())
				alive("kill -9 of the " + victim.name)
			}
			u.hears(image)
			u.must(unix.Kill(u.shim(other.id), unix.SIGKILL))
			alive("kill -9 of another container's shim")
			u.eventually("the engine knows that the other container has ended", func() error {
				if state := u.docker("inspect", "--format", "{{.State.Status}}", other.id); state != "exited" {
					return fmt.Errorf("it is %s", state)
				}
				return nil
			})
			if view == "erofs" {
				reader.readsOn(files)
				u.must(u.Snapshotter.Kill(t.Context()))
				alive("kill -9 of the supervisor")
				u.must(u.StartSnapshotter(t.Context()))
				alive("another supervisor")
			}
			u.docker("start", other.id)
			u.docker("rm", "--force", reader.id, other.id)
		})
	}
}

// hears waits until the engine hears of the ends of containers: of those that end before it listens to a new containerd
// it never does.
func (u user) hears(image string) {
	u.Helper()
	u.eventually("the engine hears of the end of a container", func() error {
		ctx, cancel := context.WithTimeout(u.Context(), 10*time.Second)
		defer cancel()
		_, err := u.Engine.Docker(ctx, "run", "--rm", "--network", "none", "--entrypoint", "/bin/busybox", image,
			"true")
		return err
	})
}

// loadImage returns a thin image of many files, the sums of which it has, and a shell.
func (u user) loadImage() string {
	u.Helper()
	busybox, err := os.ReadFile(u.program("busybox"))
	u.must(err)
	contents, sums := map[string][]byte{"bin/busybox": busybox}, ""
	random := rand.NewChaCha8([32]byte{})
	for i := range files {
		content := make([]byte, 32<<10)
		random.Read(content)
		contents[fmt.Sprintf("load/%03d", i)] = content
		sums += fmt.Sprintf("%x %03d\n", md5.Sum(content), i)
	}
	contents["sums"] = []byte(sums)
	c := &converter{u, filepath.Join(u.TempDir(), "publisher")}
	u.must(publish.Create(u.Context(), c.publisher, publish.Settings{FQRN: layersFQRN}, publish.Options{}))
	u.must(u.Serve(layersFQRN, filepath.Join(c.publisher, "www/cvmfs", layersFQRN),
		filepath.Join(c.publisher, "keys", layersFQRN+".pub")))
	name := testutil.NewRegistry(u, "", "").Host + "/example/load"
	u.importTar(name+":ordinary", contents)
	u.docker("push", name+":ordinary")
	c.convert("make-thin", "--input-reference", "http://"+name+":ordinary", "--output-reference", name+":thin",
		"--repository", layersFQRN, "--target", "native:"+c.publisher)
	u.docker("pull", name+":thin")
	return name + ":thin"
}

// shim is the process of containerd's that a container's processes are children of.
func (u user) shim(id string) int {
	u.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", u.survive(id).pid, "status"))
	u.must(err)
	_, after, _ := strings.Cut(string(status), "\nPPid:")
	line, _, _ := strings.Cut(after, "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	u.must(err)
	if name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm")); err != nil ||
		!strings.HasPrefix(string(name), "containerd-shim") {
		u.Fatalf("the parent of the container's process is %s, %v", name, err)
	}
	return pid
}
