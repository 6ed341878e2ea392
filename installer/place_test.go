package installer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/rootfs"
)

// Environment variables of a child that the tests start to kill it.
const (
	childVariable = "TEST_INSTALLER_CHILD" // what it does, and the fake engine's places
	killVariable  = "TEST_INSTALLER_KILL"  // how many points it passes before it kills itself
)

func TestMain(m *testing.M) {
	if what, ok := os.LookupEnv(childVariable); ok {
		if err := child(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// place is where the fake engine and the host's files are.
type place struct{ socket, file, dropIn, record, folder, program string }

func (p place) String() string {
	return strings.Join([]string{p.socket, p.file, p.dropIn, p.record, p.folder, p.program}, ",")
}

func placeOf(f *fakeEngine) place {
	dir := filepath.Dir(f.socket)
	return place{
		socket: f.socket, file: f.file, dropIn: filepath.Join(dir, "drop-in.conf"),
		record: filepath.Join(dir, "lib/install.json"),
		folder: filepath.Join(dir, "etc/cvmfs"), program: pluginProgram(f.t),
	}
}

// fakeService restarts the fake engine, and keeps a drop-in.
type fakeService struct{ socket, dropIn string }

func (s fakeService) Restart(ctx context.Context, ping func(context.Context) error) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
		},
	}}
	answer, err := client.Post("http://engine/restart", "", nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		cause, _ := io.ReadAll(answer.Body)
		return fmt.Errorf("the engine doesn't start: %s", strings.TrimSpace(string(cause)))
	}
	return ping(ctx)
}

func (s fakeService) Running(ctx context.Context, _ *daemonjson.File) *Running {
	if !answers(ctx, s.socket) {
		return nil
	}
	return &Running{"docker.service", "systemctl stop docker.service"}
}

func (s fakeService) ByHand() string { return "systemctl restart docker" }
func (s fakeService) DropIn() string { return s.dropIn }
func (s fakeService) WriteDropIn(context.Context) error {
	return os.WriteFile(s.dropIn, []byte("x"), 0o644)
}

func (s fakeService) RemoveDropIn(context.Context) error {
	if err := os.Remove(s.dropIn); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (p place) installer() (*Installer, error) {
	engine, err := Connect(p.socket)
	if err != nil {
		return nil, err
	}
	return &Installer{
		Engine: engine, Service: fakeService{p.socket, p.dropIn}, Record: p.record, Hello: p.program,
		Tell: func(Event) {}, Ask: func(context.Context, []string) error { return nil },
	}, nil
}

// newInstaller returns an installer for the place.
func (p place) newInstaller(t *testing.T) *Installer {
	t.Helper()
	i, err := p.installer()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// newInstall returns an installer, and what an install is usually asked for.
func (p place) newInstall(t *testing.T) (*Installer, Wishes) {
	t.Helper()
	w, err := p.wishes()
	if err != nil {
		t.Fatal(err)
	}
	return p.newInstaller(t), w
}

func (p place) wishes() (Wishes, error) {
	b, err := p.bundle("1")
	return Wishes{
		Name: DefaultName, Bundle: b, File: p.file, Settings: []string{"DEBUG=1"}, Folders: []string{p.folder},
		Preflight: func(context.Context) (bool, error) { return true, nil },
		Validate:  func(context.Context, *daemonjson.File) error { return nil },
	}, err
}

func (p place) bundle(version string) (*bundle.Bundle, error) {
	return bundle.New(p.program, rootfs.Build{Version: version, Time: time.Unix(0, 0)})
}

// act does one of the things users do.
func (p place) act(i *Installer, what string) error {
	ctx := context.Background()
	switch what {
	case "install":
		w, err := p.wishes()
		if err != nil {
			return err
		}
		return i.Install(ctx, w)
	case "upgrade":
		b, err := p.bundle("2")
		if err != nil {
			return err
		}
		return i.Upgrade(ctx, Renewal{Bundle: b, File: p.file})
	case "uninstall":
		return i.Uninstall(ctx, Leave{File: p.file})
	case "purge":
		return i.Uninstall(ctx, Leave{File: p.file, Purge: true})
	}
	return fmt.Errorf("unknown: %s", what)
}

// child does what a test says, and kills itself on the way.
func child(spec string) error {
	what, rest, _ := strings.Cut(spec, ":")
	w := strings.Split(rest, ",")
	p := place{w[0], w[1], w[2], w[3], w[4], w[5]}
	i, err := p.installer()
	if err != nil {
		return err
	}
	left, err := strconv.Atoi(os.Getenv(killVariable))
	if err != nil {
		return err
	}
	i.inject = func(string) error {
		if left--; left < 0 {
			return unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		return nil
	}
	return p.act(i, what)
}

// killedAt does it in a process of its own that is killed at the n-th point, if there are as many. The error is that of
// a process that wasn't killed, with what it said.
func (p place) killedAt(what string, n int) (killed bool, out []byte, err error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+what+":"+p.String(), killVariable+"="+strconv.Itoa(n))
	out, err = cmd.CombinedOutput()
	if cmd.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() {
		return true, out, nil
	}
	return false, out, err
}

// failAt does it, and fails at the n-th point, which is told; "" if there aren't as many.
func (p place) failAt(t *testing.T, what string, n int) (where string, err error) {
	t.Helper()
	i := p.newInstaller(t)
	i.inject = func(point string) error {
		if n--; n == -1 {
			where = point
			return errors.New("injected")
		}
		return nil
	}
	return where, p.act(i, what)
}

// pluginProgram is what passes for a static program in a bundle: the head of one.
func pluginProgram(t testing.TB) string {
	t.Helper()
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]
	head := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Phoff: 64, Ehsize: 64,
		Phentsize: 56, Phnum: 1,
	}
	copy(head.Ident[:], elf.ELFMAG)
	head.Ident[elf.EI_CLASS], head.Ident[elf.EI_DATA], head.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64),
		byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	var b bytes.Buffer
	err := errors.Join(binary.Write(&b, binary.LittleEndian, head),
		binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD)}))
	program := filepath.Join(t.TempDir(), "plugin")
	if err := errors.Join(err, os.WriteFile(program, b.Bytes(), 0o755)); err != nil {
		t.Fatal(err)
	}
	return program
}

