package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"time"
)

const (
	// Nasty is what the image is called that holds everything layers can hold.
	Nasty = "example/nasty:1"
	// NastyImplicit is its folder that no layer has an entry for: its attributes and its time are whatever unpacks it.
	NastyImplicit = "/implicit"
)

// MakeNasty makes the image that holds everything layers can hold and engines take and give back, with a busybox that
// needs no library.
func MakeNasty(ctx context.Context, dir, program string) (*Image, error) {
	busybox, err := os.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("make the image %s: %w", Nasty, err)
	}
	return Make(ctx, dir, Nasty, Config{
		"Entrypoint": []string{"/bin/busybox"}, "Cmd": []string{"true"}, "Env": []string{"PATH=/bin", "EMPTY="},
		"User": "0:0", "WorkingDir": "/d",
		"Labels":       map[string]string{"org.example.nasty": "yes", "empty": ""},
		"ExposedPorts": map[string]any{"80/tcp": map[string]any{}},
		"Volumes":      map[string]any{"/volume": map[string]any{}}, "StopSignal": "SIGKILL",
	}, nastyLayer(nastyBase(string(busybox))), nastyLayer(nastyRemovals()), nastyLayer(nastyReturns()))
}

// noMode is the mode of a thing that nobody may touch, which is not the zero value's.
const noMode = -1

// Sparse is what the image is called of a busybox and a layer whose file is stored with holes. Engines run it, but
// can't give it back: they have stored the file whole.
const Sparse = "example/sparse:1"

// MakeSparse makes that image.
func MakeSparse(ctx context.Context, dir, program string) (*Image, error) {
	busybox := Archive(func(w *tar.Writer) error { return writeBusybox(w, program) })
	return Make(ctx, dir, Sparse, Config{"Cmd": []string{"sh"}, "Env": []string{"PATH=/bin"}}, busybox,
		sparse(8<<20, "the end of the file"))
}

// thing is an entry of a layer.
type thing struct {
	name    string // ends with "/" for a folder
	mode    int64  // permission bits; 0: 0755 for a folder, 0644 else
	content string
	kind    byte // of the archive; 0: a folder or file by its name
	to      string
	uid     int
	gid     int
	at      time.Time // the zero time: that of all others
	xattrs  map[string]string
	device  [2]int64 // major, minor
	sparse  int64    // size of a file that is a hole but for its content, at the end
}

func nastyLayer(things []thing) Layer {
	return Archive(func(w *tar.Writer) error {
		for _, t := range things {
			if err := t.write(w); err != nil {
				return fmt.Errorf("%.60q: %w", t.name, err)
			}
		}
		return nil
	})
}

func (t *thing) write(w *tar.Writer) error {
	h := &tar.Header{
		Name: t.name, Mode: t.mode, Typeflag: t.kind, Linkname: t.to, Uid: t.uid, Gid: t.gid,
		Size: int64(len(t.content)), ModTime: t.at,
		Devmajor: t.device[0], Devminor: t.device[1], Format: tar.FormatPAX,
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if strings.HasSuffix(t.name, "/") {
			h.Mode = 0o755
		}
	}
	if h.Mode == noMode {
		h.Mode = 0
	}
	if t.at.IsZero() {
		h.ModTime = time.Unix(1_500_000_000, 987_654_321)
	}
	for name, value := range t.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	content := io.Reader(strings.NewReader(t.content))
	if t.sparse > 0 {
		h.Size = t.sparse
		content = io.MultiReader(io.LimitReader(zeros{}, t.sparse-int64(len(t.content))), content)
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w, content)
	return err
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// noise is bytes that don't compress, the same each time.
func noise(seed uint64, size int) string {
	random := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, 0, size+8)
	for len(b) < size {
		b = binary.LittleEndian.AppendUint64(b, random.Uint64())
	}
	return string(b[:size])
}

// capability is the attribute of a program that may open raw sockets: version 2, effective (capabilities(7)).
var capability = string([]byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})

