package thin_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

const digest = "742258f0bb441e92556608160a49488efafb23afb9ceb90dba7fa9c71b239fd0"

func TestParseReadsConvertersDescriptor(t *testing.T) {
	b, err := os.ReadFile(testutil.Data(t, "images", thin.FileName))
	if err != nil {
		t.Fatal(err)
	}
	d, err := thin.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Layers) != 3 || d.Version != "1.0" || d.Origin == "" {
		t.Fatalf("got %+v", d)
	}
	want := thin.Layer{Digest: digest, FQRN: "images.example.org", Path: "/layers/" + digest}
	if diff := cmp.Diff(want, d.Layers[0]); diff != "" {
		t.Errorf("bottom layer (-want +got):\n%s", diff)
	}
}

func TestParseTakesZeroLayersAndUnknownFields(t *testing.T) {
	d, err := thin.Parse([]byte(`{"version":"0.1","layers":[],"later":{"a":1}}`))
	if err != nil || len(d.Layers) != 0 {
		t.Errorf("got %+v, %v", d, err)
	}
}

func TestParseLeavesOtherFilesAlone(t *testing.T) {
	for _, s := range []string{
		"", "{}", "[]", "null", `"thin"`, "not json", `{"version":"1.0"}`, `{"layers":[]}`,
		`{"version":"1.0","layers":[]} x`,
	} {
		if d, err := thin.Parse([]byte(s)); !errors.Is(err, thin.ErrNotThin) {
			t.Errorf("Parse(%q) = %+v, %v; want ErrNotThin", s, d, err)
		}
	}
}

func TestParseRefusesByName(t *testing.T) {
	layer := func(digest, url string) string {
		return fmt.Sprintf(`{"version":"1.0","layers":[{"digest":%q,"url":%q}]}`, digest, url)
	}
	more := func(field string) string {
		return strings.Replace(layer(digest, "cvmfs://a.b/c"), `"url"`, field+`,"url"`, 1)
	}
	profile := func(url, digest string) string {
		return strings.TrimSuffix(layer(strings.Repeat("a", 64), "cvmfs://a.b/c"), "}") +
			fmt.Sprintf(`,"profile":{"url":%q,"digest":%q}}`, url, digest)
	}
	for _, c := range []struct{ json, want string }{
		{`{"version":"1.0","min_version":"2.0","layers":[]}`, "upgrade the driver"},
		{`{"version":"1.0","min_version":"x","layers":[]}`, "min_version"},
		{`{"version":"1.0","layers":[{"digest":7}]}`, "can't be a JSON number"},
		{`{"version":1,"layers":[]}`, "version can't be a JSON number"},
		{`{"version":"1.0","layers":{}}`, "layers can't be a JSON object"},
		{layer("abc", "cvmfs://a.b/c"), "64 lower-case hex"},
		{more(`"diff_id":"abc"`), `diff_id "abc"`},
		{more(`"diff_id":7`), "diff_id can't be a JSON number"},
		{more(`"size":-1`), "size -1"},
		{more(`"size":1.5`), "size can't be a JSON number 1.5"},
		{profile("cvmfs://a.b/p", "abc"), "64 lower-case hex"},
		{profile("cvmfs://other.b/p", digest), "no layer of the image is in this repository"},
		{profile("cvmfs://a.b/../p", digest), `profile: url "cvmfs://a.b/../p": path has the component ".."`},
		{profile("", digest), "cvmfs://<repository>/<path>"},
		{layer(digest, ""), "cvmfs://<repository>/<path>"},
		{layer(digest, "https://a.b/c"), "cvmfs://<repository>/<path>"},
		{layer(digest, "cvmfs://../c"), "repository"},
		{layer(digest, "cvmfs:///c"), "repository"},
		{layer(digest, "cvmfs://a.b"), "empty component"},
		{layer(digest, "cvmfs://a.b/"), "empty component"},
		{layer(digest, "cvmfs://a.b/c/"), "empty component"},
		{layer(digest, "cvmfs://a.b//c"), "empty component"},
		{layer(digest, "cvmfs://a.b/c/../d"), `component ".."`},
		{layer(digest, "cvmfs://a.b/./d"), `component "."`},
		{strings.Replace(layer(digest, "cvmfs://a.b/c!"), "!", `\u0000`, 1), "NUL"},
		{layer(digest, "cvmfs://a.b/"+strings.Repeat("n", 256)), "256 bytes"},
		{layer(digest, "cvmfs://a.b/"+strings.Repeat("n/", 3000)+"n"), "the limit is 4096"},
		{`{"version":"1.0","layers":[` + strings.TrimSuffix(strings.Repeat("{},", 4097), ",") + `]}`, "4097 layers"},
		{`{"version":"1.0","layers":[],"comment":"` + strings.Repeat("x", thin.MaxSize) + `"}`, "bytes, the limit"},
	} {
		d, err := thin.Parse([]byte(c.json))
		if err == nil || errors.Is(err, thin.ErrNotThin) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Parse(%.120s) = %+v, %v; want an error with %q", c.json, d, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":"1.0","layers":[{"digest":"` + digest + `","url":"cvmfs://a.b/c"}]}`))
	f.Add([]byte(`{"version":"1.0","min_version":"9","layers":[]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := thin.Parse(b)
		if err != nil {
			return
		}
		for _, l := range d.Layers {
			if !strings.HasPrefix(l.Path, "/") || strings.Contains(l.Path+"/", "/../") ||
				strings.ContainsAny(l.FQRN, "/\x00") {
				t.Errorf("accepted %+v", l)
			}
		}
	})
}
