package record

import (
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

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/child"
)

// What a program is started with to be one of the processes that record.
const (
	recorderArgument  = "record-start"
	containerArgument = "record-container"
)

// Config says what is run, and when its start is over: at the first of Port, For, and its end.
type Config struct {
	Descriptor    []byte        `json:"descriptor"`    // thin.json
	Configuration string        `json:"configuration"` // folder of the host's CernVM-FS configuration
	View          string        `json:"view"`          // of package options; "" for the best that works
	Command       Command       `json:"command"`
	Port          int           `json:"port"` // TCP port that somebody in the container listens at; 0: none
	For           time.Duration `json:"for"`  // 0: without limit
	Agent         string        `json:"agent"`
	Verbose       bool          `json:"verbose"`

	Output io.Writer `json:"-"` // of the program, and what the node logs
}

// Command is what is run in the image.
type Command struct {
	Args []string `json:"args"` // program and arguments
	Env  []string `json:"env"`
	Dir  string   `json:"dir"`  // "" is /
	User string   `json:"user"` // as in an image's configuration
}

// Result is what a start comes to.
type Result struct {
	Profile objects.Profile
	Pieces  int           // objects, and chunks of objects
	Bytes   int64         // plain, of these
	Took    time.Duration // from the program's start
	Ended   string        // what ended the recording
}

// result is how the recorder says it.
type result struct {
	Profile []byte        `json:"profile"`
	Pieces  int           `json:"pieces"`
	Bytes   int64         `json:"bytes"`
	Took    time.Duration `json:"took"`
	Ended   string        `json:"ended"`
	Err     string        `json:"error"`
}

// ErrRoot means that the caller isn't root.
var ErrRoot = errors.New("the start of an image is recorded by root alone, as it mounts the image: call it by sudo")

// Run records a start. The program must call [Main] first of all.
func Run(ctx context.Context, c Config) (*Result, error) {
	if os.Geteuid() != 0 {
		return nil, ErrRoot
	}
	if len(c.Command.Args) == 0 {
		return nil, errors.New("record a start: the image names no command: say which one to run")
	}
	dir, remove, err := scratch("/var/tmp") // not in memory: it holds what is read
	if err != nil {
		return nil, fmt.Errorf("record a start: %w", err)
	}
	r, err := run(ctx, c, dir)
	if err = errors.Join(err, remove()); err != nil {
		return nil, fmt.Errorf("record a start: %w", err)
	}
	return r, nil
}

func run(ctx context.Context, c Config, dir string) (_ *Result, err error) {
	question, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	answers, answer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer answers.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", recorderArgument, dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(question), c.Output, c.Output
	cmd.ExtraFiles = []*os.File{answer}
	// It is the first process of its namespace: with it all others go, whatever they do.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	err = child.Start(cmd)
	answer.Close() // the recorder has it
	if err != nil {
		return nil, err
	}
	var said result
	text, err := io.ReadAll(answers)
	if err == nil {
		err = json.Unmarshal(text, &said)
	}
	ended := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case said.Err != "":
		return nil, errors.New(said.Err)
	case err != nil || ended != nil:
		return nil, fmt.Errorf("the process that records has failed: %w", errors.Join(ended, err))
	}
	r := &Result{Pieces: said.Pieces, Bytes: said.Bytes, Took: said.Took, Ended: said.Ended}
	r.Profile, err = objects.ParseProfile(said.Profile)
	return r, err
}

// Main is the process that the program was started to be, if it is one of those that record, and ends it.
func Main() {
	if len(os.Args) < 2 {
		return
	}
	switch os.Args[1] {
	case recorderArgument:
		os.Exit(recorderMain())
	case containerArgument:
		os.Exit(containerMain())
	}
}

// listens reports whether anybody listens at a TCP port in the network namespace of a process.
func listens(pid, port int) bool {
	for _, name := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "net", name))
		if err == nil && listening(string(text), port) {
			return true
		}
	}
	return false
}

// listening reports whether a table of sockets has one that listens at a port. Lines are as proc_pid_net(5) has them.
func listening(table string, port int) bool {
	const listen = "0A"
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) > 3 && f[3] == listen && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
			return true
		}
	}
	return false
}
