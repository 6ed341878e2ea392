package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/internal/child"
	"cvmfs-graphdriver/test/referenceimage"
	"cvmfs-graphdriver/test/testutil"
)

const underTest = "PLUGIN_UNDER_TEST" // in the environment: be the plugin

func TestMain(m *testing.M) {
	role := os.Getenv(underTest)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := loseCalls(os.Getenv("CVMFS_WITHOUT")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if role == probeCalls {
		tellCalls()
		return
	}
	main()
}

const fqrn = "images.example.org"

// shareFolder makes the folder $0, in a mount namespace, the plugin's propagated mount $1.
const shareFolder = `mount --make-rprivate /; mount -t tmpfs tmpfs /srv; mkdir "$1"; mount --bind "$0" "$1"`

// instance is the whole program, supervisor and server, in a mount namespace of its own as the engine would start it.
type instance struct {
	t      *testing.T
	cmd    *exec.Cmd
	root   string // the plugin's root as we reach it; "" for its own, /proc/PID/root
	client *http.Client
	ended  chan error
	said   said
}

// said is what a program has written.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

// lines returns those with a text.
func (s *said) lines(with string) (lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(s.b.String()) {
		if strings.Contains(line, with) {
			lines = append(lines, line)
		}
	}
	return lines
}

// await returns the first line with a text; it may still be on its way to us.
func (s *said) await(t *testing.T, with string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if lines := s.lines(with); len(lines) > 0 {
			return lines[0]
		}
		if time.Now().After(deadline) {
			t.Fatalf("the program never says %q", with)
		}
	}
}

// start runs the plugin on a folder that stands for its propagated mount, configured for the repository at url, with
// some more variables in its environment.
func start(t *testing.T, mnt, url string, env ...string) *instance {
	t.Helper()
	return startWith(t, mnt, map[string]string{fqrn: url}, env...)
}

// startWith is start for several repositories.
func startWith(t *testing.T, mnt string, urls map[string]string, env ...string) *instance {
	t.Helper()
	return startConfigured(t, mnt, testutil.Configure(t, urls), env...)
}

// startConfigured is start with a folder of configuration.
func startConfigured(t *testing.T, mnt, config string, env ...string) *instance {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs FUSE: ", err)
	}
	p := &instance{t: t, ended: make(chan error, 1)}
	p.cmd = exec.Command("/bin/sh", "-ec", shareFolder+`; mount -t tmpfs tmpfs /run; exec "$2"`, mnt, rootDir,
		os.Args[0])
	p.cmd.Env = append(os.Environ(), underTest+"=1", "DEBUG=1", "CVMFS_EXT_CONFIG="+config)
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	p.launch()
	return p
}

// launch starts the program and waits until it answers.
func (p *instance) launch() {
	t := p.t
	t.Helper()
	out := io.MultiWriter(t.Output(), &p.said)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	must(t, child.Start(p.cmd))
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(p.stop)
	if p.root == "" {
		p.root = fmt.Sprintf("/proc/%d/root", p.cmd.Process.Pid)
	}
	p.client = &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", p.root+socket)
		}},
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", p.root+socket)
		if err == nil {
			must(t, c.Close())
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the plugin doesn't come up: ", err)
		}
	}
}

// rung is a way the driver works on some kernel, forced on this one.
type rung struct {
	view string // the option cvmfs.view
	// what of the kernel isn't used, or isn't there: CVMFS_WITHOUT, with the words of missingCalls besides
	without string
}

// forRungs runs a test on every rung.
func forRungs(t *testing.T, f func(t *testing.T, r rung)) {
	for _, r := range []rung{
		{"erofs", ""},
		{"fuse", ""},
		{"erofs", "mountapi"},
		{"erofs", "metacopy=off"},
		{"erofs", "openat2"},
		{"fuse", "mountapi,resend"},
		{"auto", "parameters,data,filebacked,resend"}, // Linux 5.2 to 6.4
		{"fuse", "newcalls,resend"},
	} {
		t.Run(r.String(), func(t *testing.T) { f(t, r) })
	}
}

// String names the rung.
func (r rung) String() string { return strings.TrimSuffix(r.view+" without "+r.without, " without ") }

// start runs the plugin on the rung.
func (r rung) start(t *testing.T, mnt, url string) *instance {
	t.Helper()
	return start(t, mnt, url, "CVMFS_WITHOUT="+r.without)
}

// init initialises the plugin for the rung.
func (p *instance) init(r rung, args object) {
	p.t.Helper()
	args["Home"], args["Opts"] = "/mnt/x", []string{"cvmfs.view=" + r.view}
	if text := p.call("Init", args)["Err"]; text != nil {
		if r.view == "erofs" && strings.Contains(fmt.Sprint(text), "this kernel") {
			testutil.KernelLacks(p.t, "the erofs view")
		}
		p.t.Fatal("Init: ", text)
	}
}

