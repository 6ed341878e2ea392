package e2e

import (
	"testing"

	"cvmfs-graphdriver/test/stand"
)

func TestAContainerKeepsItsChanges(t *testing.T) {
	u := onStand(t)
	container := u.create(stand.Thin, "/data/kept", "/data/a.txt")
	u.put(container, "/data/kept", "kept\n")
	for _, step := range []struct {
		over string
		do   func()
	}{
		{"a first start", func() {}},
		{"a restart of the container", func() { u.docker("restart", container) }},
		{"a restart of the engine", func() {
			if err := u.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		{"kill -9 of the engine", func() {
			if err := u.Engine.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := u.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		step.do()
		if got, want := u.docker("start", "--attach", container), "kept\na is back"; got != want {
			t.Errorf("over %s: the container says %q, want %q", step.over, got, want)
		}
	}
	if got, want := u.run(stand.Thin, "/data/a.txt"), "a is back"; got != want {
		t.Errorf("a new container says %q, want %q", got, want)
	}
}
