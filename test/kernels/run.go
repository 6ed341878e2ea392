package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/test/gotest"
	"cvmfs-graphdriver/test/vm"
)

const (
	moduleName = "cvmfs-graphdriver"
	silence    = 2 * time.Minute // without a sign of life, on a machine that others use, too
	slowStart  = 6 * time.Minute // the same where systemd starts a whole host first
)

// wanted are the kernel's modules that tests need; what a kernel has built in is not among its modules.
var wanted = []string{
	"virtio_pci", "virtio_blk", "virtio_rng", "virtio_console", "crc32c_generic", "crc32c_intel", "ext4", "xfs", "loop",
	"fuse", "overlay", "erofs",
	"quota_v2", "seccomp",
}

// runner runs a suite on kernels.
type runner struct {
	cache, module string
	output        string // folder of logs
	work          string // folder for what goes away
	suite         string
	force         bool
	atOnce        int // machines
	in            *inputs
	out           io.Writer
}

// start has the suite run on a kernel, unless it has passed with the same inputs, by machines that the group has run.
// What it returns gives the outcome, once the group has done.
func (r *runner) start(ctx context.Context, k *kernel, machines *errgroup.Group) (func() (*outcome, error), error) {
	if err := k.fetch(ctx, r.cache, os.Stderr); err != nil {
		return nil, err
	}
	i, err := unpackedIn(filepath.Join(r.cache, k.folder()))
	if err != nil {
		return nil, err
	}
	programs := suites[r.suite]
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %v %v", r.in.hash, i.release, *k, programs))
	kept := filepath.Join(r.cache, "kernel-results", k.name+"-"+r.suite+".json")
	o := &outcome{Inputs: fmt.Sprintf("%x", sum)}
	if before, err := load(kept, o.Inputs); err != nil {
		return nil, err
	} else if before != nil && before.ok() && !r.force {
		fmt.Fprintf(r.out, "kernels: %s (%s) has passed with the same programs\n", k.name, i.release)
		return func() (*outcome, error) { return before, nil }, nil
	}
	fmt.Fprintf(r.out, "kernels: run %s (%s)\n", k.name, i.release)
	for _, kind := range hosts(programs) {
		if err := r.makeHost(ctx, k, i, kind); err != nil {
			return nil, err
		}
	}
	list := lives(boots(programs))
	rows, failures := make([][]row, len(list)), make([]error, len(list))
	var saved error
	var left atomic.Int32
	left.Store(int32(len(list)))
	for n, life := range list {
		machines.Go(func() error {
			rows[n], failures[n] = r.live(ctx, k, i, life)
			if left.Add(-1) > 0 {
				return nil
			}
			o.Rows = slices.Concat(rows...)
			if errors.Join(failures...) == nil {
				saved = o.save(kept)
			}
			return nil
		})
	}
	return func() (*outcome, error) {
		err := errors.Join(errors.Join(failures...), saved)
		switch {
		case err != nil:
			err = fmt.Errorf("kernel %s: %w", k.name, err)
		case !o.ok():
			err = fmt.Errorf("kernel %s: tests failed; all they wrote is in folders of %s that begin with its name",
				k.name, r.output)
		}
		return o, err
	}, nil
}

