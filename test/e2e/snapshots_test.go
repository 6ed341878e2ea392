package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/images"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

func TestImagesGoThroughARegistryWithTheSnapshotter(t *testing.T) {
	u := onSnapshotter(t, engine.Stack29on21, stand.Options{})
	registry := testutil.NewRegistry(t, "", "")
	names := append(u.mixtures(), stand.Ordinary, stand.Thin)
	pushed := map[string]string{}
	for _, image := range names {
		pushed[image] = registry.Host + "/" + image
		u.docker("tag", image, pushed[image])
		u.docker("push", pushed[image])
	}
	want := u.run(stand.Ordinary)
	u.docker("image", "prune", "--all", "--force")
	u.eventually("no snapshot is left", func() error { return u.noSnapshots("moby") })
	for _, image := range names {
		u.docker("pull", pushed[image])
		u.same(image+" pulled", u.run(pushed[image]), want)
	}
}

// noSnapshots reports an error while a namespace has snapshots.
func (u user) noSnapshots(namespace string) error {
	out, err := u.Engine.Ctr(u.Context(), "--namespace", namespace, "snapshots", "--snapshotter", u.Driver(), "ls")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); err == nil && len(lines) > 1 {
		err = fmt.Errorf("%d are: %s", len(lines)-1, lines[1:])
	}
	return err
}

func TestNothingIsMountedOnceImagesAreGoneWithTheSnapshotter(t *testing.T) {
	for _, view := range []string{"erofs", "fuse"} {
		t.Run(view, func(t *testing.T) {
			u := onSnapshotter(t, engine.Stack29on21, inView(view))
			before := u.snapshotMounts()
			for _, image := range u.mixtures() {
				u.docker("rm", "--force", u.survivor(image).id)
			}
			u.docker("image", "prune", "--all", "--force")
			u.docker("builder", "prune", "--all", "--force")
			u.eventually("no snapshot is left", func() error { return u.noSnapshots("moby") })
			u.eventually("nothing more is mounted than at first", func() error {
				if now := u.snapshotMounts(); strings.Join(now, "\n") != strings.Join(before, "\n") {
					return fmt.Errorf("%q are, and were %q", now, before)
				}
				return nil
			})
		})
	}
}

// snapshotMounts lists what is mounted below the snapshotter's folder.
func (u user) snapshotMounts() []string {
	u.Helper()
	supervisor, _ := u.snapshotter()
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", supervisor))
	if err != nil {
		u.Fatal(err)
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, u.Snapshots()) {
			points = append(points, strings.TrimPrefix(point, u.Snapshots()))
		}
	}
	return points
}

// snapshotter returns the processes of the snapshotter, which must run.
func (u user) snapshotter() (supervisor, server int) {
	u.Helper()
	u.eventually("the snapshotter runs", func() error {
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		supervisor, server = 0, 0
		for _, file := range files {
			// A process may end while it is looked at.
			line, err := os.ReadFile(file)
			if err != nil || !bytes.Contains(line, []byte(filepath.Dir(u.Snapshots())+"/snapshotter.json")) {
				continue
			}
			process := &supervisor
			if bytes.HasSuffix(line, []byte("\x00serve\x00")) {
				process = &server
			}
			if _, err := fmt.Sscanf(file, "/proc/%d/", process); err != nil {
				return err
			}
		}
		if supervisor == 0 || server == 0 {
			return fmt.Errorf("its supervisor is %d and its server %d", supervisor, server)
		}
		return nil
	})
	return supervisor, server
}

