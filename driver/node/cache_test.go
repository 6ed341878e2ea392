package node

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/status"
)

// mountedImages is a face whose mounts read from these images.
type mountedImages map[string]bool

func (mountedImages) Mounts() []status.Mount             { return nil }
func (m mountedImages) Images() (map[string]bool, error) { return m, nil }

func TestObjectStoreIsToldWhichImagesAreMounted(t *testing.T) {
	dir := t.TempDir() + "/[data]" // any name: it is the engine's
	n, err := Open(Config{Root: dir + "/m", Run: dir + "/r", Kernel: fakeKernel{}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, d := range []string{
		n.Path("images", "idle"), n.Path("images", "mounted"), n.Path("images", "shown"),
		n.Path("images", ".new-half"),
		n.run("shared", "shown.erofs"), n.run("shared", "idle.fuse"), // nothing of the store is held by the latter
	} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	want := func(mounted ...bool) (list []objects.Image) {
		for i, key := range []string{"idle", "mounted", "shown"} {
			table := n.Path("images", key, "objects")
			if err := os.WriteFile(table, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			list = append(list, objects.Image{Key: key, Table: table, Mounted: mounted[i]})
		}
		return list
	}
	check := func(when string, want []objects.Image) {
		t.Helper()
		got, err := cachedImages{n}.Images()
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", when, err, diff)
		}
	}
	half := n.Path("images", ".new-half", "objects")
	if err := os.WriteFile(half, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("before the engine has said anything", want(true, true, true))
	n.current = &configuration{face: mountedImages{"mounted": true}}
	check("then", want(false, true, true))
}
