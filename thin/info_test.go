package thin

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInfosSurviveTheirFile(t *testing.T) {
	for _, want := range []LayerInfo{
		{Digest: digestA, DiffID: digestB},
		{Digest: digestA, DiffID: digestA, Size: 10240, DiffSize: 10240, Entries: 3, Compression: Uncompressed},
		{
			Digest: digestA, DiffID: digestB, Size: 123, DiffSize: 10240, Entries: 3, Compression: Zstd,
			Profile: &Profile{Path: "/profiles/a", Digest: digestB},
		},
	} {
		b, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseInfo(b, digestA)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Error(diff)
		}
		if again, err := got.Encode(); err != nil || !bytes.Equal(b, again) {
			t.Errorf("encoded again: %v, other bytes:\n%s\n%s", err, b, again)
		}
	}
}

// Other tools read the file by these names.
func TestInfoIsWrittenAsDocumented(t *testing.T) {
	i := LayerInfo{Digest: digestA, DiffID: digestB, Size: 123, DiffSize: 10240, Entries: 3, Compression: Gzip}
	got, err := i.Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"id":"` + digestB + `","compressed-diff-digest":"sha256:` + digestA + `","compressed-size":123,` +
		`"diff-digest":"sha256:` + digestB + `","diff-size":10240,"compression":2,"entries":3}]` + "\n"
	if string(got) != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

// DUCC writes its entries with fields of its own, and appends where it is run again.
func TestInfosOfDUCCAreRead(t *testing.T) {
	entry := `{"id":"` + digestB + `","parent":"x","created":"2024-03-22T13:04:22.383948168Z",` +
		`"compressed-diff-digest":"sha256:` + digestA + `","diff-digest":"sha256:` + digestB + `","diff-size":7}`
	for _, text := range []string{"[" + entry + "]", "[" + entry + "," + entry + "]"} {
		got, err := ParseInfo([]byte(text), digestA)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&LayerInfo{Digest: digestA, DiffID: digestB, DiffSize: 7}, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestInfosAreRefused(t *testing.T) {
	good := `"compressed-diff-digest":"sha256:` + digestA + `","diff-digest":"sha256:` + digestB + `"`
	profile := func(path string) string {
		return `[{` + good + `,"profile":{"path":"` + path + `","digest":"` + digestB + `"}}]`
	}
	for name, text := range map[string]string{
		"no JSON":          `[`,
		"what follows":     `[{` + good + `}] x`,
		"no list":          `{` + good + `}`,
		"no entry":         `[]`,
		"null":             `null`,
		"another layer's":  strings.ReplaceAll(`[{`+good+`}]`, digestA, strings.Repeat("c", 64)),
		"no diffID":        `[{"compressed-diff-digest":"sha256:` + digestA + `"}]`,
		"short diffID":     `[{"compressed-diff-digest":"sha256:` + digestA + `","diff-digest":"sha256:ab"}]`,
		"another digest":   `[{"compressed-diff-digest":"sha256:` + digestA + `","diff-digest":"sha512:` + digestB + `"}]`,
		"two diffIDs":      `[{` + good + `},{` + strings.Replace(good, digestB, digestA, 1) + `}]`,
		"size":             `[{` + good + `,"diff-size":-1}]`,
		"half a byte":      `[{` + good + `,"compressed-size":1.5}]`,
		"compression":      `[{` + good + `,"compression":5}]`,
		"path upwards":     profile("/../p"),
		"path not whole":   profile("p"),
		"path to nothing":  profile("/"),
		"path of nothing":  profile(""),
		"path twice":       profile("//p"),
		"another's":        strings.Replace(profile("/p"), `"path"`, `"url":"cvmfs://a.b/p","path"`, 1),
		"too many entries": `[` + strings.Repeat(`{`+good+`},`, maxInfos) + `{` + good + `}]`,
		"too large":        `[{` + good + `}]` + strings.Repeat(" ", MaxInfoSize),
	} {
		if i, err := ParseInfo([]byte(text), digestA); err == nil {
			t.Errorf("%s: taken as %+v", name, i)
		}
	}
}

func TestInfosLieBesideTheirLayers(t *testing.T) {
	for layer, info := range map[string]string{
		"/layers/" + digestA:                         "/layers/" + digestA + ".layer.json",
		"/.layers/aa/" + digestA + "/layerfs":        "/.layers/aa/" + digestA + "/.metadata/layers.json",
		"/sub/folder/" + digestA:                     "/sub/folder/" + digestA + ".layer.json",
		"/.layers/aa/" + digestA + "/layerfs/layers": "/.layers/aa/" + digestA + "/layerfs/layers.layer.json",
	} {
		if got := InfoPath(layer); got != info {
			t.Errorf("info of %s at %s, want %s", layer, got, info)
		}
		if got := InfoOf(info); got != layer {
			t.Errorf("%s is the info of %s, want %s", info, got, layer)
		}
	}
	if got := InfoOf("/layers/" + digestA + RecordSuffix); got != "" {
		t.Errorf("a record is taken for the info of %s", got)
	}
}

func FuzzParseInfo(f *testing.F) {
	i := LayerInfo{
		Digest: digestA, DiffID: digestB, Size: 1, DiffSize: 2, Entries: 3, Compression: Gzip,
		Profile: &Profile{Path: "/p", Digest: digestA},
	}
	b, err := i.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := ParseInfo(b, digestA)
		if err != nil {
			return
		}
		e, err := i.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseInfo(e, digestA)
		if err != nil {
			t.Fatalf("%s: %v", e, err)
		}
		if diff := cmp.Diff(i, again); diff != "" {
			t.Error(diff)
		}
	})
}
