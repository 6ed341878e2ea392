package e2e

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// An engine that starts takes the propagated mount of a plugin that was never enabled for a folder of the machine, and
// renames it to /propagated-mount if it is there.
func TestAPluginThatIsOnlyCreatedLeavesTheMachinesRootAlone(t *testing.T) {
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
	if _, err := s.Engine.Docker(t.Context(), "plugin", "create", stand.Plugin, shared.bundle()); err != nil {
		t.Fatal(err)
	}
	if err := s.Engine.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Engine.Start(t.Context(), map[string]any{"storage-driver": "vfs"}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/propagated-mount", rootfs.PropagatedMount} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the machine has %s: %v", path, err)
		}
	}
	if _, err := os.Lstat("/mnt"); err != nil {
		t.Error(err)
	}
}
