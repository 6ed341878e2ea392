// Command guest is the first process of a virtual machine of package vm. From the initial root file system it loads
// modules and mounts the disks; then it does the job.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/vm"
)

// jobVariable, in the environment, names the file of a job whose programs are to be run, by a child of the first
// process.
const jobVariable = "VM_JOB"

// Places for the child, in memory.
const (
	ownDir  = "/run/vm"
	jobFile = ownDir + "/job.json"
	ownFile = ownDir + "/guest"
)

func main() {
	if file := os.Getenv(jobVariable); file != "" {
		work(file)
		return
	}
	// There is nobody to return to: the machine ends in any case.
	if err := begin(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		if p, open := openPort(); open == nil {
			p.tell(vm.Event{Failed: err.Error()})
		}
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// begin makes the machine ready and has the job done.
func begin() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := mount(m[0], m[1], m[0], 0, ""); err != nil {
			return err
		}
	}
	if err := openConsole(); err != nil {
		return err
	}
	text, err := os.ReadFile("/job.json")
	if err != nil {
		return err
	}
	var job vm.Job
	if err := json.Unmarshal(text, &job); err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := mountDisks(job.Mounts); err != nil {
		return err
	}
	if err := writeFiles(job.Files); err != nil {
		return err
	}
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	if err := writeFiles(map[string]string{jobFile: string(text)}); err != nil {
		return err
	}
	if job.Init != "" {
		if err := addUnit(); err != nil {
			return err
		}
		return fmt.Errorf("start %s: %w", job.Init, unix.Exec(job.Init, []string{job.Init}, environment))
	}
	if err := settle(); err != nil {
		return err
	}
	return reap()
}

// unit has systemd run the job when all else is up.
const unit = `[Unit]
Description=The job of this virtual machine
After=multi-user.target
[Service]
Environment=` + jobVariable + "=" + jobFile + `
ExecStart=` + ownFile + `
StandardOutput=journal+console
`

// addUnit makes the job a unit of systemd's, for this boot.
func addUnit() error {
	const units = "/run/systemd/system"
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.WriteFile(ownFile, program, 0o755); err != nil {
		return err
	}
	if err := writeFiles(map[string]string{units + "/vm-job.service": unit}); err != nil {
		return err
	}
	if err := os.Mkdir(units+"/multi-user.target.wants", 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.Symlink("../vm-job.service", units+"/multi-user.target.wants/vm-job.service"),
		os.Symlink("/dev/null", units+"/tmp.mount"), // a disk of the job's may be mounted below /tmp
	)
}

// openConsole has the console take what is said from here on: the kernel had no device to open for us.
func openConsole() error {
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup3(int(console.Fd()), fd, 0); err != nil && int(console.Fd()) != fd {
			return err
		}
	}
	return nil
}

// environment is that of everything in the machine.
var environment = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
	"LANG=C.UTF-8",
}

// reap has a child do the work, and takes the ends of processes whose parents are gone, as a first process has to.
func reap() error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(environment, jobVariable+"="+jobFile)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return fmt.Errorf("wait for the job's end: %w", err)
		case pid == cmd.Process.Pid && status.ExitStatus() != 0:
			return fmt.Errorf("the job ended with %#x", int(status))
		case pid == cmd.Process.Pid:
			return nil
		}
	}
}
