package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/link"
	"cvmfs-graphdriver/test/stand"
)

// network is a link that nodes are measured on.
type network struct {
	name  string
	speed link.Speed
}

const megabit = 1_000_000 / 8 // bytes a second

var networks = []network{
	{"1gbit-0.2ms", link.Speed{Rate: 1000 * megabit, Trip: 200 * time.Microsecond}},
	{"100mbit-20ms", link.Speed{Rate: 100 * megabit, Trip: 20 * time.Millisecond}},
	{"50mbit-80ms", link.Speed{Rate: 50 * megabit, Trip: 80 * time.Millisecond}},
	{"none", link.Speed{}},
}

// door is a kind of node: an engine, and the way to have it use our driver, or its own.
type door struct {
	name      string
	tools     func(ctx context.Context, cache string, progress io.Writer) (*engine.Tools, error)
	ours, own func(ctx context.Context, o stand.Options) (*stand.Stand, error)
}

var doors = []door{
	{
		"20.10", engine.Fetch, stand.New, func(ctx context.Context, o stand.Options) (*stand.Stand, error) {
			o.Own = "overlay2"
			return stand.NewPlain(ctx, o)
		},
	},
	{
		"29", engine.Stack29on21.Fetch, stand.NewSnapshotter,
		func(ctx context.Context, o stand.Options) (*stand.Stand, error) {
			o.Snapshotter = ""
			return stand.NewSnapshotter(ctx, o)
		},
	},
}

// mode is a way to start an image: in which form, and on the engine's own driver or on ours.
type mode struct {
	name string
	form form
	own  bool
}

// key is that of a cell. The view matters to thin images only.
func (m mode) key(image string, n network, engine, view string) key {
	k := key{Image: image, Link: n.name, Engine: engine, Mode: m.name}
	if m.form != ordinary {
		k.View = view
	}
	return k
}

// modes are the ways there are; the first is what others are compared with.
var modes = []mode{
	{"overlay2", ordinary, true},
	{"ordinary", ordinary, false},
	{"thin", thin, false},
	{"profiled", profiled, false},
}

// newFarFolder makes a temporary folder, the folders in which ext4 puts far from each other (chattr +T). Where many
// files were just removed it would take 0.3 ms to make one, and not 0.01: it asks of each inode whether it was freed
// within the last five minutes (recently_deleted, fs/ext4/ialloc.c), and each sample removes what it has made.
func newFarFolder() (string, error) {
	dir, err := os.MkdirTemp("", "nodes-")
	if err != nil {
		return "", err
	}
	if err := spread(dir); err != nil {
		return "", errors.Join(fmt.Errorf("chattr +T %s: %w", dir, err), os.Remove(dir))
	}
	return dir, nil
}

// spread opens a folder to all, as that of a stand is, and has ext4 spread what is in it; other file systems do not.
func spread(dir string) error {
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const topFolders = 0x00020000 // FS_TOPDIR_FL
	err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, topFolders)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// node is a fresh engine at the end of a link.
type node struct {
	*stand.Stand
	origin         *origin
	link           *link.Link
	registry, site *link.Relay
}

// newNode starts a node that has fetched nothing yet.
func newNode(ctx context.Context, o stand.Options, from *origin, speed link.Speed,
	open func(context.Context, stand.Options) (*stand.Stand, error),
) (*node, error) {
	n := &node{origin: from, link: link.New(speed)}
	var err error
	n.registry, err = n.link.Open(from.registry.addr)
	if err == nil {
		n.site, err = n.link.Open(from.site.addr)
	}
	if err == nil {
		n.Stand, err = open(ctx, o)
	}
	if err == nil {
		err = stand.Configure(n.Config, repository, "http://"+n.site.Addr+"/cvmfs/"+repository, from.key())
	}
	if err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *node) close() error {
	var err error
	if n.Stand != nil {
		err = n.Stand.Close()
	}
	return errors.Join(err, n.link.Close())
}

// logs is what the node's programs said.
func (n *node) logs() string {
	text := n.Engine.Log()
	if n.Snapshotter != nil {
		text += "\nsnapshotter:\n" + n.Snapshotter.Log()
	}
	return text
}

// fetched is what the node has fetched up to now, of the registry and of the site.
func (n *node) fetched() (registry, site traffic) {
	registry, site = n.origin.registry.counted(), n.origin.site.counted()
	registry.Bytes, site.Bytes = n.registry.Count().Down, n.site.Count().Down
	return registry, site
}

// warmRuns is how often a start is repeated on a node that has everything; the median counts.
const warmRuns = 3

