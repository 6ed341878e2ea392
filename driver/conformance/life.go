package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// InitMayComeAgain: an engine that was restarted sends Init to a driver that never ended; what is mounted stays, and so
// does the count of its users.
func InitMayComeAgain(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", regular("a", "a"))
	dir := d.container("container", "base")
	must(t, write(filepath.Join(dir, "own"), "own"))
	f, err := os.Open(filepath.Join(dir, "a"))
	must(t, err)
	defer f.Close()
	d.init()
	d.init()
	shows(t, dir, "a=a", "own=own")
	equal(t, "view of the second Get", dir, d.get("container"))
	d.put("container")
	shows(t, dir, "a=a", "own=own")
	if b, err := io.ReadAll(f); err != nil || string(b) != "a" {
		t.Errorf("a file that was open all the time: %q, %v", b, err)
	}
	d.put("container")
	d.gone("container", dir)
}

// gone checks that soon nothing is mounted any more where a view was: a driver may answer before the kernel is done.
func (d *driver) gone(name, dir string) {
	d.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		entries, err := os.ReadDir(dir)
		if len(entries) == 0 && (err == nil || errors.Is(err, os.ErrNotExist)) {
			return
		}
		if time.Now().After(deadline) {
			d.t.Errorf("%s is still mounted: %v, %v", name, entries, err)
			return
		}
	}
}

// HalfMadeLayersGoAtInit: a layer that never got its content is gone when the engine has started again.
func HalfMadeLayersGoAtInit(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", regular("a", "a"))
	must(t, d.create("half", "base"))
	d.init()
	if d.exists("half") || !d.exists("base") {
		t.Errorf("exists: half-made layer %t, complete layer %t", d.exists("half"), d.exists("base"))
	}
}

// CallsMayBeRepeated: engines repeat calls whose answer was lost.
func CallsMayBeRepeated(t *testing.T, target Target) {
	d := use(t, target)
	for range 2 {
		must(t, d.create("base", ""))
	}
	_, err := d.send("base", "", bytes.NewReader(pack(t, regular("a", "a"))))
	must(t, err)
	must(t, d.create("base", ""))
	d.layer("other", "", regular("b", "b"))
	d.container("container", "base")
	id := d.id("container")
	d.ok("CreateReadWrite", object{"ID": id, "Parent": id + "-init"})
	dir := d.get("container")
	must(t, write(filepath.Join(dir, "own"), "own"))
	d.ok("CreateReadWrite", object{"ID": id, "Parent": id + "-init"})
	shows(t, dir, "a=a", "own=own")
	if _, err := d.call("CreateReadWrite", object{"ID": id, "Parent": d.id("other")}); err == nil {
		t.Error("a layer was made again on another parent")
	}
	for range 4 {
		d.put("container") // two too many
	}
	for range 2 {
		d.ok("Remove", object{"ID": id})
		d.ok("Remove", object{"ID": id + "-init"})
	}
	if d.exists("container") || !d.exists("base") {
		t.Errorf("exists: container %t, image %t", d.exists("container"), d.exists("base"))
	}
	d.put("container")
	d.container("container", "base")
}

// UnknownLayersAreErrors, in the answer rather than in the connection; only removing one is none.
func UnknownLayersAreErrors(t *testing.T, target Target) {
	d := use(t, target)
	if d.exists("nobody") {
		t.Error("a layer exists that nobody made")
	}
	for method, args := range map[string]object{
		"Get": {"ID": d.id("nobody")}, "Changes": {"ID": d.id("nobody")}, "DiffSize": {"ID": d.id("nobody")},
		"GetMetadata":     {"ID": d.id("nobody")},
		"Create":          {"ID": d.id("child"), "Parent": d.id("nobody")},
		"CreateReadWrite": {"ID": d.id("child"), "Parent": d.id("nobody")},
	} {
		if _, err := d.call(method, args); err == nil {
			t.Errorf("%s of a layer that nobody made succeeded", method)
		}
	}
	if _, err := d.stream(object{"ID": d.id("nobody")}); err == nil {
		t.Error("Diff of a layer that nobody made succeeded")
	}
	if _, err := d.send("nobody", "", bytes.NewReader(pack(t, regular("a", "a")))); err == nil {
		t.Error("ApplyDiff to a layer that nobody made succeeded")
	}
	d.ok("Remove", object{"ID": d.id("nobody")})
	d.ok("Put", object{"ID": d.id("nobody")})
	if d.exists("child") {
		t.Error("a layer without its parent exists")
	}
}

