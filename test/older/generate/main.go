// Command generate makes a folder of testdata/older: it has the programs of an older version write what that version
// writes. Run as root, with a folder that the programs of that version are in:
//
//	git worktree add /tmp/then COMMIT
//	(cd /tmp/then && CGO_ENABLED=0 go build -o /tmp/then/bin/ ./cmd/docker2cvmfs ./cmd/cvmfs-graphdriver-plugin)
//	go run ./test/older/generate /tmp/then/bin testdata/older/COMMIT
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/child"
	"cvmfs-graphdriver/test/older"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "want two arguments: the folder of the programs, and that of what they write")
		os.Exit(2)
	}
	if err := generate(context.Background(), os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func generate(ctx context.Context, programs, out string) error {
	dir, err := os.MkdirTemp("", "older")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what stays is below the temporary folder
	w := &work{ctx: ctx, programs: programs, dir: dir, out: out}
	return errors.Join(os.MkdirAll(out, 0o755), w.convert(), w.run())
}

// work is what all steps know.
type work struct {
	ctx                context.Context
	programs, dir, out string
}

func (w *work) program(name string, args ...string) error {
	cmd := exec.CommandContext(w.ctx, filepath.Join(w.programs, name), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func (w *work) path(elem ...string) string { return filepath.Join(w.dir, filepath.Join(elem...)) }

// convert makes the image, a repository that is good for ten years, and the thin image.
func (w *work) convert() error {
	image := empty.Image
	for _, l := range [][]byte{base(), top()} {
		var err error
		if image, err = mutate.AppendLayers(image, layer(l)); err != nil {
			return err
		}
	}
	tag, err := name.NewTag("example/older:1")
	if err == nil {
		err = tarball.WriteToFile(w.path("image.tar"), tag, image)
	}
	if err == nil {
		err = w.program("docker2cvmfs", "publish", "create", w.path("publisher"), older.FQRN)
	}
	if err != nil {
		return err
	}
	const days = "3650"
	settings := w.path("publisher/publisher.json")
	b, err := os.ReadFile(settings)
	if err == nil {
		err = os.WriteFile(settings, bytes.Replace(b, []byte(`"whitelist_days": 30`), []byte(`"whitelist_days": `+days),
			1), 0o644)
	}
	return errors.Join(err,
		w.program("docker2cvmfs", "publish", "resign", "--days", days, w.path("publisher")),
		w.program("docker2cvmfs", "make-thin", "-i", "docker-archive:"+w.path("image.tar"), "-o",
			"docker-archive:"+filepath.Join(w.out, "thin.tar")+":example/thin-older:1",
			"--target", "native:"+w.path("publisher")),
		older.Pack(filepath.Join(w.out, "publisher.tar.gz"), w.path("publisher")),
		zip(w.path("image.tar"), filepath.Join(w.out, "image.tar.gz")))
}

func layer(archive []byte) v1.Layer { return static.NewLayer(archive, types.DockerUncompressedLayer) }

func zip(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return writeZipped(to, b)
}

func writeZipped(name string, b []byte) error {
	var z bytes.Buffer
	zw, err := gzip.NewWriterLevel(&z, gzip.BestCompression)
	if err != nil {
		return err
	}
	_, err = zw.Write(b)
	if err := errors.Join(err, zw.Close()); err != nil {
		return err
	}
	return os.WriteFile(name, z.Bytes(), 0o644)
}

// run has the plugin make layers and containers, looks at these, and kills it.
func (w *work) run() error {
	site := httptest.NewServer(http.FileServer(http.Dir(w.path("publisher/www"))))
	defer site.Close()
	if err := w.configure(site.URL + "/cvmfs/" + older.FQRN); err != nil {
		return err
	}
	p, err := w.start()
	if err != nil {
		return err
	}
	expected, err := p.work(w)
	p.kill()
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(expected, "", " ")
	if err != nil {
		return err
	}
	return errors.Join(writeZipped(filepath.Join(w.out, "expected.json.gz"), b),
		// a device of this machine
		older.Pack(filepath.Join(w.out, "data.tar.gz"), w.path("data"), "./state/backing-device"))
}

func (w *work) configure(server string) error {
	keys, err := filepath.Glob(w.path("publisher/keys/*.pub"))
	if err != nil || len(keys) != 1 {
		return fmt.Errorf("keys %v, %w", keys, err)
	}
	err = os.MkdirAll(w.path("config/config.d"), 0o755)
	for name, text := range map[string]string{
		"default.local":                    "CVMFS_HTTP_PROXY=DIRECT\n",
		"config.d/" + older.FQRN + ".conf": "CVMFS_SERVER_URL=" + server + "\nCVMFS_PUBLIC_KEY=" + keys[0] + "\n",
	} {
		err = errors.Join(err, os.WriteFile(w.path("config", name), []byte(text), 0o644))
	}
	return err
}

// plugin is the whole program, in a mount namespace of its own as the engine would start it.
type plugin struct {
	cmd    *exec.Cmd
	root   string
	client http.Client
}

// setUp makes the folder $0 the plugin's propagated mount.
const setUp = `mount --make-rprivate /; mount -t tmpfs tmpfs /srv; mkdir /srv/cvmfs-graphdriver; mount --bind "$0" /srv/cvmfs-graphdriver
mount -t tmpfs tmpfs /run; exec "$1"`

func (w *work) start() (*plugin, error) {
	if err := os.Mkdir(w.path("data"), 0o755); err != nil {
		return nil, err
	}
	program, err := filepath.Abs(filepath.Join(w.programs, "cvmfs-graphdriver-plugin"))
	if err != nil {
		return nil, err
	}
	p := &plugin{cmd: exec.CommandContext(w.ctx, "/bin/sh", "-ec", setUp, w.path("data"), program)}
	p.cmd.Env = append(os.Environ(), "CVMFS_EXT_CONFIG="+w.path("config"))
	p.cmd.Stdout, p.cmd.Stderr = os.Stdout, os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if err := child.Start(p.cmd); err != nil {
		return nil, err
	}
	p.root = fmt.Sprintf("/proc/%d/root", p.cmd.Process.Pid)
	p.client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.root+"/run/docker/plugins/plugin.sock")
	}}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := p.call("Plugin.Activate", nil)
		if err == nil {
			return p, nil
		}
		if time.Now().After(deadline) {
			p.kill()
			return nil, fmt.Errorf("the plugin doesn't come up: %w", err)
		}
	}
}

