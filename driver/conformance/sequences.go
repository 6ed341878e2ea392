package conformance

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Sequences does random work on a driver, count times, and checks every step: containers made, files in them created,
// written to, deleted, renamed, linked and given other owners, modes and attributes, containers committed, layers
// stacked and removed. Every view must be that of a plain model in memory and of a control, an overlay mounted by hand;
// every archive must say the same as the control's, and make of the model's image the model's container. Some chains
// have a thin image at the bottom, where the driver knows these.
//
// A sequence is decided by its number. A failing one names its own. Go's -short has a tenth of them done. In the
// environment, CONFORMANCE_SEED is the number of the first, and CONFORMANCE_SEQUENCES how many there are.
func Sequences(t *testing.T, target, control Target, count int) {
	if testing.Short() {
		count = max(1, count/10)
	}
	seed := fromEnvironment(t, "CONFORMANCE_SEED", 1)
	count = int(fromEnvironment(t, "CONFORMANCE_SEQUENCES", uint64(count)))
	initialise(t, target)
	initialise(t, control)
	for n := range uint64(count) {
		t.Run(fmt.Sprint(seed+n), func(t *testing.T) {
			t.Parallel()
			s := &sequence{
				t: t, random: rand.New(rand.NewPCG(seed+n, 0)), drivers: [2]*driver{use(t, target), use(t, control)},
				images: []*image{{view: newModel()}}, inodesChange: [2]bool{target.InodesChange, control.InodesChange},
			}
			defer func() {
				if t.Failed() {
					t.Logf("the work of seed %d:\n%s", seed+n, strings.Join(s.did, "\n"))
				}
			}()
			if len(target.Thin) > 0 && s.random.IntN(3) == 0 {
				s.thin(target.Thin)
			}
			for range 1 + s.random.IntN(3) {
				s.round()
			}
			s.finish()
		})
	}
}

