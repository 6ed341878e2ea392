package policy

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/options"
	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/installer/service"
	"cvmfs-graphdriver/pushback"
)

const (
	firstSnapshotter = 28 // the first engine that has no storage-driver plugins
	snapshotterDrop  = "conf.d/cvmfs-snapshotter.toml"
	containerdConfig = "/etc/containerd/config.toml"
	unitFolder       = "/etc/systemd/system"
	defaultDataRoot  = "/var/lib/docker"
)

// places are where a snapshotter keeps its data and answers.
type places struct{ root, socket, control string }

// placesIn returns what the snapshotter's settings in a file mean. A file that isn't there says nothing.
func placesIn(path string) (places, error) {
	f, err := daemonjson.Read(path)
	if err != nil {
		return places{}, err
	}
	p := places{
		root: cmp.Or(f.String("root"), installer.SnapshotterRoot), socket: cmp.Or(f.String("address"), installer.SnapshotterSocket),
	}
	// Beside the other socket, as the snapshotter has it.
	p.control = cmp.Or(f.String("control"), filepath.Join(filepath.Dir(p.socket), filepath.Base(control.SnapshotterSocket)))
	return p, nil
}

// places returns where the snapshotter of this host is.
func (h *Host) places() (places, error) { return placesIn(installer.SnapshotterSettings) }

// nodeSocket is where the snapshotter's node answers. What is wrong with its settings is told by what installs.
func (h *Host) nodeSocket() string {
	p, _ := h.places()
	return cmp.Or(h.NodeSocket, p.control, control.SnapshotterSocket)
}

// SnapshotterLeave returns what an uninstall of the snapshotter is to do.
func (h *Host) SnapshotterLeave(force, purge bool) (installer.SnapshotterLeave, error) {
	p, err := h.places()
	return installer.SnapshotterLeave{Force: force, Purge: purge, Root: p.root}, err
}

// Second reports whether this host takes the snapshotter in place of the plugin: its engine is 28 or newer, or keeps
// its images in containerd; or a containerd is named, or is all there is.
func (h *Host) Second(ctx context.Context) (bool, error) {
	has, cutOff, err := installer.HasSnapshotter(h.Record)
	switch {
	case err != nil || cutOff || h.Containerd != "":
		return err == nil, err
	case h.HasEngine(ctx) || h.Host != "":
		// One that doesn't answer is a matter of what is installed, which can be the reason.
		takes, err := h.takesSnapshotter(ctx)
		return takes || err != nil && has, nil
	case has:
		return true, nil
	}
	_, err = service.FindContainerd(ctx, h.containerdSocket())
	return err == nil, nil
}

// takesSnapshotter reports whether the engine can be told of the snapshotter.
func (h *Host) takesSnapshotter(ctx context.Context) (bool, error) {
	info, err := h.Engine.Client().Info(ctx)
	if err != nil {
		return false, err
	}
	for _, s := range info.DriverStatus {
		if s[0] == "driver-type" && s[1] == "io.containerd.snapshotter.v1" {
			return true, nil
		}
	}
	first, _, _ := strings.Cut(info.ServerVersion, ".")
	major, err := strconv.Atoi(first)
	return err == nil && major >= firstSnapshotter, nil
}

// tellsDocker reports whether this host has an engine of Docker's that is to be told of the snapshotter, too. One that
// doesn't answer is.
func (h *Host) tellsDocker(ctx context.Context) bool {
	if !h.HasEngine(ctx) {
		return false
	}
	takes, err := h.takesSnapshotter(ctx)
	return takes || err != nil
}

// RunsAlone reports whether the snapshotter is installed here, and meant, without an engine of Docker's on it.
func (h *Host) RunsAlone(ctx context.Context) (bool, error) {
	has, err := h.HasSnapshotter()
	return has && !h.tellsDocker(ctx), err
}

// HasSnapshotter reports whether the snapshotter is installed here, or was to be, and is meant: where the plugin
// is as well, it comes first unless the request is for the plugin.
func (h *Host) HasSnapshotter() (bool, error) {
	if h.Plugin {
		return false, nil
	}
	has, cutOff, err := installer.HasSnapshotter(h.Record)
	return has || cutOff, err
}

// Left returns what this host has of the plugin, which its engine runs on or ran on last.
func (h *Host) Left() (installer.Left, error) {
	plugin, root, err := installer.FormerPlugin(h.Record)
	if err != nil {
		return installer.Left{}, err
	}
	if plugin == "" {
		return installer.Left{}, usagef("--migrate: no plugin was installed here by this program")
	}
	if root == "" {
		f, err := daemonjson.Read(h.file)
		if err != nil {
			return installer.Left{}, err
		}
		root = cmp.Or(f.String("data-root"), f.String("graph"), defaultDataRoot)
	}
	return installer.ReadLeft(root, plugin)
}

