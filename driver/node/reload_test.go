package node

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/client"
)

// What is said to count for later images is what images are composed by. Owners and permissions as people's views have
// them, by CVMFS_CLAIM_OWNERSHIP and CVMFS_WORLD_READABLE, are for no image.
func TestReloadTellsWhatCountsForLaterImages(t *testing.T) {
	got := reloaded(client.Reloaded{Changed: []string{
		"CVMFS_CLAIM_OWNERSHIP", "CVMFS_HTTP_PROXY", "CVMFS_ROOT_HASH", "CVMFS_SEND_INFO_HEADER", "CVMFS_UID_MAP",
		"CVMFS_WORLD_READABLE",
	}})
	if diff := cmp.Diff([]string{"CVMFS_ROOT_HASH", "CVMFS_SEND_INFO_HEADER", "CVMFS_UID_MAP"}, got.Later); diff != "" {
		t.Error(diff)
	}
}