func TestRunningContainersOutliveWhatIsKilledBelowThem(t *testing.T) {
	for _, view := range []string{"erofs", "fuse"} {
		t.Run(view, func(t *testing.T) {
			u := onSnapshotter(t, engine.Stack29on21, stand.Options{
				Settings: liveRestore, Driver: []string{"cvmfs.view=" + view},
			})
			want := u.run(stand.Ordinary)
			whole := u.run(stand.Ordinary, "/data/blob")
			u.Site.Withhold(path.Join(stand.Repository, blob)) // else it is fetched ahead
			survivors := map[string]survivor{}
			for _, base := range []string{stand.Ordinary, stand.Thin} {
				image := u.withShell(base)
				s := u.survivor(image)
				u.docker("exec", s.id, "sh", "-c", "echo kept >/data/kept; rm /data/b.txt")
				survivors[image] = s
			}
			for _, victim := range u.victims() {
				if err := victim.kill(); err != nil {
					t.Fatalf("kill the %s: %v", victim.name, err)
				}
				for image, s := range survivors {
					got, err := os.ReadFile(filepath.Join("/proc", s.pid, "root/data/kept"))
					if err != nil || string(got) != "kept\n" {
						t.Errorf("without the %s, in the container of %s: %q, %v", victim.name, image, got, err)
					}
				}
				if err := victim.start(); err != nil {
					t.Fatalf("start the %s: %v", victim.name, err)
				}
				u.eventually("a new container runs after kill -9 of the "+victim.name, func() error {
					_, err := u.Engine.Docker(t.Context(), "run", "--rm", "--network", "none", stand.Thin)
					return err
				})
				u.same("a new container after kill -9 of the "+victim.name, u.run(stand.Thin), want)
				for image, s := range survivors {
					if now := u.survive(s.id); now != s {
						t.Errorf("%s: the container of %s was %v, is %v", victim.name, image, s, now)
					}
					u.same(image+": what it sees", u.docker("exec", s.id, "sh", "-c",
						"cat /data/kept; ls /data/b.txt 2>/dev/null || echo gone"), "kept\ngone")
					u.same(image+": what the engine sees", strings.Join(u.names(s.id, "/opt/old"), " "), "./ ./z")
					u.same(image+": what has changed", u.diff(s.id), "C /data\nD /data/b.txt\nA /data/kept")
				}
			}
			u.Site.Withhold("")
			for image, s := range survivors {
				u.same(image+": a file that was never read", strings.TrimSpace(u.docker("exec", s.id, "cat", "/data/blob")), whole)
				u.docker("restart", "--time", "5", s.id)
				u.same(image+": after a restart", u.docker("exec", s.id, "cat", "/data/kept"), "kept")
			}
		})
	}
}

// withShell makes an image on top of another one, with a shell, and gives its name. Nothing of the other one is read:
// BuildKit takes what a step has written from where it was written.
func (u user) withShell(base string) string {
	u.Helper()
	busybox, err := os.ReadFile(u.program("busybox"))
	if err != nil {
		u.Fatal(err)
	}
	name := base + "-with-shell"
	u.buildKit(name, u.context("FROM "+base+"\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n",
		map[string]string{"busybox": string(busybox)}))
	return name
}

func TestDiffCommitAndBuildsReadNothingOfAThinImage(t *testing.T) {
	for name, do := range map[string]func(u user, image string){
		withBuildKit: func(u user, image string) {
			u.buildKit("example/built:1", u.context("FROM "+image+"\nRUN echo new >/data/new\n", nil))
		},
		"diff": func(u user, image string) {
			id := u.script(image, "echo new >/data/new")
			u.docker("start", "--attach", id)
			u.same("what has changed", u.diff(id), "C /data\nA /data/new")
		},
		"commit": func(u user, image string) {
			id := u.script(image, "echo new >/data/new")
			u.docker("start", "--attach", id)
			u.docker("commit", id, "example/committed:1")
		},
		"classic build": func(u user, image string) {
			u.build("example/built:1", "FROM "+image+"\nRUN echo new >/data/new\n", nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := onSnapshotter(t, engine.Stack29on21, stand.Options{})
			image := u.withShell(stand.Thin)
			u.shell(image, "true")
			before := u.Site.Count()
			do(u, image)
			if more := u.Site.Count().Sub(before); more.Objects != 0 {
				t.Errorf("%d objects were fetched", more.Objects)
			}
		})
	}
}