// fromEnvironment returns the number that a variable has, or else another one.
func fromEnvironment(t *testing.T, name string, other uint64) uint64 {
	text := os.Getenv(name)
	if text == "" {
		return other
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// sequence is one random run on a driver and its control.
type sequence struct {
	t       *testing.T
	random  *rand.Rand
	drivers [2]*driver
	images  []*image // that containers may be made of
	rounds  int
	did     []string // the work, for people

	inodesChange [2]bool // of the drivers: see Target
}

// image is a chain that both drivers have, under the same name, and what it shows.
type image struct {
	name   string
	view   *model
	parent *image
	uses   int // images on top of it
}

func (s *sequence) note(format string, args ...any) {
	s.did = append(s.did, fmt.Sprintf(format, args...))
}

// thin makes a thin image of some layers; for the control and the model it is these layers.
func (s *sequence) thin(layers []ThinLayer) {
	layers = layers[:1+s.random.IntN(len(layers))]
	s.note("thin image of %d layers", len(layers))
	_, err := s.drivers[0].apply("image", "", descriptor(s.t, layers))
	must(s.t, err)
	view, parent := newModel(), ""
	for n, a := range archivesOf(layers) {
		name := fmt.Sprint("part ", n)
		if n == len(layers)-1 {
			name = "image"
		}
		_, err := s.drivers[1].apply(name, parent, a)
		must(s.t, err)
		view.apply(unpack(s.t, a))
		view, parent = view.clone(), name
	}
	s.images = []*image{{name: "image", view: view}}
}

// round makes a container, works in it, and commits it.
func (s *sequence) round() {
	s.rounds++
	from := s.images[len(s.images)-1]
	if s.random.IntN(4) == 0 {
		from = pick(s.random, s.images)
	}
	name := fmt.Sprint("container ", s.rounds)
	s.note("%s on %q", name, from.name)
	c := &container{sequence: s, view: from.view.clone()}
	for n, d := range s.drivers {
		c.dirs[n] = d.container(name, from.name)
	}
	c.check("new container")
	for range pick(s.random, []int{1, 1, 1, 2}) { // commits of one container
		for range 6 + s.random.IntN(10) {
			c.step()
		}
		c.check("after work")
		s.commit(c, name, from)
	}
	for _, d := range s.drivers {
		d.put(name)
		d.remove(name)
	}
	s.prune()
}

// commit makes an image of a container and compares what goes out.
func (s *sequence) commit(c *container, name string, from *image) {
	s.t.Helper()
	equal(s.t, "changes", s.drivers[1].changes(name), s.drivers[0].changes(name))
	mine, control := s.drivers[0].diff(name), s.drivers[1].diff(name)
	equal(s.t, "archives", contents(s.t, control), contents(s.t, mine))
	i := &image{name: fmt.Sprintf("image %d of %d", len(s.images), s.rounds), view: c.view.committed(), parent: from}
	unpacked := from.view.clone()
	unpacked.apply(unpack(s.t, mine))
	equal(s.t, "the archive put on the image", i.view.tree(), unpacked.tree())
	s.note("commit as %q", i.name)
	size := s.drivers[0].commit(i.name, name, from.name)
	equal(s.t, "size", s.drivers[1].commit(i.name, name, from.name), size)
	from.uses++
	s.images = append(s.images, i)
}

// prune sometimes removes an image nothing is made of.
func (s *sequence) prune() {
	i := pick(s.random, s.images)
	if len(s.images) < 2 || i.uses > 0 || i.name == "" || s.random.IntN(2) == 0 {
		return
	}
	s.note("remove %q", i.name)
	for _, d := range s.drivers {
		d.remove(i.name)
		if d.exists(i.name) {
			s.t.Errorf("%q is still there", i.name)
		}
	}
	if i.parent != nil {
		i.parent.uses--
	}
	s.images = slices.DeleteFunc(s.images, func(other *image) bool { return other == i })
}

// finish looks at every image there is.
func (s *sequence) finish() {
	for n, i := range s.images {
		if i.uses > 0 && n > 0 {
			continue // shown by those on top of it
		}
		c := &container{sequence: s, view: i.view}
		for n, d := range s.drivers {
			c.dirs[n] = d.container("last of "+i.name, i.name)
		}
		c.check("at the end: " + i.name)
	}
}

// container is a view that is worked in, in both drivers and the model.
type container struct {
	*sequence
	dirs [2]string
	view *model
}

// check compares the three.
func (c *container) check(when string) {
	c.t.Helper()
	for n, whose := range []string{"driver", "control"} {
		want := c.view.tree()
		got := slices.DeleteFunc(tree(c.t, c.dirs[n]), func(e entry) bool { return e.Path == ".dockerenv" })
		if c.inodesChange[n] {
			forgetLinks(want)
			forgetLinks(got)
		}
		equal(c.t, fmt.Sprintf("%s: view of the %s against the model", when, whose), want, got)
	}
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// forgetLinks makes a tree one that can be compared where inode numbers change.
func forgetLinks(entries []entry) {
	for n := range entries {
		entries[n].Same = ""
	}
}

func pick[T any](random *rand.Rand, list []T) T { return list[random.IntN(len(list))] }

// step does one piece of work: in both views, and if it succeeded in the model.
func (c *container) step() {
	all := func(*node) bool { return true }
	kinds := func(types string) func(*node) bool {
		return func(n *node) bool { return strings.Contains(types, n.Type) }
	}
	fresh := c.fresh()
	stamp := moment.Add(time.Duration(c.random.IntN(1000)) * time.Second)
	switch c.random.IntN(14) {
	case 0, 1:
		c.write(fresh, stamp)
	case 2:
		c.on(kinds("-"), func(name string) { c.overwrite(name, stamp) })
	case 3:
		c.on(kinds("-"), func(name string) { c.append(name, stamp) })
	case 4, 5:
		mode := pick(c.random, []uint32{0o755, 0o700, 0o1777, 0o2755})
		c.do(fmt.Sprintf("mkdir %s %o", fresh, mode), func(in string) error {
			return errors.Join(os.Mkdir(in+fresh, 0o700), unix.Chmod(in+fresh, mode))
		}, func() {
			n := newDir(c.view.layer)
			n.Mode = mode
			c.view.create(fresh, n)
		})
	case 6:
		target := pick(c.random, []string{"a", "../x", "/nowhere"})
		c.make("symlink "+target, fresh, &node{entry: entry{Type: "l", Content: target}}, stamp,
			func(name string) error { return os.Symlink(target, name) })
	case 7:
		if c.random.IntN(2) == 0 {
			c.make("mkfifo", fresh, &node{entry: entry{Type: "p", Mode: 0o640}}, stamp,
				func(name string) error { return unix.Mkfifo(name, 0o640) })
			break
		}
		c.make("mknod", fresh, &node{entry: entry{Type: "c", Mode: 0o600, Content: numbers(1, 7)}}, stamp,
			func(name string) error {
				return unix.Mknod(name, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 7)))
			})
	case 8, 9:
		c.on(all, func(name string) {
			c.do("remove "+name, func(in string) error { return os.RemoveAll(in + name) },
				func() { c.view.remove(name) })
			if c.random.IntN(2) == 0 { // another in its place
				c.write(name, stamp)
			}
		})
	case 10:
		c.on(all, func(name string) { c.rename(name, fresh) })
	case 11:
		c.on(kinds("-lpc"), func(name string) {
			c.do("link "+name+" "+fresh, func(in string) error { return os.Link(in+name, in+fresh) },
				func() { c.view.put(fresh, c.view.own(name)) })
		})
	case 12:
		c.on(kinds("-d"), func(name string) { c.attributes(name) })
	case 13:
		c.on(all, func(name string) { c.owner(name) })
	}
}

// fresh returns a path where nothing is, in a folder that is there.
func (c *container) fresh() string {
	dirs := append(c.view.names(func(n *node) bool { return n.Type == "d" }), "")
	for n := 0; ; n++ {
		name := path.Join(pick(c.random, dirs), pick(c.random, []string{"a", "b", "c", "d", "Ä ö", "n"}))
		if n > 20 {
			name += fmt.Sprint(n)
		}
		if c.view.at(name) == nil {
			return name
		}
	}
}

// on does something to a random path whose node fits.
func (c *container) on(fits func(*node) bool, do func(name string)) {
	if names := c.view.names(fits); len(names) > 0 {
		do(pick(c.random, names))
	}
}

// do has work done in both views, and in the model if it succeeded. in is a view's folder with a slash.
func (c *container) do(what string, work func(in string) error, then func()) {
	c.t.Helper()
	c.note("  %s", what)
	mine, control := work(c.dirs[0]+"/"), work(c.dirs[1]+"/")
	if a, b := errno(mine), errno(control); a != b {
		c.t.Fatalf("%s: %v, in the control %v", what, mine, control)
	}
	switch {
	case mine == nil:
		then()
	case errors.Is(mine, unix.EXDEV):
		c.note("    refused: a folder of a layer below isn't renamed")
	default:
		c.t.Fatalf("%s: %v", what, mine)
	}
}

func errno(err error) (e unix.Errno) {
	errors.As(err, &e)
	return e
}

// stampTo returns a name its time, a link too.
func stampTo(name string, at time.Time) error {
	times := []unix.Timespec{{Sec: at.Unix()}, {Sec: at.Unix()}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}

// make makes something new that isn't a folder.
func (c *container) make(what, name string, n *node, stamp time.Time, work func(name string) error) {
	c.t.Helper()
	c.do(what+" "+name, func(in string) error { return errors.Join(work(in+name), stampTo(in+name, stamp)) }, func() {
		n.Mtime, n.layer, n.attrs = stamp.Unix(), c.view.layer, map[string]string{}
		c.view.create(name, n)
	})
}

func (c *container) content() string {
	return strings.Repeat(fmt.Sprint(c.random.Uint32()), pick(c.random, []int{0, 1, 1, 2, 100, 5000}))
}

func (c *container) write(name string, stamp time.Time) {
	body := c.content()
	c.make(fmt.Sprintf("write %d bytes to", len(body)), name, &node{entry: entry{Type: "-", Mode: 0o644}, body: body},
		stamp,
		func(name string) error { return os.WriteFile(name, []byte(body), 0o644) })
}

func (c *container) overwrite(name string, stamp time.Time) {
	body := c.content()
	c.do(fmt.Sprintf("overwrite %s by %d bytes", name, len(body)), func(in string) error {
		return errors.Join(rewrite(in+name, body), stampTo(in+name, stamp))
	}, func() { c.view.own(name).written(body, stamp) })
}

// rewrite gives a file another content. Where sysctl fs.protected_regular is set, as systemd sets it, not even root may
// open another user's file in a folder like /tmp in a way that would make one.
func rewrite(name, body string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(body)
	return errors.Join(err, f.Close())
}

func (c *container) append(name string, stamp time.Time) {
	c.do("append to "+name, func(in string) error {
		f, err := os.OpenFile(in+name, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("more")
		return errors.Join(err, f.Close(), stampTo(in+name, stamp))
	}, func() {
		n := c.view.own(name)
		n.written(n.body+"more", stamp)
	})
}

// written is what a write does to a file: its capability goes, too, see capabilities(7).
func (n *node) written(body string, stamp time.Time) {
	n.body, n.Mtime = body, stamp.Unix()
	delete(n.attrs, "security.capability")
}

// rename renames to a new name or, if that fits, over something that is there.
func (c *container) rename(from, to string) {
	n := c.view.at(from)
	if c.random.IntN(2) == 0 {
		c.on(func(old *node) bool { return n.Type != "d" && old.Type != "d" }, func(name string) { to = name })
	}
	if strings.HasPrefix(to+"/", from+"/") {
		return
	}
	old := c.view.at(to)
	c.do("rename "+from+" "+to, func(in string) error { return os.Rename(in+from, in+to) }, func() {
		if old == n && n.layer == c.view.layer {
			return // two names of one file: rename(2) does nothing; names of a file below are two files by then
		}
		n := c.view.own(from)
		c.view.remove(from)
		c.view.put(to, n)
	})
}

// attributes changes mode, and of files the extended attributes.
func (c *container) attributes(name string) {
	n := c.view.at(name)
	mode := pick(c.random, []uint32{0o600, 0o755, 0o4755, 0o2711, 0o1700})
	key, value := "user.x", fmt.Sprint(c.random.IntN(100))
	if c.random.IntN(2) == 0 {
		key, value = "security.capability", capability
	}
	c.do(fmt.Sprintf("chmod %o %s, and set %s of a file", mode, name, key), func(in string) error {
		err := unix.Chmod(in+name, mode)
		if n.Type == "-" && err == nil {
			err = unix.Lsetxattr(in+name, key, []byte(value), 0)
		}
		return err
	}, func() {
		n := c.view.own(name)
		n.Mode = mode
		if n.Type == "-" {
			n.attrs[key] = value
		}
	})
}

// owner changes owner and mode; a new owner takes the capability from a file.
func (c *container) owner(name string) {
	n := c.view.at(name)
	uid, gid := c.random.IntN(3), c.random.IntN(3)
	c.do(fmt.Sprintf("chown %d:%d %s", uid, gid, name), func(in string) error {
		err := unix.Lchown(in+name, uid, gid)
		if n.Type != "l" && err == nil {
			err = unix.Chmod(filepath.Join(in, name), n.Mode)
		}
		return err
	}, func() {
		n := c.view.own(name)
		n.UID, n.GID = uint32(uid), uint32(gid)
		if n.Type == "-" {
			delete(n.attrs, "security.capability")
		}
	})
}
