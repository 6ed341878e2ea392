package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// operation is something a user does with an image.
type operation struct {
	name  string // of what it tests: words of the docker command
	short bool   // it is also tested on the newer engine
	do    func(u user, image string)
}

// Operations that fail where owners are shifted; see TestImagesRunInUserNamespaces.
const (
	withBuildKit = "build with BuildKit"
	copyFrom     = "build with files of an image"
)

// operations are tested on images of every mixture; see mixtures.
var operations = []operation{
	{"run with a user, an environment and a working folder", true, runAs},
	{"run read-only, with volumes on top", false, runReadOnly},
	{"exec, stop, start, restart and kill", true, liveOn},
	{"cp both ways", true, copyBothWays},
	{"diff", true, listChanges},
	{"commit", true, commitTwice},
	{"build", true, func(u user, image string) { buildUpon(u, image, u.classicBuild) }},
	{withBuildKit, true, func(u user, image string) { buildUpon(u, image, u.buildKit) }},
	{copyFrom, true, buildFrom},
	{"save and load", true, saveAndLoad},
	{"export and import", false, exportAndImport},
	{"tag, history, inspect and rmi", false, tagAndRemove},
}

// short are the operations that are tested in many surroundings.
func short() []operation {
	return slices.DeleteFunc(slices.Clone(operations), func(op operation) bool { return !op.short })
}

func TestEveryOperationWorksOnEveryMixture(t *testing.T) {
	t.Run("in the best view", func(t *testing.T) { onStand(t).every(operations) })
	t.Run("in the view fuse", func(t *testing.T) {
		u := onStandWith(t, tools(t), inView("fuse"))
		u.load("tiny.tar")
		u.load("thin_tiny.tar")
		u.shows("fuse")
		u.every(operations)
	})
}

// every does the operations with images of every mixture.
func (u user) every(operations []operation) {
	u.Helper()
	images := u.mixtures()
	for _, image := range images[:3] {
		u.each(image, operations)
	}
	u.each(images[3], operations[:1])
}

// inView forces a view.
func inView(view string) stand.Options { return stand.Options{Driver: []string{"cvmfs.view=" + view}} }

// shows checks what docker info says of the view.
func (u user) shows(view string) {
	u.Helper()
	if status := u.docker("info", "--format", "{{.DriverStatus}}"); !strings.Contains(status, "[View "+view) {
		u.Errorf("the driver's state is %s, want the view %s", status, view)
	}
}

// each does the operations one after the other with an image, while others are done with other images.
func (u user) each(image string, operations []operation) {
	u.Run(image, func(t *testing.T) {
		t.Parallel()
		for _, op := range operations {
			t.Run(op.name, func(t *testing.T) { op.do(user{t, u.Stand}, image) })
		}
	})
}

func TestTheShortListWorksOnTheNewerEngine(t *testing.T) {
	newer := newerTools(t)
	for _, view := range []string{"auto", "fuse"} {
		t.Run(view, func(t *testing.T) { onStandWith(t, newer, inView(view)).shortList() })
	}
}

// shortList does the short list on the newer engine.
func (u user) shortList() {
	u.Helper()
	if version := u.docker("version", "--format", "{{.Server.Version}}"); !strings.HasPrefix(version, "26.1.") {
		u.Errorf("the engine is %s, want 26.1", version)
	}
	u.load("tiny.tar")
	u.load("thin_tiny.tar")
	if ordinary, thin := u.run(stand.Ordinary), u.run(stand.Thin); ordinary == "" || ordinary != thin {
		u.Errorf("the ordinary container says %q, the thin one %q", ordinary, thin)
	}
	u.Run("restart of the engine", func(t *testing.T) {
		u := user{t, u.Stand}
		container := u.create(stand.Thin, "/data/kept", "/data/a.txt")
		u.put(container, "/data/kept", "kept\n")
		if err := u.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := u.docker("start", "--attach", container), "kept\na is back"; got != want {
			t.Errorf("the container says %q, want %q", got, want)
		}
	})
	for _, image := range u.mixtures()[:3] {
		u.each(image, short())
	}
}