// Migrates makes sure that the engine can go over to the snapshotter. One that doesn't answer is taken for one that
// can't start on the plugin.
func (h *Host) Migrates(ctx context.Context) error {
	if takes, err := h.takesSnapshotter(ctx); err == nil && !takes {
		return usagef("--migrate is for engines 28 and newer, and those that keep their images in containerd: this one takes the plugin")
	}
	return nil
}

// HasEngine reports whether this host has an engine of Docker's, which need not run.
func (h *Host) HasEngine(ctx context.Context) bool {
	if h.process != nil {
		return true
	}
	_, err := service.LoadUnit(ctx, service.DefaultUnit)
	return err == nil
}

// containerdSocket is where the containerd that is meant listens: the engine's, if there is one.
func (h *Host) containerdSocket() string {
	said := ""
	if h.process != nil {
		if f, err := daemonjson.Read(h.file); err == nil {
			said = f.String("containerd")
		}
		for _, f := range service.ParseFlags(h.process.Args) {
			if f.Name == "containerd" {
				said = f.Value
			}
		}
	}
	return cmp.Or(h.Containerd, said, containerd.DefaultSocket)
}

// Snapshotter gives the installer what an install of the snapshotter takes besides an engine's. The client must be
// closed.
func (h *Host) Snapshotter(ctx context.Context, i *installer.Installer) (*containerd.Client, error) {
	units, err := service.FindUnits()
	if err != nil {
		return nil, fmt.Errorf("the snapshotter is a service of systemd's: %w (docs/containerd.md says what to set up by hand)", err)
	}
	client, err := containerd.Connect(h.containerdSocket())
	if err != nil {
		return nil, err
	}
	i.Units, i.Containerd = units, client
	return client, nil
}

// InstallSnapshotter returns what an install of the snapshotter is to bring about.
func (h *Host) InstallSnapshotter(ctx context.Context, i *installer.Installer, c *containerd.Client) (
	w installer.SnapshotterWishes, err error,
) {
	w = installer.SnapshotterWishes{SettingsFile: installer.SnapshotterSettings}
	if h.tellsDocker(ctx) {
		w.File = h.file
		if h.Restart == "none" {
			return w, usagef("--restart none: the engine is restarted to see whether it runs with the snapshotter")
		}
	}
	for name, set := range map[string]bool{
		"--bundle": h.Bundle != "", "--from": h.From != "", "--key": h.Key != "", "--name": h.Name != "", "--set": len(h.Settings) > 0,
		"--data-root": h.DataRoot != "",
	} {
		if set {
			return w, usagef("%s is for the plugin, and this host takes the snapshotter", name)
		}
	}
	if w.Settings, err = h.snapshotterSettings(); err != nil {
		return w, err
	}
	if w.Unit, err = snapshotterUnit(); err != nil {
		return w, err
	}
	if w.Images, err = h.images(i.Hello); err != nil {
		return w, err
	}
	process, err := service.FindContainerd(ctx, h.containerdSocket())
	if err != nil {
		return w, fmt.Errorf("%w (start containerd, or name its socket with --containerd; an engine of Docker's that starts a containerd of "+
			"its own can't be told of the snapshotter: have it use the host's)", err)
	}
	if w.ConfigUnit = process.Unit; w.ConfigUnit == "" {
		return w, fmt.Errorf("containerd, process %d, runs in no unit of systemd's: it can't be restarted", process.PID)
	}
	if w.Config, w.CRI, err = h.containerdFiles(ctx, c, process); err != nil {
		return w, err
	}
	w.Preflight = func(ctx context.Context) error { return h.judgeSnapshotter(ctx, i, w) }
	return w, nil
}

// snapshotterSettings are the changes of the snapshotter's settings that are wished for.
func (h *Host) snapshotterSettings() (changes []daemonjson.Change, err error) {
	if len(h.StorageOpts) > 0 {
		f, err := daemonjson.Read(installer.SnapshotterSettings)
		if err != nil {
			return nil, err
		}
		opts := daemonjson.DriverOptions(f.Strings("storage-opts"), h.StorageOpts)
		if _, err := options.Parse(opts); err != nil {
			return nil, UsageError{err}
		}
		changes = append(changes, daemonjson.Set("storage-opts", opts))
	}
	if h.CVMFSConfig != "" {
		path, err := filepath.Abs(h.CVMFSConfig)
		if err != nil {
			return nil, err
		}
		changes = append(changes, daemonjson.Set("cvmfs-config", path))
	}
	if h.MinioConfig != "" {
		path, err := filepath.Abs(h.MinioConfig)
		if err != nil {
			return nil, err
		}
		changes = append(changes, daemonjson.Set(pushBackSetting, filepath.Join(path, pushback.FileName)))
	}
	if socket := h.containerdSocket(); socket != containerd.DefaultSocket {
		changes = append(changes, daemonjson.Set("containerd", socket))
	}
	if h.Debug != nil {
		changes = append(changes, daemonjson.Set("debug", *h.Debug))
	}
	return changes, nil
}

