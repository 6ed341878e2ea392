// Package debian is a small Debian in a folder, in which tests install, upgrade and remove packages, and run programs
// for checking them, or a Docker engine, while the machine stays as it is.
//
// The folder is in the cache; what happens to it goes to a folder of the test's own, by an overlay. What runs in it has
// its own mounts, processes and network, which is none. One with an engine has the machine's network, and lasts for one
// script.
package debian

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"cvmfs-graphdriver/test/engine"
)

// Kind is a Debian by the packages it has beside the essential ones.
type Kind struct {
	folder   string // in the cache folder; the number counts up when it holds other packages, or is made otherwise
	packages []string
	suite    string // Debian's release; "" for bookworm
	engine   bool
}

// String returns the name of its folder.
func (k Kind) String() string { return k.folder }

// The kinds there are.
var (
	Tools = Kind{folder: "debian-1", packages: []string{"lintian", "rpm", "mandoc", "zsh", "fish"}}
	// Docker is also what virtual machines have, with the makers of file systems.
	Docker = Kind{
		folder: "debian-docker-2", packages: []string{"docker.io", "procps", "mount", "kmod", "e2fsprogs", "xfsprogs"},
		engine: true,
	}
)

// Hosts of their own: virtual machines with systemd. They are made when they are asked for.
var (
	Booted = Kind{folder: "debian-booted-1", packages: slices.Concat(booted, []string{"docker.io"})}
	// Newest has the newest engine and containerd of Debian.
	Newest = Kind{
		folder: "debian-newest-1", suite: "sid",
		packages: slices.Concat(booted, []string{"docker.io", "docker-cli", "containerd"}),
	}
)

var booted = []string{"systemd-sysv", "dbus", "udev", "kmod", "iproute2", "iptables", "procps", "mount", "apparmor"}

// ready is a file in the folder that is made last.
const ready = "etc/made-for-tests"

// linked are the folders that Debian has moved into /usr.
var linked = []string{"bin", "sbin", "lib", "lib64"}

// Fetch brings kinds of Debian into the cache folder unless they are there: their packages are fetched as those of
// engines are, and installed in the folder, as root of a chroot. Services aren't started.
func Fetch(ctx context.Context, cache string, progress io.Writer, kinds ...Kind) error {
	var failures []error
	for _, kind := range kinds {
		u := &engine.Userland{
			Folder: kind.folder, Suite: cmp.Or(kind.suite, "bookworm"),
			Stages: [][]string{{"?essential", "apt"}, kind.packages},
			Works:  works,
			Make: func(ctx context.Context, dir string, debs [][]string) error {
				fmt.Fprintf(progress, "install Debian in a folder\n")
				return install(ctx, dir, debs)
			},
		}
		failures = append(failures, u.Fetch(ctx, cache, progress))
	}
	return errors.Join(failures...)
}

// Root returns the folder that holds a Debian as it was made, which is not to be changed; errors.Is(err,
// engine.ErrNotFetched) when [Fetch] would help.
func Root(cache string, kind Kind) (string, error) {
	root := filepath.Join(cache, kind.folder)
	if err := works(root); err != nil {
		return "", fmt.Errorf("find the Debian for tests: %w: %w", engine.ErrNotFetched, err)
	}
	return root, nil
}

func works(root string) error {
	_, err := os.Stat(filepath.Join(root, ready))
	return err
}

// dpkg installs packages. It is forced since each of the first needs another to be there before.
const dpkg = `printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d
dpkg --force-depends --force-unsafe-io --path-exclude='/usr/share/doc/*' --path-exclude='/usr/share/locale/*' --install /packages/*.deb
rm /usr/sbin/policy-rc.d`

