package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// shift is what owners are shifted by, on an engine whose containers' root is an ordinary user.
const shift = 100000

// remapped makes containers run in a user namespace.
func remapped(view string) stand.Options {
	return stand.Options{
		Driver:   []string{"cvmfs.view=" + view},
		Settings: map[string]any{"userns-remap": "remapped"},
		Prepare: fmt.Sprintf(`
echo remapped:x:%[1]d:%[1]d::/:/bin/false >>/etc/passwd
echo remapped:x:%[1]d: >>/etc/group
echo remapped:%[1]d:65536 | tee -a /etc/subuid >>/etc/subgid`, shift),
	}
}

func TestImagesRunInUserNamespaces(t *testing.T) {
	for _, view := range []string{"erofs", "fuse"} {
		t.Run(view, func(t *testing.T) {
			u := onStandWith(t, tools(t), remapped(view))
			u.load("tiny.tar")
			u.load("thin_tiny.tar")
			guide := section(t, "User namespaces")
			for _, image := range []string{stand.Ordinary, stand.Thin} {
				for _, words := range []string{
					"error preparing rootfs: mount", "propagated-mount/mnt/",
					"permission denied",
				} {
					u.refuses(words, "run", "--rm", "--network", "none", image)
					u.contains("the guide", guide, words)
				}
			}
			u.inside(blocks(guide)[0])
			// The classic builder of 20.10 shifts owners it copies from an image twice, on any driver: "Container ID
			// 101000 cannot be mapped". BuildKit's ADD doesn't shift the owners in an archive: in the container they
			// are nobody.
			own := slices.DeleteFunc(short(), func(op operation) bool {
				return op.name == copyFrom ||
					op.name == withBuildKit
			})
			own = append(own, operation{name: "owners are shifted", do: shiftedOwners},
				operation{name: "set-uid programs change the user", do: setUID})
			images := u.mixtures()
			u.each(images[0], own)
			u.each(images[3], own)
		})
	}
}

// section returns the guide's section of a title.
func section(t *testing.T, title string) string {
	t.Helper()
	_, text, found := strings.Cut(document(t, "docs/guide.md"), "\n## "+title+"\n")
	if !found {
		t.Fatalf("the guide has no section %q", title)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}

// inside runs lines of the guide where the engine runs.
func (u user) inside(lines string) {
	u.Helper()
	if out, err := u.Engine.Inside(u.Context(), "/", strings.ReplaceAll(lines, "my-graphdriver",
		stand.Plugin)).CombinedOutput(); err != nil {
		u.Fatalf("%s\n%v: %s", lines, err, out)
	}
}

// contains fails the test unless a text has some words.
func (u user) contains(what, text, words string) {
	u.Helper()
	if !strings.Contains(text, words) {
		u.Errorf("%s doesn't say %q", what, words)
	}
}

// shiftedOwners looks at files of an image and of a container, in the container and as the machine has them.
func shiftedOwners(u user, image string) {
	id := u.idle(image)
	u.docker("exec", id, "sh", "-c",
		"echo new >/data/new; chown 7:8 /data/new; chmod 600 /data/owned; echo more >>/data/a.txt")
	root := "/proc/" + u.survive(id).pid + "/root"
	for name, inside := range map[string][2]uint32{
		"/": {0, 0}, "/bin/hello": {0, 0}, "/data/owned": {1000, 1000}, "/data/new": {7, 8}, "/data/a.txt": {0, 0},
	} {
		u.same(name+" in the container", u.docker("exec", id, "stat", "-c", "%u:%g", name),
			fmt.Sprintf("%d:%d", inside[0], inside[1]))
		var st unix.Stat_t
		if err := unix.Lstat(root+name, &st); err != nil || st.Uid != shift+inside[0] || st.Gid != shift+inside[1] {
			u.Errorf("%s belongs to %d:%d, %v, want %d:%d shifted by %d", name, st.Uid, st.Gid, err, inside[0],
				inside[1], shift)
		}
	}
	u.same("what has changed", u.diff(id), "C /data\nC /data/a.txt\nA /data/new\nC /data/owned")
	committed := image + "-shifted"
	u.docker("commit", id, committed)
	u.removeLater("rmi", committed)
	u.same("the commit's owners", u.shell(committed, "stat -c '%u:%g %a' /data/new /data/owned /data/a.txt"),
		"7:8 644\n1000:1000 600\n0:0 644")
}

// setUID runs the image's set-uid program, which shows files, as another user.
func setUID(u user, image string) {
	said := u.docker("run", "--rm", "--network", "none", "--user", "1000", "--entrypoint", "/bin/suid-hello", image,
		"/proc/self/status")
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "Uid:") {
			u.same("real and effective user", strings.Join(strings.Fields(line)[1:3], " "), "1000 0")
			return
		}
	}
	u.Errorf("no user in %q", said)
}

// With containerd's image store Docker maps no owners: it changes those of every file when a container is made, and so
// fetches the whole image.
func TestUsersAreRemappedByDocker28OnTheSnapshotter(t *testing.T) {
	for _, view := range []string{"erofs"} {
		t.Run(view, func(t *testing.T) {
			u := onSnapshotter(t, engine.Stack28on21, remapped(view))
			before := u.Site.Count()
			u.docker("create", "--network", "none", stand.Thin)
			fetched := u.Site.Count().Sub(before)
			if all := 11; fetched.Objects != all {
				t.Errorf("to make a container %d objects were fetched, and the image has %d: see docs/containerd.md",
					fetched.Objects, all)
			}
			u.same("a thin container", u.run(stand.Thin), u.run(stand.Ordinary))
		})
	}
}

func TestDocker29RefusesTheSnapshotterWithUsersRemapped(t *testing.T) {
	o := remapped("erofs")
	o.Tools, o.Snapshotter, o.Testdata = stackTools(t, engine.Stack29on21), shared.snapshotter(), testutil.Data(t)
	s, err := stand.NewSnapshotter(t.Context(), o)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	const words = "containerd-snapshotter is explicitly enabled, but is not compatible with userns remapping"
	if err == nil || !strings.Contains(err.Error()+s.Engine.Log(), words) {
		t.Errorf("the engine starts, or says else: %v: %s", err, s.Engine.Log())
	}
}
