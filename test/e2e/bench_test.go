package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/installer/bench"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

func TestAnAdministratorComparesAnImageWithItsThinOne(t *testing.T) {
	for name, node := range of(map[string]func(t *testing.T) operator{
		"docker 20.10": func(t *testing.T) operator {
			u := onOwnStand(t)
			u.load("tiny.tar")
			u.load("thin_tiny.tar")
			return operator{u, []string{"--host", "unix://" + u.Engine.Socket()}, ""}
		},
		"docker 29": func(t *testing.T) operator {
			u := onSnapshotter(t, engine.Stack29on21, stand.Options{})
			return operator{u, []string{"--socket", u.ControlSocket(), "--host", "unix://" + u.Engine.Socket()}, ""}
		},
	}, "docker 29") {
		t.Run(name, func(t *testing.T) { node(t).compares() })
	}
}

// compares has both images pulled from a registry, run and removed, and looks at what is told and what is left.
func (o operator) compares() {
	registry := testutil.NewRegistry(o, "", "")
	ordinary, thin := registry.Host+"/"+stand.Ordinary, registry.Host+"/"+stand.Thin
	other := ordinary + "-2" // which is no thin image
	for name, image := range map[string]string{
		ordinary: stand.Ordinary, other: stand.Ordinary, thin: stand.Thin, thin + "-2": stand.Thin,
	} {
		o.docker("tag", image, name)
		o.docker("push", name)
		o.docker("rmi", name)
	}
	o.docker("rmi", stand.Ordinary, stand.Thin)

	said, ok := o.graphdriver("bench", "--json", "--rounds", "2", ordinary, thin, "/data/a.txt")
	var r bench.Result
	if err := json.Unmarshal([]byte(said), &r); err != nil || !ok {
		o.Fatalf("%v: %s", err, said)
	}
	if len(r.Samples) != 4 {
		o.Fatalf("%d samples: %s", len(r.Samples), said)
	}
	for _, s := range r.Samples {
		if s.Pull <= 0 || s.First <= 0 || s.Warm <= 0 || s.Fetched <= 0 || s.Shared != 0 ||
			(s.Form == bench.Thin) != (s.Requests > 0) {
			o.Errorf("a sample: %+v", s)
		}
	}
	for form, i := range r.Images {
		if i.Compressed <= 0 || i.Size <= 0 {
			o.Errorf("the %s image: %+v", form, i)
		}
	}
	o.nothingLeft()

	o.says("bench", []string{"--rounds", "1", "--until-line", "a is", ordinary, thin, "/data/a.txt"},
		`until ready +\d+\.\d\d s +\d+\.\d\d s +× \d`, `fetched +\d`, `Both ran on `)
	o.nothingLeft()

	o.refuses("not a thin image|no thin image", ordinary, other)
	o.refuses("is a thin image itself", thin+"-2", thin)
	o.refuses("manifest unknown|not found", ordinary+"-none", thin)
	o.refuses("it ended without writing|exit code", "--until-line", "never", ordinary, thin, "/data/a.txt")
	o.nothingLeft()
	o.docker("pull", "--quiet", ordinary)
	o.refuses("is on this host", ordinary, thin)
	user := o.start(ordinary, "/data/a.txt")
	o.refuses("in use by containers", ordinary, thin)
	if said, err := user.end(); err != nil {
		o.Errorf("the container of somebody else: %v: %s", err, said)
	}
	o.docker("image", "prune", "--all", "--force")
	o.nothingLeft()
	o.interrupted(ordinary, thin)
}

// refuses has a comparison fail.
func (o operator) refuses(why string, args ...string) {
	o.Helper()
	if said, ok := o.graphdriver("bench", args...); ok || !regexp.MustCompile(why).MatchString(said) {
		o.Errorf("bench %q: want it to fail for %q: %s", args, why, said)
	}
}

// interrupted ends a comparison while it has a container.
func (o operator) interrupted(ordinary, thin string) {
	o.Helper()
	args := append([]string{"bench"}, o.flags...)
	cmd := exec.CommandContext(o.Context(), filepath.Join(shared.dir, "bin/cvmfs-graphdriver"),
		append(args, "--rounds", "100", ordinary, thin, "/data/a.txt")...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	o.must(cmd.Start())
	for o.docker("ps", "--all", "--quiet") == "" {
		time.Sleep(5 * time.Millisecond)
	}
	o.must(cmd.Process.Signal(os.Interrupt))
	if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), bench.ErrInterrupted.Error()) {
		o.Errorf("interrupted: %v: %s", err, &said)
	}
	o.nothingLeft()
}

// nothingLeft looks for what a comparison should have removed.
func (o operator) nothingLeft() {
	o.Helper()
	if left := o.docker("images", "--quiet") + o.docker("ps", "--all", "--quiet"); left != "" {
		o.Errorf("images and containers are left: %s", left)
	}
}