func TestADescriptorAddedByBuildKitIsAThinLayer(t *testing.T) {
	u := onSnapshotter(t, engine.Stack29on21, stand.Options{})
	descriptor, err := os.ReadFile(testutil.Data(t, "images", "thin.json"))
	if err != nil {
		t.Fatal(err)
	}
	const image = "example/made-thin:1"
	before := u.Site.Count()
	u.buildKit(image, u.context("FROM scratch\nADD thin.json /\nENTRYPOINT [\"/bin/hello\"]\n",
		map[string]string{"thin.json": string(descriptor)}))
	if more := u.Site.Count().Sub(before); more.Objects != 0 {
		t.Errorf("%d objects were fetched to build it", more.Objects)
	}
	archive := filepath.Join(t.TempDir(), "saved.tar")
	u.docker("save", "--output", archive, image)
	if info, err := os.Stat(archive); err != nil || info.Size() > 100<<10 {
		t.Errorf("as an archive it has %d bytes, %v: more than a descriptor", info.Size(), err)
	}
	want := u.run(stand.Ordinary, "/data/a.txt")
	u.same("what it shows", u.run(image, "/data/a.txt"), want)
	u.same("what an image upon it shows", u.run(u.withShell(image), "/data/a.txt"), want)
}

// victim is a program that is killed, and how it comes back.
type victim struct {
	name        string
	kill, start func() error
}

func (u user) victims() []victim {
	ctx := u.Context()
	return []victim{
		{"engine", func() error { return u.Engine.Kill(ctx) }, func() error { return u.Start(ctx) }},
		{
			"containerd", func() error { return u.Engine.Containerd.Kill(ctx) },
			func() error { return u.Engine.Containerd.Start(ctx) },
		},
		{
			"snapshotter's server",
			func() error {
				_, server := u.snapshotter()
				return unix.Kill(server, unix.SIGKILL)
			},
			func() error { return nil }, // its supervisor starts it
		},
	}
}

