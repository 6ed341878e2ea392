package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/child"
	"cvmfs-graphdriver/test/referenceimage"
	"cvmfs-graphdriver/test/testutil"
)

// machine is a mount namespace that outlives the plugin, as the host's does: what is mounted below its propagated mount
// stays.
type machine struct {
	t      *testing.T
	pid    int
	config string
}

// serving is the handler of a server of the reference repository.
func serving(t *testing.T) http.Handler {
	return http.FileServerFS(testutil.Reference(t, fqrn))
}

func newMachine(t *testing.T, url string) *machine {
	t.Helper()
	return newMachineOn(t, t.TempDir(), testutil.Configure(t, map[string]string{fqrn: url}))
}

// newMachineOn is newMachine with a folder that stands for the plugin's propagated mount, and one of configuration.
func newMachineOn(t *testing.T, mnt, config string) *machine {
	t.Helper()
	testutil.NeedRoot(t)
	holder := exec.Command("/bin/sh", "-ec", shareFolder+`; echo ready; read end`, mnt, rootDir)
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	holder.Stderr = t.Output()
	in, err := holder.StdinPipe()
	must(t, err)
	out, err := holder.StdoutPipe()
	must(t, err)
	must(t, child.Start(holder))
	t.Cleanup(func() {
		in.Close()
		_ = holder.Wait() // its read fails at the end of input
	})
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal("the mount namespace: ", err)
	}
	return &machine{t, holder.Process.Pid, config}
}

// boot starts the plugin anew, with another /run, as the engine does after a crash.
func (m *machine) boot() *instance {
	m.t.Helper()
	p := &instance{t: m.t, root: fmt.Sprintf("/proc/%d/root", m.pid), ended: make(chan error, 1)}
	p.cmd = exec.Command("nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", m.pid),
		"/bin/sh", "-ec", `mount -t tmpfs tmpfs /run; exec "$0"`, os.Args[0])
	p.cmd.Env = append(os.Environ(), underTest+"=1", "CVMFS_EXT_CONFIG="+m.config)
	p.launch()
	return p
}

// kill ends process 1 of the plugin and all it has started.
func (p *instance) kill() {
	p.t.Helper()
	must(p.t, p.cmd.Process.Kill())
	<-p.ended
	p.client.CloseIdleConnections()
}

// thinContainer runs the reference thin image.
func (p *instance) thinContainer(id string) string {
	p.t.Helper()
	if text := p.apply("thin", "", archive(p.t, map[string]string{"thin.json": referenceimage.Descriptor(p.t)})); text != "" {
		p.t.Fatal(text)
	}
	return p.container(id, "thin")
}

// erofs initialises the plugin for the view whose mounts live on without us.
func (p *instance) erofs() {
	p.t.Helper()
	p.init(rung{view: "erofs"}, object{})
}

