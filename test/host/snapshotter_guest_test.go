//go:build guest

package host

import (
	"strings"
	"testing"

	"cvmfs-graphdriver/test/testutil"
)

// ctr runs containerd's client with the snapshotter's namespace.
const ctr = "ctr --namespace thin "

// The snapshotter comes to the host's containerd by our package, outlives what befalls it, and goes. Docker runs on the
// plugin beside it.
func TestTheSnapshotterComesAndGoes(t *testing.T) {
	serve(t)
	before := sh(t, "cat /etc/containerd/config.toml 2>/dev/null || true")
	docker := sh(t, driver)
	install := "cvmfs-graphdriver install --yes --containerd /run/containerd/containerd.sock"
	sh(t, install+" --dry-run")
	want(t, "systemctl is-active cvmfs-snapshotter || true", "inactive")
	sh(t, install)
	want(t, "systemctl is-active cvmfs-snapshotter containerd docker", "active\nactive\nactive")
	want(t, driver, docker)
	if said := sh(t, install); !strings.Contains(said, "nothing was changed") {
		t.Error(said)
	}
	for _, name := range []string{"tiny.tar", "thin_tiny.tar"} {
		sh(t, ctr+"images import --snapshotter cvmfs "+testutil.Data(t, "images", name))
	}
	run := ctr + "run --rm --snapshotter cvmfs docker.io/"
	said := sh(t, run+sample+" ordinary")
	want(t, run+thin+" first", said)

	// A container that is to outlive everything.
	sh(t, ctr+"run --detach --snapshotter cvmfs --mount type=bind,src="+busybox(t)+
		",dst=/busybox,options=rbind:ro docker.io/"+thin+" stays /busybox sleep 1000000")
	n := "0"
	reads := func(t *testing.T) {
		t.Helper()
		n += "0"
		eventually(t, ctr+"task exec --exec-id e"+n+" stays /busybox cat /data/a.txt", "a is back")
	}
	reads(t)
	sh(t, "systemctl kill --kill-whom=main --signal=KILL cvmfs-snapshotter")
	eventually(t, "systemctl is-active cvmfs-snapshotter || true", "active")
	reads(t)
	sh(t, "cvmfs-graphdriver upgrade --yes") // restarts it
	reads(t)
	sh(t, "systemctl restart containerd")
	reads(t)
	want(t, run+thin+" second", said)

	if out, err := command(t, "cvmfs-graphdriver uninstall --yes"); err == nil || !strings.Contains(out, "thin/stays") {
		t.Errorf("with a container: %v: %s", err, out)
	}
	sh(t, ctr+"task kill --signal KILL stays; "+ctr+"task rm --force stays || true; "+ctr+"containers rm stays")
	sh(t, "cvmfs-graphdriver uninstall --yes --purge")
	want(t, "cat /etc/containerd/config.toml 2>/dev/null || true", before)
	want(t, "ls -d /etc/cvmfs-snapshotter/config.json /var/lib/cvmfs-snapshotter /etc/containerd/conf.d/cvmfs-snapshotter.toml "+
		"2>/dev/null || true", "")
	want(t, "systemctl is-active cvmfs-snapshotter || true", "inactive")
	want(t, "systemctl is-enabled cvmfs-snapshotter || true", "disabled")
	want(t, driver, docker)
	want(t, "systemctl --failed --no-legend", "")
}