// view returns what the plugin says of the view in use, "" for nothing.
func (p *instance) view() string {
	p.t.Helper()
	for _, line := range p.ok("Status", object{})["Status"].([]any) {
		if pair := line.([]any); pair[0] == "View" {
			return pair[1].(string)
		}
	}
	return ""
}

// stop ends the plugin as the engine does.
func (p *instance) stop() {
	if p.cmd.ProcessState != nil {
		return
	}
	p.client.CloseIdleConnections()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case err := <-p.ended:
		if err != nil {
			p.t.Error("the plugin's end: ", err)
		}
	case <-time.After(15 * time.Second):
		p.t.Error("the plugin didn't end on SIGTERM")
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type object = map[string]any

// post calls a method; like the engine it repeats a call that meets no server.
func (p *instance) post(path string, body []byte) (*http.Response, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		resp, err := p.client.Post("http://plugin/"+path, "", bytes.NewReader(body))
		if err == nil || time.Now().After(deadline) {
			return resp, err
		}
	}
}

func (p *instance) call(method string, args object) object {
	p.t.Helper()
	b, err := json.Marshal(args)
	must(p.t, err)
	resp, err := p.post("GraphDriver."+method, b)
	must(p.t, err)
	return p.decode(resp)
}

func (p *instance) decode(resp *http.Response) object {
	p.t.Helper()
	defer resp.Body.Close()
	var a object
	must(p.t, json.NewDecoder(resp.Body).Decode(&a))
	return a
}

func (p *instance) ok(method string, args object) object {
	p.t.Helper()
	a := p.call(method, args)
	if a["Err"] != nil {
		p.t.Fatalf("%s %v: %v", method, args, a["Err"])
	}
	return a
}

// apply makes a layer and gives the error's text.
func (p *instance) apply(id, parent string, archive []byte) string {
	p.t.Helper()
	p.ok("Create", object{"ID": id, "Parent": parent})
	resp, err := p.post("GraphDriver.ApplyDiff?id="+id+"&parent="+parent, archive)
	must(p.t, err)
	text, _ := p.decode(resp)["Err"].(string)
	return text
}

// applyTwins makes the layers of the reference image and its twin, a thin layer with the id thin, and gives the topmost
// ordinary one.
func (p *instance) applyTwins() (top string) {
	p.t.Helper()
	for n, a := range referenceimage.Ordinary(p.t) {
		id := fmt.Sprint("layer", n)
		if text := p.apply(id, top, a); text != "" {
			p.t.Fatal(text)
		}
		top = id
	}
	if text := p.apply("thin", "", archive(p.t, map[string]string{"thin.json": referenceimage.Descriptor(p.t)})); text != "" {
		p.t.Fatal(text)
	}
	return top
}

// container makes a container's layers on an image and gives its root as we reach it.
func (p *instance) container(id, parent string) string {
	p.t.Helper()
	p.ok("CreateReadWrite", object{"ID": id + "-init", "Parent": parent})
	p.ok("CreateReadWrite", object{"ID": id, "Parent": id + "-init"})
	dir, _ := p.ok("Get", object{"ID": id})["Dir"].(string)
	return p.root + dir
}

func (p *instance) status() (s status.Node) {
	p.t.Helper()
	resp, err := p.post("CvmfsGraphDriver.Status", nil)
	must(p.t, err)
	defer resp.Body.Close()
	must(p.t, json.NewDecoder(resp.Body).Decode(&s))
	return s
}

// archive makes a layer's archive.
func archive(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, body := range files {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body))}))
		_, err := w.Write([]byte(body))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// tree describes a root file system, contents included.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %s %d:%d", strings.TrimPrefix(path, dir), info.Mode(), st.Uid, st.Gid)
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %q", info.ModTime().Unix(), b)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			// a link's permissions mean nothing, and repositories have others
			line = strings.TrimPrefix(path, dir) + " -> " + target
		}
		lines = append(lines, line)
		return nil
	}))
	sort.Strings(lines)
	return lines
}

func TestThinImageShowsWhatTheOrdinaryOneDoes(t *testing.T) {
	forRungs(t, func(t *testing.T, r rung) {
		t.Run("plain", func(t *testing.T) { compareThinAndOrdinary(t, r, nil) })
		t.Run("userns-remap", func(t *testing.T) {
			compareThinAndOrdinary(t, r, []object{{"container_id": 0, "host_id": 100000, "size": 65536}})
		})
	})
}

