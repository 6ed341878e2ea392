package source

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"cvmfs-graphdriver/test/testutil"
)

// xzOf wraps bytes in a file of xz without compressing them: one block, chunks of LZMA2 as they are.
func xzOf(plain string) string {
	var block bytes.Buffer
	for at := 0; at < len(plain); at += 1 << 16 {
		chunk := plain[at:min(at+1<<16, len(plain))]
		kind := byte(2)
		if at == 0 {
			kind = 1 // it begins a dictionary
		}
		block.WriteByte(kind)
		binary.Write(&block, binary.BigEndian, uint16(len(chunk)-1))
		block.WriteString(chunk)
	}
	block.WriteByte(0)
	const headerSize, checkSize = 12, 4
	unpadded := headerSize + block.Len() + checkSize
	for block.Len()%4 != 0 {
		block.WriteByte(0)
	}
	summed := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }
	flags := []byte{0, 1} // checks are CRC32
	var file bytes.Buffer
	file.WriteString("\xfd7zXZ\x00")
	file.Write(flags)
	binary.Write(&file, binary.LittleEndian, crc32.ChecksumIEEE(flags))
	file.Write(summed([]byte{headerSize/4 - 1, 0, 0x21, 1, 0, 0, 0, 0}))
	file.Write(block.Bytes())
	binary.Write(&file, binary.LittleEndian, crc32.ChecksumIEEE([]byte(plain)))
	index := binary.AppendUvarint(binary.AppendUvarint([]byte{0, 1}, uint64(unpadded)), uint64(len(plain)))
	for len(index)%4 != 0 {
		index = append(index, 0)
	}
	index = summed(index)
	file.Write(index)
	footer := append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), flags...)
	binary.Write(&file, binary.LittleEndian, crc32.ChecksumIEEE(footer))
	file.Write(footer)
	file.WriteString("YZ")
	return file.String()
}

func zstdOf(t testing.TB, plain string) string {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return string(w.EncodeAll([]byte(plain), nil))
}

// skipped is a frame of zstd that says nothing.
func skipped(magic byte, content string) string {
	return string(binary.LittleEndian.AppendUint32([]byte{magic, 0x2a, 0x4d, 0x18}, uint32(len(content)))) + content
}

// The same text as xz -9 writes it, with a filter for programs, and with a dictionary of 512 MiB.
const (
	manyLines  = "/Td6WFoAAATm1rRGAgAhARwAAAAQz1jM4EJnAEhdADebiM52mp3yJec1cNznwsTifcuX+OpxocrLRedgSXR4HDG+xTfgElhT7yoj2dk1csrvKlcoz/9dx4/GdiFFTAbFhY3HVIeUAADm8MpI+mo/EwABZOiEAQAA1F5tK7HEZ/sCAAAAAARZWg=="
	filtered   = "/Td6WFoAAATm1rRGAgEEACEBFgANhjUf4EJnAEhdADebiM52mp3yJec1cNznwsTifcuX+OpxocrLRedgSXR4HDG+xTfgElhT7yoj2dk1csrvKlcoz/9dx4/GdiFFTAbFhY3HVIeUAADm8MpI+mo/EwABZOiEAQAA1F5tK7HEZ/sCAAAAAARZWg=="
	hugeWindow = "/Td6WFoAAATm1rRGAgAhASIAAACCQKzc4EJnAEhdADebiM52mp3yJec1cNznwsTifcuX+OpxocrLRedgSXR4HDG+xTfgElhT7yoj2dk1csrvKlcoz/9dx4/GdiFFTAbFhY3HVIeUAADm8MpI+mo/EwABZOiEAQAA1F5tK7HEZ/sCAAAAAARZWg=="
)

