package wish

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestWishListsAreRead(t *testing.T) {
	l, err := Read(strings.NewReader(`
version: 1
user: robot
cvmfs_repo: layers.example.org
output_format: '$(scheme)://out.example.org/thin/$(image)'
input:
  - 'https://in.example.org/a/b:1'
  - 'in.example.org/a/b:1'
  - http://localhost:5000/c:2.*
  - in.example.org/d@` + someDigest + `
`))
	if err != nil {
		t.Fatal(err)
	}
	want := &List{
		User: "robot", Repository: "layers.example.org", Format: "$(scheme)://out.example.org/thin/$(image)",
		Wishes: []Wish{
			{"https://in.example.org/a/b:1", "https", "in.example.org", "a/b", "1", ""},
			{"http://localhost:5000/c:2.*", "http", "localhost:5000", "c", "2.*", ""},
			{"in.example.org/d@" + someDigest, "https", "in.example.org", "d", "", someDigest},
		},
	}
	if diff := cmp.Diff(want, l); diff != "" {
		t.Error(diff)
	}
}

func TestListsMayWantStartsRecorded(t *testing.T) {
	l, err := Read(strings.NewReader("version: 1\ncvmfs_repo: layers.example.org\nprofile: record\ninput: [a.b/c:1]\n"))
	if err != nil || !l.Record {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestBadWishListsAreRefused(t *testing.T) {
	head := "version: 1\ncvmfs_repo: layers.example.org\n"
	for name, c := range map[string]struct{ text, want string }{
		"empty":                {"", "empty"},
		"no YAML":              {"version: [", "yaml"},
		"another version":      {"version: 2\ncvmfs_repo: layers.example.org\ninput: [a.b/c:1]\n", "version 2"},
		"no images":            {head, "no images"},
		"unknown profile":      {head + "profile: always\ninput: [a.b/c:1]\n", "want record"},
		"no repository":        {"version: 1\ninput: [a.b/c:1]\n", "cvmfs_repo"},
		"unknown key":          {head + "outputs: x\ninput: [a.b/c:1]\n", "outputs"},
		"no tag":               {head + "input: [a.b/c]\n", "neither tag nor digest"},
		"no registry":          {head + "input: ['debian:13']\n", "no registry"},
		"two digests":          {head + "input: ['a.b/c@x@y']\n", "digest"},
		"two tags":             {head + "input: ['a.b/c:1:2']\n", "want REGISTRY"},
		"pattern and digest":   {head + "input: ['a.b/c:*@" + someDigest + "']\n", "exclude"},
		"another scheme":       {head + "input: ['ftp://a.b/c:1']\n", "scheme"},
		"capital letters":      {head + "input: ['a.b/C:1']\n", "repository"},
		"unknown variable":     {head + "output_format: '$(x)'\ninput: ['a.b/c:1']\n", "unknown variable"},
		"unfinished variable":  {head + "output_format: 'x/$(tag'\ninput: ['a.b/c:1']\n", "unknown variable"},
		"output is no name":    {head + "output_format: 'x/Y:$(tag)'\ninput: ['a.b/c:1']\n", "output_format gives"},
		"all faults are named": {head + "input: ['a.b/c', 'debian:13']\n", "no registry"},
	} {
		_, err := Read(strings.NewReader(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

// TestFaultsOfAListAreToldInItsOwnWords: not in those of this program or of a library, and each once.
func TestFaultsOfAListAreToldInItsOwnWords(t *testing.T) {
	head := "version: 1\ncvmfs_repo: layers.example.org\n"
	all := "the keys are version, user, cvmfs_repo, profile, output_format, input"
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"a key": {
			head + "platforms: [linux/arm64]\ninput: [a.b/c:1]\n",
			[]string{"line 3: unknown key \"platforms\": " + all},
		},
		"two keys": {
			head + "inputs: [a]\nInput: [a.b/c:1]\n",
			[]string{"line 3: unknown key \"inputs\"", "line 4: unknown key \"Input\"", all},
		},
		"kinds of values": {
			"version: x\nuser: [a]\ncvmfs_repo: {a: b}\noutput_format: [1]\ninput: a.b/c:1\n",
			[]string{
				"line 1: version: want a number", "line 2: user: want a text", "line 3: cvmfs_repo: want a text",
				"line 4: output_format: want a text", "line 5: input: want a list of texts",
			},
		},
		"a wish of a kind": {head + "input: [{a: b}]\n", []string{"line 3: input: want a list of texts"}},
		"no keys":          {"- a\n- b\n", []string{"want version, user"}},
		"one text":         {"a", []string{"want version, user"}},
		"twice":            {head + "user: a\nuser: b\n", []string{"user", "already defined"}},
		"no YAML":          {head + "input: [\n", []string{"line"}},
		"two lists": {
			head + "input: [a.b/c:1]\n---\n" + head + "input: [a.b/d:1]\n",
			[]string{"more than one document"},
		},
		"a format, wrong": {
			head + "output_format: $(foo)\ninput: [a.b/c:1, a.b/d:1, a.b/e:1]\n",
			[]string{"unknown variable \"$(foo)\""},
		},
		"a key of a kind":   {head + "? [a]\n: b\n", []string{"key must be a text"}},
		"nothing but notes": {"# empty\n", []string{"empty"}},
	} {
		_, err := Read(strings.NewReader(c.text))
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) || strings.Count(err.Error(), want) > 1 && want != all {
				t.Errorf("%s: %v, want %q once", name, err, want)
			}
		}
		if strings.Contains(err.Error(), "struct") || strings.Contains(err.Error(), "[]string") ||
			strings.Contains(err.Error(), "unmarshal") {
			t.Errorf("%s: in the program's words: %v", name, err)
		}
	}
	l, err := Read(strings.NewReader("x: &x a.b/c:1\n" + head + "input: [a.b/c:1]\n"))
	if err == nil {
		t.Errorf("an anchor's key: %+v", l)
	}
	l, err = Read(strings.NewReader(head + "user:\noutput_format: ~\ninput: [&i a.b/c:1, *i]\n"))
	if err != nil || len(l.Wishes) != 1 || l.Format != DefaultFormat {
		t.Errorf("nulls and aliases: %+v, %v", l, err)
	}
}

func TestPatternsFitWholeTags(t *testing.T) {
	for _, c := range []struct {
		pattern, tag string
		want         bool
	}{
		{"*", "anything", true},
		{"3.*", "3.14", true},
		{"3.*", "3x14", false}, // a dot is a dot
		{"3.*", "13.1", false},
		{"*-slim", "13-slim", true},
		{"*-slim", "13-slim-x", false},
		{"v?.?", "v1.2", true},
		{"v?.?", "v1.23", false},
		{"a*b*c", "aXbXbc", true},
		{"a*b*c", "aXc", false},
		{"1", "1", true},
		{"1+", "11", false},
		{"(1|2)*", "1", false},
	} {
		if got := (Wish{Tag: c.pattern}).Matches(c.tag); got != c.want {
			t.Errorf("%q fits %q: %t, want %t", c.tag, c.pattern, got, c.want)
		}
	}
}

func TestHostilePatternsEnd(t *testing.T) {
	done := make(chan bool)
	go func() { done <- (Wish{Tag: strings.Repeat("*a", 60) + "b"}).Matches(strings.Repeat("a", 120)) }()
	select {
	case got := <-done:
		if got {
			t.Error("it fits")
		}
	case <-time.After(time.Minute):
		t.Fatal("no answer")
	}
}

func TestListsOfOneRepositoryAreReadTogether(t *testing.T) {
	dir := t.TempDir()
	write := func(name, repository string) string {
		name = filepath.Join(dir, name)
		text := "version: 1\ncvmfs_repo: " + repository + "\ninput: ['a.b/c:1']\n"
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	a, b, other := write("a", "a.example.org"), write("b", "a.example.org"), write("other", "b.example.org")
	lists, err := ReadFiles([]string{a, b})
	if err != nil || len(lists) != 2 || lists[1].Repository != "a.example.org" {
		t.Errorf("%v, %v", lists, err)
	}
	_, err = ReadFiles([]string{a, b, other})
	if !errors.Is(err, ErrMixed) || !strings.Contains(err.Error(), other+" has b.example.org") {
		t.Errorf("of two repositories: %v", err)
	}
	if _, err := ReadFiles([]string{a, filepath.Join(dir, "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of which one is missing: %v", err)
	}
}

func TestOutputFormatsAreFilledIn(t *testing.T) {
	tagged := Wish{Scheme: "https", Registry: "in.example.org", Repository: "a/b", Tag: "1"}
	digested := Wish{Scheme: "https", Registry: "in.example.org", Repository: "a/b", Digest: someDigest}
	both := tagged
	both.Digest = someDigest
	plain := strings.Replace(someDigest, ":", "-", 1)
	for _, c := range []struct {
		wish         Wish
		format, want string
	}{
		{tagged, DefaultFormat, "https://in.example.org/a/b_thin:1"},
		{tagged, "$(scheme)://o.example.org/$(registry)/$(image)", "https://o.example.org/in.example.org/a/b:1"},
		{tagged, "o.example.org/x$(reference)", "o.example.org/x:1"},
		{tagged, "o.example.org/$(repository)/$(repository)/$(repository)/$(repository)/$(repository)/$(repository):$(tag)", "o.example.org/" + strings.Repeat("a/b/", 5) + "a/b:1"},
		{digested, DefaultFormat, "https://in.example.org/a/b_thin:" + plain},
		{digested, "o.example.org/$(image)", "o.example.org/a/b:" + plain},
		{both, "o.example.org/$(image)", "o.example.org/a/b:1"},
	} {
		got, err := c.wish.Output(c.format)
		if err != nil || got != c.want {
			t.Errorf("%s: %s, %v, want %s", c.format, got, err, c.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("version: 1\ncvmfs_repo: layers.example.org\ninput: ['a.b/c:1', 'a.b/c@" + someDigest + "']\n")
	f.Add("version: 1\ncvmfs_repo: layers.example.org\noutput_format: '$(scheme)://x.y/$(image)'\ninput: ['http://a.b:1/c:*']\n")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := Read(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, w := range l.Wishes {
			again, err := Parse(w.String())
			if err != nil {
				t.Fatalf("%q: %v", w.String(), err)
			}
			if again.String() != w.String() {
				t.Errorf("%q became %q", w.String(), again.String())
			}
		}
	})
}
