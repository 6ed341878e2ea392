package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// reader follows a document on an engine that has no plugin yet, in a folder with what the document expects there.
type reader struct {
	user
	dir string
	env []string
}

// newReader returns a reader with the bundle in its folder. It has an engine of its own, as tests on stands of their
// own.
func newReader(t *testing.T) *reader {
	t.Helper()
	r := &reader{user: onPlainStand(t, tools(t), stand.Options{}), dir: t.TempDir()}
	if err := os.CopyFS(filepath.Join(r.dir, filepath.Base(shared.bundle())), os.DirFS(shared.bundle())); err != nil {
		t.Fatal(err)
	}
	return r
}

// prepare brings what the guide takes for granted: the values of its variables, the files, a registry with both
// reference images.
func (r *reader) prepare() {
	r.Helper()
	registry := r.registry()
	r.env = []string{
		"VERSION=0.test", "REPOSITORY=" + stand.Repository, "PROXY=DIRECT", "KEY=key.pub", "PROGRAM=/bin/hello",
		"SERVER=" + strings.TrimSuffix(r.Site.URL(""), "/cvmfs/"), "IMAGE=" + registry + stand.Ordinary,
		"THIN=" + registry + stand.Thin,
	}
	for file, image := range map[string]string{"tiny.tar": stand.Ordinary, "thin_tiny.tar": stand.Thin} {
		r.load(file)
		r.docker("tag", image, registry+image)
		r.docker("push", registry+image)
	}
	for name, from := range map[string]string{
		"thin.json": testutil.Data(r, "images", "thin.json"),
		"key.pub":   testutil.Data(r, "keys", stand.Repository+".pub"),
	} {
		content, err := os.ReadFile(from)
		if err := errors.Join(err, os.WriteFile(filepath.Join(r.dir, name), content, 0o644)); err != nil {
			r.Fatal(err)
		}
	}
}

// restartLine is where a document has the engine restarted; here it is the test that does.
const restartLine = "systemctl restart docker\n"

// follow runs a block of a document's lines on a terminal and gives what it says.
func (r *reader) follow(block string) string {
	r.Helper()
	before, after, restart := strings.Cut(block, restartLine)
	said := r.terminal(before)
	if restart {
		r.restart()
		said += r.terminal(after)
	}
	return said
}

// restart restarts the engine with the settings of its machine's /etc/docker/daemon.json.
func (r *reader) restart() {
	r.Helper()
	said, err := r.Engine.Inside(r.Context(), "/etc/docker", "cat daemon.json").Output()
	if err != nil {
		r.Fatal(err)
	}
	settings := map[string]any{}
	if err := json.Unmarshal(said, &settings); err != nil {
		r.Fatalf("daemon.json: %v", err)
	}
	if err := errors.Join(r.Engine.Stop(r.Context()), r.Engine.Start(r.Context(), settings)); err != nil {
		r.Fatal(err)
	}
}

// terminal runs a script inside, on a terminal, which must succeed, and gives what is seen there.
func (r *reader) terminal(script string) string {
	r.Helper()
	master, slave, err := terminal()
	if err != nil {
		r.Skipf("needs a terminal: %v", err)
	}
	defer master.Close()
	cmd := r.Engine.Inside(r.Context(), r.dir, script)
	cmd.Env = append(cmd.Env, append(r.env, "TERM=dumb")...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	slave.Close()
	if err != nil {
		r.Fatal(err)
	}
	// Reading ends with EIO when the last process has closed the terminal.
	seen, readErr := io.ReadAll(master)
	if err := cmd.Wait(); err != nil || readErr != nil && !errors.Is(readErr, unix.EIO) {
		r.Fatalf("%s\n%s\n%v, %v", script, seen, err, readErr)
	}
	return strings.ReplaceAll(string(seen), "\r\n", "\n")
}

// terminal opens a new terminal's two sides.
func terminal() (master, slave *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}

// document reads a file of the repository.
func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// blocks returns the contents of a document's sh blocks.
func blocks(text string) []string {
	var found []string
	for _, match := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		found = append(found, match[1])
	}
	return found
}

func TestTheGuidesLinesWork(t *testing.T) {
	testutil.NeedRoot(t)
	if err := os.Mkdir("/alternative", 0o755); errors.Is(err, fs.ErrExist) {
		t.Skip("needs the machine to have no folder /alternative: the guide makes it")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll("/alternative"); err != nil {
			t.Error(err)
		}
	})
	r := newReader(t)
	r.prepare()
	const system = `(?s)NAME="Tiny".VERSION_ID=3`
	// What is seen after the block with this first line.
	seen := map[string]string{
		"docker info --format '{{.Driver}} {{.DriverStatus}}'": `my-graphdriver \[\[Backing`,
		"docker pull $IMAGE": system + ".*Downloaded.*" + system,
		"docker image inspect --format '{{json .GraphDriver.Data}}' $THIN": `"Repositories":"` + stand.Repository + "@",
		"mkdir -p my-image": "(?s)Successfully tagged my-image:latest.*" + system,
		"tar cf - thin.json | docker import - my-thin-image": "hello",
	}
	followed := map[string]bool{}
	for _, block := range blocks(document(t, "docs/guide.md")) {
		first, _, _ := strings.Cut(block, "\n")
		said := r.follow(block)
		followed[first] = true
		if want := seen[first]; !regexp.MustCompile(want).MatchString(said) {
			t.Errorf("after\n%sis seen\n%s\nwithout %s", block, said, want)
		}
	}
	for first := range seen {
		if !followed[first] {
			t.Errorf("no block begins with %q", first)
		}
	}
	if driver, plugins := r.docker("info", "--format", "{{.Driver}}"),
		r.docker("plugin", "ls", "--quiet"); driver != "overlay2" || plugins != "" {
		t.Errorf("after the guide's end the driver is %s, the plugins are %q", driver, plugins)
	}
}