func TestTheSnapshotterStartsAgainWhenItsSupervisorWasKilled(t *testing.T) {
	u := onSnapshotter(t, engine.Stack29on21, stand.Options{})
	want := u.run(stand.Ordinary)
	u.same("a thin container", u.run(stand.Thin), want)
	if err := u.Snapshotter.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := u.StartSnapshotter(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.eventually("a container runs", func() error {
		_, err := u.Engine.Docker(t.Context(), "run", "--rm", "--network", "none", stand.Thin)
		return err
	})
	for _, image := range []string{stand.Ordinary, stand.Thin} {
		u.same(image, u.run(image), want)
	}
}

func TestAPodRunsAThinImage(t *testing.T) {
	for _, stack := range []engine.Stack{engine.Stack29on21, engine.Stack29on17, engine.Stack29on24} {
		t.Run(stack.String(), func(t *testing.T) {
			registry := testutil.NewRegistry(t, "", "")
			u := onSnapshotter(t, stack, stand.Options{Pause: registry.Push(t, "pause:1", pauseImage(t), nil)})
			thin := registry.Host + "/" + stand.Thin
			u.docker("tag", stand.Thin, thin)
			u.docker("push", thin)
			want := u.run(stand.Ordinary, "/data/a.txt")
			pod := u.inPod(engine.Pod{Name: "thin", Image: thin}, want, "/bin/hello", "/data/a.txt")
			info, err := u.Engine.Crictl(t.Context(), "imagefsinfo")
			if err != nil || !strings.Contains(info, u.Snapshots()) {
				t.Errorf("images lie in %s, %v, want %s", info, err, u.Snapshots())
			}
			u.removePod(pod)
			u.ctrRuns(thin, want)
		})
	}
}

// inPod runs a command in a pod, waits until it has said what is wanted, and returns the pod.
func (u user) inPod(p engine.Pod, want string, command ...string) (pod string) {
	u.Helper()
	pod, container, err := u.Engine.RunInPod(u.Context(), p, command...)
	if err != nil {
		u.Fatal(err)
	}
	u.eventually("the container's output is there", func() error {
		said, err := u.Engine.Crictl(u.Context(), "logs", container)
		if err == nil && strings.TrimSpace(said) != want {
			err = fmt.Errorf("it is %q, want %q", said, want)
		}
		return err
	})
	return pod
}

// removePod removes a pod, and all images of pods.
func (u user) removePod(pod string) {
	u.Helper()
	for _, args := range [][]string{{"stopp", pod}, {"rmp", pod}, {"rmi", "--all"}} {
		// Asked again, as kubelet does: a pod may still be ending when stopp has answered.
		u.eventually(strings.Join(args, " "), func() error {
			_, err := u.Engine.Crictl(u.Context(), args...)
			return err
		})
	}
}

// In a pod with a user namespace files belong to whom they belong to without, and nothing is fetched for that.
func TestAPodInAUserNamespaceSeesTheOwnersOfItsImage(t *testing.T) {
	const look = "stat -c '%n %u:%g' / /bin/hello /data /data/owned /bin/sh; cut -c 1-40 /data/a.txt"
	for _, view := range []string{"erofs", "fuse"} {
		t.Run(view, func(t *testing.T) {
			registry := testutil.NewRegistry(t, "", "")
			options := inView(view)
			options.Pause = registry.Push(t, "pause:1", pauseImage(t), nil)
			u := onSnapshotter(t, engine.Stack29on21, options)
			for n, base := range []string{stand.Ordinary, stand.Thin} {
				local := u.withShell(base)
				pushed := registry.Host + "/" + local
				u.docker("tag", local, pushed)
				u.docker("push", pushed)
				want := u.shell(local, look)
				pod := engine.Pod{Name: fmt.Sprint("pod", n), Image: pushed, Users: 200000 + n*65536}
				before := u.Site.Count()
				id := u.inPod(pod, fmt.Sprintf("%s\n%d", want, pod.Users), "sh", "-c",
					look+"; set -- $(cat /proc/self/uid_map); echo $2; echo new >/data/new")
				if more := u.Site.Count().Sub(before); more.Objects > 3 {
					t.Errorf("%s: %d objects were fetched", base, more.Objects)
				}
				u.removePod(id)
			}
			u.eventually("nothing is mounted with mapped owners", func() error {
				for _, point := range u.snapshotMounts() {
					if strings.HasPrefix(point, "/run/mapped/") {
						return fmt.Errorf("%s is", point)
					}
				}
				return nil
			})
		})
	}
}

// ctrRuns pulls an image and runs it with containerd's own client, and removes it.
func (u user) ctrRuns(image, want string) {
	u.Helper()
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"images", "pull", "--plain-http", "--snapshotter", u.Driver(), image}, ""},
		{
			[]string{
				"run", "--rm", "--snapshotter", u.Driver(), "--cgroup", "/" + u.Engine.ControlGroup() + "/byctr", image,
				"byctr", "/bin/hello", "/data/a.txt",
			}, want,
		},
		{[]string{"images", "rm", "--sync", image}, ""},
	} {
		out, err := u.Engine.Ctr(u.Context(), step.args...)
		if err != nil {
			u.Fatal(err)
		}
		if step.want != "" {
			u.same("with ctr", strings.TrimSpace(out), step.want)
		}
	}
	u.eventually("no snapshot is left", func() error { return u.noSnapshots("default") })
}

// pauseImage returns an image for the namespaces of pods: it does nothing until it is stopped.
func pauseImage(t *testing.T) v1.Image {
	t.Helper()
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := engine.FindProgram(cache, "busybox")
	if err != nil {
		t.Skipf("needs busybox: %v", err)
	}
	made, err := images.MakeBusybox(t.Context(), t.TempDir(), busybox)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "pause.tar")
	if err := made.WriteArchive(archive); err != nil {
		t.Fatal(err)
	}
	image, err := tarball.ImageFromPath(archive, nil)
	if err == nil {
		image, err = mutate.Config(image, v1.Config{Cmd: []string{"/bin/sleep", "100000"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return image
}