// start pulls an image, runs it until it is ready, and runs it again, and notes in s what that took.
func (n *node) start(ctx context.Context, image sampleImage, f form, s *sample) error {
	empty, err := diskUsage(n.Dir())
	if err != nil {
		return err
	}
	if err := n.forget(ctx); err != nil {
		return err
	}
	idle, err := n.usage()
	if err != nil {
		return err
	}
	registry, site := n.fetched()
	begin := time.Now()
	ref := reference(n.registry.Addr, image.name, f)
	if _, err := n.Engine.Docker(ctx, "pull", "--quiet", ref); err != nil {
		return err
	}
	s.Pull = time.Since(begin).Seconds()
	run, err := n.run(ctx, ref, image)
	if err != nil {
		return err
	}
	s.Run = run.Seconds()
	busy, err := n.usage()
	if err != nil {
		return err
	}
	s.CPU = busy.cpu - idle.cpu
	r, c := n.fetched()
	s.Registry, s.Site = r.sub(registry), c.sub(site)
	var warm []float64
	for range warmRuns {
		again, err := n.run(ctx, ref, image)
		if err != nil {
			return fmt.Errorf("run again: %w", err)
		}
		warm = append(warm, again.Seconds())
	}
	s.Warm = median(warm)
	_, later := n.fetched()
	s.Later = later.sub(c)
	busy, err = n.usage()
	if err != nil {
		return err
	}
	s.Memory = busy.memory
	full, err := diskUsage(n.Dir())
	s.Disk = full - empty
	return err
}

// forget takes all files out of memory, but for the programs that every start runs.
func (n *node) forget(ctx context.Context) error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return err
	}
	_, err := n.Engine.Docker(ctx, "version")
	return err
}

// run runs the image and returns how long it took until it was ready. It waits for its end.
func (n *node) run(ctx context.Context, ref string, image sampleImage) (time.Duration, error) {
	cmd := n.Engine.Command(ctx, append([]string{"run", "--rm", "--network", "none", ref}, image.command...)...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	var took time.Duration
	var said strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if took == 0 && strings.Contains(lines.Text(), image.ready) {
			took = time.Since(begin)
		}
		said.WriteString(lines.Text() + "\n")
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("run %s: %w: %s%s", image.name, err, said.String(), complaint.String())
	}
	if took == 0 {
		return 0, fmt.Errorf("run %s: it ended without %q: %s%s", image.name, image.ready, said.String(),
			complaint.String())
	}
	return took, nil
}

// used is what our daemon has used of the machine.
type used struct {
	cpu    float64 // seconds
	memory int64   // bytes, of the largest resident sets
}

// daemons are the names that our programs have as processes: the kernel cuts them.
var daemons = []string{"cvmfs-graphdriv", "cvmfs-snapshott"}

// usage is what the node's daemon has used: its process 1 and its server.
func (n *node) usage() (u used, err error) {
	ids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return u, err
	}
	for _, id := range ids {
		// A process may end while it is looked at.
		name, _ := os.ReadFile(filepath.Join(id, "comm"))
		mounts, _ := os.ReadFile(filepath.Join(id, "mountinfo"))
		if !slices.Contains(daemons, strings.TrimSpace(string(name))) || !bytes.Contains(mounts, []byte(n.Dir())) {
			continue
		}
		stat, _ := os.ReadFile(filepath.Join(id, "stat"))
		status, _ := os.ReadFile(filepath.Join(id, "status"))
		u.cpu += processorSeconds(string(stat))
		u.memory += peakMemory(string(status))
	}
	return u, nil
}

// ticks is in how many parts of a second /proc counts: sysconf(_SC_CLK_TCK), the same on all machines of Linux and Go.
const ticks = 100

// processorSeconds reads utime and stime of /proc/PID/stat. Fields are counted from the name on, which may hold
// anything.
func processorSeconds(stat string) float64 {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0
	}
	var user, system int64
	fmt.Sscan(fields[11], &user)   // 0 of what is no number
	fmt.Sscan(fields[12], &system) // likewise
	return float64(user+system) / ticks
}

// peakMemory reads VmHWM of /proc/PID/status.
func peakMemory(status string) (bytes int64) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			fmt.Sscan(rest, &bytes) // 0 of what is no number
		}
	}
	return bytes << 10
}

// diskUsage is what the files below a folder take, those of other file systems left out.
func diskUsage(dir string) (bytes int64, err error) {
	var root unix.Stat_t
	if err := unix.Stat(dir, &root); err != nil {
		return 0, err
	}
	seen := map[uint64]bool{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Dev != root.Dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !seen[st.Ino] {
			seen[st.Ino] = true
			bytes += st.Blocks * 512
		}
		return nil
	})
	return bytes, err
}