// mixtures makes images of ordinary layers, with thin layers at the bottom, on top, and at both ends, if they aren't
// there, and gives their names. All show the files of the reference image and have busybox's commands besides.
func (u user) mixtures() []string {
	u.Helper()
	busybox, err := os.ReadFile(u.program("busybox"))
	if err != nil {
		u.Fatal(err)
	}
	descriptor, err := os.ReadFile(testutil.Data(u, "images", "thin.json"))
	if err != nil {
		u.Fatal(err)
	}
	const (
		install = "COPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n"
		hello   = "ENV PATH=/bin\nENTRYPOINT [\"/bin/hello\"]\nCMD [\"/etc/os-release\"]\n"
	)
	images := []struct{ name, dockerfile string }{
		{"example/ordinary:1", "FROM " + stand.Ordinary + "\n" + install},
		{"example/above-thin:1", "FROM " + stand.Thin + "\n" + install},
		{"example/below-thin:1", "FROM scratch\n" + install + hello + "ADD thin.json /\n"},
		{"example/between-thin:1", "FROM " + stand.Thin + "\n" + install + "ADD thin.json /\n"},
	}
	var names []string
	for _, image := range images {
		names = append(names, image.name)
		if u.docker("images", "--quiet", image.name) == "" {
			u.build(image.name, image.dockerfile, map[string]string{
				"busybox":   string(busybox),
				"thin.json": string(descriptor),
			})
		}
	}
	return names
}

// program returns a program that runs beside the engine or in its images, or skips the test.
func (u user) program(name string) string {
	u.Helper()
	cache, err := engine.CacheDir()
	if err != nil {
		u.Fatal(err)
	}
	path, err := engine.FindProgram(cache, name)
	if err != nil {
		u.Skipf("needs %s: %v", name, err)
	}
	return path
}

// build builds an image with the classic builder from a folder with the files given.
func (u user) build(name, dockerfile string, files map[string]string) {
	u.Helper()
	u.classicBuild(name, u.context(dockerfile, files))
}

// classicBuild builds an image of a folder with the classic builder.
func (u user) classicBuild(name, folder string) {
	u.Helper()
	u.docker("build", "--no-cache", "--network", "none", "--tag", name, folder)
}

// buildKit builds an image of a folder with the engine's BuildKit. A client without a plugin for that is replaced by
// the one of 20.10, which needs none.
func (u user) buildKit(name, folder string) {
	u.Helper()
	cmd := u.Engine.Command(u.Context(), "build", "--network", "none", "--progress", "plain", "--tag", name, folder)
	if u.Engine.Containerd == nil {
		cmd.Path = tools(u.T).Docker
	}
	cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=1")
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "buildx") {
		u.Skipf("needs a client with BuildKit: %s", out)
	}
	if err != nil {
		u.Fatalf("%v: %s", err, out)
	}
	// What BuildKit keeps for the next time holds layers.
	u.Cleanup(func() {
		if _, err := u.Engine.Docker(context.Background(), "builder", "prune", "--all", "--force"); err != nil {
			u.Error(err)
		}
	})
}

// context makes a folder to build an image of.
func (u user) context(dockerfile string, files map[string]string) string {
	u.Helper()
	folder := u.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		u.Fatal(err)
	}
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(folder, file), []byte(content), 0o755); err != nil {
			u.Fatal(err)
		}
	}
	return folder
}

// removeLater removes an image (rmi) or a container (rm) at the end of the test.
func (u user) removeLater(command, name string) {
	u.Cleanup(func() {
		if _, err := u.Engine.Docker(context.Background(), command, "--force", name); err != nil {
			u.Error(err)
		}
	})
}

// shell runs a shell in a container of its own and gives what it says.
func (u user) shell(image, script string, options ...string) string {
	u.Helper()
	args := append([]string{"run", "--rm", "--network", "none", "--entrypoint", "/bin/sh"}, options...)
	return u.docker(append(args, image, "-c", script)...)
}

// script makes a container whose program is a shell with a script, and which goes with the test, and gives its id.
func (u user) script(image, script string) string {
	u.Helper()
	id := u.docker("create", "--network", "none", "--entrypoint", "/bin/sh", image, "-c", script)
	u.removeLater("rm", id)
	return id
}

// idle starts a container that goes with the test and gives its id. It waits until it is interrupted, then exits with
// status 3.
func (u user) idle(image string) string {
	u.Helper()
	id := u.script(image, `trap "exit 3" INT TERM; while :; do sleep 1000 & wait; done`)
	u.docker("start", id)
	return id
}

// refuses runs docker, which must fail, and checks what its error holds.
func (u user) refuses(want string, args ...string) {
	u.Helper()
	said, err := u.Engine.Docker(u.Context(), args...)
	if err == nil || !strings.Contains(err.Error(), want) {
		u.Errorf("docker %s said %q, %v, want an error with %q", strings.Join(args, " "), said, err, want)
	}
}

