package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/continuity/fs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Trial is an image that is run to see whether it does.
type Trial struct {
	Name  string // for people
	Image v1.Image
	Args  []string // in the place of its command, behind its entrypoint; none: its command
	// of its processes, as in "CAP_CHOWN"
	Capabilities []string
}

// FileCapabilities are those with which an image's programs handle files of any owner and become other users.
func FileCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
	}
}

// options are how a container of an image is specified: as the library does it, with namespaces of its own, in which
// there is no network, no devices of the host's, and no privileges to be gained; besides with the capabilities wished
// for only, and the system calls that containerd allows by default.
func (t Trial) options(id string) ([]oci.SpecOpts, error) {
	file, err := t.Image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config := file.Config
	command := config.Cmd
	if len(t.Args) > 0 {
		command = t.Args
	}
	command = slices.Concat(config.Entrypoint, command)
	if len(command) == 0 {
		return nil, errors.New("the image has neither an entrypoint nor a command")
	}
	return []oci.SpecOpts{
		oci.WithDefaultPathEnv, oci.WithEnv(config.Env), oci.WithProcessArgs(command...),
		oci.WithProcessCwd(cmp.Or(config.WorkingDir, "/")), user(config.User), oci.WithCapabilities(t.Capabilities),
		seccomp.WithDefaultProfile(),                   // it depends on the capabilities
		oci.WithCgroup("/" + TestNamespace + "-" + id), // not below a group that would stay
	}, nil
}

// user has a container run as a user, "USER" or "USER:GROUP". Only names are looked up in the image, which is mounted
// for that.
func user(said string) oci.SpecOpts {
	name, group, _ := strings.Cut(said, ":")
	uid, err := strconv.ParseUint(cmp.Or(name, "0"), 10, 32)
	gid, err2 := strconv.ParseUint(cmp.Or(group, "0"), 10, 32)
	if err != nil || err2 != nil {
		return oci.Compose(usersAreFiles, oci.WithUser(said))
	}
	return oci.WithUIDGID(uint32(uid), uint32(gid))
}

// usersAreFiles makes sure that an image has users and groups in files: whoever opens a FIFO waits for ever.
func usersAreFiles(ctx context.Context, c oci.Client, container *containers.Container, _ *oci.Spec) error {
	mounts, err := c.SnapshotService(container.Snapshotter).Mounts(ctx, container.SnapshotKey)
	if err != nil {
		return err
	}
	return mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
		for _, name := range []string{"/etc/passwd", "/etc/group"} {
			path, err := fs.RootPath(root, name)
			if err != nil {
				return err
			}
			if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
				return fmt.Errorf("%s of the image is not a regular file: the image must say its user by number", name)
			}
		}
		return nil
	})
}

// remedies are what to do about errors, by what containerd, its shim and runc say, the first that fits.
var remedies = []struct {
	said *regexp.Regexp
	do   string
}{
	{
		regexp.MustCompile(`no space left on device|disk quota exceeded`),
		"make room where containerd and the snapshotter have their folders (/var/lib/containerd and /var/lib/cvmfs-snapshotter, unless " +
			"they were told others), and in /run",
	},
	{
		regexp.MustCompile(`binary not installed|containerd-shim[^:]*"?: (executable file not found|no such file)`),
		"containerd-shim-runc-v2, which comes with containerd, is not in the PATH of containerd's service: install containerd anew",
	},
	{
		regexp.MustCompile(`runc\\?"?: (executable file not found|no such file)`),
		"runc is not in the PATH of containerd's service: install it",
	},
	{
		regexp.MustCompile(`(?i)apparmor|selinux|keycreate|avc: |permission denied|operation not permitted`),
		"if AppArmor or SELinux denies it, \"journalctl -k -g 'apparmor=|avc:'\" says what: a policy for containers must allow it",
	},
	{
		regexp.MustCompile(`(?i)cgroup`),
		"runc must be able to make a control group below the host's first one: look whether /sys/fs/cgroup is mounted and can be written, " +
			"and whether runc knows the host's version of control groups",
	},
	{
		regexp.MustCompile(`unpack .* with the snapshotter|missing parent|failed to prepare|failed to mount rootfs`),
		"\"journalctl -u cvmfs-snapshotter\" says why the snapshotter refuses, cvmfs-graphdriver doctor what is wrong with the host",
	},
}

// explain ends an error with what to do about it, if that is known.
func explain(err error) error {
	if err == nil {
		return nil
	}
	for _, r := range remedies {
		if r.said.MatchString(err.Error()) {
			return fmt.Errorf("%w (%s)", err, r.do)
		}
	}
	return err
}