const administrators = "{\n\t\"log-driver\": \"json-file\",\n\t\"storage-driver\": \"overlay2\"\n}\n"

// host is a fake engine with a configuration of the administrator's.
func newHost(t *testing.T) (*fakeEngine, place) {
	t.Helper()
	f := newFakeEngine(t)
	p := placeOf(f)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p.file), 0o755),
		os.WriteFile(p.file, []byte(administrators), 0o640)); err != nil {
		t.Fatal(err)
	}
	f.change(func() { f.remapped = true })
	return f, p
}

// snapshot is all of a host that an installer may change.
func (p place) snapshot(t *testing.T, f *fakeEngine) string {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "up %v driver %s\n", f.up, f.driver)
	for name, plugin := range f.plugins {
		fmt.Fprintf(&b, "plugin %s enabled %v %s %v\n", name, plugin.Enabled, plugin.Config.Description,
			plugin.Settings.Env)
	}
	dir := filepath.Dir(p.socket)
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name == filepath.Dir(p.record) { // its own
			return filepath.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%v %s", info.Mode(), strings.TrimPrefix(name, dir))
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", content)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// isAsBefore makes sure that the configuration file is the administrator's; when tells at what time.
func (p place) isAsBefore(t *testing.T, when string, args ...any) {
	t.Helper()
	if b, err := os.ReadFile(p.file); err != nil || string(b) != administrators {
		t.Errorf("%s: the configuration is %q, %v", fmt.Sprintf(when, args...), b, err)
	}
}

// try does it.
func (p place) try(t *testing.T, what string) error {
	t.Helper()
	return p.act(p.newInstaller(t), what)
}

// must does it.
func (p place) must(t *testing.T, what string) {
	t.Helper()
	if err := p.try(t, what); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// begun brings a host to where an operation begins.
func begun(t *testing.T, what string) (*fakeEngine, place) {
	f, p := newHost(t)
	if what != "install" {
		p.must(t, "install")
		layOut(t, f, p, DefaultName)
	}
	return f, p
}

// layOut lays out the plugin's root file system as an engine does, with what a plugin's process is given.
func layOut(t *testing.T, f *fakeEngine, p place, name string) {
	t.Helper()
	b, err := p.bundle("1")
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(t.TempDir(), "bundle")
	root := filepath.Join(f.root, "plugins", f.plugins[name].ID, "rootfs")
	if err := errors.Join(b.WriteFolder(folder), os.RemoveAll(root),
		os.CopyFS(root, os.DirFS(filepath.Join(folder, "rootfs"))),
		keepConfig(f, b, name), os.WriteFile(filepath.Join(root, "etc/hosts"), nil, 0o755),
		os.Symlink("/proc/mounts", filepath.Join(root, "etc/mtab"))); err != nil {
		t.Fatal(err)
	}
}

// keepConfig keeps a plugin's config.json as an engine does.
func keepConfig(f *fakeEngine, b *bundle.Bundle, name string) error {
	plugins := filepath.Join(f.root, "plugins")
	digest := fmt.Sprintf("%x", sha256.Sum256(b.ConfigJSON()))
	blobs := filepath.Join(plugins, "storage/blobs/sha256")
	return errors.Join(os.MkdirAll(blobs, 0o700), os.WriteFile(filepath.Join(blobs, digest), b.ConfigJSON(), 0o600),
		os.WriteFile(filepath.Join(plugins, f.plugins[name].ID, "config.json"),
			[]byte(`{"plugin":{},"Config":"sha256:`+digest+`"}`), 0o600))
}