func (p *plugin) kill() {
	p.client.CloseIdleConnections()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // killed
}

type object = map[string]any

// call calls a method with arguments, or an archive.
func (p *plugin) call(method string, args any) (answer struct{ Err, Dir string }, err error) {
	body, isArchive := args.([]byte)
	if !isArchive {
		if body, err = json.Marshal(args); err != nil {
			return answer, err
		}
	}
	resp, err := p.client.Post("http://plugin/"+method, "", bytes.NewReader(body))
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	err = json.NewDecoder(resp.Body).Decode(&answer)
	if err == nil && answer.Err != "" {
		err = fmt.Errorf("%s: %s", method, answer.Err)
	}
	return answer, err
}

// work makes all layers and gives what the containers show.
func (p *plugin) work(w *work) (map[string][]string, error) {
	descriptor, err := thinLayer(filepath.Join(w.out, "thin.tar"))
	if err != nil {
		return nil, err
	}
	if _, err := p.call("GraphDriver.Init", object{"Home": "/var/lib/docker/older"}); err != nil {
		return nil, err
	}
	archives := map[string][]byte{
		"base": base(), "top": top(), "thin": descriptor, "mixed": descriptor,
		"above": above(), "below": below(),
	}
	for _, l := range older.Layers() {
		if _, err := p.call("GraphDriver.Create", object{"ID": l.ID, "Parent": l.Parent}); err != nil {
			return nil, err
		}
		q := url.Values{"id": {l.ID}, "parent": {l.Parent}}
		if _, err := p.call("GraphDriver.ApplyDiff?"+q.Encode(), archives[l.ID]); err != nil {
			return nil, err
		}
	}
	expected := map[string][]string{}
	for _, id := range older.Images() {
		if expected[id], err = p.view("c-"+id+"-init", id, nil); err != nil {
			return nil, err
		}
	}
	for _, id := range older.Containers() {
		if expected[id], err = p.container(id); err != nil {
			return nil, err
		}
	}
	for _, id := range older.Open() {
		if _, err := p.call("GraphDriver.Get", object{"ID": id}); err != nil {
			return nil, err
		}
	}
	return expected, nil
}

// container makes a container on a layer "-init", changes what it sees, looks at it, and stops it.
func (p *plugin) container(id string) ([]string, error) {
	return p.view(id, id+"-init", change)
}

// view makes a read-write layer, mounts it, changes what it shows unless change is nil, lists that, and gives it back.
func (p *plugin) view(id, parent string, change func(root string) error) ([]string, error) {
	if _, err := p.call("GraphDriver.CreateReadWrite", object{"ID": id, "Parent": parent}); err != nil {
		return nil, err
	}
	got, err := p.call("GraphDriver.Get", object{"ID": id})
	if err != nil {
		return nil, err
	}
	root := p.root + got.Dir
	if change != nil {
		if err := change(root); err != nil {
			return nil, err
		}
	}
	lines, err := older.List(root)
	if err == nil {
		_, err = p.call("GraphDriver.Put", object{"ID": id})
	}
	return lines, err
}