// nastyBase is what the lowest layer holds.
func nastyBase(busybox string) []thing {
	long := map[string]string{"user.long": strings.Repeat("long ", 200)}
	many := map[string]string{}
	for n := range 40 {
		many[fmt.Sprintf("user.number%02d", n)] = strings.Repeat("v", n)
	}
	things := []thing{
		{name: "./", mode: 0o711, uid: 3, gid: 4, xattrs: map[string]string{"user.root": strings.Repeat("root ", 60)}},
		{name: "bin/"},
		{name: "bin/busybox", mode: 0o755, content: busybox},
		{name: "proc/"},
		{name: "sys/"},
		{name: "dev/"},
		{name: "etc/"},
		{name: "volume/"},
		{name: "volume/kept", content: "kept"},

		{name: "d/"},
		{name: "d/removed", content: "removed"},
		{name: "d/stays", content: "stays"},
		{name: "d/replaced", content: "below"},
		{name: "gone/"},
		{name: "gone/sub/"},
		{name: "gone/sub/file", content: "gone"},
		{name: "opaque/"},
		{name: "opaque/x", content: "x"},
		{name: "opaque/sub/"},
		{name: "opaque/sub/y", content: "y"},
		{name: "swap/"},
		{name: "swap/folder/"},
		{name: "swap/folder/inside", content: "i"},
		{name: "swap/file", content: "f"},
		{name: "swap/link", kind: tar.TypeSymlink, to: "file"},
		{name: "attributes/", mode: 0o700},
		{name: "attributes/file", content: "a"},

		{name: "modes/"},
		{name: "modes/setuid", mode: 0o4755, content: "u", uid: 65534},
		{name: "modes/setgid", mode: 0o2750, content: "g", gid: 65534},
		{name: "modes/none", mode: noMode, content: "n"},
		{name: "modes/all", mode: 0o7777, content: "a"},
		{name: "modes/sticky/", mode: 0o1777},
		{name: "modes/setgid-folder/", mode: 0o2775, gid: 7},
		{name: "modes/owner", uid: 2_000_000, gid: 3_000_000, content: "o"},
		{
			name: "modes/capability", mode: 0o755, content: "c",
			xattrs: map[string]string{"security.capability": capability},
		},

		{name: "special/"},
		{name: "special/null", mode: 0o666, kind: tar.TypeChar, device: [2]int64{1, 3}},
		{name: "special/large", mode: 0o600, kind: tar.TypeChar, device: [2]int64{4095, 1_048_575}, uid: 5},
		{name: "special/block", mode: 0o660, kind: tar.TypeBlock, device: [2]int64{7, 300}, gid: 6},
		{name: "special/fifo", mode: 0o622, kind: tar.TypeFifo},

		{name: "times/", at: time.Unix(-1, 1)},
		{name: "times/nanoseconds", at: time.Unix(1_400_000_000, 1)},
		{name: "times/epoch", at: time.Unix(0, 0)},
		{name: "times/before", at: time.Unix(-86400, 999_999_999)},
		{name: "times/after-2038", at: time.Unix(1<<33, 5)},
		{name: "times/link", kind: tar.TypeSymlink, to: "epoch", at: time.Unix(1_300_000_000, 42)},

		{name: "xattrs/"},
		{name: "xattrs/long", content: "x", xattrs: long},
		{name: "xattrs/folder/", xattrs: long},
		{name: "xattrs/many", xattrs: many},
		{name: "xattrs/name", xattrs: map[string]string{"user." + strings.Repeat("n", 250): "v"}},
		{name: "xattrs/empty", xattrs: map[string]string{"user.empty": ""}},
		{name: "xattrs/bytes", xattrs: map[string]string{"user.bytes": "\x00\x01\xff\n=", "user.ünï": "ü"}},
		{name: "xattrs/both", xattrs: map[string]string{"user.long": strings.Repeat("b", 256), "user.short": "s"}},
		{name: "xattrs/border", xattrs: map[string]string{"user.border": strings.Repeat("b", 255)}},

		{name: "links/"},
		{name: "links/a", content: "in one folder"},
		{name: "links/b", kind: tar.TypeLink, to: "links/a"},
		{name: "links/x/"},
		{name: "links/x/one", content: "across folders", uid: 9},
		{name: "links/y/"},
		{name: "links/y/two", kind: tar.TypeLink, to: "links/x/one"},
		{name: "links/y/three", kind: tar.TypeLink, to: "links/y/two"},
		{name: "links/long", content: "l", xattrs: long},
		{name: "links/x/long", kind: tar.TypeLink, to: "./links/long"},
		{name: "links/long-here", content: "h", xattrs: long},
		{name: "links/long-here-too", kind: tar.TypeLink, to: "links/long-here"},
		{name: "links/symlink", kind: tar.TypeSymlink, to: "a"},
		{name: "links/x/symlink", kind: tar.TypeLink, to: "links/symlink"},
		{name: "links/null", mode: 0o666, kind: tar.TypeChar, device: [2]int64{1, 3}},
		{name: "links/y/null", kind: tar.TypeLink, to: "links/null"},
		{name: "links/fifo", kind: tar.TypeFifo},
		{name: "links/y/fifo", kind: tar.TypeLink, to: "links/fifo"},
		{name: "links/empty"},
		{name: "links/x/empty", kind: tar.TypeLink, to: "links/empty"},
		{name: "links/one-goes", content: "one of these goes"},
		{name: "links/x/one-stays", kind: tar.TypeLink, to: "links/one-goes"},
		{name: "links/y/one-stays", kind: tar.TypeLink, to: "links/one-goes"},
		{name: "links/twin-1", content: "equal, not linked"},
		{name: "links/twin-2", content: "equal, not linked"},

		{name: "markers/"},
		{name: "markers/.cvmfscatalog", content: "a file of the image's own"},
		{name: "markers/.cvmfsautocatalog"},
		{name: "markers/sub/"},
		{name: "markers/sub/.cvmfscatalog"},
		{name: "markers/sub/file", content: "s"},
		{name: ".cvmfscatalog", content: "r", mode: 0o600},

		{name: "symlinks/"},
		{name: "symlinks/absolute", kind: tar.TypeSymlink, to: "/d/stays"},
		{name: "symlinks/dangling", kind: tar.TypeSymlink, to: "nowhere"},
		{name: "symlinks/up", kind: tar.TypeSymlink, to: "../../../../d"},
		{name: "symlinks/variable", kind: tar.TypeSymlink, to: "$(CVMFS_FQRN:-none)/x"},
		{name: "symlinks/long", kind: tar.TypeSymlink, to: strings.Repeat("target/", 580)},
		{name: "symlinks/bytes", kind: tar.TypeSymlink, to: "\xff\xfe"},

		{name: "names/"},
		{name: "content/"},
		{name: "content/empty"},
		{name: "content/zeros", sparse: 5 << 20},
		{name: "content/noise", content: noise(1, 30<<20)},
		{name: "content/nearly", content: noise(2, 1<<20-1)},
		{name: "content/hole", sparse: 40 << 20, content: "the end"},
	}
	deep := ""
	for range 12 {
		deep += strings.Repeat("deep", 25) + "/"
		things = append(things, thing{name: deep})
	}
	things = append(things, thing{name: deep + "file", content: "deep"})
	for n, name := range []string{
		strings.Repeat("n", 255), "not utf-8 \xff\xfe", "new\nline", "quote'\"", "back\\slash", "ünï 名前", "-dash",
		".hidden", "...", "tab\t", "100%", "%41", ".wh",
		"colon:comma,equals=", " space ", "*?[", "\x7f\x01", "wh.no", "a.wh.b",
	} {
		things = append(things, thing{name: "names/" + name, content: fmt.Sprint(n)})
	}
	return things
}