func TestContainerOutlivesTheWholePlugin(t *testing.T) {
	repository := testutil.NewFaulty(t, serving(t))
	m := newMachine(t, repository.URL)
	p := m.boot()
	p.erofs()
	dir := p.thinContainer("c1")
	want, err := os.ReadFile(filepath.Join(dir, "data/a.txt"))
	must(t, err)
	local := func() string {
		metadata, _ := p.ok("GetMetadata", object{"ID": "c1"})["Metadata"].(object)
		return fmt.Sprint(metadata["Local"])
	}
	before := local()
	t.Log("local before: ", before)
	if n, of := counts(t, before); n == 0 || n == of {
		t.Fatalf("%s: the test wants some", before)
	}
	p.kill()
	repository.Set(testutil.Fault{Path: "/data/", Status: 503, Times: 2}) // and the server is ill for a moment
	p = m.boot()                                                          // no Init: the engine doesn't know
	if b, err := os.ReadFile(filepath.Join(dir, "data/a.txt")); err != nil || string(b) != string(want) {
		t.Errorf("a file that was there: %q, %v", b, err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if n, of := counts(t, local()); n == of {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what the container misses doesn't arrive: ", local())
		}
	}
	// The mount of the former life is the one that is used, and reads all.
	if mounts := p.status().Store.Mounts; len(mounts) != 1 || !mounts[0].Stale {
		t.Errorf("mounts: %+v", mounts)
	}
	kept := tree(t, dir)
	p.erofs()
	if mounted := p.status().Store.Mounts; len(mounted) != 0 {
		t.Errorf("Init left %+v", mounted)
	}
	fresh := p.root + fmt.Sprint(p.ok("Get", object{"ID": "c1"})["Dir"])
	if d := cmp.Diff(tree(t, fresh), kept); d != "" {
		t.Errorf("-mounted anew +mounted by the former life\n%s", d)
	}
	p.ok("Put", object{"ID": "c1"})
	p.ok("Remove", object{"ID": "c1"}) // waits for the unmount
	if names, err := os.ReadDir(p.root + rootDir + "/mnt"); err != nil || len(names) > 0 {
		t.Errorf("mounts left over: %v, %v", names, err)
	}
}

// counts reads what metadata says is local.
func counts(t *testing.T, local string) (n, of int) {
	t.Helper()
	if _, err := fmt.Sscanf(local, "%d of %d objects", &n, &of); err != nil {
		t.Fatalf("local is %q: %v", local, err)
	}
	return n, of
}

// A plugin that dies while it answers Get is asked again; the next engine puts things right.
func TestGetWhoseAnswerWasLostLeavesNoMount(t *testing.T) {
	m := newMachine(t, testutil.NewFaulty(t, serving(t)).URL)
	p := m.boot()
	p.erofs()
	p.thinContainer("c1")
	p.ok("Get", object{"ID": "c1"}) // the answer to the first was lost, and the engine repeats itself
	must(t, syscall.Kill(p.status().PID, syscall.SIGKILL))
	p.erofs() // a new engine, which finds the container running
	p.ok("Get", object{"ID": "c1"})
	p.ok("Put", object{"ID": "c1"})
	if mounts := p.status().Store.Mounts; len(mounts) != 1 {
		t.Fatalf("mounts of a running container: %+v", mounts)
	}
	p.ok("Put", object{"ID": "c1"})
	if mounts := p.status().Store.Mounts; len(mounts) != 0 {
		t.Errorf("left over: %+v", mounts)
	}
}

func TestOtherOptionsChangeALivePlugin(t *testing.T) {
	m := newMachine(t, testutil.NewFaulty(t, serving(t)).URL)
	p := m.boot()
	p.erofs()
	dir := p.thinContainer("c1")
	for _, opts := range [][]string{{"cvmfs.repositories=" + fqrn}, {"cvmfs.repositories=other.example.org"}, {}} {
		p.ok("Init", object{"Opts": append(opts, "cvmfs.view=erofs")})
		if mounts := p.status().Store.Mounts; len(mounts) != 1 {
			t.Fatalf("%v: mounts %+v", opts, mounts)
		}
	}
	if lines := tree(t, dir); len(lines) < 5 {
		t.Errorf("the container sees %v", lines)
	}
	p.ok("Put", object{"ID": "c1"})
	for _, id := range []string{"c1", "c1-init", "thin"} {
		p.ok("Remove", object{"ID": id})
	}
	if left, err := os.ReadDir(p.root + rootDir + "/images"); err != nil || len(left) > 0 {
		t.Errorf("images left: %v, %v", left, err)
	}
}

func TestManyContainersStartAtOnceFromOneThinImage(t *testing.T) {
	for _, view := range []string{"erofs", "fuse"} {
		t.Run(view, func(t *testing.T) { startMany(t, rung{view: view}) })
	}
}

func startMany(t *testing.T, r rung) {
	const containers = 64
	p := r.start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
	p.init(r, object{})
	want := tree(t, p.thinContainer("first"))
	began := time.Now()
	var wg sync.WaitGroup
	for n := range containers {
		wg.Go(func() {
			if err := p.startContainer(fmt.Sprint("c", n)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d containers took %v", containers, time.Since(began))
	if mounts := p.status().Store.Mounts; len(mounts) != containers+1 {
		t.Errorf("%d mounts, want %d", len(mounts), containers+1)
	}
	for n := range containers {
		id := fmt.Sprint("c", n)
		lines := tree(t, p.root+rootDir+"/mnt/"+id)
		at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "/mine ") })
		if at < 0 || !strings.HasSuffix(lines[at], fmt.Sprintf("%q", id)) {
			t.Fatalf("%s: its own file: %v", id, lines)
		}
		if d := cmp.Diff(want, slices.Delete(lines, at, at+1)); d != "" {
			t.Fatalf("%s: -first +this\n%s", id, d)
		}
		p.ok("Put", object{"ID": id})
		p.ok("Remove", object{"ID": id})
	}
}

// startContainer makes a container on the thin image and writes to it, in a goroutine of its own.
func (p *instance) startContainer(id string) error {
	for _, call := range [][2]string{
		{"CreateReadWrite", fmt.Sprintf(`{"ID":%q,"Parent":"thin"}`, id)},
		{"Get", fmt.Sprintf(`{"ID":%q}`, id)},
	} {
		resp, err := p.post("GraphDriver."+call[0], []byte(call[1]))
		if err != nil {
			return err
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || strings.Contains(string(b), `"Err"`) {
			return fmt.Errorf("%s %s: %s, %w", call[0], id, b, err)
		}
	}
	return os.WriteFile(p.root+rootDir+"/mnt/"+id+"/mine", []byte(id), 0o644)
}

// What the start removes is found on a disk where a killed plugin left it.
func TestStartLeavesOnDiskWhatIsNeededAndNothingElse(t *testing.T) {
	for _, view := range []string{"erofs", "fuse"} {
		t.Run(view, func(t *testing.T) {
			p := rung{view: view}.start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
			p.init(rung{view: view}, object{})
			dir := p.thinContainer("c1")
			images := p.root + rootDir + "/images"
			names, err := os.ReadDir(images)
			must(t, err)
			if len(names) != 1 {
				t.Fatalf("images: %v", names)
			}
			left := strings.Repeat("a", 64)
			must(t, os.CopyFS(filepath.Join(images, left), os.DirFS(filepath.Join(images, names[0].Name()))))
			for _, name := range []string{
				"images/.new-1/x", "images/" + strings.Repeat("b", 64), "layers/.new-2/graph",
				"layers/.dead-3/l", "state/.probe-4",
			} {
				must(t, os.MkdirAll(p.root+rootDir+"/"+name, 0o700))
			}
			must(t, syscall.Kill(p.status().PID, syscall.SIGKILL))
			if got := p.status().Store.Images; len(got) != 1 { // of the next server
				t.Errorf("images in use: %+v", got)
			}
			for folder, want := range map[string]int{"images": 1, "layers": 3, "state/.probe-4": -1} {
				now, err := os.ReadDir(p.root + rootDir + "/" + folder)
				if want < 0 && err == nil || want >= 0 && len(now) != want {
					t.Errorf("%s: %v", folder, now)
				}
			}
			if lines := tree(t, dir); len(lines) < 5 {
				t.Errorf("the container sees %v", lines)
			}
		})
	}
}

func TestPullThatIsInterruptedLeavesNoImage(t *testing.T) {
	repository := testutil.NewFaulty(t, serving(t))
	p := start(t, t.TempDir(), repository.URL)
	p.init(rung{view: "fuse"}, object{})
	p.ok("Create", object{"ID": "thin"})
	repository.Set(testutil.Fault{Path: "/data/", Latency: 200 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/GraphDriver.ApplyDiff?id=thin",
		bytes.NewReader(archive(t, map[string]string{"thin.json": referenceimage.Descriptor(t)})))
	must(t, err)
	if resp, err := p.client.Do(req); err == nil {
		resp.Body.Close()
		t.Fatal("the layer came in before it was interrupted")
	}
	p.ok("Remove", object{"ID": "thin"})
	time.Sleep(time.Second) // for what goes on all the same
	if left, err := os.ReadDir(p.root + rootDir + "/images"); err != nil || len(left) > 0 {
		t.Errorf("images left: %v, %v", left, err)
	}
}

func TestQuestionsTakeNothingIntoUse(t *testing.T) {
	p := start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
	p.init(rung{view: "fuse"}, object{})
	p.thinContainer("c1")
	p.ok("Put", object{"ID": "c1"})
	must(t, syscall.Kill(p.status().PID, syscall.SIGKILL))
	pid := p.status().PID // of a server that uses no image
	state := func() string {
		mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		must(t, err)
		return fmt.Sprint(string(mounts), tree(t, p.root+rootDir))
	}
	before := state()
	for range 2 {
		if m, _ := p.ok("GetMetadata", object{"ID": "c1"})["Metadata"].(object); m["Local"] == nil ||
			m["Folders"] == nil {
			t.Errorf("metadata: %v", m)
		}
		p.ok("Status", object{})
		p.ok("Exists", object{"ID": "thin"})
		if s := p.status(); len(s.Store.Images) != 1 || s.Store.Images[0].Err != "" || s.Store.Images[0].Objects == 0 ||
			len(s.Fetch) > 0 {
			t.Errorf("status: %+v", s)
		}
	}
	if maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)); err != nil ||
		strings.Contains(string(maps), "meta.erofs") {
		t.Errorf("an image is mapped: %v\n%s", err, maps)
	}
	if d := cmp.Diff(before, state()); d != "" {
		t.Errorf("-before +after\n%s", d)
	}
}

func TestUnreadableObjectIsToldWithWhoReadsIt(t *testing.T) {
	for _, view := range []string{"erofs", "fuse"} {
		t.Run(view, func(t *testing.T) {
			repository := testutil.NewFaulty(t, serving(t))
			p := rung{view: view}.start(t, t.TempDir(), repository.URL)
			p.init(rung{view: view}, object{})
			dir := p.thinContainer("c1")
			repository.Set(testutil.Fault{Path: "/data/", Status: 404})
			if b, err := os.ReadFile(filepath.Join(dir, "data/a.txt")); err == nil {
				t.Fatalf("read %q", b)
			}
			images := p.status().Store.Images
			line := p.said.await(t, `msg="object can't be read"`)
			for _, want := range []string{
				" object=", " repo=" + fqrn, " images=" + images[0].Key, " layers=c1",
				" file=/data/a.txt", " server=" + repository.URL, " err=", " remedy=",
			} {
				if !strings.Contains(line, want) {
					t.Errorf("%q: want %q", line, want)
				}
			}
		})
	}
}

func TestDamagedImageIsToldWithWhoReadsIt(t *testing.T) {
	p := start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
	p.init(rung{view: "fuse"}, object{})
	dir := p.thinContainer("c1")
	key := p.status().Store.Images[0].Key
	f, err := os.OpenFile(p.root+rootDir+"/images/"+key+"/meta.erofs", os.O_WRONLY, 0)
	must(t, err)
	info, err := f.Stat()
	must(t, err)
	const superblock = 1024 + 128 // where it ends
	_, err = f.WriteAt(bytes.Repeat([]byte{0xff}, int(info.Size())-superblock), superblock)
	must(t, errors.Join(err, f.Close()))
	err = filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error { return err })
	if !errors.Is(err, syscall.EIO) {
		t.Errorf("a damaged image shows itself by %v", err)
	}
	line := p.said.await(t, `msg="composed image can't be read`)
	for _, want := range []string{" image=" + key, " layers=c1", " err="} {
		if !strings.Contains(line, want) {
			t.Errorf("%q: want %q", line, want)
		}
	}
}
