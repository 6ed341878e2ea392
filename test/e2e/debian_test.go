package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"cvmfs-graphdriver/test/debian"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// packaged makes the Debian package of the programs and the bundle that the tests have, in a folder.
func packaged(t *testing.T, dir string) {
	t.Helper()
	programs := filepath.Join(t.TempDir(), runtime.GOARCH)
	if err := os.MkdirAll(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cvmfs-graphdriver", "cvmfs-graphdriver-plugin", "cvmfs-snapshotter", "docker2cvmfs"} {
		if err := os.Symlink(filepath.Join(shared.dir, "bin", name), filepath.Join(programs, name)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "run", "./packaging", "-version", "0.test", "-arch", runtime.GOARCH, "-maintainer",
		"Tests <tests@example.org>",
		"-programs", filepath.Dir(programs), "-bundles", shared.dir, "-output", dir)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make a package: %v: %s", err, out)
	}
}

// transcript is docs/install.md's section on a fresh Debian 12: the blocks of lines, and the steps with their outcomes
// that are seen.
func transcript(t *testing.T) (lines, steps []string) {
	t.Helper()
	_, section, found := strings.Cut(document(t, "docs/install.md"), "\n## A fresh Debian 12\n")
	if !found {
		t.Fatal("docs/install.md has no section on a fresh Debian 12")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return blocks(section), regexp.MustCompile(`(?m)^[a-z][a-z. -]{14} (done|unchanged)\b`).FindAllString(section, -1)
}

// mark comes before what a block's lines say.
const mark = "=== block "

// As a new user would: Debian 12 with docker.io as it was just installed, the package, and the document's lines.
func TestTheInstallDocumentsLinesWorkOnAFreshDebian(t *testing.T) {
	s, err := stand.NewPlain(t.Context(), stand.Options{
		Tools: tools(t), Bundle: shared.bundle(),
		Testdata: testutil.Data(t),
	})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	// The stand's engine only fills the registry.
	r := &reader{user: user{t, s}, dir: t.TempDir()}
	r.prepare()
	packaged(t, r.dir)

	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	m, err := debian.New(cache, debian.Docker, t.TempDir(), r.dir)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "runc"),
		[]byte(engine.RuncScript("/usr/sbin/runc.debian", "/var/run/docker.pid")), 0o755); err != nil {
		t.Fatal(err)
	}
	script := "mv /usr/sbin/runc /usr/sbin/runc.debian; cp /mnt/runc /usr/sbin\ncp /mnt/*.deb /mnt/key.pub /root; cd /root\n"
	for _, variable := range r.env {
		script += "export " + variable + "\n"
	}
	script += "service docker start\ntimeout 60 sh -c 'until docker info >/dev/null 2>&1; do sleep 0.2; done'\n" +
		"before=$(docker info --format '{{.Driver}}')\ntrap 'tail -n 50 /var/log/docker.log' EXIT\n"
	lines, steps := transcript(t)
	for n, block := range lines {
		script += fmt.Sprintf("echo '%s%d'\n%s", mark, n, block)
	}
	script += fmt.Sprintf(`echo '%s%d'
test "$(docker info --format '{{.Driver}}')" = "$before"
test ! -e /etc/docker/daemon.json
test -z "$(docker plugin ls --quiet)"
service docker stop
trap - EXIT
`, mark, len(lines))
	said, err := m.Run(t.Context(), script)
	if err != nil {
		t.Fatal(err)
	}
	const system = `(?s)NAME="Tiny".VERSION_ID=3`
	// What is seen after the blocks that have this line.
	for line, want := range map[string]string{
		`cvmfs-graphdriver install --yes --thin-image "$THIN"`: `(?s)create and enable the plugin.*ordinary image +done +an image made here runs.*thin image +done .*, pulled, runs.*runs on cvmfs-graphdriver`,
		`docker run --rm --network none "$IMAGE"`:              system + ".*" + system,
		`cvmfs-graphdriver test --thin-image "$THIN"`:          `(?s)nothing was changed.*driver +done.*thin image +done`,
		`cvmfs-graphdriver uninstall --yes --purge`:            `the plugin cvmfs-graphdriver is gone`,
	} {
		seen := false
		for n, block := range lines {
			if !strings.Contains(block, line+"\n") {
				continue
			}
			seen = true
			_, after, _ := strings.Cut(said, fmt.Sprintf("%s%d\n", mark, n))
			after, _, _ = strings.Cut(after, mark)
			if !regexp.MustCompile(want).MatchString(after) {
				t.Errorf("after\n%sis seen\n%s\nwithout %s", block, after, want)
			}
		}
		if !seen {
			t.Errorf("docs/install.md doesn't say %q any more", line)
		}
	}
	if len(steps) < 10 {
		t.Errorf("docs/install.md shows the steps %q", steps)
	}
	rest := said
	for _, step := range steps {
		var found bool
		if _, rest, found = strings.Cut(rest, "\n"+step); !found {
			t.Errorf("docs/install.md shows %q, which is not seen there in\n%s", step, said)
			break
		}
	}
}