// nastyRemovals is what a layer holds that removes and changes what is below.
func nastyRemovals() []thing {
	return []thing{
		{name: "d/", mode: 0o750, at: time.Unix(1_500_000_001, 1)},
		{name: "d/.wh.removed"},
		{name: "d/replaced", content: "above", mode: 0o4711, at: time.Unix(9, 9)},
		{name: ".wh.gone"},
		{name: ".wh.never-there"},
		{name: "opaque/"},
		{name: "opaque/.wh..wh..opq"},
		{name: "opaque/new", content: "new"},
		{name: "swap/"},
		{name: "swap/folder", content: "a file now"},
		{name: "swap/file/"},
		{name: "swap/file/inside", content: "a folder now"},
		{name: "swap/link/", mode: 0o711},
		{name: "swap/link/inside", content: "a folder, too"},
		{
			name: "attributes/", mode: 0o1755, uid: 8, gid: 9,
			xattrs: map[string]string{"user.above": strings.Repeat("above", 99)},
		},
		{name: "links/"},
		{name: "links/.wh.one-goes"},
	}
}

// nastyReturns is what a layer holds that brings things back, with a root of its own and a folder without an entry.
func nastyReturns() []thing {
	return []thing{
		{name: "./", mode: 0o1755, uid: 10, gid: 11, at: time.Unix(1_500_000_002, 2)},
		{name: "gone/", uid: 12},
		{name: "gone/file", content: "back"},
		{name: "d/", mode: 0o755},
		{name: "d/removed", content: "back"},
		{name: "implicit/folder/file", content: "its folders have no entries"},
		{name: "links/"},
		{name: "links/y/"},
		{name: "links/y/new", content: "of the top layer"},
		{name: "links/new", kind: tar.TypeLink, to: "links/y/new"},
	}
}

// sparse is a layer whose one file, "sparse", is stored in GNU tar's own way of writing holes: size bytes, all a hole
// but for those at the end. archive/tar reads that and can't write it, so its header is completed here.
func sparse(size int64, end string) Layer {
	return func(out io.Writer) error {
		var b bytes.Buffer
		err := Archive(func(w *tar.Writer) error {
			t := thing{name: "sparse", mode: 0o640, content: end, at: time.Unix(1_500_000_000, 0)}
			return t.write(w)
		})(&b)
		if err != nil {
			return err
		}
		header := b.Bytes()[:512]
		header[156] = tar.TypeGNUSparse
		copy(header[257:], "ustar  \x00")
		clear(header[345:512])
		// Offset and length of each piece, the last one empty; behind four of them the size of the file.
		for at, n := range map[int]int64{
			386: size - int64(len(end)), 398: int64(len(end)), 410: size, 422: 0,
			483: size,
		} {
			copy(header[at:], fmt.Sprintf("%011o\x00", n))
		}
		copy(header[148:156], "        ")
		check := 0
		for _, c := range header {
			check += int(c)
		}
		copy(header[148:], fmt.Sprintf("%06o\x00 ", check))
		_, err = out.Write(b.Bytes())
		return err
	}
}
