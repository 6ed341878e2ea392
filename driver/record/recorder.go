package record

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/internal/child"
	"cvmfs-graphdriver/internal/fusewire"
	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/thin"
)

// Layers of the recorder's node.
const (
	imageLayer     = "image"
	containerLayer = "container"
)

// recorderMain is the recorder: it reads a Config from its standard input and writes a result to the file behind the
// standard ones.
func recorderMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer stop()
	said, err := record(ctx, os.Args[len(os.Args)-1])
	if err != nil {
		said = &result{Err: err.Error()}
	}
	if err := json.NewEncoder(os.NewFile(3, "answer")).Encode(said); err != nil {
		fmt.Fprintln(os.Stderr, "record a start:", err)
		return 1
	}
	return 0
}

// record does it in a folder.
func record(ctx context.Context, dir string) (said *result, err error) {
	if err := closeOnExec(); err != nil {
		return nil, err
	}
	var c Config
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		return nil, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, fmt.Errorf("mount /proc of the recorder's processes: %w", err)
	}
	level := slog.LevelWarn
	if c.Verbose {
		level = slog.LevelDebug
	}
	h, err := openHouse(dir, &c, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	return h.run(ctx, &c)
}

// closeOnExec keeps files from the image's program: the answer's, and whatever the caller's caller has left open.
func closeOnExec() error {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, f := range files {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// house is a node with its mount of content.
type house struct {
	*node.Node
	dir    string
	served *fusewire.Session
	stop   context.CancelFunc
}

func openHouse(dir string, c *Config, log *slog.Logger) (_ *house, err error) {
	h := &house{dir: dir}
	if h.Node, err = node.Open(node.Config{
		Root: filepath.Join(dir, "node"), Run: filepath.Join(dir, "run"), Generation: "record",
		Kernel: &overlayfs.Kernel{Scratch: dir}, Configuration: c.Configuration,
		Defaults: func() ([]byte, error) { return rootfs.Defaults, nil },
		Agent:    c.Agent, Recorder: true, Log: log,
	}); err != nil {
		return nil, err
	}
	if err := h.serve(log); err != nil {
		return nil, errors.Join(err, h.close())
	}
	settings := node.Settings{View: node.View(c.View)}
	if err := h.Configure(settings, noEngine{}); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// serve mounts content and answers the kernel.
func (h *house) serve(log *slog.Logger) (err error) {
	at := filepath.Join(h.dir, "run", "fuse")
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	if h.served, err = fusewire.Open(at, h.Tree(), fusewire.Config{Log: log}); err != nil {
		return err
	}
	running, stop := context.WithCancel(context.Background())
	h.stop = stop
	go h.Node.Run(running)
	return nil
}

// close takes everything off, though it would go with the process: the folder must be removable.
func (h *house) close() error {
	errs := []error{h.Unmount(h.target()), h.UnmountImages()}
	if h.stop != nil {
		h.stop()
	}
	errs = append(errs, h.Close())
	if h.served != nil {
		errs = append(errs, h.served.Close())
	}
	return errors.Join(errs...)
}

func (h *house) target() string { return filepath.Join(h.dir, "root") }

// run runs the image and returns what it read.
func (h *house) run(ctx context.Context, c *Config) (*result, error) {
	image, err := h.mount(ctx, c.Descriptor)
	if err != nil {
		return nil, err
	}
	profile := h.Record()
	began := time.Now()
	ended, failed := h.container(ctx, c)
	took := time.Since(began)
	p, share, err := profile(image)
	if err = errors.Join(failed, err); err != nil {
		return nil, err
	}
	if len(p) == 0 {
		return nil, errors.New("the program read nothing of the image")
	}
	return &result{Profile: p.Encode(), Pieces: share.Pieces, Bytes: share.Bytes, Took: took, Ended: ended}, nil
}

// mount composes the image and mounts a container of it. It returns the image's key.
func (h *house) mount(ctx context.Context, descriptor []byte) (image string, err error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	err = w.WriteHeader(&tar.Header{Name: thin.FileName, Mode: 0o644, Size: int64(len(descriptor))})
	if err == nil {
		_, err = w.Write(descriptor)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return "", err
	}
	if err := h.Layers().Create(layers.CreateArgs{ID: imageLayer}); err != nil {
		return "", err
	}
	if _, err := h.Apply(ctx, imageLayer, "", &archive); err != nil {
		return "", err
	}
	if err := h.Layers().Create(layers.CreateArgs{ID: containerLayer, Parent: imageLayer, Writable: true}); err != nil {
		return "", err
	}
	stack, err := h.Layers().Use(containerLayer)
	if err != nil {
		return "", err
	}
	o, err := h.Mount(ctx, stack, h.target(), "")
	return o.Image, err
}

// container runs the program until its start is over, and says what ended it.
func (h *house) container(ctx context.Context, c *Config) (ended string, err error) {
	spec, err := json.Marshal(c.Command)
	if err != nil {
		return "", err
	}
	program, err := ownProgram()
	if err != nil {
		return "", err
	}
	defer program.Close()
	running, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	//nolint:gosec // a program and a folder of ours
	cmd := exec.CommandContext(running, fmt.Sprintf("/proc/self/fd/%d", program.Fd()), containerArgument, h.target())
	// By a pipe, and in a session of its own: a terminal could be typed at by the program.
	output := struct{ io.Writer }{os.Stderr}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(spec), output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
	}
	if err := child.Start(cmd); err != nil {
		return "", err
	}
	var exit error // to be read once it has exited
	exited := make(chan struct{})
	go func() {
		exit = cmd.Wait()
		close(exited)
	}()
	var over <-chan time.Time
	if c.For > 0 {
		over = time.After(c.For)
	}
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-exited:
			return "it ended", ofCommand(exit, c.Port)
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-over:
			ended = "its time was over"
		case <-look.C:
			if c.Port == 0 || !listens(cmd.Process.Pid, c.Port) {
				continue
			}
			ended = fmt.Sprintf("port %d was listened at", c.Port)
		}
		kill() // it is process 1 of its namespace: with it all others go
		<-exited
		return ended, err
	}
}

