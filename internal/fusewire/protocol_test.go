package fusewire

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// view reads b as one of go-fuse's structures, which are the kernel's.
func view[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if len(b) != int(unsafe.Sizeof(v)) {
		t.Fatalf("%T: %d bytes, want %d", v, len(b), unsafe.Sizeof(v))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&v)), len(b)), b)
	return v
}

// request is a request's bytes.
func request(op Op, unique, node uint64, arg []byte) []byte {
	b := make([]byte, inHeaderSize+len(arg))
	native.PutUint32(b, uint32(len(b)))
	native.PutUint32(b[4:], uint32(op))
	native.PutUint64(b[8:], unique)
	native.PutUint64(b[16:], node)
	copy(b[inHeaderSize:], arg)
	return b
}

func initArg(majorVersion, minor uint32, flags uint64, size int) []byte {
	b := make([]byte, 64)
	native.PutUint32(b, majorVersion)
	native.PutUint32(b[4:], minor)
	native.PutUint32(b[8:], 131072)
	native.PutUint32(b[12:], uint32(flags))
	native.PutUint32(b[16:], uint32(flags>>32))
	return b[:size]
}

func TestEntryIsLaidOutAsTheKernelWants(t *testing.T) {
	b := bytes.Repeat([]byte{0xff}, entryOutSize) // what an earlier reply has left
	putEntry(b, Entry{Node: 1 << 62, Attr: Attr{Mode: syscall.S_IFREG | 0o444, Size: 1025}, Valid: Forever})
	attr := fuse.Attr{Ino: 1 << 62, Size: 1025, Blocks: 3, Mode: syscall.S_IFREG | 0o444, Nlink: 1, Blksize: 4096}
	want := fuse.EntryOut{NodeId: 1 << 62, EntryValid: 86400, AttrValid: 86400, Attr: attr}
	if diff := cmp.Diff(want, view[fuse.EntryOut](t, b)); diff != "" {
		t.Error(diff)
	}
	if got := int(unsafe.Sizeof(fuse.AttrOut{})); got != attrOutSize {
		t.Errorf("attributes: %d bytes, want %d", attrOutSize, got)
	}
}

func TestStatfsIsLaidOutAsTheKernelWants(t *testing.T) {
	b := bytes.Repeat([]byte{0xff}, statfsOutSize)
	putStatfs(b)
	if diff := cmp.Diff(fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255},
		view[fuse.StatfsOut](t, b)); diff != "" {
		t.Error(diff)
	}
}

func TestHandshakeGrantsWhatBothSidesKnow(t *testing.T) {
	const unknown = 1 << 60
	for name, c := range map[string]struct {
		arg  []byte
		want uint64
		init Init
	}{
		"today's kernel":    {initArg(7, 45, wanted|unknown, 64), wanted, Init{maxMinor, wanted}},
		"without resending": {initArg(7, 40, wanted, 64), wanted &^ FlagHasResend, Init{40, wanted &^ FlagHasResend}},
		"before flags2 (4.4)": {
			initArg(7, 23, flagAsyncRead|flagNoOpen, 16), wanted,
			Init{23, flagAsyncRead | flagNoOpen},
		},
		"upper flags without the flag that announces them": {
			initArg(7, 40, FlagHasResend|flagMaxPages, 64), wanted,
			Init{40, flagMaxPages},
		},
	} {
		t.Run(name, func(t *testing.T) {
			out := make([]byte, initOutSize)
			init, unique, err := answerInit(request(OpInit, 2, 0, c.arg), c.want, out)
			if err != nil || unique != 2 {
				t.Fatalf("unique %d, %v", unique, err)
			}
			if diff := cmp.Diff(c.init, init); diff != "" {
				t.Error(diff)
			}
			got := view[fuse.InitOut](t, append(make([]byte, 0, initOutSize), out...))
			want := fuse.InitOut{
				Major: 7, Minor: init.Minor, MaxReadAhead: 131072, Flags: uint32(init.Flags),
				Flags2:        uint32(init.Flags >> 32),
				MaxBackground: maxBackground, CongestionThreshold: maxBackground * 3 / 4, MaxWrite: 4096, TimeGran: 1,
				MaxPages: uint16(MaxRead / os.Getpagesize()),
			}
			if got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestHandshakeRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		request []byte
		want    string
	}{
		"nothing":           {nil, "shorter than its header"},
		"another request":   {request(OpStatfs, 2, 1, make([]byte, 64)), "not INIT"},
		"a short request":   {request(OpInit, 2, 0, make([]byte, 8)), "not INIT"},
		"another major":     {request(OpInit, 2, 0, initArg(8, 0, 0, 64)), "version 8"},
		"an ancient kernel": {request(OpInit, 2, 0, initArg(7, 12, 0, 16)), "Linux 3.16"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := answerInit(c.request, wanted, make([]byte, initOutSize))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestDirectoryEntriesEndWhereTheBufferEnds(t *testing.T) {
	for _, plus := range []bool{false, true} {
		w := direntWriter{out: make([]byte, 0, 400), plus: plus}
		entry := Entry{Node: 7, Attr: Attr{Mode: syscall.S_IFDIR | 0o755}, Valid: time.Minute}
		n := 0
		for w.add(strings.Repeat("x", 9), entry) {
			n++
		}
		size := 40 // 24 + 9, aligned to 8
		if plus {
			size += entryOutSize
		}
		if n != 400/size || len(w.out) != n*size || w.next != uint64(n) {
			t.Errorf("plus=%v: %d entries in %d bytes, next offset %d", plus, n, len(w.out), w.next)
		}
		if w.add(strings.Repeat("y", MaxName+1), entry) {
			t.Error("a name too long was taken")
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(request(OpLookup, 4, 1, []byte("gate\x00")))
	f.Add(request(OpLookup, 4, 1, nil))
	f.Add(request(OpRead, 4, 5, make([]byte, readInSize)))
	f.Add(request(OpInit, 2, 0, initArg(7, 40, wanted, 64)))
	f.Add(request(OpGetxattr, 4, 5, append(make([]byte, xattrInSize), "user.x\x00"...)))
	f.Add(request(OpListxattr, 4, 5, []byte{1, 0, 0, 0, 0, 0, 0, 0}))
	f.Add(request(OpInterrupt, 5, 0, make([]byte, 8)))
	f.Add([]byte{40, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, arg, err := parseRequest(b)
		if err != nil {
			return
		}
		if len(arg) != int(h.length)-inHeaderSize {
			t.Fatalf("%d bytes of arguments in a request of %d", len(arg), h.length)
		}
		if name, errno := nameArg(arg); errno == 0 && (len(name) == 0 || len(name) > MaxName ||
			bytes.IndexByte(name, 0) >= 0) {
			t.Errorf("name %q", name)
		}
		if off, size, errno := readArg(arg); errno == 0 && (int64(off) < 0 || size < 0 || size > MaxRead) {
			t.Errorf("read %d bytes at %d", size, off)
		}
		if size, rest, errno := sizeArg(arg); errno == 0 && (size < 0 || len(rest) != len(arg)-xattrInSize) {
			t.Errorf("%d bytes wanted, %d left of %d", size, len(rest), len(arg))
		}
		_, _, _ = answerInit(b, wanted, make([]byte, initOutSize))
	})
}