// GetAndPutBalance: a view is the same for all who got it, and lives until the last has put it.
func GetAndPutBalance(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", regular("a", "a"))
	for range 2 { // a second life, too
		dir := d.container("container", "base")
		for range 3 {
			equal(t, "view", dir, d.get("container"))
		}
		for range 3 {
			d.put("container")
			shows(t, dir, "a=a")
		}
		d.put("container")
		d.gone("container", dir)
	}
	dir := d.get("container")
	must(t, write(filepath.Join(dir, "own"), "own"))
	d.put("container")
	shows(t, d.get("container"), "a=a", "own=own")
	d.remove("container") // mounted as it is
	d.gone("container", dir)
}

// LayersMayBeWrittenInPlace: the engine's own tests, and steps of builds, make a layer by Create and write to what Get
// gives.
func LayersMayBeWrittenInPlace(t *testing.T, target Target) {
	d := use(t, target)
	parent := ""
	for _, name := range []string{"one", "two"} {
		must(t, d.create(name, parent))
		dir := d.get(name)
		must(t, write(filepath.Join(dir, name), name))
		d.put(name)
		parent = name
	}
	shows(t, d.container("container", "two"), "one=one", "two=two")
	_, err := d.call("Changes", object{"ID": d.id("two"), "Parent": d.id("one")})
	must(t, err)
	if items := unpack(t, d.export(object{"ID": d.id("two"), "Parent": d.id("one")})); len(items) != 1 ||
		items[0].Name != "two" {
		t.Errorf("exported: %+v", items)
	}
}

// TruncatedArchivesLeaveNothing: an archive that ends within an entry, wherever, is refused, and the layer stays empty
// and may be given the whole one.
func TruncatedArchivesLeaveNothing(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", regular("below", "below"))
	whole := pack(t, folder("dir"), regular("dir/a", strings.Repeat("a", 700)), regular("b", strings.Repeat("b", 1024)),
		whiteout("below"),
		regular(strings.Repeat("long/", 60)+"name", "x"))
	must(t, d.create("layer", "base"))
	refused := 0
	for n := 0; n < len(whole); n += 256 {
		if readable(whole[:n]) {
			continue
		}
		refused++
		if _, err := d.send("layer", "base", bytes.NewReader(whole[:n])); err == nil {
			t.Fatalf("an archive of %d bytes was accepted cut to %d", len(whole), n)
		}
	}
	if refused < 10 {
		t.Errorf("%d cuts were tried", refused)
	}
	_, err := d.send("layer", "base", bytes.NewReader(whole[:len(whole)-100]))
	if err == nil {
		t.Error("an archive was accepted without the end of its end")
	}
	_, err = d.send("layer", "base", bytes.NewReader(whole))
	must(t, err)
	dir := d.container("container", "layer")
	equal(t, "file", strings.Repeat("b", 1024), string(mustRead(t, filepath.Join(dir, "b"))))
	if _, err := d.send("layer", "base", bytes.NewReader(whole)); err == nil {
		t.Error("a layer took content twice")
	}
}

// pieces is a body whose connection breaks: after each piece but the last, Read calls between once and fails.
type pieces struct {
	rest    [][]byte
	between func() error
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[0])
	p.rest[0] = p.rest[0][n:]
	if n > 0 {
		return n, nil
	}
	p.rest = p.rest[1:]
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	return 0, p.between()
}

var errBroken = errors.New("the connection breaks")

// begin reports where in an archive an item begins.
func begin(t testing.TB, archive []byte, i item) int {
	t.Helper()
	for at := 0; at < len(archive); at += 512 {
		if bytes.HasPrefix(archive[at:], []byte(i.Name+"\x00")) {
			return at
		}
	}
	t.Fatalf("%s is not in the archive", i.Name)
	return 0
}

// RetriesOfHalfReadBodiesAreRefused: an engine whose connection broke sends what it has not sent yet, which may look
// like a whole archive. It removes the layer when that is refused.
func RetriesOfHalfReadBodiesAreRefused(t *testing.T, target Target) {
	d := use(t, target)
	first, second := regular("a", strings.Repeat("a", 1<<20)), regular("b", strings.Repeat("b", 1<<20))
	whole := pack(t, first, second)
	boundary := begin(t, whole, second)
	for name, at := range map[string]int{
		"between files": boundary, "in a file": boundary + 4096,
		"at the end marker": len(whole) - 1024,
	} {
		must(t, d.create(name, ""))
		body := &pieces{[][]byte{bytes.Clone(whole[:at]), bytes.Clone(whole[at:])}, func() error { return errBroken }}
		if _, err := d.send(name, "", body); err == nil {
			t.Errorf("%s: the rest of an archive was taken for a layer", name)
		}
		d.remove(name)
		if d.exists(name) {
			t.Errorf("%s: the layer is still there", name)
		}
		_, err := d.apply(name, "", whole)
		must(t, err)
	}
}

