package snapshotter_test

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"

	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/test/testutil"
)

// containerd's own tests of a snapshotter, through the socket. They excuse what an overlay can't do, which is to rename
// folders of lower layers, by the snapshotter's name.
func TestContainerdsSuite(t *testing.T) {
	testutil.NeedRoot(t)
	for _, view := range []node.View{"", node.ViewFUSE} {
		t.Run("view="+string(view), func(t *testing.T) {
			open := func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
				return newRig(t, node.Settings{View: view}), func() error { return nil }, nil
			}
			testsuite.SnapshotterSuite(t, "overlayfs", open)
		})
	}
}
