// Command kernels runs the project's tests on other Linux kernels: Debian's, in virtual machines. It builds the test
// programs, makes disks of them, and boots each kernel; see package vm. What it shows is what go test shows.
//
// A skipped test is a failure, unless it names something that the kernel is known to lack. A kernel that has passed is
// not run again while nothing of what goes in has changed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/debian"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/vm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("kernels", flag.ExitOnError)
	names := flags.String("kernels", "", "run on these kernels of the table, divided by commas; all without")
	suite := flags.String("suite", "full",
		"what to run: full, its halves parts and whole, host, its half newest-host, figures, or ci")
	force := flags.Bool("force", false, "run also what has passed")
	fetchOnly := flags.Bool("fetch", false, "only fetch what is needed")
	atOnce := flags.Int("machines", min(runtime.NumCPU(), 4), "how many run at one time, of two processors and 4 GiB")
	output := flags.String("output", "dist/kernels", "folder for logs")
	if err := flags.Parse(args); err != nil {
		return err
	}
	list, err := named(*names)
	if err != nil {
		return err
	}
	if suites[*suite] == nil {
		return fmt.Errorf("no suite %q; there are full, parts, whole, host, newest-host and ci", *suite)
	}
	cache, err := engine.CacheDir()
	if err != nil {
		return err
	}
	err = fetch(ctx, cache, suites[*suite])
	if *fetchOnly {
		return errors.Join(err, fetchKernels(ctx, cache, list))
	}
	if err != nil {
		return err
	}
	work, done, err := workFolder(*output)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	module, err := os.Getwd()
	if err != nil {
		return err
	}
	in, err := makeInputs(ctx, cache, module, work, suites[*suite], out)
	if err != nil {
		return err
	}
	r := &runner{
		cache: cache, module: module, output: *output, work: work, suite: *suite, force: *force, in: in,
		atOnce: *atOnce, out: &sharedWriter{w: out},
	}
	return r.all(ctx, list)
}

// workFolder makes the folder, below the one for logs, of what goes away at the end of a run. What a run that was
// killed has left goes at the beginning of the next one.
func workFolder(output string) (work string, done func() error, err error) {
	if work, err = filepath.Abs(filepath.Join(output, "work")); err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(output, 0o755); err != nil {
		return "", nil, err
	}
	lock, err := os.OpenFile(filepath.Join(output, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return "", nil, errors.Join(fmt.Errorf("another run uses %s (name another folder with -output): %w", output,
			err), lock.Close())
	}
	if err := errors.Join(os.RemoveAll(work), os.Mkdir(work, 0o755)); err != nil {
		return "", nil, errors.Join(err, lock.Close())
	}
	return work, func() error { return errors.Join(os.RemoveAll(work), lock.Close()) }, nil
}

// all runs the suite on kernels and shows what came of it. The kernels are begun in their order.
func (r *runner) all(ctx context.Context, list []kernel) error {
	var machines errgroup.Group
	machines.SetLimit(r.atOnce)
	var begun []func() (*outcome, error)
	var failures []error
	for _, k := range list {
		outcome, err := r.start(ctx, &k, &machines)
		if failures = append(failures, err); err == nil {
			begun = append(begun, outcome)
		}
		if ctx.Err() != nil {
			break
		}
	}
	failures = append(failures, machines.Wait())
	var rows []row
	for _, outcome := range begun {
		o, err := outcome()
		failures, rows = append(failures, err), append(rows, o.Rows...)
	}
	return errors.Join(append(failures, table(r.out, rows))...)
}

// sharedWriter takes each text as a whole, whoever writes at the same time.
type sharedWriter struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (s *sharedWriter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}

// fetch brings what every machine needs into the cache folder.
func fetch(ctx context.Context, cache string, programs []program) error {
	machines := append(hosts(programs), debian.Docker)
	return errors.Join(
		vm.Fetch(ctx, cache, arch, os.Stderr),
		debian.Fetch(ctx, cache, os.Stderr, machines...),
		engine.FetchPrograms(ctx, cache, os.Stderr),
	)
}

// fetchKernels brings kernels into the cache folder. One that can't be had doesn't keep the others away.
func fetchKernels(ctx context.Context, cache string, list []kernel) error {
	var failures []error
	for _, k := range list {
		failures = append(failures, k.fetch(ctx, cache, os.Stderr))
	}
	return errors.Join(failures...)
}
