package hash

import (
	"strings"
	"testing"
)

// The known answers are those of the reference implementation.
func TestKnownDigests(t *testing.T) {
	empty := []byte{0x78, 0x9c, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01}
	for _, c := range []struct {
		algorithm Algorithm
		data      []byte
		want      string
	}{
		{SHA1, empty, "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78"},
		{RIPEMD160, empty, "fcdb20b894f31f1306d56294c049ca7293dde0fc-rmd160"},
		{SHAKE128, empty, "28d94b83b7229b331fc601362b8e272e02665122-shake128"},
		{
			SHA1, []byte("\x78\x9c\xcb\x48\xcd\xc9\xc9\xe7\x02\x00\x08\x4b\x02\x1f"),
			"5798f7f4ca7585d850eea64610a1f73d8f8de7a3",
		},
	} {
		got := c.algorithm.Digest(c.data)
		if got.String() != c.want {
			t.Errorf("%v of %x: got %v, want %v", c.algorithm, c.data, got, c.want)
		}
		if back, err := Parse(c.want); err != nil || back != got {
			t.Errorf("Parse(%q) = %v, %v; want %v", c.want, back, err, got)
		}
	}
}

func TestHashGoesOnAfterSum(t *testing.T) {
	for a := SHA1; a.Valid(); a++ {
		h := a.New()
		h.Write([]byte("one"))
		h.Sum(nil)
		h.Write([]byte("two"))
		if got, want := Of(a, h), a.Digest([]byte("onetwo")); got != want {
			t.Errorf("%v: Sum disturbed the state: got %v, want %v", a, got, want)
		}
	}
}

func TestPathPutsAlgorithmBeforeSuffix(t *testing.T) {
	d, err := Parse("28d94b83b7229b331fc601362b8e272e02665122-shake128")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := d.Path(Catalog), "data/28/d94b83b7229b331fc601362b8e272e02665122-shake128C"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{
		"", "e8ec", strings.Repeat("0", 32), strings.Repeat("0", 64),
		"E8EC3D88B62EBF526E4E5A4FF6162A3AA48A6B78",
		"e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78\n",
		"e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78-sha256",
		"e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78C",
		"e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6bzz",
	} {
		if d, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", s, d)
		}
	}
}

func TestPathHashes(t *testing.T) {
	for path, want := range map[string]PathHash{
		"":     {338333539836370388, 9098107892288553193},
		"/a":   {-2906336618250618618, -744252105585281751},
		"/a/b": {-79414819578584146, 8517581007188477988},
		"/foo": {5745132282796244766, -5819618580357280866},
	} {
		if got := OfPath(path); got != want {
			t.Errorf("OfPath(%q) = %v, want %v", path, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("28d94b83b7229b331fc601362b8e272e02665122-shake128")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := Parse(s); err == nil && d.String() != s {
			t.Errorf("Parse(%q).String() = %q", s, d)
		}
	})
}