func compareThinAndOrdinary(t *testing.T, r rung, maps []object) {
	p := r.start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
	p.init(r, object{"UIDMaps": maps, "GIDMaps": maps})
	parent := p.applyTwins()
	if s := p.status(); s.Objects.Fetched != 0 || len(s.Store.Images) != 1 {
		t.Errorf("after the pull: %d objects, images %+v", s.Objects.Fetched, s.Store.Images)
	}
	ordinary, thin := p.container("c1", parent), p.container("c2", "thin")
	if d := cmp.Diff(tree(t, ordinary), tree(t, thin)); d != "" {
		t.Errorf("-ordinary +thin\n%s", d)
	}
	if first := tree(t, thin)[0]; maps != nil && !strings.HasSuffix(first, "100000:100000") {
		t.Errorf("owner of the root: %s", first)
	}
	s := p.status()
	if s.Objects.Fetched == 0 || s.Fetch[fqrn].Bytes == 0 || s.Memory.Heap == 0 || len(s.Store.Mounts) != 2 {
		t.Errorf("status: %+v", s)
	}
	m, _ := p.ok("GetMetadata", object{"ID": "c2"})["Metadata"].(object)
	if got := fmt.Sprint(m["Repositories"]); !strings.HasPrefix(got, fqrn+"@") {
		t.Errorf("metadata: %v", m)
	}
	for _, id := range []string{"c1", "c2"} {
		p.ok("Put", object{"ID": id})
		p.ok("Remove", object{"ID": id})
		p.ok("Remove", object{"ID": id + "-init"})
	}
	p.ok("Remove", object{"ID": "thin"})
	if left, err := os.ReadDir(p.root + rootDir + "/images"); err != nil || len(left) > 0 {
		t.Errorf("images left: %v, %v", left, err)
	}
}

// Ordinary layers below and above a thin one, and what a container on top of all changes.
func TestLayersOfBothKindsMix(t *testing.T) { forRungs(t, mixLayers) }

func mixLayers(t *testing.T, r rung) {
	p := r.start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
	p.init(r, object{})
	for _, l := range []struct {
		id, parent string
		files      map[string]string
	}{
		{"below", "", map[string]string{"data/a.txt": "from below", "data/below.txt": "below", "etc/below": "kept"}},
		{"thin", "below", map[string]string{"thin.json": referenceimage.Descriptor(t)}},
		{"above", "thin", map[string]string{"data/b.txt": "from above", "data/.wh.blob": ""}},
	} {
		if text := p.apply(l.id, l.parent, archive(t, l.files)); text != "" {
			t.Fatal(text)
		}
	}
	dir := p.container("c1", "above")
	for name, want := range map[string]string{
		"data/a.txt": "a is back", "data/b.txt": "from above",
		"etc/below": "kept", "data/owned": "",
	} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || want != "" && !strings.HasPrefix(string(b), want) {
			t.Errorf("%s: %q, %v; want %q", name, b, err, want)
		}
	}
	for _, name := range []string{"data/blob", "thin.json"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is visible: %v", name, err)
		}
	}
	fetched := p.status().Objects.Fetched
	must(t, os.WriteFile(filepath.Join(dir, "data/a.txt"), []byte("changed"), 0o644))
	must(t, os.Chmod(filepath.Join(dir, "data/owned"), 0o600))
	must(t, os.Remove(filepath.Join(dir, "etc/below")))
	changes, _ := json.Marshal(p.ok("Changes", object{"ID": "c1", "Parent": "c1-init"})["Changes"])
	want := `[{"Kind":0,"Path":"/data"},{"Kind":0,"Path":"/data/a.txt"},{"Kind":0,"Path":"/data/owned"},{"Kind":0,"Path":"/etc"},{"Kind":2,"Path":"/etc/below"}]`
	if d := cmp.Diff(want, string(changes)); d != "" {
		t.Errorf("changes: -want +got\n%s", d)
	}
	t.Logf("objects: %d before the changes, %d after", fetched, p.status().Objects.Fetched)
	// Committed, and run again.
	resp, err := p.post("GraphDriver.Diff", []byte(`{"ID":"c1","Parent":"c1-init"}`))
	must(t, err)
	defer resp.Body.Close()
	diff, err := io.ReadAll(resp.Body)
	must(t, err)
	if text := p.apply("committed", "above", diff); text != "" {
		t.Fatal(text)
	}
	if d := cmp.Diff(tree(t, dir), tree(t, p.container("c2", "committed"))); d != "" {
		t.Errorf("-container +committed\n%s", d)
	}
}

func TestContainerOutlivesTheServer(t *testing.T) { forRungs(t, outliveServer) }