// live runs machines one after the other, until one comes to a bad end.
func (r *runner) live(ctx context.Context, k *kernel, i *image, life [][]program) (rows []row, err error) {
	for _, programs := range life {
		more, err := r.boot(ctx, k, i, programs)
		if rows = append(rows, more...); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// lives divides machines by what has to follow one another: the lives of hosts, whose disks are kept in between.
func lives(boots [][]program) (list [][][]program) {
	var kept [][]program
	for _, programs := range boots {
		if programs[0].host != "" {
			kept = append(kept, programs)
		} else {
			list = append(list, [][]program{programs})
		}
	}
	if kept != nil {
		list = append(list, kept)
	}
	return list
}

// boots divides programs by the machines they run in.
func boots(programs []program) (list [][]program) {
	for _, p := range programs {
		if n := len(list); n > 0 && list[n-1][0].machine() == p.machine() {
			list[n-1] = append(list[n-1], p)
		} else {
			list = append(list, []program{p})
		}
	}
	return list
}

// boot runs programs in a machine.
func (r *runner) boot(ctx context.Context, k *kernel, i *image, programs []program) (rows []row, err error) {
	modules, err := r.in.emulator.Modules(ctx, i.modules, wanted...)
	if err != nil {
		return nil, err
	}
	name := strings.Join(strings.Fields(k.name+" "+programs[0].machine()), " ")
	dir := filepath.Join(r.output, strings.ReplaceAll(name, " ", "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	initial := filepath.Join(r.work, "initial-"+filepath.Base(dir))
	if err := vm.WriteInitial(initial, r.in.guest, modules, r.job(k, programs)); err != nil {
		return nil, err
	}
	m := &vm.Machine{
		Arch: arch, Kernel: i.kernel, Initial: initial, Append: programs[0].with, CPUs: 2, Memory: 4096,
		Silence: silence,
		Disks:   []vm.Disk{{Name: "root", File: r.in.root}, {Name: "tests", File: r.in.tests}},
	}
	if programs[0].host != "" {
		m.Disks[0] = vm.Disk{Name: "root", File: r.hostDisk(k, programs[0].on), Keep: true}
		m.Silence = slowStart
	}
	for _, p := range programs {
		m.Limit += p.limit + time.Minute
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	reader := &reader{kernel: name, lacks: k.lacks, dir: dir, out: r.out, programs: programs}
	err = r.in.emulator.Run(ctx, m, dir, func(e vm.Event) {
		if err := reader.read(ctx, e); err != nil {
			stop(err)
		}
	})
	return reader.rows, errors.Join(err, reader.torn(err))
}

// job is what a machine does to run programs.
func (r *runner) job(k *kernel, programs []program) *vm.Job {
	job := &vm.Job{
		Mounts: []vm.Mount{
			{Disk: "root", Dir: "/", FSType: "ext4"},
			{Disk: "tests", Dir: r.module, FSType: "ext4", ReadOnly: true},
		},
		Files: map[string]string{
			// A plugin with the host's network has this file.
			"/etc/resolv.conf": "nameserver 127.0.0.1\n",
			"/etc/hosts":       "127.0.0.1 localhost guest\n",
		},
	}
	if programs[0].host != "" {
		job.Init = "/sbin/init"
	}
	view, _, _ := strings.Cut(k.view, " ")
	for _, p := range programs {
		env := []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
			"ENGINE=/usr/sbin/dockerd", "CVMFS_TEST_VIEW=" + k.view,
			"CVMFS_TEST_PROGRAMS=" + filepath.Join(r.module, built),
			"CVMFS_TEST_CACHE=" + filepath.Join(r.module, cached),
		}
		job.Programs = append(job.Programs, vm.Program{
			Name: p.folder, Argv: p.argv(r.module, view), Dir: filepath.Join(r.module, p.folder),
			Env: append(env, p.env...), Limit: p.limit + 20*time.Second,
		})
	}
	return job
}

// reader turns the events of a machine into rows, and shows what matters.
type reader struct {
	kernel   string // with what makes its machine differ
	lacks    []string
	programs []program
	dir      string
	out      io.Writer
	rows     []row
	current  *tests
}

// read takes an event.
func (r *reader) read(ctx context.Context, e vm.Event) (err error) {
	switch {
	case e.Up != "":
		fmt.Fprintf(r.out, "kernels: %s is up\n", e.Up)
	case e.Output != "":
		if r.current == nil {
			if r.current, err = newTests(ctx, r.dir, e.Program, r.out); err != nil {
				return err
			}
		}
		return r.current.write(e.Output)
	case e.Ended != nil:
		return r.end(e.Program, e.Ended)
	}
	return nil
}

// end makes a row of a program that is through.
func (r *reader) end(program string, ended *vm.Ended) error {
	row := row{Kernel: r.kernel, Program: program, Seconds: ended.Seconds}
	summary := &gotest.Summary{}
	if r.current != nil {
		var err error
		if summary, err = r.current.close(); err != nil {
			return err
		}
		r.current = nil
	}
	row.Passed, row.Failed, row.Skipped = summary.Passed, summary.Failed, len(summary.Skipped)
	row.Faults = wrongSkips(summary.Skipped, r.lacks)
	if ended.How != "" && row.Failed == 0 {
		row.Faults = append(row.Faults, "it ended by "+ended.How)
	}
	if row.Passed+row.Failed+row.Skipped == 0 {
		row.Faults = append(row.Faults, "no test was run")
	}
	r.rows = append(r.rows, row)
	fmt.Fprint(r.out, row.closing(moduleName))
	return nil
}

// torn makes rows of the programs that a machine which came to a bad end didn't get through.
func (r *reader) torn(err error) error {
	if err == nil {
		return nil
	}
	var failures []error
	if r.current != nil {
		_, err := r.current.close()
		failures = append(failures, err)
	}
	for _, p := range r.programs[len(r.rows):] {
		r.rows = append(r.rows, row{
			Kernel: r.kernel, Program: p.folder,
			Faults: []string{"the machine ended before it was through"},
		})
		fmt.Fprint(r.out, r.rows[len(r.rows)-1].closing(moduleName))
	}
	return errors.Join(failures...)
}

// tests reads what a test program writes.
type tests struct {
	log       *os.File // all of it
	converter *exec.Cmd
	in        io.WriteCloser
	summary   *gotest.Summary
	shown     chan error
}

func newTests(ctx context.Context, dir, folder string, out io.Writer) (*tests, error) {
	t := &tests{shown: make(chan error, 1)}
	var err error
	if t.log, err = os.Create(filepath.Join(dir, strings.ReplaceAll(folder, "/", "-")+".log")); err != nil {
		return nil, err
	}
	t.converter = exec.CommandContext(ctx, "go", "tool", "test2json", "-p", moduleName+"/"+folder)
	t.converter.Stderr = os.Stderr
	if t.in, err = t.converter.StdinPipe(); err != nil {
		return nil, err
	}
	events, err := t.converter.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := t.converter.Start(); err != nil {
		return nil, err
	}
	go func() {
		summary, err := gotest.Show(out, events)
		t.summary = summary
		t.shown <- err
	}()
	return t, nil
}

func (t *tests) write(text string) error {
	_, err := io.WriteString(io.MultiWriter(t.log, t.in), text)
	return err
}

func (t *tests) close() (*gotest.Summary, error) {
	err := errors.Join(t.in.Close(), <-t.shown, t.converter.Wait(), t.log.Close())
	return t.summary, err
}
