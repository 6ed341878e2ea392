package bundle

import (
	"bytes"
	"testing"

	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/testutil"
)

// What is read, from whatever bytes, is written and read as the same bundle.
func FuzzRead(f *testing.F) {
	program := testutil.PluginProgram(f, "amd64", "1.2.3", "c0ffee")
	b, err := New(program, rootfs.Build{Version: "1.2.3", Commit: "c0ffee"})
	if err != nil {
		f.Fatal(err)
	}
	var layer bytes.Buffer
	if err := b.WriteRootfs(&layer); err != nil {
		f.Fatal(err)
	}
	f.Add(b.ConfigJSON(), layer.Bytes())
	f.Add([]byte("{}"), layer.Bytes()[:4096])
	f.Add([]byte("null"), []byte{})
	f.Fuzz(func(t *testing.T, config, layer []byte) {
		b, err := Read(config, bytes.NewReader(layer))
		if err != nil {
			return
		}
		_ = b.Check() // must not panic; what it says differs
		var again bytes.Buffer
		if err := b.WriteRootfs(&again); err != nil {
			t.Fatal(err)
		}
		back, err := Read(b.ConfigJSON(), &again)
		if err != nil {
			t.Fatal(err)
		}
		if len(back.entries) != len(b.entries) || back.Build != b.Build || !bytes.Equal(back.Program(), b.Program()) {
			t.Errorf("read back as %+v, was %+v", back.Build, b.Build)
		}
	})
}

func FuzzSums(f *testing.F) {
	f.Add([]byte("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  a/b c\n"))
	f.Add([]byte("\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		sums, err := parseSums("sums", text)
		if err != nil {
			return
		}
		back, err := parseSums("sums", formatSums(sums))
		if err != nil || len(back) != len(sums) {
			t.Errorf("%q: read back as %q, %v", sums, back, err)
		}
	})
}
