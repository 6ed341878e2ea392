package vm

import "time"

// Job is what a machine does. It is handed over as JSON in the initial root file system, as /job.json.
type Job struct {
	Mounts []Mount           // of disks; the first is the root, "/"
	Files  map[string]string // content of files to write, by path
	// systemd of the root, which becomes the first process; programs are then a unit of its, and at the end it stops
	Init     string
	Programs []Program
}

// Mount is a disk's place. Where its folder is missing it is made.
type Mount struct {
	Disk, Dir, FSType string
	ReadOnly          bool
}

// Program is run in the machine, as root. Its limit runs in the machine's time, which is the host's.
type Program struct {
	Name  string
	Argv  []string
	Dir   string
	Env   []string      // all of it
	Limit time.Duration // then it is told to show where it is (SIGQUIT), and killed
}

// Event is a line of the port. Which of its parts are there tells what happened.
type Event struct {
	Up      string  `json:",omitempty"` // the kernel's release; the machine begins with its job
	Program string  `json:",omitempty"` // what the rest is about
	Output  string  `json:",omitempty"` // what the program has written
	Ended   *Ended  `json:",omitempty"` // the program is through
	Alive   float64 `json:",omitempty"` // seconds since the start: said now and then, whatever programs do
	Failed  string  `json:",omitempty"` // why the machine couldn't do its job
	Done    bool    `json:",omitempty"` // the job is through
}

// Ended is how a program ended.
type Ended struct {
	Code    int    // exit code; -1 if a signal ended it
	How     string // in words, "" for success
	Seconds float64
}

const (
	// Port is the name of the port that events are written to.
	Port = "progress"
	// AliveEvery is the time between two signs of life.
	AliveEvery = 5 * time.Second
	// QuitWait is how long a program that is told to show where it is has before it is killed.
	QuitWait = 10 * time.Second
)