// same fails the test unless two texts are equal.
func (u user) same(what, got, want string) {
	u.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		u.Errorf("%s: %s", what, diff)
	}
}

func runAs(u user, image string) {
	u.same("the image's own program", u.run(image), u.run(stand.Ordinary))
	u.same("a shell", u.shell(image, "cat a.txt; id -u; echo $X", "--workdir", "/data", "--user", "1000:1000", "--env",
		"X=y"), "a is back\n1000\ny")
	u.same("the owner's file", u.shell(image, "cat /data/owned", "--user", "1000:1000"),
		u.shell(image, "cat /data/owned"))
	u.refuses("Permission denied", "run", "--rm", "--network", "none", "--user", "1001:1001", "--entrypoint",
		"/bin/cat", image, "/data/owned")
	u.same("a set-uid program", u.shell(image, "stat -c %a,%u:%g /bin/suid-hello", "--user", "1000"), "4755,0:0")
}

func runReadOnly(u user, image string) {
	u.refuses("Read-only file system", "run", "--rm", "--network", "none", "--read-only", "--entrypoint", "/bin/touch",
		image, "/data/new")
	volume := u.docker("volume", "create")
	u.Cleanup(func() {
		if _, err := u.Engine.Docker(context.Background(), "volume", "rm", volume); err != nil {
			u.Error(err)
		}
	})
	// A new volume begins with what the image has at its place.
	u.shell(image, "cat /data/a.txt >/data/copy && mkdir /scratch/x", "--read-only", "--tmpfs", "/scratch", "--volume",
		volume+":/data")
	u.same("the volume over another folder", u.shell(image, "cat /opt/copy; ls /opt/old 2>/dev/null || true",
		"--volume", volume+":/opt"), "a is back")
}

func liveOn(u user, image string) {
	id := u.idle(image)
	u.docker("exec", id, "sh", "-c", "echo kept >/data/kept; rm /data/b.txt; echo more >>/data/a.txt")
	check := func(after string) {
		u.Helper()
		u.same("after "+after, u.docker("exec", "--user", "1000", "--workdir", "/data", id, "sh", "-c",
			"id -u; cat kept a.txt; ls b.txt 2>&1 || true"),
			"1000\nkept\na is back\nmore\nls: b.txt: No such file or directory")
	}
	state := func(after, want string) {
		u.Helper()
		u.same("after "+after, u.docker("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", id), want)
	}
	check("exec")
	u.docker("stop", id)
	state("stop", "exited 3")
	u.docker("start", id)
	check("start")
	u.docker("restart", id)
	check("restart")
	u.docker("kill", id)
	u.docker("wait", id)
	state("kill", "exited 137")
	u.docker("start", id)
	check("kill and start")
	u.docker("pause", id)
	u.docker("unpause", id)
	u.refuses("running", "rm", id)
}

func copyBothWays(u user, image string) {
	for _, container := range []string{u.create(image), u.idle(image)} {
		u.put(container, "/data/new", "new\n")
		folder := filepath.Join(u.TempDir(), "out")
		u.docker("cp", container+":/data", folder)
		for name, want := range map[string]string{"new": "new\n", "a.txt": "a is back\n"} {
			got, err := os.ReadFile(filepath.Join(folder, name))
			if err != nil {
				u.Error(err)
			}
			u.same(name, string(got), want)
		}
		u.docker("cp", folder, container+":/srv/in")
		u.same("the folder copied back", strings.Join(u.names(container, "/srv/in"), " "),
			strings.Join(u.names(container, "/data"), " "))
		u.docker("cp", "--follow-link", container+":/bin/hi", filepath.Join(folder, "hi"))
		if info, err := os.Lstat(filepath.Join(folder, "hi")); err != nil || !info.Mode().IsRegular() {
			u.Errorf("a link followed gives %v, %v", info, err)
		}
		u.refuses("/no/such", "cp", container+":/no/such", folder)
	}
}

