//go:build guest

package kubernetes

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/test/testutil"
)

// What a pod does to its host takes no cluster: its program alone, with systemd and containerd, sets the host up, does
// nothing a second time, takes other settings over, and leaves the host as it was.
func TestAHostIsSetUpAndCleared(t *testing.T) {
	testutil.NeedRoot(t)
	up(t)
	n := startNode(t, "none")
	s := &stand{t: t, node: n}
	image := filepath.Join(n.dir, "image")
	s.programs(image, versions[0])
	// What is there, by content, but for what systemd and containerd write by themselves.
	const state = `find /etc /opt -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum
find /etc /opt /run/cvmfs-snapshotter /var/lib/cvmfs-snapshotter 2>/dev/null | sort | sha256sum || true
systemctl list-unit-files --no-legend | grep -c cvmfs || true; grep -c cvmfs /proc/mounts || true`
	was := n.sh(t, state)

	const settings = "state: installed\ndefault: true\ncvmfs: {default.local: \"CVMFS_HTTP_PROXY=DIRECT\\n\", keys/a.pub: a}\n"
	if said := s.pod(settings); !strings.Contains(said, "restart containerd") {
		t.Errorf("installed: %s", said)
	}
	n.until(t, time.Minute, "ctr plugins ls | grep -c 'cvmfs.* ok'", "2")
	n.until(t, time.Minute, "cat /etc/cvmfs/default.local", "CVMFS_HTTP_PROXY=DIRECT")
	pids := n.sh(t, mainPID+"cvmfs-snapshotter containerd")
	if said := s.pod(settings); strings.Contains(said, "start") {
		t.Errorf("a second time: %s", said)
	}
	// Only the snapshotter reads this one.
	s.pod("state: installed\ndefault: true\ncvmfs: {default.local: \"CVMFS_HTTP_PROXY=DIRECT\\n\"}\n")
	s.same("processes", n.sh(t, mainPID+"cvmfs-snapshotter containerd"), pids)
	n.sh(t, "test ! -e /etc/cvmfs/keys")

	s.programs(image, versions[1])
	if said := s.pod(settings); strings.Contains(said, "restart containerd") {
		t.Errorf("upgraded: %s", said)
	}
	s.same("the version", n.sh(t, "/proc/$("+mainPID+"cvmfs-snapshotter)/exe version | grep -c "+versions[1]), "1")

	n.sh(t, "ctr snapshots --snapshotter cvmfs prepare extract && ctr snapshots --snapshotter cvmfs commit below extract && "+
		"ctr snapshots --snapshotter cvmfs prepare above below")
	// A collection takes the upper one, which nothing holds any more, and doesn't tell the lower one.
	n.sh(t, "ctr snapshots --snapshotter cvmfs label above containerd.io/gc.root= && "+
		"ctr leases create --id collect && ctr leases delete --sync collect && "+
		"! ctr snapshots --snapshotter cvmfs info above")
	s.pod("state: removed\n")
	s.same("the host", n.sh(t, state), was)
	s.pod("state: removed\n") // there is nothing to remove
	s.same("the host", n.sh(t, state), was)
}

// programs puts the image's programs of a version into a folder.
func (s *stand) programs(to, version string) {
	s.t.Helper()
	s.goCommand("build", "-trimpath", "-ldflags=-s -w -X main.version="+version, "-o", to+"/", "./cmd/cvmfs-node",
		"./cmd/cvmfs-snapshotter", "./cmd/cvmfs-graphdriver")
}

// pod has the program do what it does in a pod, and gives what it says.
func (s *stand) pod(settings string) string {
	s.t.Helper()
	s.write(s.t, "/srv/test/node.yaml", settings)
	return s.sh(s.t, `mkdir -p /opt/cvmfs-snapshotter
rm -f /tmp/cvmfs-node.done
image/cvmfs-node pod --image /srv/test/image --settings /srv/test/node.yaml >said 2>&1 &
pid=$!
while ! [ -e /tmp/cvmfs-node.done ]; do
	sleep 0.2
	[ -e /proc/$pid ] || { cat said; exit 1; }
done
image/cvmfs-node ready --settings /srv/test/node.yaml
kill $pid
wait $pid
cat said
rmdir /opt/cvmfs-snapshotter 2>/dev/null || true`)
}
