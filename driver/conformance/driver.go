package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/moby/go-archive"
)

const (
	retryTime = 15 * time.Second // how long a call is repeated that meets no server; engines take 30 s
	callTime  = 2 * time.Minute  // after which a call counts as hanging
)

// driver speaks to a target for one test, which gives its layers names; ids are made of them, so tests don't meet. What
// is made is removed when the test ends.
type driver struct {
	t      testing.TB
	target Target
	client *http.Client
	made   []string // ids, in order
}

func use(t testing.TB, target Target) *driver {
	d := &driver{t: t, target: target}
	d.client = &http.Client{Timeout: callTime, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return target.Dial(ctx) },
	}}
	t.Cleanup(func() {
		d.clean()
		d.client.CloseIdleConnections()
	})
	return d
}

// initialise sends Init as the engine does at its start.
func initialise(t testing.TB, target Target) {
	t.Helper()
	use(t, target).init()
}

func (d *driver) init() {
	d.t.Helper()
	d.ok("Init", object{
		"Home": "/var/lib/docker/conformance", "Opts": d.target.Options, "UIDMaps": nil,
		"GIDMaps": nil,
	})
}

// clean removes what the test has made, topmost layers first.
func (d *driver) clean() {
	for _, id := range slices.Backward(d.made) {
		for _, method := range []string{"Put", "Remove"} {
			if _, err := d.call(method, object{"ID": id}); err != nil {
				d.t.Errorf("clean up: %v", err)
			}
		}
	}
	d.made = nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type object = map[string]any

// answer is what the engine looks at.
type answer struct {
	Err     string
	Dir     string
	Exists  bool
	Changes []archive.Change
	Size    int64
}

// post sends a request; if there is no answer it is repeated with what the body still holds, as the engine does.
func (d *driver) post(path string, body io.Reader) (*http.Response, error) {
	for deadline := time.Now().Add(retryTime); ; time.Sleep(50 * time.Millisecond) {
		r, err := http.NewRequest(http.MethodPost, "http://plugin/GraphDriver."+path, body)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Accept", "application/vnd.docker.plugins.v1.2+json")
		resp, err := d.client.Do(r)
		if err == nil || time.Now().After(deadline) {
			return resp, err
		}
	}
}

// read returns the answer a response holds.
func read(method string, resp *http.Response) (answer, error) {
	defer resp.Body.Close()
	var a answer
	b, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	switch {
	case err != nil:
		return a, fmt.Errorf("%s: answer %s %.200q: %w", method, resp.Status, b, err)
	case a.Err != "":
		return a, fmt.Errorf("%s: %s", method, a.Err)
	case resp.StatusCode != http.StatusOK:
		return a, fmt.Errorf("%s: %s", method, resp.Status)
	}
	return a, nil
}

// call calls a method that takes and gives JSON.
func (d *driver) call(method string, args object) (answer, error) {
	b, err := json.Marshal(args)
	if err != nil {
		return answer{}, err
	}
	resp, err := d.post(method, bytes.NewReader(b))
	if err != nil {
		return answer{}, err
	}
	return read(method, resp)
}

// ok calls a method that must succeed.
func (d *driver) ok(method string, args object) answer {
	d.t.Helper()
	a, err := d.call(method, args)
	must(d.t, err)
	return a
}

// id returns the id of a layer of this test; it looks like the engine's. "" stands for no layer.
func (d *driver) id(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(d.t.Name()+"\x00"+name)))
}

func (d *driver) path(dir string) string {
	if d.target.Path == nil {
		return dir
	}
	return d.target.Path(dir)
}

func (d *driver) create(name, parent string) error {
	d.made = append(d.made, d.id(name))
	_, err := d.call("Create", object{"ID": d.id(name), "Parent": d.id(parent), "MountLabel": "", "StorageOpt": nil})
	return err
}

// send returns a layer content; the body has no length known beforehand.
func (d *driver) send(name, parent string, body io.Reader) (int64, error) {
	resp, err := d.post("ApplyDiff?id="+d.id(name)+"&parent="+d.id(parent), struct{ io.Reader }{body})
	if err != nil {
		return 0, err
	}
	a, err := read("ApplyDiff", resp)
	return a.Size, err
}

