package layers

import (
	"strings"
	"testing"
)

// Every store that the tests of this package open has its locks watched: what is left to test is the watching.
func TestLocksTakenInTheWrongOrderAreFound(t *testing.T) {
	var wrong []string
	cfg := Config{Root: t.TempDir() + "/m", Run: t.TempDir(), Mounter: fakeMounter{}}
	WatchLocks(&cfg, func(text string) { wrong = append(wrong, text) })
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.composer = noComposer{}
	for _, args := range []CreateArgs{{ID: "base"}, {ID: "top", Parent: "base"}, {ID: "other", Parent: "base"}} {
		if err := s.Create(args); err != nil {
			t.Fatal(err)
		}
	}
	if len(wrong) > 0 {
		t.Fatal("Create: ", wrong)
	}
	layer := func(id string) func() func() { return func() func() { return s.locks.lock(id) } }
	lock := func(m *mutex) func() func() { return func() func() { m.Lock(); return m.Unlock } }
	for _, c := range []struct {
		name         string
		first, again func() func()
		right        bool
	}{
		{"layer, then images", layer("top"), lock(&s.images), true},
		{"images, then layer", lock(&s.images), layer("top"), false},
		{"layer, then its parent", layer("top"), layer("base"), true},
		{"layer, then its child", layer("base"), layer("top"), false},
		{"layer, then its sibling", layer("top"), layer("other"), false},
		{"images, then a leaf", lock(&s.images), lock(&s.mu), true},
		{"leaf, then images", lock(&s.idle.mu), lock(&s.images), false},
		{"leaf, then a leaf", lock(&s.quota.mu), lock(&s.records.mutex), false},
	} {
		wrong = nil
		one := c.first()
		two := c.again()
		two()
		one()
		if c.right != (len(wrong) == 0) {
			t.Errorf("%s: found %q", c.name, strings.Join(wrong, "; "))
		}
	}
}
