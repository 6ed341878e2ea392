package thin

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRecordsSurviveTheirFile(t *testing.T) {
	want := &Record{
		Root:  &Attributes{Mode: 0o1777, UID: 5, GID: 6, Mtime: -3, MtimeN: 999_999_999},
		Links: [][]string{{"a", "b/ü"}, {"not utf-8 \xff", "100%/x"}},
		Xattrs: map[string][]Xattr{
			"":  {{"user.root", nil}},
			"f": {{"user.big", bytes.Repeat([]byte{0, 255}, 300)}, {"user.\xfe", []byte("v")}},
		},
		Markers: []string{"opt/.cvmfscatalog"},
	}
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	again, err := got.Encode()
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("encoded again: %v, other bytes:\n%s\n%s", err, b, again)
	}
}

func TestRecordsAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":             `{`,
		"newer version":       `{"version":2}`,
		"no version":          `{}`,
		"group of one":        `{"version":1,"links":[["a"]]}`,
		"path upwards":        `{"version":1,"links":[["a","../b"]]}`,
		"absolute path":       `{"version":1,"links":[["a","/b"]]}`,
		"path hidden in %XX":  `{"version":1,"links":[["a","%2E%2E/b"]]}`,
		"NUL":                 `{"version":1,"markers":["a%00"]}`,
		"half an escape":      `{"version":1,"markers":["a%4"]}`,
		"needless escape":     `{"version":1,"markers":["%61"]}`,
		"lower-case escape":   `{"version":1,"markers":["a%ff"]}`,
		"file type in a mode": `{"version":1,"root":{"mode":16877}}`,
		"nanoseconds":         `{"version":1,"root":{"mode":493,"mtimens":1000000000}}`,
		"attribute, no name":  `{"version":1,"xattrs":{"a":[{"name":"","value":""}]}}`,
		"attribute, too long": `{"version":1,"xattrs":{"a":[{"name":"` + strings.Repeat("n", 256) + `","value":""}]}}`,
	} {
		if r, err := ParseRecord([]byte(text)); err == nil {
			t.Errorf("%s: taken as %+v", name, r)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"root":{"mode":493,"uid":1,"gid":2,"mtime":3,"mtimens":4},"links":[["a","b"]],"xattrs":{"":[{"name":"user.a","value":"eA=="}]},"markers":["c"]}`))
	f.Add([]byte(`{"version":1,"links":[["%FF","%25"]]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecord(b)
		if err != nil {
			return
		}
		e, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseRecord(e)
		if err != nil {
			t.Fatalf("%s: %v", e, err)
		}
		if diff := cmp.Diff(r, again); diff != "" {
			t.Error(diff)
		}
	})
}