// messages returns those that the guide's table explains.
func messages(guide string) []string {
	_, table, _ := strings.Cut(guide, "\n## What went wrong\n")
	var found []string
	for _, match := range regexp.MustCompile("(?m)^\\| `(.*?)` \\|").FindAllStringSubmatch(table, -1) {
		found = append(found, match[1])
	}
	return found
}

func TestTheGuideExplainsTheMessagesThatAreSeen(t *testing.T) {
	r := newReader(t)
	var told strings.Builder
	docker := func(args ...string) {
		t.Helper()
		said, err := r.Engine.Docker(t.Context(), args...)
		if err == nil {
			t.Errorf("docker %s said %q and did not fail", strings.Join(args, " "), said)
			return
		}
		fmt.Fprintln(&told, err)
	}
	// settle stops the engine and starts it with other settings.
	settle := func(starts bool, settings map[string]any) {
		t.Helper()
		if err := r.Engine.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		err := r.Engine.Start(t.Context(), settings)
		if starts != (err == nil) {
			t.Fatalf("with %v: %v", settings, err)
		}
		if err != nil {
			fmt.Fprintln(&told, strings.ReplaceAll(err.Error(), `\"`, `"`))
		}
	}
	const name = "my-graphdriver"
	archive := testutil.Data(t, "images", "thin_tiny.tar")

	r.terminal("rm -rf /etc/cvmfs")
	r.docker("plugin", "create", name, shared.bundle())
	docker("plugin", "enable", name)
	settle(false, map[string]any{"storage-driver": name})
	settle(false, map[string]any{"storage-driver": name, "experimental": true})
	settle(true, map[string]any{"storage-driver": "vfs"})
	r.terminal("mkdir /etc/cvmfs")
	r.docker("plugin", "enable", name)
	docker("plugin", "set", name, "DEBUG=1")
	settle(false, map[string]any{
		"storage-driver": name, "experimental": true,
		"storage-opts": []string{"cvmfs.repository=" + stand.Repository},
	})
	settle(true, map[string]any{"storage-driver": name, "experimental": true})
	docker("plugin", "disable", name)
	docker("load", "--input", archive)

	r.terminal("cp -r " + r.Config + "/. /etc/cvmfs/")
	if err := r.Site.Stop(); err != nil {
		t.Fatal(err)
	}
	r.docker("load", "--input", archive)
	docker("run", "--rm", "--network", "none", stand.Thin)
	if err := r.Site.Start(); err != nil {
		t.Fatal(err)
	}
	r.eventually("the server is tried again", func() error {
		_, err := r.Engine.Docker(t.Context(), "run", "--rm", "--network", "none", stand.Thin)
		return err
	})
	docker("run", "--rm", "--network", "none", "--storage-opt", "size=1G", stand.Thin)
	r.docker("rmi", stand.Thin)
	settle(true, map[string]any{
		"storage-driver": name, "experimental": true,
		"storage-opts": []string{"cvmfs.repositories=other.example.org"},
	})
	docker("load", "--input", archive)

	explained := messages(document(t, "docs/guide.md"))
	for _, message := range explained {
		if !strings.Contains(told.String(), message) {
			t.Errorf("the guide explains %q, which is not seen", message)
		}
	}
	if len(explained) < 8 || t.Failed() {
		t.Errorf("%d messages are explained; seen are\n%s", len(explained), told.String())
	}
}

// readme says of every line of the README's sh blocks how it is tested: it is run here, or by the test named.
var readme = map[string]string{
	"make demo":   "TestTheDemonstrationRunsBothImagesAndLeavesNothing",
	"make test":   "what runs this test; that it covers everything is looked at here",
	"make bundle": "every test here: its bundle is made so",
	"dist/bin/cvmfs-graphdriver repo ls --help": "",
	"dist/bin/docker2cvmfs make-thin --help":    "",
}

func TestTheReadmesLinesAreTested(t *testing.T) {
	tools(t)
	var lines []string
	for _, block := range blocks(document(t, "README.md")) {
		lines = append(lines, strings.Split(strings.TrimSpace(block), "\n")...)
	}
	for _, line := range lines {
		tested, known := readme[line]
		if !known {
			t.Errorf("README.md says %q, which no test runs", line)
		}
		if known && tested != "" {
			continue
		}
		// The programs are those that the tests have built.
		said, err := exec.Command("sh", "-euc", strings.Replace(line, "dist/", shared.dir+"/", 1)).CombinedOutput()
		if err != nil || !strings.Contains(string(said), "USAGE") {
			t.Errorf("%s: %v: %s", line, err, said)
		}
	}
	for line := range readme {
		if !slices.Contains(lines, line) {
			t.Errorf("README.md does not say %q any more", line)
		}
	}
	// The recipes that are too long to be run here do what is said of them.
	for target, does := range map[string]string{
		"demo": "test/demo -bundle ", "test": "test/report -count=1 -vet=off -ldflags=-w -timeout=60m ./...",
	} {
		recipe, err := exec.Command("make", "--directory", "../..", "--dry-run", target).CombinedOutput()
		if err != nil || !strings.Contains(string(recipe), does) {
			t.Errorf("make %s: %v: %s", target, err, recipe)
		}
	}
}
