package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

// startingProgram reads files, says who it is, and does what its last argument says: ends, ends badly, or serves.
const startingProgram = `package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// breakOut says what it can reach of the host.
func breakOut() {
	for _, name := range []string{"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
		"/sys/kernel/mm/transparent_hugepage/enabled"} {
		if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
			fmt.Println("REACHED: can write", name)
			f.Close()
		}
	}
	for _, name := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list"} {
		b := make([]byte, 16)
		if f, err := os.Open(name); err == nil {
			if n, _ := f.Read(b); n > 0 {
				fmt.Println("REACHED: can read", name)
			}
			f.Close()
		}
	}
	for _, dir := range []string{"/", "/dev", "/dev/shm"} {
		for name, mode := range map[string]uint32{"block": syscall.S_IFBLK, "char": syscall.S_IFCHR} {
			name = filepath.Join(dir, "made-"+name)
			device := 1<<8 | 5 // the character device is zero
			if mode == syscall.S_IFBLK {
				fmt.Sscan(os.Args[2], &device)
			}
			err := syscall.Mknod(name, mode|0600, device)
			if f, err2 := os.Open(name); err == nil && err2 == nil {
				fmt.Println("REACHED: opened", name)
				f.Close()
			}
		}
	}
	if f, err := os.Open("/image-zero"); err == nil {
		fmt.Println("REACHED: opened a device of the image")
		f.Close()
	}
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		to, _ := os.Readlink(l)
		if strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "/dev/null") {
			fmt.Println("REACHED: inherited", filepath.Base(l), to)
		}
	}
	if s, _, _ := syscall.RawSyscall(syscall.SYS_GETSID, 0, 0, 0); s != 1 {
		fmt.Println("REACHED: the session of the caller", s)
	}
	if l, err := net.Listen("tcp", "localhost:80"); err != nil {
		fmt.Println("LACKS:", err)
	} else {
		l.Close()
	}
	if f, err := os.OpenFile("/dev/stdout", os.O_WRONLY, 0); err != nil {
		fmt.Println("LACKS:", err)
	} else {
		f.Close()
	}
	if mask := syscall.Umask(0); mask != 022 {
		fmt.Printf("LACKS: umask %o\n", mask)
	}
	fmt.Println("breaking out has been tried")
}

// The program doesn't want to end with its parent.
func init() { syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, 0, 0) }

func main() {
	if os.Args[1] == "break-out" {
		breakOut()
		return
	}
	for _, name := range os.Args[2:] {
		if _, err := os.ReadFile(name); err != nil {
			fmt.Println(err)
			os.Exit(3)
		}
	}
	if err := os.WriteFile("/written", nil, 0o600); err != nil {
		fmt.Println("write:", err)
	}
	status, _ := os.ReadFile("/proc/self/status")
	dir, _ := os.Getwd()
	_, err := os.Stat("/proc/self/root/var/tmp")
	fmt.Printf("pid %d uid %d dir %s host %t env %s\n%s", os.Getpid(), os.Getuid(), dir, err == nil, os.Getenv("GREETING"), status)
	switch os.Args[1] {
	case "fail":
		os.Exit(7)
	case "serve":
		l, err := net.Listen("tcp", "127.0.0.1:8088")
		fmt.Println("serving:", err)
		for err == nil {
			_, err = l.Accept()
		}
	}
}
`

// startingImage is an image with the program and fifty files; one of nobody has a link where a container has /sys.
func startingImage(t *testing.T, config v1.Config) v1.Image {
	t.Helper()
	dir := t.TempDir()
	sure(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(startingProgram), 0o600))
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", "program", "main.go")
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "program"))
	sure(t, err)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name, content string, mode int64) {
		sure(t, w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}))
		_, err := w.Write([]byte(content))
		sure(t, err)
	}
	add("bin/start", string(program), 0o755)
	for i := range 50 {
		add(fmt.Sprintf("data/f%02d", i), strings.Repeat(fmt.Sprint("content of ", i, "\n"), 100), 0o644)
	}
	sure(t, w.WriteHeader(&tar.Header{Name: "image-zero", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 5}))
	if config.User == "nobody" {
		sure(t, w.WriteHeader(&tar.Header{Name: "sys", Typeflag: tar.TypeSymlink, Linkname: "/../../data"}))
	}
	sure(t, w.Close())
	image := mutate.MediaType(empty.Image, types.DockerManifestSchema2)
	image, err = mutate.AppendLayers(image, static.NewLayer(b.Bytes(), types.DockerUncompressedLayer))
	sure(t, err)
	image, err = mutate.Config(image, config)
	sure(t, err)
	return image
}