func outliveServer(t *testing.T, r rung) {
	p := r.start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
	p.init(r, object{})
	if text := p.apply("thin", "", archive(t, map[string]string{"thin.json": referenceimage.Descriptor(t)})); text != "" {
		t.Fatal(text)
	}
	dir := p.container("c1", "thin")
	open, err := os.Open(filepath.Join(dir, "data/a.txt"))
	must(t, err)
	defer open.Close()
	for round := range 3 {
		must(t, syscall.Kill(p.status().PID, syscall.SIGKILL))
		if b, err := os.ReadFile(filepath.Join(dir, "data/b.txt")); err != nil || len(b) == 0 {
			t.Errorf("round %d: %q, %v", round, b, err)
		}
		if got := p.ok("Get", object{"ID": "c1"})["Dir"]; p.root+fmt.Sprint(got) != dir {
			t.Errorf("round %d: Get gave %v", round, got)
		}
		p.ok("Put", object{"ID": "c1"})
	}
	if b, err := io.ReadAll(open); err != nil || !bytes.HasPrefix(b, []byte("a is back")) {
		t.Errorf("file that was open all the time: %q, %v", b, err)
	}
	p.ok("Put", object{"ID": "c1"})
	if n := len(p.status().Store.Mounts); n != 0 {
		t.Errorf("%d layers are still mounted", n)
	}
}

func TestRestartedPluginServesWithoutTheNetwork(t *testing.T) { forRungs(t, restartWithoutNetwork) }

func restartWithoutNetwork(t *testing.T, r rung) {
	mnt := t.TempDir()
	p := r.start(t, mnt, testutil.ServeReference(t, fqrn))
	p.init(r, object{})
	if text := p.apply("thin", "", archive(t, map[string]string{"thin.json": referenceimage.Descriptor(t)})); text != "" {
		t.Fatal(text)
	}
	want := tree(t, p.container("c1", "thin"))
	p.stop()
	p = r.start(t, mnt, "http://127.0.0.1:1/nobody-listens")
	// The engine restarted the plugin and doesn't know: no Init.
	dir := p.root + fmt.Sprint(p.ok("Get", object{"ID": "c1"})["Dir"])
	if d := cmp.Diff(want, tree(t, dir)); d != "" {
		t.Errorf("-before +after\n%s", d)
	}
	// A pull meanwhile is accepted; running it says why it can't.
	if text := p.apply("above", "thin", archive(t, map[string]string{"x": "x"})); text != "" {
		t.Error(text)
	}
	if text := p.apply("later", "above", archive(t, map[string]string{"thin.json": referenceimage.Descriptor(t)})); text != "" {
		t.Error(text)
	}
	p.ok("CreateReadWrite", object{"ID": "c2", "Parent": "later"})
	if text := fmt.Sprint(p.call("Get", object{"ID": "c2"})["Err"]); !strings.Contains(text, "127.0.0.1:1") {
		t.Errorf("Get of a layer that was never composed: %s", text)
	}
}

func TestRepositoryThatMayNotBeUsedIsRefusedByName(t *testing.T) {
	p := start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
	p.ok("Init", object{"Opts": []string{"cvmfs.repositories=other.example.org"}})
	thin := archive(t, map[string]string{"thin.json": referenceimage.Descriptor(t)})
	if text := p.apply("thin", "", thin); !strings.Contains(text, fqrn) || !strings.Contains(text, "allowed") {
		t.Errorf("not allowed: %q", text)
	}
	p.ok("Init", object{"Opts": []string{}})
	other := archive(t, map[string]string{"thin.json": strings.ReplaceAll(referenceimage.Descriptor(t), fqrn, "other.example.org")})
	if text := p.apply("thin", "", other); !strings.Contains(text, "other.example.org") ||
		!strings.Contains(text, "configured") {
		t.Errorf("not configured: %q", text)
	}
	if text := p.apply("thin", "", thin); text != "" {
		t.Error(text)
	}
}

func TestErrorsAloneAreLoggedToStandardError(t *testing.T) {
	for debug, want := range map[string][2]string{
		"": {"IW", "E"}, "0": {"IW", "E"}, "1": {"DIW", "E"},
		"true": {"DIW", "E"}, "Yes": {"DIW", "E"},
	} {
		var low, high bytes.Buffer
		log := slog.New(newHandler(&low, &high, debug)).With("a", 1).WithGroup("g")
		log.Debug("D")
		log.Info("I")
		log.Warn("W")
		log.Error("E")
		letters := func(b *bytes.Buffer) (s string) {
			for line := range strings.Lines(b.String()) {
				_, msg, _ := strings.Cut(line, "msg=")
				s += msg[:1]
			}
			return s
		}
		if got := [2]string{letters(&low), letters(&high)}; got != want {
			t.Errorf("DEBUG=%q: %q, want %q", debug, got, want)
		}
	}
}