// names lists the files of a container's folder, as docker cp gives them.
func (u user) names(container, folder string) []string {
	u.Helper()
	out, err := u.Engine.Docker(u.Context(), "cp", container+":"+folder+"/.", "-")
	if err != nil {
		u.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(strings.NewReader(out)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(names)
			return names
		}
		if err != nil {
			u.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

// change is a script that changes files in every way; changes is what docker diff then says.
const (
	change = `cd /data && echo more >>a.txt && rm b.txt && mkdir deep && echo new >deep/new && chmod 600 owned && mv blob /srv/blob &&
		rm -r /opt/old && mkdir /opt/old && echo w >/opt/old/w && ln -s a.txt link && ln a.txt a-again.txt`
	changes = `C /data
A /data/a-again.txt
C /data/a.txt
D /data/b.txt
D /data/blob
A /data/deep
A /data/deep/new
A /data/link
C /data/owned
C /opt
C /opt/old
A /opt/old/w
D /opt/old/z
C /srv
A /srv/blob`
)

// changed makes a container in which files were changed, and gives its id.
func (u user) changed(image string) string {
	u.Helper()
	id := u.script(image, change)
	u.docker("start", "--attach", id)
	return id
}

func listChanges(u user, image string) {
	u.same("a new container", u.docker("diff", u.create(image)), "")
	u.same("a changed one", u.diff(u.changed(image)), changes)
}

// diff lists a container's changes by path.
func (u user) diff(container string) string {
	u.Helper()
	lines := strings.Split(u.docker("diff", container), "\n")
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[2:], b[2:]) })
	return strings.Join(lines, "\n")
}

func commitTwice(u user, image string) {
	first, second := image+"-committed", image+"-committed-again"
	u.docker("commit", "--change", "ENV STAGE=one", u.changed(image), first)
	u.removeLater("rmi", first)
	look := "cat /data/a-again.txt /data/deep/new; ls /opt/old /data/b.txt 2>/dev/null; stat -c '%a %h' /data/owned /data/a.txt; wc -c </srv/blob; echo $STAGE"
	want := "a is back\nmore\nnew\n/opt/old:\nw\n600 1\n644 2\n600000\none"
	got := strings.Join(strings.Fields(u.shell(first, look)), " ")
	u.same("the commit", got, strings.Join(strings.Fields(want), " "))
	again := u.script(first, "rm -r /data/deep && echo b >/data/b.txt")
	u.docker("start", "--attach", again)
	u.docker("commit", again, second)
	u.removeLater("rmi", second)
	u.same("a commit upon the commit", u.shell(second, "ls -d /data/deep 2>/dev/null; cat /data/b.txt /data/a.txt"),
		"b\na is back\nmore")
	u.same("the image it began with", u.shell(image, "cat /data/a.txt /data/b-again.txt && ls /opt/old"),
		u.run(stand.Ordinary, "/data/a.txt", "/data/b.txt")+"\nz")
}

func buildUpon(u user, image string, build func(name, folder string)) {
	built := image + "-built"
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "unpacked/file", Mode: 0o640, Uid: 7, Gid: 8, Size: 2}),
		second(w.Write([]byte("f\n"))), w.Close()); err != nil {
		u.Fatal(err)
	}
	build(built, u.context("FROM "+image+`
COPY --chown=1000:1000 plain /data/plain
ADD archive.tar /srv/
ENV PATH=/bin
RUN rm /data/b.txt && echo "built upon $(cat /data/a.txt)" >>/data/plain
WORKDIR /new/folder
USER 1000
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["cat /data/plain; pwd; stat -c '%u:%g %a' /data/plain /srv/unpacked/file; ls /data/b.txt 2>/dev/null || echo gone"]
`, map[string]string{"plain": "plain\n", "archive.tar": archive.String()}))
	u.removeLater("rmi", built)
	u.same("the built image", u.run(built), "plain\nbuilt upon a is back\n/new/folder\n1000:1000 755\n7:8 640\ngone")
}

func buildFrom(u user, image string) {
	copied := image + "-copied"
	// The label keeps the steps apart from those of the same content that are built, and removed, at the same time: the
	// classic builder loses steps that it has found in its cache.
	u.build(copied, "FROM scratch\nLABEL of="+copied+"\nCOPY --from="+image+" /data /copy\nCOPY --from="+image+
		" /bin/hello /bin/hello\nENTRYPOINT [\"/bin/hello\"]\n", nil)
	u.removeLater("rmi", copied)
	u.same("an image with files of it", u.run(copied, "/copy/a.txt", "/copy/b-again.txt"),
		u.run(image, "/data/a.txt", "/data/b-again.txt"))
}

// second drops what a call gives besides its error.
func second(_ int, err error) error { return err }