func sure(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// descriptorOf reads the descriptor of a thin image in a registry.
func descriptorOf(t *testing.T, registry *testutil.Registry, name string) *thin.Descriptor {
	t.Helper()
	ref, err := source.Parse(name, registry.URL+"/v2")
	sure(t, err)
	image, err := source.Open(t.Context(), ref, source.Options{})
	sure(t, err)
	defer image.Close()
	content, err := image.Layers[0].Content(t.Context(), nil)
	sure(t, err)
	defer content.Close()
	in := tar.NewReader(content)
	_, err = in.Next()
	sure(t, err)
	var text bytes.Buffer
	_, err = text.ReadFrom(in)
	sure(t, err)
	d, err := thin.Parse(text.Bytes())
	sure(t, err)
	return d
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the image is mounted")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs FUSE: ", err)
	}
}

func TestStartIsRecordedAndPublished(t *testing.T) {
	needsRoot(t)
	alone(t)
	registry := testutil.NewRegistry(t, "", "")
	registry.Push(t, "library/start:1", startingImage(t, v1.Config{
		Entrypoint: []string{"start"}, Cmd: []string{"end", "data/f07", "/data/f03"}, WorkingDir: "/",
		Env: []string{"PATH=/usr/bin:/bin", "GREETING=hello"}, User: "1000:1000",
	}), nil)
	target := "native:" + newPublisher(t)
	args := []string{
		"--registry", registry.URL + "/v2", "make-thin", "--target", target, "-i", "library/start:1", "-o", "library/start:thin",
	}
	must(t, args...)
	if d := descriptorOf(t, registry, "library/start:thin"); d.Profile != nil {
		t.Fatalf("there is a profile that nobody wanted: %+v", d.Profile)
	}

	file := filepath.Join(t.TempDir(), "profile")
	code, _, said := call(t, "--registry", registry.URL+"/v2", "profile", "record", "--target", target, "--output", file,
		"library/start:thin")
	if code != 0 || !strings.Contains(said, "until it ended") {
		t.Fatalf("%d: %s", code, said)
	}
	for _, want := range []string{"pid 1 uid 1000 dir / host false env hello", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "write:"} {
		if !strings.Contains(said, want) {
			t.Errorf("the program doesn't say %q:\n%s", want, said)
		}
	}
	b, err := os.ReadFile(file)
	sure(t, err)
	p, err := objects.ParseProfile(b)
	sure(t, err)
	const size = int64(len("content of 7\n") * 100)
	small := slices.DeleteFunc(slices.Clone(p), func(r objects.Read) bool { return r.Name.Size != size })
	if len(small) != 2 || len(p) < 3 {
		t.Errorf("the start reads the program and two files:\n%s", b)
	}

	// Published by hand, kept by a conversion that says nothing of it, and not recorded anew.
	must(t, slices.Concat(args[:2], []string{"profile", "attach"}, args[3:], []string{file})...)
	d := descriptorOf(t, registry, "library/start:thin")
	if d.Profile == nil {
		t.Fatal("no profile is named")
	}
	must(t, args...)
	if kept := descriptorOf(t, registry, "library/start:thin"); kept.Profile == nil || *kept.Profile != *d.Profile {
		t.Errorf("the profile was %+v, and is %+v", d.Profile, kept.Profile)
	}
	if out := must(t, append(args, "--json", "--profile", "record")...); !strings.Contains(out, `"unchanged":true`) {
		t.Error("it was recorded again: ", out)
	}

	// The program is cut where it is read, also if it is recorded once more.
	cut := func(d *thin.Descriptor) int {
		t.Helper()
		repo, err := publish.Open(strings.TrimPrefix(target, "native:"), publish.Options{})
		sure(t, err)
		v := publishtest.Newest(t, repo)
		files, err := v.List(t.Context(), d.Profile.Files())
		sure(t, err)
		chunks := 0
		for _, f := range files {
			chunks += len(f.Chunks)
		}
		all, err := v.List(t.Context(), d.Profile.AllFiles())
		sure(t, err)
		if len(all) != 1 {
			t.Errorf("files of %d profiles are there", len(all))
		}
		return chunks
	}
	if n := cut(d); n < 2 {
		t.Errorf("%d chunks are made for the start", n)
	}
	must(t, append(args, "--force", "--profile", "record")...)
	again := descriptorOf(t, registry, "library/start:thin")
	if n := cut(again); n < 2 {
		t.Errorf("%d chunks are made for the start, recorded again", n)
	}
}