// ownProgram returns a copy of this program in memory: what runs in the container is reachable there as /proc/1/exe,
// by an image that has this as its program, and must not be the host's file.
func ownProgram() (_ *os.File, err error) {
	const name = "record-container"
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // a kernel before 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("a file in memory: %w", err)
	}
	program := os.NewFile(uintptr(fd), name)
	self, err := os.Open("/proc/self/exe")
	if err == nil {
		_, err = io.Copy(program, self)
		err = errors.Join(err, self.Close())
	}
	if err != nil {
		return nil, errors.Join(err, program.Close())
	}
	return program, nil
}

// ofCommand says what the end of the program means for its start.
func ofCommand(err error, port int) error {
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		return fmt.Errorf("the program ended with exit code %d: its output says why", exit.ExitCode())
	case err != nil:
		return fmt.Errorf("the program: %w", err)
	case port != 0:
		return fmt.Errorf("the program ended before anybody listened at port %d", port)
	}
	return nil
}

// noEngine is the face of the recorder: nobody else asks.
type noEngine struct{}

func (noEngine) Mounts() []status.Mount                      { return nil }
func (noEngine) Images() (map[string]bool, error)            { return nil, nil }
func (noEngine) Names(context.Context) (status.Names, error) { return status.Names{}, nil }
func (noEngine) Mapped() ([]node.Mapped, error)              { return nil, nil }
func (noEngine) ThinImage(context.Context, control.ImageToThin, func([]string) (control.ThinLayer, error)) (
	control.ThinImage, error,
) {
	return control.ThinImage{}, errors.New("no engine is here")
}
func (noEngine) Kubernetes() bool { return false }
