package daemonjson

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChangesKeepTheFormOfTheFile(t *testing.T) {
	for _, c := range []struct {
		name, from, to string
		changes        []Change
	}{
		{"the first of several goes", `{"a": 1, "b": 2}`, `{"b": 2}`, []Change{Delete("a")}},
		{
			"the middle goes", "{\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3\n}", "{\n  \"a\": 1,\n  \"c\": 3\n}",
			[]Change{Delete("b")},
		},
		{"the last goes", "{\n  \"a\": 1,\n  \"b\": 2\n}\n", "{\n  \"a\": 1\n}\n", []Change{Delete("b")}},
		{"the only one goes", "{\n  \"a\": 1\n}\n", "{\n}\n", []Change{Delete("a")}},
		{"all of a name go", `{"a": 1, "A": 2, "b": 3, "a": 4}`, `{"b": 3}`, []Change{Delete("a")}},
		{"what isn't there goes", `{"a":1}`, `{"a":1}`, []Change{Delete("b")}},
		{
			"an equal list stays as it is written", `{"a": [ "x" , "y" ]}`, `{"a": [ "x" , "y" ]}`,
			[]Change{Set("a", []string{"x", "y"})},
		},
		{"a list in a tight file", `{"a":1}`, `{"a":1,"b":["x","y"]}`, []Change{Set("b", []string{"x", "y"})}},
		{"nothing is escaped without need", `{}`, "{\n  \"a\": \"<&>ü\"\n}", []Change{Set("a", "<&>ü")}},
		{
			"blank lines aren't repeated", "{\n\n  \"a\": 1\n\n}", "{\n\n  \"a\": 1,\n  \"b\": true\n\n}",
			[]Change{Set("b", true)},
		},
		{"no change of nothing", "", "", []Change{Delete("a")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			next, err := found(t, c.from).Edit(c.changes...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.to, string(next.content)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWantedOptionsAndDataRoot(t *testing.T) {
	f := found(t, `{"graph":"/old","storage-opts":["overlay2.size=1G","CVMFS.view=fuse","cvmfs.repositories=a","overlay2.override_kernel_check=1"]}`)
	next, err := f.Edit(f.Wanted(Wishes{
		Driver: "thin", StorageOpts: []string{"cvmfs.view=erofs"}, DataRoot: "/new",
		Debug: new(true),
	})...)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"storage-opts":["cvmfs.repositories=a","overlay2.override_kernel_check=1","cvmfs.view=erofs"],"experimental":true,"storage-driver":"thin","data-root":"/new","debug":true}`
	if diff := cmp.Diff(want, string(next.content)); diff != "" {
		t.Error(diff)
	}
}

func TestGetTakesWhatTheEngineTakes(t *testing.T) {
	f := found(t, "{\"Debug\": false, // x\n \"debug\": [1, /* two */ 2,], \"nested\": {\"mtu\": 1}}")
	if value, ok := f.Get("DEBUG"); !ok || !equal(value, json.RawMessage(`[1,2]`)) {
		t.Errorf("%s, %t", value, ok)
	}
	if value, ok := f.Get("mtu"); ok {
		t.Errorf("a key of another object: %s", value)
	}
	if value, ok := found(t, "{").Get("debug"); ok {
		t.Errorf("of no JSON: %s", value)
	}
}

// view is what the engine reads of a file: the object, in which of keys that differ in case the last counts.
func view(t *testing.T, content []byte) map[string]any {
	t.Helper()
	pairs := map[string]any{}
	text, err := take(content)
	if err != nil {
		t.Fatal(err)
	}
	if len(text.body) == 0 {
		return pairs
	}
	var first json.Decoder = *json.NewDecoder(strings.NewReader(string(text.body)))
	if open, err := first.Token(); err != nil || open == nil {
		return pairs
	}
	for first.More() {
		key, err := first.Token()
		if err != nil {
			t.Fatalf("%q: %v", content, err)
		}
		var value any
		if err := first.Decode(&value); err != nil {
			t.Fatalf("%q: %v", content, err)
		}
		pairs[fold(key.(string))] = value
	}
	return pairs
}

// fold returns one spelling for all that differ in case only.
func fold(s string) string { return strings.ToLower(strings.ToUpper(s)) }

func FuzzEdit(f *testing.F) {
	for _, w := range wild {
		if len(w.content) < 10_000 {
			f.Add([]byte(w.content), "storage-driver", "thin", "debug")
		}
	}
	f.Fuzz(func(t *testing.T, content []byte, set, value, gone string) {
		before := &File{Path: "daemon.json", Target: "daemon.json", disk: content, content: content}
		if content == nil {
			before.content = []byte{}
		}
		for _, version := range []string{"20.10", "26.1", ""} {
			for _, p := range before.Problems(version) {
				if p.Line < 1 || p.Column < 1 || p.Text == "" {
					t.Fatalf("%q: %v", content, p)
				}
			}
		}
		if fixed, err := before.Fixed(); err == nil {
			for _, p := range fixed.Problems("") {
				if p.Fixable {
					t.Fatalf("%q: Fixed gives %q with %v", content, fixed.content, p)
				}
			}
			before = fixed
		}
		if !ascii(set) || !ascii(gone) {
			return
		}
		next, err := before.Edit(Set(set, value), Delete(gone))
		if err != nil {
			return
		}
		want := view(t, before.content)
		var meant string // as JSON can say it
		if err := json.Unmarshal(Set(set, value).Value, &meant); err != nil {
			t.Fatal(err)
		}
		want[fold(set)] = meant
		delete(want, fold(gone))
		if got := view(t, next.content); !reflect.DeepEqual(got, want) {
			t.Fatalf("%q became %q: %v, want %v", before.content, next.content, got, want)
		}
		back, kept, err := next.Undo(before.content, next.content)
		if err != nil || len(kept) > 0 || string(back.content) != string(before.content) {
			t.Fatalf("%q became %q, undone %q, %v, %v", before.content, next.content, back.content, kept, err)
		}
	})
}

// ascii tells text whose case is simple.
func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 })
}

func TestSettingsAreTakenBack(t *testing.T) {
	f := found(t, `{"debug": true, "storage-driver": "overlay2", "storage-opts": ["cvmfs.view=fuse", "cvmfs.repositories=a.b", "overlay2.size=1G"]}`)
	next, err := f.Edit(f.Wanted(Wishes{Driver: "x", StorageOpts: []string{"CVMFS.view="}, Debug: new(false)})...)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"storage-driver": "x", "storage-opts": ["cvmfs.repositories=a.b"], "experimental": true}`
	if got := string(next.content); got != want {
		t.Errorf("got %s", got)
	}
}
