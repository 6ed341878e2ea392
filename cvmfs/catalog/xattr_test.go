package catalog

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestXattrsAreReadSortedAndTheLastOfEqualNamesCounts(t *testing.T) {
	long := strings.Repeat("k", 255)
	blob := "\x01\x04" + "\x06\x03user.bxyz" + "\x06\x00user.a" + "\x06\x01user.b!" + "\xff\xff" + long + long
	got, err := ParseXattrs([]byte(blob))
	if err != nil {
		t.Fatal(err)
	}
	want := []Xattr{{long, []byte(long)}, {"user.a", []byte{}}, {"user.b", []byte("!")}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBrokenXattrsAreRefusedWhole(t *testing.T) {
	for what, blob := range map[string]string{
		"nothing":         "",
		"version only":    "\x01",
		"another version": "\x02\x01\x01\x01ab",
		"a cut value":     "\x01\x01\x01\x02ab",
		"a cut list":      "\x01\x02\x01\x01ab",
		"an empty name":   "\x01\x01\x00\x01b",
		"a NUL in a name": "\x01\x01\x02\x01a\x00b",
	} {
		if got, err := ParseXattrs([]byte(blob)); err == nil {
			t.Errorf("%s: got %v, want an error", what, got)
		}
	}
}

func FuzzParseXattrs(f *testing.F) {
	f.Add([]byte("\x01\x01\x06\x03user.axyz"))
	f.Add([]byte("\x01\x02\x06\x03user.axyz\x06\x03user.axyz"))
	f.Add([]byte("\x01\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		attrs, err := ParseXattrs(b)
		if err != nil {
			return
		}
		for i, a := range attrs {
			if a.Name == "" || len(a.Name) > 255 || len(a.Value) > 255 || i > 0 && attrs[i-1].Name >= a.Name {
				t.Errorf("attribute %d of %q is %q", i, b, a.Name)
			}
		}
	})
}
