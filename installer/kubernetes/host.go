package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/installer/service"
	"cvmfs-graphdriver/internal/durable"
)

// What is in the shared folder.
const (
	programFolder = "bin"
	settingsFile  = "node.yaml"
	logFile       = "log"
	recordFile    = "record.json"
	// restartFile is there from before a change that the snapshotter has to be started anew for until that is done.
	restartFile = "restart"
	// reloadFile is the same for containerd.
	reloadFile = "restart-containerd"
)

// unitText is the snapshotter's unit, %s being its program.
const unitText = `[Unit]
Description=containerd snapshotter for thin images from CernVM-FS
Before=containerd.service k3s.service k3s-agent.service rke2-server.service rke2-agent.service
After=network.target local-fs.target

[Service]
Type=notify
NotifyAccess=main
ExecStart=%s
FileDescriptorStoreMax=16
KillMode=mixed
Restart=always
RestartSec=1
OOMScoreAdjust=-999
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
`

// Host is a node's host, as a program that runs there sees it.
type Host struct {
	shared string // folder
	log    *slog.Logger
	set    *Settings
	rec    *record
}

// Apply brings this host to what the settings in the shared folder say. What it says is appended to the log in there.
func Apply(ctx context.Context, shared string) error {
	out, err := os.OpenFile(filepath.Join(shared, logFile), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	h := &Host{shared: shared, log: slog.New(slog.NewTextHandler(io.MultiWriter(out, os.Stderr), nil))}
	if err := h.apply(ctx); err != nil {
		h.log.Error(err.Error())
		return err
	}
	return nil
}

func (h *Host) apply(ctx context.Context) (err error) {
	if h.set, err = ReadSettings(h.path(settingsFile)); err != nil {
		return err
	}
	if h.rec, err = readRecord(h.path(recordFile)); err != nil {
		return err
	}
	if h.set.State == Removed {
		return h.remove(ctx)
	}
	return h.install(ctx)
}

func (h *Host) path(names ...string) string {
	return filepath.Join(append([]string{h.shared}, names...)...)
}

// install has the snapshotter run, and then containerd know it.
func (h *Host) install(ctx context.Context) error {
	f, engineUnit, err := find(ctx, h.set.Containerd)
	if err != nil {
		return err
	}
	if err := h.writeSettings(f); err != nil {
		return err
	}
	if err := h.start(ctx); err != nil {
		return err
	}
	c, version, err := connect(ctx, f.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := h.tell(ctx, f, engineUnit, version, h.set); err != nil {
		return err
	}
	if err := c.Ready(ctx); err != nil {
		return err
	}
	if err := c.Serves(ctx, name, true); err != nil {
		return fmt.Errorf("%w (its configuration: %s, imported by %s; journalctl --unit %s)", err, f.dropIn(),
			f.path(f.main), engineUnit)
	}
	h.log.Info("the snapshotter runs and containerd knows it", "containerd", version, "unit", engineUnit)
	return nil
}

// writeSettings writes the files of the snapshotter: its settings, those of CernVM-FS and its unit.
func (h *Host) writeSettings(f *flavour) error {
	config, err := h.set.config(f.socket)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		configFile: config,
		unitFile:   fmt.Appendf(nil, unitText, h.path(programFolder, "cvmfs-snapshotter")),
	}
	for path, content := range files {
		if err := h.write(restartFile, path, content); err != nil {
			return err
		}
	}
	for path, content := range h.set.CVMFS { // which the snapshotter sees by itself
		if _, err := h.rec.write(filepath.Join(cvmfs, path), []byte(content)); err != nil {
			return err
		}
	}
	for _, path := range h.rec.below(cvmfs) {
		if below, err := filepath.Rel(cvmfs, path); err != nil || !hasKey(h.set.CVMFS, below) {
			if err := h.rec.restore(h.log, path); err != nil {
				return err
			}
		}
	}
	return nil
}

func hasKey(m map[string]string, key string) bool {
	_, has := m[key]
	return has
}

// write writes a file, and a mark before it if that changes anything.
func (h *Host) write(mark, path string, content []byte) error {
	if now, err := os.ReadFile(path); err == nil && string(now) == string(content) {
		return nil
	}
	if err := h.mark(mark); err != nil {
		return err
	}
	_, err := h.rec.write(path, content)
	return err
}

// mark notes that something has to be done, which a kill doesn't make forgotten.
func (h *Host) mark(name string) error { return durable.Replace(h.path(name), 0o600, nil) }

// marked reports whether something has to be done.
func (h *Host) marked(name string) bool {
	_, err := os.Lstat(h.path(name))
	return err == nil
}

func (h *Host) unmark(name string) error {
	if err := durable.Remove(h.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// start has the snapshotter run with what was written.
func (h *Host) start(ctx context.Context) error {
	u, err := service.LoadUnit(ctx, unit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && u.State == "active" && !h.marked(restartFile) {
		return nil
	}
	h.log.Info("start the snapshotter", "unit", unit)
	units := service.Units{}
	if err := units.Reload(ctx); err != nil { // its file may be new
		return err
	}
	if err := units.Enable(ctx, unit); err != nil {
		return err
	}
	if err := units.Restart(ctx, unit); err != nil {
		return err
	}
	return h.unmark(restartFile)
}

// tell has a containerd take settings, which a restart may take. Containers outlive that. One that doesn't come back is
// started with the settings of before.
func (h *Host) tell(ctx context.Context, f *flavour, engineUnit, version string, s *Settings) error {
	due := h.marked(reloadFile)
	if err := h.mark(reloadFile); err != nil {
		return err
	}
	changed, err := f.tell(h.rec, version, s)
	if err != nil {
		return err
	}
	if !changed && !due {
		return h.unmark(reloadFile)
	}
	h.log.Info("restart containerd", "unit", engineUnit, "reads", f.dropIn())
	if err := (service.Units{}).Restart(ctx, engineUnit); err != nil {
		undo := h.rec.restore(h.log, f.files()...)
		if undo == nil {
			undo = (service.Units{}).Restart(ctx, engineUnit)
		}
		return errors.Join(fmt.Errorf("containerd doesn't start with the snapshotter, and was started without: %w", err),
			undo)
	}
	return h.unmark(reloadFile)
}

// ErrInUse says that there are containers whose layers the snapshotter keeps.
var ErrInUse = errors.New("the snapshotter is in use")

// maxNamed is how many users of the snapshotter are named.
const maxNamed = 10

// remove brings the host back to how it was. Containers that are made meanwhile are containerd's own snapshotter's.
func (h *Host) remove(ctx context.Context) error {
	if len(h.rec.Files) > 0 {
		f, engineUnit, err := find(ctx, h.set.Containerd)
		if err != nil {
			return err
		}
		if err := h.removeFrom(ctx, f, engineUnit); err != nil {
			return err
		}
	}
	if err := errors.Join((service.Units{}).Stop(ctx, unit), (service.Units{}).Disable(ctx, unit)); err != nil {
		return err
	}
	if err := h.rec.restore(h.log, slices.Concat(h.rec.below(unitFile), h.rec.below(configFile),
		h.rec.below(cvmfs))...); err != nil {
		return err
	}
	if err := (service.Units{}).Reload(ctx); err != nil {
		return err
	}
	if err := unmountBelow(root); err != nil {
		return err
	}
	for _, dir := range []string{root, filepath.Dir(socket)} {
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, unix.EBUSY) { // a file system of its own stays
			return err
		}
	}
	h.log.Info("this node is as it was")
	return os.RemoveAll(h.shared)
}

// removeFrom has a containerd forget the snapshotter.
func (h *Host) removeFrom(ctx context.Context, f *flavour, engineUnit string) error {
	c, version, err := connect(ctx, f.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	// The snapshotter stays known for as long as containers have their layers from it, and is nobody's choice any more.
	if _, told := h.rec.Files[f.dropIn()]; told {
		if err := h.tell(ctx, f, engineUnit, version, &Settings{}); err != nil {
			return err
		}
		if err := c.Ready(ctx); err != nil {
			return err
		}
		if err := c.Clear(ctx); err != nil { // of an image that was being tested
			return err
		}
		users, err := c.Uses(ctx, name)
		if err != nil {
			return err
		}
		if n := len(users); n > 0 {
			if n > maxNamed {
				users = append(users[:maxNamed], fmt.Sprintf("%d more", n-maxNamed))
			}
			return fmt.Errorf("%w: these have their layers from it: %s (replace them: new ones don't)", ErrInUse,
				strings.Join(users, ", "))
		}
		if _, err := c.Empty(ctx, name); err != nil { // layers of images
			return err
		}
	}
	if err := h.mark(reloadFile); err != nil {
		return err
	}
	if err := h.rec.restore(h.log, f.files()...); err != nil {
		return err
	}
	if err := (service.Units{}).Restart(ctx, engineUnit); err != nil {
		return err
	}
	return h.unmark(reloadFile)
}

// connect waits until a containerd answers, and returns its version.
func connect(ctx context.Context, socket string) (c *containerd.Client, version string, err error) {
	if c, err = containerd.Connect(socket); err != nil {
		return nil, "", err
	}
	if err = c.Ready(ctx); err == nil {
		version, err = c.Version(ctx)
	}
	if err != nil {
		return nil, "", errors.Join(err, c.Close())
	}
	return c, version, nil
}

// unmountBelow takes off every mount below a folder, the last one first.
func unmountBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if m.Mountpoint == dir { // an administrator's
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}
