package lockorder_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/lockorder"
	"cvmfs-graphdriver/driver/lockorder/lockordertest"
)

// Every driver, node and store that tests open has its locks watched: what is left to test is the watching.
func TestLocksTakenInTheWrongOrderAreFound(t *testing.T) {
	dir := t.TempDir()
	for id, record := range map[string]string{"base": "{}", "top": `{"parent":"base"}`, "other": `{"parent":"base"}`} {
		if err := os.Mkdir(filepath.Join(dir, id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Lsetxattr(filepath.Join(dir, id), "trusted.cvmfs-graphdriver.layer", []byte(record), 0); err != nil {
			t.Skip("needs root: ", err)
		}
	}
	var wrong []string
	watch := lockordertest.Watch(dir, func(text string) { wrong = append(wrong, text) })
	var mounts, composing, layers lockorder.IDs
	mounts.Place(lockorder.Mounts, watch)
	composing.Place(lockorder.Composing, watch)
	layers.Place(lockorder.Layers, watch)
	var naming, leaf, leaf2 lockorder.Mutex
	naming.Place(lockorder.Naming, "naming", watch)
	leaf.Place(lockorder.Leaf, "leaf", watch)
	leaf2.Place(lockorder.Leaf, "leaf2", watch)

	id := func(l *lockorder.IDs, id string) func() func() { return func() func() { return l.Lock(id) } }
	lock := func(m *lockorder.Mutex) func() func() { return func() func() { m.Lock(); return m.Unlock } }
	for _, c := range []struct {
		name         string
		first, again func() func()
		right        bool
	}{
		{"mount, then its layer", id(&mounts, "top"), id(&layers, "top"), true},
		{"layer, then its mount", id(&layers, "top"), id(&mounts, "top"), false},
		{"mount, then composing", id(&mounts, "top"), id(&composing, "base"), true},
		{"composing, then mount", id(&composing, "base"), id(&mounts, "base"), false},
		{"mount, then its parent", id(&mounts, "top"), id(&mounts, "base"), true},
		{"mount, then its child", id(&mounts, "base"), id(&mounts, "top"), false},
		{"mount, then its sibling", id(&mounts, "top"), id(&mounts, "other"), false},
		{"naming, then a layer", lock(&naming), id(&layers, "top"), true},
		{"layer, then naming", id(&layers, "top"), lock(&naming), false},
		{"layer, then its parent", id(&layers, "top"), id(&layers, "base"), false},
		{"naming, then a leaf", lock(&naming), lock(&leaf), true},
		{"leaf, then naming", lock(&leaf), lock(&naming), false},
		{"leaf, then a leaf", lock(&leaf), lock(&leaf2), false},
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
