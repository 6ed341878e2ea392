//go:build guest

package host

import (
	"strings"
	"testing"
)

// services are what runs containers on a host whose engine has its images in containerd.
const services = "cvmfs-snapshotter containerd docker"

// The first life of a machine whose engine takes no plugins: the snapshotter comes by our package, outlives what
// befalls it and its neighbours, and is upgraded below a running container.
func TestTheNewestEngine(t *testing.T) {
	serve(t)
	wrapRunc(t)
	eventually(t, driver, "overlay2")
	sh(t, "test ! -e /etc/docker/daemon.json")
	sh(t, "cp --archive /etc/containerd /root/containerd-before 2>/dev/null || mkdir /root/containerd-before")

	dir := programs(t)
	sh(t, "dpkg --install "+dir+"/1.0.0/*.deb")
	configure(t)
	sh(t, "cvmfs-graphdriver install --dry-run")
	want(t, driver, "overlay2")
	if said := sh(t, "cvmfs-graphdriver install --yes"); !strings.Contains(said, "runs on cvmfs") {
		t.Error(said)
	}
	want(t, driver, "cvmfs")
	want(t, "systemctl is-active "+services, "active\nactive\nactive")
	load(t)
	alike(t)
	sh(t, "cvmfs-graphdriver doctor")

	// A container that is to outlive everything.
	stays(t)
	const content = "a is back"
	want(t, reads, content)
	grows(t)
	for service := range strings.FieldsSeq(services) {
		sh(t, "systemctl kill --kill-whom=main --signal=KILL "+service)
		eventually(t, "systemctl is-active "+services+" || true", "active\nactive\nactive")
		eventually(t, driver, "cvmfs")
		eventually(t, reads, content)
		alike(t)
		sh(t, "systemctl restart "+service)
		eventually(t, driver, "cvmfs")
		eventually(t, reads, content)
	}

	// A new package brings the program; upgrade puts it to use, and no container stops.
	started := "docker inspect --format '{{.State.StartedAt}}' stays"
	before := sh(t, started)
	sh(t, "dpkg --install "+dir+"/2.0.0/*.deb")
	sh(t, "cvmfs-graphdriver upgrade --yes")
	if said := sh(t, "cvmfs-graphdriver status"); !strings.Contains(said, "2.0.0") {
		t.Error(said)
	}
	want(t, started, before)
	want(t, reads, content)
	alike(t)
	want(t, "systemctl --failed --no-legend", "")
}

// The second life: what was there is there, and goes.
func TestTheNewestEngineRebooted(t *testing.T) {
	serve(t)
	eventually(t, driver, "cvmfs")
	eventually(t, "docker inspect --format '{{.State.Running}}' stays", "true")
	want(t, reads, "a is back")
	alike(t)
	if out, err := command(t, "cvmfs-graphdriver uninstall --yes"); err == nil || !strings.Contains(out, "stays") {
		t.Errorf("with a container: %v: %s", err, out)
	}
	want(t, driver, "cvmfs")
	sh(t, "docker rm --force stays")
	sh(t, "cvmfs-graphdriver uninstall --yes --purge")
	want(t, driver, "overlay2")
	want(t, "test -e /etc/docker/daemon.json && cat /etc/docker/daemon.json || echo none", "none")
	want(t, "diff --recursive /root/containerd-before /etc/containerd || true", "")
	sh(t, "dpkg --purge cvmfs-graphdriver")
	want(t, left(t, "cvmfs-snapshotter"), "")
	want(t, left(t, "cvmfs-graphdriver"), "")
	want(t, "systemctl --failed --no-legend", "")
	sh(t, "systemctl restart containerd docker")
	want(t, driver, "overlay2")
}