// ConcurrentCallsOfOneID come one after the other, whatever their order, and hang nowhere.
func ConcurrentCallsOfOneID(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", regular("a", "a"))
	id := d.id("contended")
	content := pack(t, regular("b", "b"))
	var all sync.WaitGroup
	for n := range 8 {
		random := rand.New(rand.NewPCG(1, uint64(n)))
		all.Go(func() {
			for range 20 {
				args := object{"ID": id, "Parent": d.id("base")}
				// What they answer depends on the others: errors are fine.
				switch m := []string{
					"Create", "CreateReadWrite", "Get", "Put", "Remove", "Exists", "Changes",
					"DiffSize", "ApplyDiff",
				}[random.IntN(9)]; m {
				case "ApplyDiff":
					_, _ = d.send("contended", "base", bytes.NewReader(content))
				default:
					_, _ = d.call(m, args)
				}
			}
		})
	}
	all.Wait()
	d.ok("Remove", object{"ID": id})
	if d.exists("contended") {
		t.Error("the layer is still there")
	}
	shows(t, d.container("contended", "base"), "a=a")
}

// ManyAtOnce: layers and containers are made concurrently, as by several pulls and starts.
func ManyAtOnce(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", regular("base", "base"))
	const many = 12
	var all sync.WaitGroup
	drivers := make([]*driver, many)
	for n := range drivers {
		drivers[n] = use(t, target)
	}
	failed := make([]error, many)
	for n, own := range drivers {
		all.Go(func() {
			parent := "base"
			for l := range 4 {
				name := fmt.Sprintf("%d/%d", n, l)
				if _, err := own.apply(name, parent, pack(t, regular(name, name),
					regular("own", fmt.Sprint(n)))); err != nil {
					failed[n] = err
					return
				}
				parent = name
			}
		})
	}
	all.Wait()
	must(t, errors.Join(failed...))
	for n, own := range drivers {
		dir := own.container(fmt.Sprint("container ", n), fmt.Sprintf("%d/3", n))
		equal(t, "file of each", fmt.Sprint(n), find(t, dir, "own").Content)
		equal(t, "file of all", "base", find(t, dir, "base").Content)
	}
}

// KilledServerLosesNothing: whatever the server was doing when it was killed, what was there is there, mounts and their
// counts too, and what was on its way is refused.
func KilledServerLosesNothing(t *testing.T, target Target) {
	if target.Kill == nil {
		t.Skip("this driver can't be killed")
	}
	d := use(t, target)
	d.layer("base", "", regular("a", "a"))
	dir := d.container("container", "base")
	must(t, write(filepath.Join(dir, "own"), "own"))
	d.kill()
	shows(t, dir, "a=a", "own=own")
	equal(t, "view", dir, d.get("container"))
	d.put("container")
	shows(t, dir, "a=a", "own=own")

	// Of a body longer than buffers hold the server has surely begun to read.
	last := regular("y", "y")
	whole := pack(t, regular("x", strings.Repeat("x", 2<<20)), last)
	at := begin(t, whole, last)
	body := &pieces{[][]byte{bytes.Clone(whole[:at]), bytes.Clone(whole[at:])}, func() error {
		d.kill()
		return errBroken
	}}
	must(t, d.create("layer", "base"))
	if _, err := d.send("layer", "base", body); err == nil {
		t.Error("half an archive became a layer")
	}
	d.remove("layer")
	d.layer("layer", "base", regular("x", "x"))
	shows(t, d.container("second", "layer"), "a=a", "x=x")
	d.put("container")
	d.gone("container", dir)
}

// kill kills the server. The connections to it are closed, or the next call might be lost in one of them, as the
// engine's may be.
func (d *driver) kill() {
	d.t.Helper()
	d.target.Kill(d.t)
	d.client.CloseIdleConnections()
}

// RestartWithoutInit: an engine doesn't know that it restarted a plugin; it goes on with what it last called.
func RestartWithoutInit(t *testing.T, target Target) {
	if target.Restart == nil {
		t.Skip("this driver can't be restarted")
	}
	d := use(t, target)
	d.layer("base", "", regular("a", "a"))
	images := map[string]string{"ordinary": "base"} // of each container
	if len(target.Thin) > 0 {
		images["thin"] = d.chain("thin", "", descriptor(t, target.Thin))
	}
	before := map[string][]entry{}
	for name, image := range images {
		dir := d.container(name, image)
		must(t, write(filepath.Join(dir, "own"), "own"))
		before[name] = tree(t, dir)
	}
	target.Restart(t)
	for name, image := range images {
		dir := d.get(name) // before any Put
		equal(t, name, before[name], tree(t, dir))
		d.put(name)
		equal(t, name+", got once more", before[name], tree(t, d.get(name)))
		d.commit(name+" committed", name, image)
	}
	d.layer("new", "base", regular("new", "new"))
	shows(t, d.container("second", "new"), "a=a", "new=new")
}