func saveAndLoad(u user, image string) {
	const format = "{{.Id}} {{.RootFS.Layers}} {{.Config.Cmd}}"
	copied := image + "-saved"
	u.docker("commit", u.changed(image), copied)
	u.removeLater("rmi", copied)
	before, said := u.docker("image", "inspect", "--format", format, copied),
		u.shell(copied, "cat /data/a.txt; ls /opt/old")
	archive := filepath.Join(u.TempDir(), "saved.tar")
	u.docker("save", "--output", archive, copied, image)
	u.docker("rmi", copied)
	u.docker("load", "--input", archive)
	u.same("the loaded image", u.docker("image", "inspect", "--format", format, copied), before)
	u.same("what it says", u.shell(copied, "cat /data/a.txt; ls /opt/old"), said)
}

func exportAndImport(u user, image string) {
	imported := image + "-imported"
	container := u.changed(image)
	archive := filepath.Join(u.TempDir(), "export.tar")
	u.docker("export", "--output", archive, container)
	u.docker("import", "--change", `ENTRYPOINT ["/bin/hello"]`, archive, imported)
	u.removeLater("rmi", imported)
	u.same("the imported image", u.run(imported, "/data/a.txt", "/opt/old/w"), "a is back\nmore\nw")
	want, got := u.export(container), u.export(u.create(imported))
	for _, files := range []map[string]file{want, got} {
		for name, f := range files {
			if f.Size == 0 { // folders, and what the engine makes at a container's start, at that time
				f.ModTime = 0
				files[name] = f
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		u.Errorf("the imported image differs from what was exported: %s", diff)
	}
}

func tagAndRemove(u user, image string) {
	other, child := image+"-renamed", image+"-child"
	u.docker("tag", image, other)
	u.same("the other name's image", u.docker("image", "inspect", "--format", "{{.Id}}", other),
		u.docker("image", "inspect", "--format", "{{.Id}}", image))
	u.same("removing one of two names", u.docker("rmi", other), "Untagged: "+other)
	u.same("what is left says", u.run(image), u.run(stand.Ordinary))

	u.docker("commit", "--message", "changed by hand", u.changed(image), child)
	if history := u.docker("history", "--format", "{{.Comment}}", child); !strings.HasPrefix(history,
		"changed by hand") {
		u.Errorf("the history is %q", history)
	}
	if got, want := len(u.layers(child)), len(u.layers(image))+1; got != want {
		u.Errorf("the commit has %d layers, want %d", got, want)
	}
	container := u.create(child)
	u.refuses("conflict", "rmi", child)
	u.refuses("conflict", "image", "rm", child)
	u.same("the image in use says", u.shell(child, "cat /data/deep/new"), "new")
	isThere := u.upper(container)
	if err := isThere(); err != nil {
		u.Error(err)
	}
	u.docker("rm", container)
	u.docker("rmi", child)
	u.eventually("the container's layer is gone", func() error {
		if isThere() == nil {
			return errors.New("it is left")
		}
		return nil
	})
}

// upper returns a function that has an error when the topmost layer of a container isn't there.
func (u user) upper(container string) (isThere func() error) {
	u.Helper()
	if u.Engine.Containerd != nil {
		return func() error {
			_, err := u.Engine.Ctr(u.Context(), "--namespace", "moby", "snapshots", "--snapshotter", u.Driver(), "info",
				container)
			return err
		}
	}
	folder := u.onHost(u.graph(container)["UpperDir"])
	return func() error {
		_, err := os.Stat(folder)
		return err
	}
}

// layers lists the digests of an image's layers, the lowest first.
func (u user) layers(image string) []string {
	u.Helper()
	var layers []string
	if err := json.Unmarshal([]byte(u.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image)),
		&layers); err != nil {
		u.Fatal(err)
	}
	return layers
}

// graph returns what the driver tells of an image or a container.
func (u user) graph(name string) map[string]string {
	u.Helper()
	var data map[string]string
	if err := json.Unmarshal([]byte(u.docker("inspect", "--format", "{{json .GraphDriver.Data}}", name)),
		&data); err != nil {
		u.Fatal(err)
	}
	return data
}

// onHost returns the path, on the host, of a folder of the plugin below its propagated mount.
func (u user) onHost(dir string) string {
	u.Helper()
	return filepath.Join(u.docker("info", "--format", "{{.DockerRootDir}}"), "plugins", u.plugin(), "propagated-mount",
		strings.TrimPrefix(dir, rootfs.PropagatedMount))
}
