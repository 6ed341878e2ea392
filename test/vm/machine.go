package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"cvmfs-graphdriver/internal/child"
)

// Machine says what a virtual machine is made of.
type Machine struct {
	Arch    string // as Go names it: amd64, arm64
	Kernel  string // a file, as boot loaders take it
	Initial string // a file, the initial root file system: see [WriteInitial]
	Append  string // words for the kernel's command line, besides those every machine has
	Disks   []Disk
	CPUs    int
	Memory  int // MiB

	Limit time.Duration // until it is stopped
	// Silence without any event, until it is stopped; 0 for none. While programs of a job run there is a sign of life
	// every [AliveEvery].
	Silence time.Duration
}

// Disk is a file with a disk's bytes.
type Disk struct {
	Name string // by which a [Mount] names it; at most 20 bytes
	File string
	// Keep has changes written to the file, for those who start a machine again. Without it they go with the machine,
	// and several machines may have the disk.
	Keep bool
}

// arches are the machines that can be emulated: Debian's package of the emulator, its program, its machine and
// processor, and the kernel's console.
var arches = map[string]struct{ packages, program, machine, cpu, console string }{
	"amd64": {"qemu-system-x86", "qemu-system-x86_64", "pc", "qemu64", "ttyS0"},
	"arm64": {"qemu-system-arm", "qemu-system-aarch64", "virt", "cortex-a57", "ttyAMA0"},
}

// arguments are the command line of the emulator, whose standard output is the port.
func (m *Machine) arguments(firmware []string, console string) []string {
	arch := arches[m.Arch]
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none",
		"-machine", arch.machine, "-accel", "tcg,thread=multi", "-cpu", arch.cpu, "-smp", fmt.Sprint(m.CPUs), "-m",
		fmt.Sprint(m.Memory),
		"-kernel", m.Kernel, "-initrd", m.Initial,
		// A kernel that panics ends at once. Nobody else is in the machine, and entropy comes from the host.
		"-append", strings.TrimSpace("console=" + arch.console +
			" quiet panic=-1 mitigations=off random.trust_cpu=on " + m.Append),
		"-serial", "file:" + console,
		"-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=entropy",
		"-chardev", "stdio,id=port,signal=off", "-device", "virtio-serial-pci", "-device",
		"virtserialport,chardev=port,name=" + Port,
	}
	for _, dir := range firmware {
		args = append(args, "-L", dir)
	}
	for _, d := range m.Disks {
		snapshot := "on"
		if d.Keep {
			snapshot = "off"
		}
		args = append(args,
			"-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=%s,snapshot=%s,cache=unsafe,aio=threads", d.File,
				d.Name, snapshot),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", d.Name, d.Name))
	}
	return args
}

// WriteInitial writes the initial root file system of a machine: the program that is its first process (test/vm/guest,
// built for its architecture), modules to load in this order, and the job.
func WriteInitial(file string, guest []byte, modules []File, job *Job) error {
	text, err := json.Marshal(job)
	if err != nil {
		return err
	}
	files := []File{{Name: "init", Mode: 0o755, Content: guest}, {Name: "job.json", Mode: 0o644, Content: text}}
	for n, m := range modules {
		files = append(files, File{Name: fmt.Sprintf("modules/%03d-%s", n, m.Name), Mode: m.Mode, Content: m.Content})
	}
	var b bytes.Buffer
	if err := WriteArchive(&b, files); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// errSilent and errLimit are why a machine is stopped.
var (
	errSilent = errors.New("no sign of life")
	errLimit  = errors.New("it took longer than it may")
)

// Run runs a machine to its end and gives its events to a function, one by one. The kernel's console, and what the
// emulator says, go to files in dir. The error of a machine that ends before its job is through has the console's last
// lines. The emulator dies with this process; changes of disks that aren't kept lie in unlinked files.
func (e *Emulator) Run(ctx context.Context, m *Machine, dir string, each func(Event)) error {
	console := filepath.Join(dir, "console")
	if err := os.WriteFile(console, nil, 0o644); err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	err := e.run(ctx, m, dir, console, &events{each: each}, stop)
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("run the machine: %w; its console's last lines:\n%s", err, lastLines(console, 20))
}

func (e *Emulator) run(ctx context.Context, m *Machine, dir, console string, events *events,
	stop context.CancelCauseFunc,
) error {
	cmd := exec.CommandContext(ctx, e.program, m.arguments(e.firmware, console)...)
	cmd.Env = append(os.Environ(), e.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us
	log, err := os.Create(filepath.Join(dir, "emulator"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stderr = log
	port, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	// Without an open input the emulator takes the port for closed. Wait closes it.
	if _, err := cmd.StdinPipe(); err != nil {
		return err
	}
	if err := child.Start(cmd); err != nil {
		return err
	}
	limit := time.AfterFunc(m.Limit, func() { stop(fmt.Errorf("%w (%v)", errLimit, m.Limit)) })
	defer limit.Stop()
	seen := func() {}
	if m.Silence > 0 {
		silence := time.AfterFunc(m.Silence, func() { stop(fmt.Errorf("%w for %v", errSilent, m.Silence)) })
		defer silence.Stop()
		seen = func() { silence.Reset(m.Silence) }
	}
	events.read(port, seen)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, lastLines(log.Name(), 5))
	}
	return events.verdict()
}

// events reads a machine's events.
type events struct {
	each   func(Event)
	failed string
	done   bool
}

// read reads to the port's end. What is no event is the emulator's own and is passed over.
func (e *events) read(port io.Reader, seen func()) {
	lines := bufio.NewReader(port)
	for {
		line, err := lines.ReadBytes('\n')
		var event Event
		if err != nil {
			return
		}
		if json.Unmarshal(line, &event) != nil {
			continue
		}
		seen()
		e.done = e.done || event.Done
		if event.Failed != "" {
			e.failed = event.Failed
		}
		e.each(event)
	}
}

func (e *events) verdict() error {
	switch {
	case e.failed != "":
		return errors.New(e.failed)
	case !e.done:
		return errors.New("it ended in the middle of its job")
	}
	return nil
}

// lastLines returns the end of a text file.
func lastLines(file string, count int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(strings.ToValidUTF8(string(b), "?"), "\r\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}