func TestEveryFormOfACompressionIsRead(t *testing.T) {
	plain := string(archiveOf(t, member{name: "a", content: strings.Repeat("some content\n", 20_000)}))
	half := len(plain) / 2
	for form, blob := range map[string]string{
		"zstd behind a skippable frame": skipped(0x50, "1234") + zstdOf(t, plain),
		"zstd behind the last kind":     skipped(0x5f, "") + zstdOf(t, plain),
		"zstd with frames everywhere": skipped(0x5a, "x") + zstdOf(t, plain[:half]) + skipped(0x50, "y") + zstdOf(t,
			plain[half:]) + skipped(0x51, strings.Repeat("z", 1000)),
		"gzip of two members": gzipped(t, plain[:half]) + gzipped(t, plain[half:]),
		"xz":                  xzOf(plain),
		"xz of two streams":   xzOf(plain[:half]) + "\x00\x00\x00\x00" + xzOf(plain[half:]),
	} {
		layer := archiveOf(t, member{name: "c", content: configFor(t, plain)}, member{name: "l", content: blob},
			member{name: "manifest.json", content: `[{"Config":"c","RepoTags":["x:1"],"Layers":["l"]}]`})
		whole := archiveOf(t, member{name: "c", content: configFor(t, plain)}, member{name: "l", content: plain},
			member{name: "manifest.json", content: `[{"Config":"c","RepoTags":["x:1"],"Layers":["l"]}]`})
		files := map[string][]byte{"layer": layer}
		if form == "xz" {
			files["whole"] = []byte(xzOf(string(whole)))
		}
		for what, file := range files {
			image, err := opened(t, "docker-archive:"+written(t, file), Options{})
			if err != nil {
				t.Errorf("%s, %s: %v", form, what, err)
				continue
			}
			if got, err := archives(t, image); err != nil || string(got[0]) != plain {
				t.Errorf("%s, %s: %v", form, what, err)
			}
		}
		s := newShelf(t)
		in := s.tagged(s.blob(s.json(fields{
			"schemaVersion": 2, "mediaType": types.OCIManifestSchema1,
			"config": s.blob(configFor(t, plain), types.OCIConfigJSON, nil),
			"layers": []fields{s.blob(blob, types.OCILayer, nil)},
		}), types.OCIManifestSchema1, tagOne))
		image, err := opened(t, in, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := archives(t, image); err != nil || string(got[0]) != plain {
			t.Errorf("%s, in a layout: %v", form, err)
		}
	}
}

func TestXZIsReadAsItsProgramWritesIt(t *testing.T) {
	for packed, says := range map[string]string{manyLines: "", filtered: "", hugeWindow: "dictionary size"} {
		b, err := base64.StdEncoding.DecodeString(packed)
		if err != nil {
			t.Fatal(err)
		}
		if got := Detect(b); got != XZ {
			t.Errorf("detected: %v", got)
		}
		plain, stop, err := decompress(bytes.NewReader(b), XZ)
		var text []byte
		if err == nil {
			text, err = io.ReadAll(plain)
			stop()
		}
		switch {
		case says != "" && (err == nil || !strings.Contains(err.Error(), says)):
			t.Errorf("a dictionary of 512 MiB: %v", err)
		case says == "" && (err != nil || string(text) != strings.Repeat("one line of many\n", 1000)):
			t.Errorf("%d bytes, %v", len(text), err)
		}
	}
}

// TestArchivesMayBeginWithAnyName: a file's name is no mark of a compression.
func TestArchivesMayBeginWithAnyName(t *testing.T) {
	for _, name := range []string{"BZh91AY", "\x1f\x8bx", "\xfd7zXZ", "P*M\x18", "(\xb5/\xfd", "PK\x03\x04", "LZIP"} {
		b := archiveOf(t, member{name: strings.Repeat("n", len(name)), content: "x"})
		copy(b, name)
		sum := 0
		copy(b[148:156], "        ")
		for _, c := range b[:HeadSize] {
			sum += int(c)
		}
		copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
		if h, err := tar.NewReader(bytes.NewReader(b)).Next(); err != nil || h.Name != name {
			t.Fatalf("%q: %v", name, err)
		}
		if got := Detect(b[:HeadSize]); got != Uncompressed {
			t.Errorf("%q: %v", name, got)
		}
	}
	b := archiveOf(t, member{name: "f", content: "x"})
	b[155] = 'x' // what stands behind a field's NUL is nobody's
	if _, err := tar.NewReader(bytes.NewReader(b)).Next(); err != nil || Detect(b[:HeadSize]) != Uncompressed {
		t.Errorf("a checksum with something behind it: %v", err)
	}
	if got := Detect(make([]byte, 1024)); got != Uncompressed {
		t.Errorf("an empty archive: %v", got)
	}
}

// TestWhatIsReadInNoWayIsSaid: it is not damaged.
func TestWhatIsReadInNoWayIsSaid(t *testing.T) {
	plain := string(archiveOf(t, member{name: "a", content: "1"}))
	for blob, says := range map[string]string{
		"\x04\x22\x4d\x18rest":       "compressed with lz4",
		"LZIP\x01rest":               "compressed with lzip",
		"PK\x03\x04rest":             "compressed with zip",
		strings.Repeat("some", 1000): "no archive",
	} {
		saved := archiveOf(t, member{name: "c", content: configFor(t, plain)}, member{name: "l", content: blob},
			member{name: "manifest.json", content: `[{"Config":"c","RepoTags":["x:1"],"Layers":["l"]}]`})
		if _, err := opened(t, "docker-archive:"+written(t, saved), Options{}); err == nil ||
			!strings.Contains(err.Error(), says) || errors.Is(err, ErrDamaged) {
			t.Errorf("%.10q in an archive: %v", blob, err)
		}
		if _, err := opened(t, "docker-archive:"+written(t, []byte(blob)), Options{}); err == nil ||
			!strings.Contains(err.Error(), says) {
			t.Errorf("%.10q as an archive: %v", blob, err)
		}
		s := newShelf(t)
		in := s.tagged(s.blob(s.json(fields{
			"schemaVersion": 2, "mediaType": types.OCIManifestSchema1,
			"config": s.blob(configFor(t, plain), types.OCIConfigJSON, nil),
			"layers": []fields{s.blob(blob, types.OCILayer, nil)},
		}), types.OCIManifestSchema1, tagOne))
		image, err := opened(t, in, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := archives(t, image); err == nil || !strings.Contains(err.Error(), says) ||
			errors.Is(err, ErrDamaged) {
			t.Errorf("%.10q in a layout: %v", blob, err)
		}
	}
	// What was damaged on its way is told as such, whatever it looks like.
	reg, in := registryWith(t, imageOf(t, "amd64", layerOf(t, []byte(plain), compression.None,
		types.DockerUncompressedLayer)))
	image, err := opened(t, in, Options{})
	if err != nil {
		t.Fatal(err)
	}
	reg.Set(testutil.Fault{Path: "/blobs/", Flip: true})
	if _, err := archives(t, image); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
}
