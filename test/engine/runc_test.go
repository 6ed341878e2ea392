package engine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeRunc makes the script for a runc that only prints its arguments, and for an engine that is this process, and
// gives its path and that of the folder of pipes.
func fakeRunc(t *testing.T) (script, pipes string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "it's here")
	for name, text := range map[string]string{
		"runc": "#!/bin/sh\necho \"$@\"\n", "pid": fmt.Sprintln(os.Getpid()),
		"script": runcScript(dir+"/runc", dir+"/pid", dir+"/pipes"),
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "script"), filepath.Join(dir, "pipes")
}

func TestAProcessStartsWhenTheEngineReadsWhatItSays(t *testing.T) {
	for _, c := range []struct {
		args    string
		process string // whose pipes are waited for; "" for none
	}{
		{"--root /run/x --log-format json start c1", "init"},
		{"--root /run/x exec --process /tmp/p --detach --pid-file /run/x/e2.pid c1", "e2"},
		{"--root /run/x create --bundle /run/x/c1 --pid-file /run/x/init.pid c1", ""},
		{"--root /run/x kill c1 9", ""},
		{"--version", ""},
	} {
		script, folder := fakeRunc(t)
		if err := os.MkdirAll(filepath.Join(folder, "c1"), 0o755); err != nil {
			t.Fatal(err)
		}
		var pipes []string
		for _, process := range []string{"init", "e2"} {
			for _, stream := range []string{"stdin", "stdout", "stderr"} {
				name := filepath.Join(folder, "c1", process+"-"+stream)
				if err := unix.Mkfifo(name, 0o600); err != nil {
					t.Fatal(err)
				}
				if process == c.process && stream != "stdin" {
					pipes = append(pipes, name)
				}
			}
		}
		ended := make(chan string, 1)
		cmd := exec.Command(script, strings.Fields(c.args)...)
		go func() {
			out, err := cmd.Output()
			ended <- fmt.Sprintf("%s%v", out, err)
		}()
		for _, name := range pipes {
			// A descriptor that only names the pipe doesn't count.
			for _, flags := range []int{unix.O_PATH, unix.O_RDWR} {
				fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				if flags == unix.O_PATH {
					select {
					case out := <-ended:
						t.Errorf("%s: didn't wait for %s: %s", c.args, filepath.Base(name), out)
					case <-time.After(200 * time.Millisecond):
					}
				}
				defer unix.Close(fd)
			}
		}
		select {
		case out := <-ended:
			if out != c.args+"\n<nil>" {
				t.Errorf("%s: runc got %q", c.args, out)
			}
		case <-time.After(8 * time.Second):
			t.Errorf("%s: still waits", c.args)
		}
	}
}

func TestAnEngineThatHasGoneHoldsNothingUp(t *testing.T) {
	script, folder := fakeRunc(t)
	if err := os.MkdirAll(filepath.Join(folder, "c1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(folder, "c1/init-stdout"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []string{"4194304999\n", "", "\n"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(script), "pid"), []byte(pid), 0o600); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if out, err := exec.Command(script, "start", "c1").CombinedOutput(); err != nil || string(out) != "start c1\n" {
			t.Errorf("process id %q: %q, %v", pid, out, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("process id %q: took %v", pid, took)
		}
	}
}