// apply makes a layer of an archive.
func (d *driver) apply(name, parent string, archive []byte) (int64, error) {
	if err := d.create(name, parent); err != nil {
		return 0, err
	}
	return d.send(name, parent, bytes.NewReader(archive))
}

// layer makes a layer that must come to be, and gives its size.
func (d *driver) layer(name, parent string, items ...item) int64 {
	d.t.Helper()
	size, err := d.apply(name, parent, pack(d.t, items...))
	must(d.t, err)
	return size
}

// chain makes layers of archives on a parent and gives the name of the topmost.
func (d *driver) chain(prefix, parent string, archives ...[]byte) string {
	d.t.Helper()
	for n, a := range archives {
		name := fmt.Sprint(prefix, " ", n)
		_, err := d.apply(name, parent, a)
		must(d.t, err)
		parent = name
	}
	return parent
}

// container makes a container's layers and gives its view.
func (d *driver) container(name, parent string) string {
	d.t.Helper()
	id := d.id(name)
	d.made = append(d.made, id+"-init", id)
	d.ok("CreateReadWrite", object{"ID": id + "-init", "Parent": d.id(parent), "MountLabel": "", "StorageOpt": nil})
	// The engine gets, fills and puts the init layer before it makes the container's.
	must(d.t, writeNew(filepath.Join(d.view(id+"-init"), ".dockerenv")))
	d.ok("Put", object{"ID": id + "-init"})
	d.ok("CreateReadWrite", object{"ID": id, "Parent": id + "-init", "MountLabel": "", "StorageOpt": nil})
	return d.get(name)
}

func (d *driver) get(name string) string {
	d.t.Helper()
	return d.view(d.id(name))
}

func (d *driver) view(id string) string {
	d.t.Helper()
	dir := d.ok("Get", object{"ID": id, "MountLabel": ""}).Dir
	if dir == "" || dir == "/" {
		d.t.Fatalf("Get gave the folder %q", dir) // where tests are about to remove files
	}
	return d.path(dir)
}

func (d *driver) put(name string) {
	d.t.Helper()
	d.ok("Put", object{"ID": d.id(name)})
}

// remove removes a layer, and the one below if it is a container's.
func (d *driver) remove(name string) {
	d.t.Helper()
	d.ok("Remove", object{"ID": d.id(name)})
	d.made = slices.DeleteFunc(d.made, func(id string) bool { return id == d.id(name) })
	if init := d.id(name) + "-init"; slices.Contains(d.made, init) {
		d.ok("Remove", object{"ID": init})
		d.made = slices.DeleteFunc(d.made, func(id string) bool { return id == init })
	}
}

func (d *driver) exists(name string) bool {
	d.t.Helper()
	return d.ok("Exists", object{"ID": d.id(name)}).Exists
}

// over names the layer below a container's own in calls, for it has no name of its own.
func (d *driver) over(container string) object {
	return object{"ID": d.id(container), "Parent": d.id(container) + "-init"}
}

// changes lists a container's changes.
func (d *driver) changes(container string) []string {
	d.t.Helper()
	lines := []string{}
	for _, c := range d.ok("Changes", d.over(container)).Changes {
		lines = append(lines, c.String())
	}
	slices.Sort(lines)
	return lines
}

func (d *driver) diffSize(container string) int64 {
	d.t.Helper()
	return d.ok("DiffSize", d.over(container)).Size
}

// stream starts a Diff.
func (d *driver) stream(args object) (io.ReadCloser, error) {
	b, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	resp, err := d.post("Diff", bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_, err := read("Diff", resp)
		return nil, errors.Join(errors.New("Diff: "+resp.Status), err)
	}
	return resp.Body, nil
}

// diff returns the archive of what a container has changed.
func (d *driver) diff(container string) []byte {
	d.t.Helper()
	return d.export(d.over(container))
}

func (d *driver) export(args object) []byte {
	d.t.Helper()
	r, err := d.stream(args)
	must(d.t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	must(d.t, err)
	return b
}

// commit makes a layer of what a container has changed, on the container's image: the one archive is piped into the
// other call.
func (d *driver) commit(name, container, image string) int64 {
	d.t.Helper()
	must(d.t, d.create(name, image))
	r, err := d.stream(d.over(container))
	must(d.t, err)
	defer r.Close()
	size, err := d.send(name, image, r)
	must(d.t, err)
	return size
}
