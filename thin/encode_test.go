package thin

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/testutil"
)

var digestA, digestB = strings.Repeat("a", 64), strings.Repeat("b", 64)

func TestDescriptorsSurviveTheirFile(t *testing.T) {
	reference, err := os.ReadFile(testutil.Data(t, "images", "thin.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		string(reference),
		`{"version":"1.0","layers":[]}`,
		`{"version":"1.1","layers":[{"digest":"` + digestA + `","url":"cvmfs://x.example.org/layers/a","diff_id":"` +
			digestB + `","size":1234}],` + `"profile":{"url":"cvmfs://x.example.org/profiles/a","digest":"` + digestA + `"}}`,
		`{"version":"1.0","min_version":"1.0","origin":"a <b> & c","layers":[],"comment":"ü"}`,
	} {
		want, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		b, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", b, diff)
		}
		if again, err := got.Encode(); err != nil || !bytes.Equal(b, again) {
			t.Errorf("encoded again: %v, other bytes:\n%s\n%s", err, b, again)
		}
	}
}

func TestReferenceDescriptorIsWrittenAsTheReferenceWritesIt(t *testing.T) {
	want, err := os.ReadFile(testutil.Data(t, "images", "thin.json"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Parse(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), strings.TrimSpace(string(got))); diff != "" {
		t.Error(diff)
	}
}

func TestWhatReadersRefuseIsNotWritten(t *testing.T) {
	digest := strings.Repeat("a", 64)
	for name, d := range map[string]Descriptor{
		"digest":     {Layers: []Layer{{Digest: "short", FQRN: "x.example.org", Path: "/layers/a"}}},
		"repository": {Layers: []Layer{{Digest: digest, FQRN: "..", Path: "/layers/a"}}},
		"path":       {Layers: []Layer{{Digest: digest, FQRN: "x.example.org", Path: "/layers/../a"}}},
		"no slash":   {Layers: []Layer{{Digest: digest, FQRN: "x.example.org"}}},
		"diffID":     {Layers: []Layer{{Digest: digest, FQRN: "x.example.org", Path: "/layers/a", DiffID: "b"}}},
		"size":       {Layers: []Layer{{Digest: digest, FQRN: "x.example.org", Path: "/layers/a", Size: -1}}},
		"profile":    {Profile: &Profile{FQRN: "x.example.org", Path: "/p", Digest: digest}},
		"newer":      {MinVersion: "2.0"},
		"too large":  {Comment: strings.Repeat("c", MaxSize)},
		"layers":     {Layers: make([]Layer, MaxLayers+1)},
	} {
		if b, err := d.Encode(); err == nil {
			t.Errorf("%s: written as %.200s", name, b)
		}
	}
}