func TestMakeThinRecords(t *testing.T) {
	needsRoot(t)
	alone(t)
	registry := testutil.NewRegistry(t, "", "")
	registry.Push(t, "library/serve:1", startingImage(t, v1.Config{
		Entrypoint: []string{"/bin/start"}, Cmd: []string{"serve", "/data/f01"},
	}), nil)
	args := []string{
		"--registry", registry.URL + "/v2", "make-thin", "--target", "native:" + newPublisher(t), "-i", "library/serve:1",
		"-o", "library/serve:thin", "--profile", "record", "--until-port", "8088", "--for", "60s",
	}
	code, _, said := call(t, args...)
	if code != 0 || !strings.Contains(said, "serving: <nil>") || !strings.Contains(said, "uid 0") ||
		!strings.Contains(said, "CapEff:\t00000000a00425fb") {
		t.Errorf("%d: %s", code, said)
	}
	if d := descriptorOf(t, registry, "library/serve:thin"); d.Profile == nil {
		t.Error("no profile is named")
	}
}

// An image's program can't reach what is the host's, be it root or another user, and can write where its output goes.
func TestProgramStaysInItsContainer(t *testing.T) {
	needsRoot(t)
	alone(t)
	registry := testutil.NewRegistry(t, "", "")
	registry.Push(t, "library/root:1", startingImage(t, v1.Config{}), nil)
	registry.Push(t, "library/user:1", startingImage(t, v1.Config{User: "1000"}), nil)
	target := "native:" + newPublisher(t)
	defer unix.Umask(unix.Umask(0o077))
	// As a shell passes on what it has open.
	open, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	sure(t, err)
	defer unix.Close(open)
	var disk unix.Stat_t
	sure(t, unix.Stat(t.TempDir(), &disk))
	for _, name := range []string{"root", "user"} {
		must(t, "--registry", registry.URL+"/v2", "make-thin", "--target", target, "-i", "library/"+name+":1", "-o",
			"library/"+name+":thin")
		code, _, said := call(t, "--registry", registry.URL+"/v2", "profile", "record", "--target", target,
			"library/"+name+":thin", "start", "break-out", strconv.FormatUint(disk.Dev, 10))
		if code != 0 || !strings.Contains(said, "breaking out has been tried") || strings.Contains(said, "REACHED") ||
			strings.Contains(said, "LACKS") {
			t.Errorf("%s: %d: %s", name, code, said)
		}
	}
}

// Killed as it is, the converter or its recorder leaves no process behind.
func TestNothingRunsOnWithoutTheConverter(t *testing.T) {
	needsRoot(t)
	alone(t)
	registry := testutil.NewRegistry(t, "", "")
	registry.Push(t, "library/start:1", startingImage(t, v1.Config{}), nil)
	target := "native:" + newPublisher(t)
	must(t, "--registry", registry.URL+"/v2", "make-thin", "--target", target, "-i", "library/start:1", "-o",
		"library/start:thin")
	for _, victim := range []string{"converter", "recorder"} {
		t.Run(victim, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "--registry", registry.URL+"/v2", "profile", "record", "--target", target,
				"--for", "1m", "library/start:thin", "start", "serve")
			cmd.Env = append(os.Environ(), asProgram+"=1")
			said, err := cmd.StderrPipe()
			sure(t, err)
			sure(t, cmd.Start())
			var lines []string
			for in := bufio.NewScanner(said); !slices.Contains(lines, "serving: <nil>") && in.Scan(); {
				lines = append(lines, in.Text())
			}
			children := descendants(cmd.Process.Pid)
			if len(children) != 2 {
				t.Fatalf("processes %v, want the recorder and the container: %q", children, lines)
			}
			if victim == "converter" {
				sure(t, cmd.Process.Kill())
			} else {
				sure(t, unix.Kill(children[0], unix.SIGKILL))
			}
			if err := cmd.Wait(); err == nil {
				t.Error("it went well")
			}
			for _, pid := range children {
				end := time.Now().Add(20 * time.Second)
				for ; unix.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
					if time.Now().After(end) {
						t.Errorf("process %d of %v is still there", pid, children)
						_ = unix.Kill(pid, unix.SIGKILL)
						break
					}
				}
			}
		})
	}
	// Folders that they had are removed by the next one.
	long := time.Now().Add(-time.Hour)
	for _, dir := range leftFolders(t) {
		sure(t, os.Chtimes(dir, long, long))
	}
	if code, _, said := call(t, "--registry", registry.URL+"/v2", "profile", "record", "--target", target,
		"library/start:thin", "start", "end"); code != 0 {
		t.Error(code, said)
	}
	if left := leftFolders(t); len(left) > 0 {
		t.Errorf("%v is left behind", left)
	}
}