// pushBackSetting is the snapshotter's setting with the file of push-back's settings.
const pushBackSetting = "push-back"

// snapshotterProgram is the name of the snapshotter's program.
const snapshotterProgram = "cvmfs-snapshotter"

// snapshotterUnit is the definition of the service, nil where a package has brought it with the program.
func snapshotterUnit() (*installer.Text, error) {
	if service.Packaged(installer.SnapshotterUnit) {
		return nil, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	program := filepath.Join(filepath.Dir(self), snapshotterProgram)
	if _, err := os.Stat(program); err != nil {
		if program, err = exec.LookPath(snapshotterProgram); err != nil {
			return nil, usagef("no %s is beside this program or in PATH", snapshotterProgram)
		}
	}
	return &installer.Text{
		Path: filepath.Join(unitFolder, installer.SnapshotterUnit), Content: service.SnapshotterUnit(program),
	}, nil
}

// containerdFiles are containerd's main file and the drop-in, which comes first as it may be imported already. cri
// reports whether they have Kubernetes use the snapshotter.
func (h *Host) containerdFiles(ctx context.Context, c *containerd.Client, process *service.Engine) (
	texts []installer.Text, cri bool, err error,
) {
	version, err := c.Version(ctx)
	if err != nil {
		return nil, false, err
	}
	places, err := h.places()
	if err != nil {
		return nil, false, err
	}
	path := containerdConfig
	for _, f := range service.ParseFlags(process.Args) {
		if f.Name == "config" || f.Name == "c" {
			path = f.Value
		}
	}
	main, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, false, err
	}
	o := containerd.Options{
		Name: installer.SnapshotterName, Socket: places.socket, Root: places.root,
		CRI: h.CRI, Platform: "linux/" + runtime.GOARCH, Mapped: containerd.Maps(places.root),
	}
	dropIn := filepath.Join(filepath.Dir(path), snapshotterDrop)
	if was, err := os.ReadFile(dropIn); err == nil && containerd.TellsCRI(was) {
		o.CRI = true
	}
	files := func(dropIn string) (texts []installer.Text, err error) {
		next, err := containerd.Main(main, version, dropIn, o)
		if err != nil {
			return nil, fmt.Errorf("edit %s: %w", path, err)
		}
		text, err := containerd.DropIn(version, next, o)
		return []installer.Text{{Path: dropIn, Content: []byte(text)}, {Path: path, Content: next}}, err
	}
	if err := tryContainerd(ctx, process, files); err != nil {
		return nil, false, err
	}
	texts, err = files(dropIn)
	return texts, o.CRI, err
}

// tryContainerd has containerd's own program read files like those that are to be.
func tryContainerd(ctx context.Context, process *service.Engine,
	files func(dropIn string) ([]installer.Text, error),
) error {
	dir, err := os.MkdirTemp("", "containerd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // it is of no use any more
	texts, err := files(filepath.Join(dir, "drop-in.toml"))
	if err != nil {
		return err
	}
	main, err := containerd.Elsewhere(texts[1].Content, filepath.Dir(texts[1].Path))
	if err != nil {
		return fmt.Errorf("try %s: what it imports can't be found from elsewhere, %w", texts[1].Path, err)
	}
	for name, content := range map[string][]byte{"drop-in.toml": texts[0].Content, "config.toml": main} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, process.Program, "--config", filepath.Join(dir, "config.toml"), "config", "dump")
	cmd.Env = process.Environ
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("containerd would not start with the edited configuration: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// judgeSnapshotter looks whether the host qualifies for the snapshotter.
func (h *Host) judgeSnapshotter(ctx context.Context, i *installer.Installer, w installer.SnapshotterWishes) error {
	places, err := h.places()
	if err != nil {
		return err
	}
	plan := preflight.Plan{
		Install: true, Host: h.Address(), Name: installer.SnapshotterName, DaemonJSON: w.File,
		DataRoot: places.root, StorageOpts: h.StorageOpts, CVMFSConfig: h.CVMFSConfig, Log: h.log,
		MinioConfig: h.MinioConfig, Restart: h.Restart, Agent: agent(h.Version),
		Snapshots: true,
	}
	if settings, err := daemonjson.Read(installer.SnapshotterSettings); err == nil {
		plan.PushBack = settings.String(pushBackSetting)
	}
	findings := preflight.Judge(preflight.Gather(ctx, plan), plan)
	var said bytes.Buffer
	if err := preflight.Write(&said, findings, false); err != nil {
		return err
	}
	if text := strings.TrimSpace(said.String()); text != "" {
		i.Tell(installer.Event{Step: "preflight", Outcome: installer.Told, Text: text})
	}
	return preflight.Unfit(findings)
}
