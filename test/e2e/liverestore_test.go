package e2e

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/stand"
)

// survivor is a container that runs through a restart of the engine.
type survivor struct {
	id  string
	pid string // of its program, as we see it
}

// liveRestore is the setting with which containers run on while the engine doesn't.
var liveRestore = map[string]any{"live-restore": true}

func TestContainersLiveThroughARestartOfTheEngine(t *testing.T) {
	for _, view := range []string{"erofs", "fuse"} {
		t.Run(view, func(t *testing.T) {
			u := onStandWith(t, tools(t), stand.Options{Settings: liveRestore, Driver: []string{"cvmfs.view=" + view}})
			u.load("tiny.tar")
			u.load("thin_tiny.tar")
			want := u.run(stand.Ordinary, "/data/blob")
			u.Site.Withhold(path.Join(stand.Repository, blob)) // else it is fetched ahead
			images := u.mixtures()
			survivors := map[string]survivor{}
			for _, image := range images {
				s := u.survivor(image)
				u.docker("exec", s.id, "sh", "-c", "echo kept >/data/kept; rm /data/b.txt")
				survivors[image] = s
			}
			plugin := u.processes(u.plugin())
			before := u.mounts()
			if len(before) != len(survivors) {
				t.Fatalf("%d containers run and %q are mounted", len(survivors), before)
			}
			for _, restart := range []struct {
				how string
				do  func() error
			}{
				{"restart", func() error { return u.Restart(t.Context()) }},
				{"kill -9 and start", func() error {
					if err := u.Engine.Kill(t.Context()); err != nil {
						return err
					}
					return u.Start(t.Context())
				}},
			} {
				inits := u.inits()
				if err := restart.do(); err != nil {
					t.Fatalf("%s: %v", restart.how, err)
				}
				u.same(restart.how+": the plugin's processes", fmt.Sprint(u.processes(u.plugin())), fmt.Sprint(plugin))
				u.eventually("Init comes again", func() error {
					if n := u.inits(); n != inits+1 {
						return fmt.Errorf("%d times", n-inits)
					}
					return nil
				})
				u.same(restart.how+": the mounts", strings.Join(u.mounts(), "\n"), strings.Join(before, "\n"))
				for image, s := range survivors {
					if now := u.survive(s.id); now != s {
						t.Errorf("%s: the container of %s was %v, is %v", restart.how, image, s, now)
					}
					u.same(image+": what it sees", u.docker("exec", s.id, "sh", "-c",
						"cat /data/kept; ls /data/b.txt 2>/dev/null || echo gone"), "kept\ngone")
					u.same(image+": what the engine sees", strings.Join(u.names(s.id, "/opt/old"), " "), "./ ./z")
					u.same(image+": what has changed", u.diff(s.id), "C /data\nD /data/b.txt\nA /data/kept")
				}
				u.same(restart.how+": a new container", u.run(stand.Thin, "/data/a.txt"), "a is back")
			}
			u.Site.Withhold("")
			for image, s := range survivors {
				got, err := os.ReadFile(filepath.Join("/proc", s.pid, "root/data/blob"))
				if err != nil || strings.TrimSpace(string(got)) != want {
					t.Errorf("%s: a file that was never read has %d bytes, %v, want %d", image, len(got), err,
						len(want))
				}
			}
			u.endSurvivors(survivors)
		})
	}
}

// endSurvivors restarts one, stops and removes all, and checks that nothing is left of them.
func (u user) endSurvivors(survivors map[string]survivor) {
	u.Helper()
	for image, s := range survivors {
		u.docker("restart", "--time", "5", s.id)
		u.same(image+": after a restart", u.docker("exec", s.id, "cat", "/data/kept"), "kept")
		u.docker("rm", "--force", s.id)
	}
	u.same("the mounts that are left", strings.Join(u.mounts(), "\n"), "")
	if status := u.docker("info", "--format", "{{.DriverStatus}}"); !strings.Contains(status, "[Mounted layers 0]") {
		u.Errorf("with no container left the driver's state is %s, want no mounted layer", status)
	}
	u.docker("image", "prune", "--all", "--force")
}

// survivor starts a container that runs until it is stopped.
func (u user) survivor(image string) survivor {
	u.Helper()
	id := u.docker("run", "--detach", "--network", "none", "--entrypoint", "/bin/sh", image, "-c",
		`trap "exit 3" INT TERM; while :; do sleep 1000 & wait; done`)
	return u.survive(id)
}

// survive tells of a container that must run.
func (u user) survive(id string) survivor {
	u.Helper()
	for pid, inner := range u.processes(id) {
		if inner == 1 {
			return survivor{id, fmt.Sprint(pid)}
		}
	}
	u.Fatalf("container %s does not run", id)
	return survivor{}
}

// inits counts the calls of Init in the plugin's log.
func (u user) inits() int { return strings.Count(u.Engine.Log(), "method=Init") }

// mounts lists the layers that are mounted, as the plugin has them.
func (u user) mounts() []string {
	u.Helper()
	for pid, inner := range u.processes(u.plugin()) {
		if inner != 1 {
			continue
		}
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			u.Fatal(err)
		}
		var layers []string
		for line := range strings.Lines(string(table)) {
			if layer, ok := strings.CutPrefix(strings.Fields(line)[4], rootfs.PropagatedMount+"/mnt/"); ok {
				layers = append(layers, layer)
			}
		}
		return layers
	}
	u.Fatal("the plugin does not run")
	return nil
}
