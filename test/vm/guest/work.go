package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/vm"
)

// port is where events go.
type port struct {
	mu sync.Mutex
	fd int // a writer waits in the kernel: its driver doesn't wake one that polls
}

// openPort finds the port by its name.
func openPort() (*port, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, file := range names {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == vm.Port {
			fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(file)), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			return &port{fd: fd}, err
		}
	}
	return nil, fmt.Errorf("find the port %q: the kernel knows %d ports, and none of this name", vm.Port, len(names))
}

// tell writes an event. Whoever reads may be gone, and then so is the machine.
func (p *port) tell(e vm.Event) {
	text, err := json.Marshal(e)
	if err != nil {
		text = fmt.Appendf(nil, `{"Failed":%q}`, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for text = append(text, '\n'); len(text) > 0; {
		n, err := unix.Write(p.fd, text)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		text = text[max(n, 0):]
	}
}

// work runs the programs of a job, one after the other.
func work(file string) {
	p, err := openPort()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
	var job vm.Job
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &job)
	}
	if err != nil {
		p.tell(vm.Event{Failed: err.Error()})
		return
	}
	began := time.Now()
	go func() {
		for ; ; time.Sleep(vm.AliveEvery) {
			p.tell(vm.Event{Alive: time.Since(began).Seconds()})
		}
	}()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		p.tell(vm.Event{Failed: err.Error()})
		return
	}
	p.tell(vm.Event{Up: unix.ByteSliceToString(uts.Release[:])})
	for _, program := range job.Programs {
		began := time.Now()
		ended := p.run(program)
		if job.Init == "" {
			_ = unix.Kill(-1, unix.SIGKILL) // what it has left; spares this process and the first
		}
		ended.Seconds = time.Since(began).Seconds()
		p.tell(vm.Event{Program: program.Name, Ended: &ended})
	}
	p.tell(vm.Event{Done: true})
	if job.Init != "" {
		if out, err := exec.Command("systemctl", "poweroff").CombinedOutput(); err != nil {
			p.tell(vm.Event{Failed: fmt.Sprintf("stop the machine: %v: %s", err, out)})
		}
	}
}

// run runs a program to its end, or to its limit.
func (p *port) run(program vm.Program) vm.Ended {
	cmd := exec.Command(program.Argv[0], program.Argv[1:]...)
	cmd.Dir, cmd.Env = program.Dir, program.Env
	out := &output{port: p, program: program.Name}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	cmd.WaitDelay = vm.QuitWait // what it has left may hold its output
	if err := cmd.Start(); err != nil {
		return vm.Ended{Code: -1, How: err.Error()}
	}
	var late atomic.Bool
	limit := time.AfterFunc(program.Limit, func() {
		late.Store(true)
		_ = cmd.Process.Signal(unix.SIGQUIT) // a Go program shows where each goroutine is
		time.Sleep(vm.QuitWait)
		_ = cmd.Process.Kill()
	})
	err := cmd.Wait()
	if limit.Stop(); late.Load() {
		err = errors.Join(fmt.Errorf("it took longer than %v", program.Limit), err)
	}
	out.flush()
	ended := vm.Ended{Code: cmd.ProcessState.ExitCode()}
	if err != nil {
		ended.How = err.Error()
		if ended.Code == 0 {
			ended.Code = -1
		}
	}
	return ended
}

// output turns what a program writes into events, in whole lines.
type output struct {
	port    *port
	program string
	rest    []byte
}

const longest = 64 << 10 // bytes of a line that are kept together

func (o *output) Write(b []byte) (int, error) {
	o.rest = append(o.rest, b...)
	if end := bytes.LastIndexByte(o.rest, '\n') + 1; end > 0 {
		o.tell(end)
	} else if len(o.rest) > longest {
		o.flush()
	}
	return len(b), nil
}

func (o *output) flush() {
	if len(o.rest) > 0 {
		o.tell(len(o.rest))
	}
}

func (o *output) tell(end int) {
	o.port.tell(vm.Event{Program: o.program, Output: string(o.rest[:end])})
	o.rest = append(o.rest[:0], o.rest[end:]...)
}