// install makes a Debian of packages. The first ones are unpacked before they are installed: it takes them to install
// anything.
func install(ctx context.Context, root string, debs [][]string) error {
	for _, dir := range linked {
		if err := os.MkdirAll(filepath.Join(root, "usr", dir), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	for _, deb := range debs[0] {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "--extract", deb, root).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", deb, err, out)
		}
	}
	for _, stage := range debs {
		packages := filepath.Join(root, "packages")
		if err := os.Mkdir(packages, 0o755); err != nil {
			return err
		}
		for _, deb := range stage {
			if err := os.Link(deb, filepath.Join(packages, filepath.Base(deb))); err != nil {
				return err
			}
		}
		if out, err := run(ctx, root, "", "", dpkg); err != nil {
			return fmt.Errorf("install packages: %w: %s", err, out)
		}
		if err := os.RemoveAll(packages); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, ready), nil, 0o644)
}

// Machine is a Debian with what happened to it.
type Machine struct {
	kind    Kind
	root    string // in the cache
	changes string // folder of the overlay
	share   string
}

// New returns a machine as it was made; errors.Is(err, engine.ErrNotFetched) when [Fetch] would help. Its changes go to
// a folder, which must be empty. The folder share is its /mnt, to read only.
func New(cache string, kind Kind, changes, share string) (*Machine, error) {
	root, err := Root(cache, kind)
	if err != nil {
		return nil, err
	}
	return &Machine{kind: kind, root: root, changes: changes, share: share}, nil
}

// Run runs a shell script on the machine, as root, and gives what it wrote. It ends at the first command that fails.
func (m *Machine) Run(ctx context.Context, script string) (string, error) {
	for _, dir := range []string{"upper", "work", "root", "docker"} {
		if err := os.MkdirAll(filepath.Join(m.changes, dir), 0o755); err != nil {
			return "", err
		}
	}
	if m.kind.engine {
		return enterWith(ctx, []string{"--mount", "--pid"}, m.root, m.changes, m.share, forEngine, script)
	}
	return run(ctx, m.root, m.changes, m.share, script)
}

// forEngine is what an engine needs of the machine besides: its control groups and its data on no overlay. It sees no
// AppArmor, whose profile would outlive it, and makes no networks. Limits that the machine doesn't let it raise stay.
const forEngine = `mount --rbind /sys "$root/sys"
if [ -d /sys/kernel/security/apparmor ]; then mount -t tmpfs tmpfs "$root/sys/kernel/security"; fi
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/var/lib/docker"
mount --bind "$changes/docker" "$root/var/lib/docker"
cp /etc/hosts /etc/resolv.conf "$root/etc/"
echo 'DOCKER_OPTS="--bridge=none --iptables=false --ip-forward=false --ip-masq=false --userland-proxy=false --exec-opt native.cgroupdriver=cgroupfs"' >>"$root/etc/default/docker"
sed -i 's/^\(\s*\)ulimit .*/\1:/' "$root/etc/init.d/docker"
cd "$root" # containers can't be started in a mere chroot
mkdir old
pivot_root . old
umount --lazy /old
rmdir /old
mount --make-rshared / # as systemd has it
root=/
`

// enter mounts what the machine needs and starts the script in it. In namespaces of its own, all of this ends with it.
const enter = `root=$1 changes=$2 share=$3 more=$4 script=$5
if [ "$changes" ]; then
	mount -t overlay -o "lowerdir=$root,upperdir=$changes/upper,workdir=$changes/work" overlay "$changes/root"
	root=$changes/root
fi
if [ "$share" ]; then
	mount --bind "$share" "$root/mnt"
	mount -o remount,bind,ro "$root/mnt"
fi
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
eval "$more"
exec chroot "$root" /bin/bash -euc "$script"
`

// run runs a script in a root folder, without a network. Without changes it is the folder itself that changes.
func run(ctx context.Context, root, changes, share, script string) (string, error) {
	return enterWith(ctx, []string{"--mount", "--pid", "--net", "--ipc", "--uts"}, root, changes, share, "", script)
}

// enterWith runs a script in a root folder, in namespaces of its own, after more was done to it.
func enterWith(ctx context.Context, own []string, root, changes, share, more, script string) (string, error) {
	cmd := exec.CommandContext(ctx, "unshare", append(own, "--fork", "--kill-child", "sh", "-euc", enter, "enter", root,
		changes, share, more, script)...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
		"LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, out.Bytes())
	}
	return out.String(), err
}