// change does in a container what containers do: whiteouts, an opaque folder, a file copied up for its content and one
// for its mode.
func change(root string) error {
	at := func(name string) string { return filepath.Join(root, name) }
	var f *os.File
	var err error
	if f, err = os.OpenFile(at("etc/changed"), os.O_APPEND|os.O_WRONLY, 0); err == nil {
		_, err = f.WriteString("and by the container\n")
		err = errors.Join(err, f.Close())
	}
	return errors.Join(err,
		os.Remove(at("etc/removed")),
		os.RemoveAll(at("usr/share/doc")), os.Mkdir(at("usr/share/doc"), 0o750),
		os.WriteFile(at("usr/share/doc/new"), []byte("new\n"), 0o640),
		os.Chmod(at("usr/bin/tool"), 0o700),
		os.Symlink("etc/changed", at("link")), os.Link(at("usr/share/doc/new"), at("hard")))
}

// thinLayer returns the one layer of a thin image.
func thinLayer(file string) ([]byte, error) {
	image, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		return nil, err
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		return nil, fmt.Errorf("%s: %d layers, %w", file, len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// long is a file of some chunks; it compresses well.
var long = bytes.Repeat([]byte("0123456789abcdef"), 24<<20/16)

// base is the archive of the image's lower layer: every kind of file, and what catalogs can't say.
func base() []byte {
	return archive(
		entry{name: "./", kind: tar.TypeDir, mode: 0o755},
		entry{name: "etc/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "etc/changed", body: "by the image\n"},
		entry{name: "etc/removed", body: "by the container\n"},
		entry{name: "etc/hidden", body: "by the upper layer\n"},
		entry{name: "etc/shadow", body: "secret\n", mode: 0o640, gid: 42},
		entry{name: "usr/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "usr/bin/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "usr/bin/tool", body: "#!/bin/sh\n", mode: 0o4755},
		entry{name: "usr/bin/able", body: "able\n", mode: 0o755, xattrs: map[string]string{
			// cap_net_bind_service=ep
			"security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			"user.note":           "kept",
		}},
		entry{name: "usr/share/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "usr/share/doc/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "usr/share/doc/old", body: "old\n"},
		entry{name: "usr/share/tool", kind: tar.TypeLink, link: "usr/bin/tool", mode: 0o4755}, // across folders
		entry{name: "usr/share/long", body: string(long)},
		entry{name: "usr/share/empty"},
		entry{name: "usr/share/ünïcode\xff", body: "bytes\n"},
		entry{name: "usr/share/deep/", kind: tar.TypeDir, mode: 0o2775, gid: 50},
		entry{name: "usr/share/deep/er/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "usr/share/deep/er/file", body: "deep\n"},
		entry{name: "lib", kind: tar.TypeSymlink, link: "usr/lib"},
		entry{name: "tmp/", kind: tar.TypeDir, mode: 0o1777},
		entry{name: "run/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "run/pipe", kind: tar.TypeFifo, mode: 0o600},
	)
}

// top is that of the upper layer.
func top() []byte {
	return archive(
		entry{name: "./", kind: tar.TypeDir, mode: 0o755},
		entry{name: "etc/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "etc/.wh.hidden"},
		entry{name: "usr/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "usr/share/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "usr/share/deep/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "usr/share/deep/.wh..wh..opq"},
		entry{name: "usr/share/deep/again", body: "again\n", uid: 1000, gid: 1000},
	)
}

func below() []byte {
	return archive(
		entry{name: "./", kind: tar.TypeDir, mode: 0o755},
		entry{name: "etc/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "etc/changed", body: "hidden by the thin image\n"},
		entry{name: "below/", kind: tar.TypeDir, mode: 0o711},
		entry{name: "below/file", body: "of an ordinary layer below a thin one\n"},
		entry{name: "below/same", kind: tar.TypeLink, link: "below/file"},
	)
}

func above() []byte {
	return archive(
		entry{name: "./", kind: tar.TypeDir, mode: 0o755},
		entry{name: "usr/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "usr/bin/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "usr/bin/.wh.able"},
		entry{name: "usr/bin/more", body: "of an ordinary layer above a thin one\n", mode: 0o755},
	)
}

// entry is one of an archive; a regular file with mode 0644 unless it says otherwise.
type entry struct {
	name, body, link string
	kind             byte
	mode             int64
	uid, gid         int
	xattrs           map[string]string
}

func archive(entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n, e := range entries {
		h := &tar.Header{
			Name: e.name, Typeflag: tar.TypeReg, Linkname: e.link, Mode: 0o644, Uid: e.uid, Gid: e.gid,
			Size:    int64(len(e.body)),
			ModTime: time.Unix(1_700_000_000+int64(n), 0), Format: tar.FormatPAX,
		}
		if e.kind != 0 {
			h.Typeflag = e.kind
		}
		if e.mode != 0 {
			h.Mode = e.mode
		}
		for key, value := range e.xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+key] = value
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err) // of an entry above
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}