func leftFolders(t *testing.T) (all []string) {
	t.Helper()
	for _, base := range []string{"/var/tmp", os.TempDir()} {
		dirs, err := filepath.Glob(filepath.Join(base, "cvmfs-record-*"))
		sure(t, err)
		all = append(all, dirs...)
	}
	return all
}

// descendants are the processes below one, from the top.
func descendants(pid int) []int {
	var all []int
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		_, rest, _ := strings.Cut(string(text), ") ") // state and parent
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			all = append(append(all, child), descendants(child)...)
		}
	}
	return all
}

func TestStartsThatAreNoneAreRefused(t *testing.T) {
	needsRoot(t)
	alone(t)
	registry := testutil.NewRegistry(t, "", "")
	registry.Push(t, "library/start:1", startingImage(t, v1.Config{}), nil)
	target := "native:" + newPublisher(t)
	must(t, "--registry", registry.URL+"/v2", "make-thin", "--target", target, "-i", "library/start:1", "-o",
		"library/start:thin")
	registry.Push(t, "library/link:1", startingImage(t, v1.Config{User: "nobody"}), nil)
	must(t, "--registry", registry.URL+"/v2", "make-thin", "--target", target, "-i", "library/link:1", "-o",
		"library/link:thin")
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"library/start:thin"}, "names no command"},
		{[]string{"library/start:thin", "nothing"}, "exit code 127"},
		{[]string{"library/start:thin", "/nothing"}, "exit code 127"},
		{[]string{"library/start:thin", "/data/f01"}, "exit code 126"},
		{[]string{"library/start:thin", "start", "fail"}, "exit code 7"},
		{[]string{"--until-port", "1", "library/start:thin", "start", "end"}, "before anybody listened at port 1"},
		{[]string{"library/start:1", "start"}, "is no thin image"},
		{[]string{"library/link:thin", "start", "end"}, "/sys of the image is no folder"},
	} {
		args := append([]string{"--registry", registry.URL + "/v2", "profile", "record", "--target", target}, c.args...)
		code, out, said := call(t, args...)
		if code != 1 || !strings.Contains(said, c.says) || out != "" {
			t.Errorf("%v: %d, %s%s", c.args, code, out, said)
		}
	}
	if left := leftFolders(t); len(left) > 0 {
		t.Errorf("%v is left behind", left)
	}
	for _, wrong := range []string{"--until-port=70000", "--until-port=-1", "--for=-1s"} {
		if code, _, said := call(t, "--registry", registry.URL+"/v2", "profile", "record", "--target", target, wrong,
			"library/start:thin", "start", "end"); code != 2 || !strings.Contains(said, "want a") {
			t.Errorf("%s: %d, %s", wrong, code, said)
		}
	}
}

func TestProfileIsShown(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p")
	const reads = "5798f7f4ca7585d850eea64610a1f73d8f8de7a3.z.2048\n" +
		"5798f7f4ca7585d850eea64610a1f73d8f8de7a3.zc.70000000 3-5\n"
	for version, want := range map[string]string{
		"1": "2 objects, 2KiB of them and 3 chunks\n", "2": "2 objects, 14KiB of them\n",
	} {
		sure(t, os.WriteFile(file, []byte("cvmfs start profile "+version+"\n"+reads), 0o600))
		if out := must(t, "profile", "show", file); out != want {
			t.Errorf("version %s: %s", version, out)
		}
	}
	sure(t, os.WriteFile(file, []byte("nonsense"), 0o600))
	if code, _, said := call(t, "profile", "show", file); code != 1 || !strings.Contains(said, "is none") {
		t.Errorf("%d: %s", code, said)
	}
}
