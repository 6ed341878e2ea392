package objects

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zlib"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

func zlibbed(t *testing.T, plain string, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zlib.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = z.Write([]byte(plain)); err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestContentThatIsKnownIsTakenIn(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir + "/o", Fresh: dir + "/f", State: dir + "/s", BootID: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	text := strings.Repeat("0123456789abcdef", 9000) + "end"
	size := int64(len(text))
	half := size / 2
	digest := func(stored []byte) hash.Digest { return hash.SHA1.Digest(stored) }
	chunks := []catalog.Chunk{
		{Digest: digest(zlibbed(t, text[:half], 6)), Size: half},
		{Digest: digest(zlibbed(t, text[half:], 6)), Offset: half, Size: size - half},
	}
	for name, o := range map[string]*Object{
		"zlib":    {Digest: digest(zlibbed(t, text, 6)), Size: size},
		"raw":     {Digest: digest([]byte(text)), Compression: hash.None, Size: size},
		"shake":   {Digest: hash.SHAKE128.Digest(zlibbed(t, text, 6)), Size: size},
		"chunks":  {Chunks: chunks, Size: size},
		"nothing": {Digest: digest(zlibbed(t, "", 6))},
	} {
		plain := text[:o.Size]
		for range 2 { // there, it is neither read nor written
			if err := s.Put(t.Context(), o, o.Path(), strings.NewReader(plain)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			plain = ""
		}
		file := filepath.Join(dir, "o", o.Path())
		b, err := os.ReadFile(file)
		if err != nil || string(b) != text[:o.Size] {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		sha := make([]byte, sha256.Size)
		want := sha256.Sum256(b)
		if _, err := unix.Getxattr(file, attribute, sha); err != nil || !bytes.Equal(sha, want[:]) {
			t.Errorf("%s: recorded %x, %v", name, sha, err)
		}
	}
	last := chunks[1]
	last.Digest.Sum[0]++
	for name, c := range map[string]struct {
		o     Object
		plain string
	}{
		"other":           {Object{Digest: digest(zlibbed(t, "x"+text[1:], 6)), Size: size}, text},
		"another level":   {Object{Digest: digest(zlibbed(t, text, 1)), Size: size}, text},
		"a shorter one":   {Object{Digest: digest(zlibbed(t, text+"x", 6)), Size: size + 1}, text},
		"another chunk":   {Object{Chunks: []catalog.Chunk{chunks[0], last}, Size: size}, text},
		"an external one": {Object{Digest: digest([]byte("e")), Compression: hash.None, Size: 1, External: true, File: "/e"}, "e"},
	} {
		if err := s.Put(t.Context(), &c.o, c.o.Path(), strings.NewReader(c.plain)); !errors.Is(err, ErrOther) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "o", c.o.Path())); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	after := &Object{Digest: digest(zlibbed(t, "after failures", 6)), Size: 14}
	if err := s.Put(t.Context(), after, after.Path(), strings.NewReader("after failures")); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "o", tmpFolder))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if promised := s.admission.flying; promised != 0 {
		t.Errorf("%d bytes stay promised", promised)
	}
}

// BenchmarkPlainContent is of small files, as most of a layer's are: what is made for each counts.
func BenchmarkPlainContent(b *testing.B) {
	text := bytes.Repeat([]byte("0123456789abcdef"), 128)
	stored := Stored{Size: int64(len(text))}
	var packed bytes.Buffer
	z, err := zlib.NewWriterLevel(&packed, hash.ZlibLevel)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := z.Write(text); err != nil {
		b.Fatal(err)
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	stored.Digest = hash.SHA1.Digest(packed.Bytes())
	b.ReportAllocs()
	for b.Loop() {
		if err := verifyPlain(&stored, bytes.NewReader(text), io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
