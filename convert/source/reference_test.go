package source

import (
	"strings"
	"testing"
)

func TestReferencesAreParsed(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	for _, c := range []struct {
		text, registry string
		want           Reference
	}{
		{"redis", "", Reference{Name: "index.docker.io/library/redis:latest"}},
		{"docker://redis:8", "", Reference{Name: "index.docker.io/library/redis:8", Explicit: true}},
		{"r.example.org:5000/a/b", "", Reference{Name: "r.example.org:5000/a/b:latest"}},
		{"https://r.example.org/a/b:1", "", Reference{Name: "r.example.org/a/b:1", Explicit: true}},
		{"http://r.example.org/a/b:1", "", Reference{Name: "r.example.org/a/b:1", PlainOK: true, Explicit: true}},
		{"a@" + digest, "", Reference{Name: "index.docker.io/library/a@" + digest, Explicit: true}},
		{"r.example.org/a:1@" + digest, "", Reference{Name: "r.example.org/a@" + digest, Explicit: true}},
		{"library/x:tag", "http://127.0.0.1:5000/v2", Reference{
			Name: "127.0.0.1:5000/library/x:tag", PlainOK: true,
			Explicit: true,
		}},
		{"library/x", "https://r.example.org/v2/", Reference{Name: "r.example.org/library/x:latest"}},
		{"a:1", "r.example.org", Reference{Name: "r.example.org/a:1", Explicit: true}},
		{
			"https://other.example.org/x:1", "http://127.0.0.1:5000/v2",
			Reference{Name: "other.example.org/x:1", Explicit: true},
		},
		{"docker-daemon:x:1", "", Reference{Kind: Daemon, Name: "x:1"}},
		{"docker-archive:/a/b.tar", "", Reference{Kind: Archive, Path: "/a/b.tar", Explicit: true}},
		{"docker-archive:b.tar:r/x:1", "", Reference{Kind: Archive, Path: "b.tar", Name: "r/x:1", Explicit: true}},
		{"oci:/dir:1", "", Reference{Kind: Layout, Path: "/dir", Tag: "1", Explicit: true}},
	} {
		got, err := Parse(c.text, c.registry)
		if err != nil || got != c.want {
			t.Errorf("%q: %+v, %v; want %+v", c.text, got, err, c.want)
		}
	}
}

func TestBadReferencesAreRefused(t *testing.T) {
	for _, c := range [][2]string{
		{"", ""},
		{"docker://", ""},
		{"ftp://a/b", ""},
		{"A/b", ""},
		{"a:b:c", ""},
		{"a@sha256:12", ""},
		{"a@md5:" + strings.Repeat("a", 32), ""},
		{"a/../b:1", ""},
		{"oci:", ""},
		{"oci:dir:", ""},
		{"docker-archive:", ""},
		{"x:1", "https://user:secret@r.example.org/v2"},
		{"x:1", "https://r.example.org/v1"},
		{"x:1", "ftp://r.example.org"},
		{"x:1", "https://"},
		{"a b", ""},
		{"a:" + strings.Repeat("t", 200), ""},
	} {
		ref, err := Parse(c[0], c[1])
		if err == nil {
			t.Errorf("%q: taken as %+v", c, ref)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the password is shown: %v", c, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"redis", "docker://r:1/a/b:c@sha256:" + strings.Repeat("0", 64), "http://r/a", "docker-daemon:x",
		"docker-archive:f:n:t", "oci:d:t", "a@b@c",
	} {
		f.Add(text, "")
		f.Add(text, "http://127.0.0.1:5000/v2")
	}
	f.Fuzz(func(t *testing.T, text, registry string) {
		ref, err := Parse(text, registry)
		if err != nil {
			return
		}
		if ref.Kind == Registry {
			if _, err := ref.Parsed(); err != nil {
				t.Fatalf("%q: parsed as %+v, which can't be used: %v", text, ref, err)
			}
		}
		again, err := Parse(ref.String(), "")
		if err != nil {
			t.Fatalf("%q: written as %q: %v", text, ref, err)
		}
		again.PlainOK, again.Explicit = ref.PlainOK, ref.Explicit // those aren't part of a name
		if again != ref {
			t.Errorf("%q: %+v, read back %+v", text, ref, again)
		}
	})
}
