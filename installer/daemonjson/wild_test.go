package daemonjson

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/engine"
)

// wild are files as they are found on hosts, with what engines say to them and what becomes of them when a driver is
// set.
var wild = []struct {
	name    string
	content string
	old     []string // problems of 20.10, "line:column text" as far as given
	new     []string // problems of the newest engine
	// with the driver "thin", after Fixed if that mends all problems of the newest engine; "" if it can't be edited
	edited string
}{
	{
		name: "empty", content: "",
		old:    []string{"1:1 the file is empty"},
		edited: "{\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "white space", content: " \n\t\n",
		old:    []string{"1:1 the file is empty"},
		edited: "{\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "white space with returns", content: "\r\n",
		old:    []string{"1:1 the file is empty"},
		edited: "{\r\n  \"experimental\": true,\r\n  \"storage-driver\": \"thin\"\r\n}\r\n",
	},
	{
		name: "empty object", content: "{}",
		edited: "{\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}",
	},
	{
		name: "empty object over lines", content: "{\n\n}\n",
		edited: "{\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n\n}\n",
	},
	{
		name: "null", content: "null\n",
		edited: "{\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "kubernetes", content: `{
  "exec-opts": ["native.cgroupdriver=systemd"],
  "log-driver": "json-file",
  "log-opts": {
    "max-size": "100m"
  },
  "storage-driver": "overlay2",
  "storage-opts": [
    "overlay2.override_kernel_check=true"
  ]
}
`,
		edited: `{
  "exec-opts": ["native.cgroupdriver=systemd"],
  "log-driver": "json-file",
  "log-opts": {
    "max-size": "100m"
  },
  "storage-driver": "thin",
  "storage-opts": [
    "overlay2.override_kernel_check=true"
  ],
  "experimental": true
}
`,
	},
	{
		name: "options of the former driver", content: `{
    "storage-driver": "overlay2",
    "storage-opts": ["overlay2.size=10G", "overlay2.override_kernel_check=1", "dm.basesize=20G"],
    "data-root": "/data/docker"
}
`,
		edited: `{
    "storage-driver": "thin",
    "storage-opts": ["overlay2.override_kernel_check=1"],
    "data-root": "/data/docker",
    "experimental": true
}
`,
	},
	{
		name: "options of the former driver alone", content: "{\n\t\"storage-opts\": [\"overlay2.size=10G\"]\n}\n",
		edited: "{\n\t\"experimental\": true,\n\t\"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "tabs", content: "{\n\t\"debug\": true,\n\t\"hosts\": [\n\t\t\"fd://\",\n\t\t\"tcp://127.0.0.1:2375\"\n\t]\n}\n",
		edited: "{\n\t\"debug\": true,\n\t\"hosts\": [\n\t\t\"fd://\",\n\t\t\"tcp://127.0.0.1:2375\"\n\t],\n\t\"experimental\": true,\n\t\"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "returns", content: "{\r\n    \"registry-mirrors\": [\"https://mirror.example\"],\r\n    \"insecure-registries\": []\r\n}\r\n",
		edited: "{\r\n    \"registry-mirrors\": [\"https://mirror.example\"],\r\n    \"insecure-registries\": [],\r\n    \"experimental\": true,\r\n    \"storage-driver\": \"thin\"\r\n}\r\n",
	},
	{
		name: "byte order mark", content: "\ufeff{\n  \"debug\": true\n}",
		old:    []string{"1:1 the file begins with a byte order mark"},
		edited: "\ufeff{\n  \"debug\": true,\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}",
	},
	{
		name: "UTF-16", content: "\xff\xfe{\x00\"\x00m\x00t\x00u\x00\"\x00:\x009\x00}\x00",
		old:    []string{"1:1 the file is in UTF-16"},
		edited: "\xff\xfe" + wide(`{"mtu":9,"experimental":true,"storage-driver":"thin"}`),
	},
	{
		name: "one line", content: `{"live-restore":true,"userland-proxy":false}`,
		edited: `{"live-restore":true,"userland-proxy":false,"experimental":true,"storage-driver":"thin"}`,
	},
	{
		name: "one line with spaces", content: `{ "mtu": 1400, "labels": ["a=b"] }` + "\n",
		edited: `{ "mtu": 1400, "labels": ["a=b"], "experimental": true, "storage-driver": "thin" }` + "\n",
	},
	{
		name: "spaces before colons", content: "{\n  \"debug\" : true,\n  \"storage-driver\" : \"aufs\"\n}\n",
		edited: "{\n  \"debug\" : true,\n  \"storage-driver\" : \"thin\",\n  \"experimental\": true\n}\n",
	},
	{
		name: "commas first", content: "{ \"debug\": true\n, \"mtu\": 1400\n}\n",
		edited: "{ \"debug\": true\n, \"mtu\": 1400, \"experimental\": true, \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "already so", content: "{\n  \"storage-driver\": \"thin\",\n  \"experimental\": true\n}\n",
		edited: "{\n  \"storage-driver\": \"thin\",\n  \"experimental\": true\n}\n",
	},
	{
		name: "trailing comma", content: "{\n  \"debug\": true,\n  \"dns\": [\"10.0.0.1\",],\n}\n",
		old:    []string{"3:21 a comma before", "3:23 a comma before"},
		new:    []string{"3:21 a comma before", "3:23 a comma before"},
		edited: "{\n  \"debug\": true,\n  \"dns\": [\"10.0.0.1\"],\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "line comments", content: "// managed by hand\n{\n  // the lab's mirror\n  \"registry-mirrors\": [\"https://m.example\"], // äöü\n  \"debug\": true\n}\n",
		old:    []string{"1:1 a comment", "3:3 a comment", "4:46 a comment"},
		new:    []string{"1:1 a comment", "3:3 a comment", "4:46 a comment"},
		edited: "{\n  \"registry-mirrors\": [\"https://m.example\"],\n  \"debug\": true,\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name:    "block comments",
		content: "{\n  \"mtu\": /* bytes */ 1400,\n  /* \"debug\": true,\n     \"tls\": true, */\n  \"ipv6\": false /* no */\n}\n/* end */",
		old:     []string{"2:10 a comment", "3:3 a comment", "5:17 a comment", "7:1 a comment"},
		new:     []string{"2:10 a comment", "3:3 a comment", "5:17 a comment", "7:1 a comment"},
		edited:  "{\n  \"mtu\": 1400,\n  \"ipv6\": false,\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}",
	},
	{
		name: "comment and trailing comma", content: "{\n  \"debug\": true, // loud\n}\n// end",
		old:    []string{"2:16 a comma before", "2:18 a comment", "4:1 a comment"},
		new:    []string{"2:16 a comma before", "2:18 a comment", "4:1 a comment"},
		edited: "{\n  \"debug\": true,\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}",
	},
	{
		name: "hash comment", content: "{\n  # no\n  \"debug\": true\n}\n",
		old: []string{"2:3 this is no JSON: invalid character '#' looking for beginning of object key string"},
		new: []string{"2:3 this is no JSON"},
	},
	{
		name: "comment before an error", content: "// x\n{\n  \"debug\": true\n  \"mtu\": 1400\n}\n",
		old: []string{"4:3 this is no JSON: invalid character '\"' after object value"},
		new: []string{"4:3 this is no JSON"},
	},
	{
		name: "single quotes", content: "{'debug': true}",
		old: []string{"1:2 this is no JSON: invalid character '\\''"},
		new: []string{"1:2 this is no JSON"},
	},
	{
		name: "missing comma", content: "{\n  \"debug\": true\n  \"mtu\": 1400\n}\n",
		old: []string{"3:3 this is no JSON: invalid character '\"' after object key:value pair"},
		new: []string{"3:3 this is no JSON"},
	},
	{
		name: "cut off", content: "{\n  \"debug\": true,\n  \"hosts\": [\"fd://\"",
		old: []string{"3:20 this is no JSON: unexpected end of JSON input"},
		new: []string{"3:20 this is no JSON"},
	},
	{
		name: "shell", content: "DOCKER_OPTS=\"--debug\"\n",
		old: []string{"1:1 this is no JSON: invalid character 'D'"},
		new: []string{"1:1 this is no JSON"},
	},
	{
		name: "NUL bytes", content: "{\"debug\":true}\x00\x00",
		old: []string{`1:15 this is no JSON: invalid character '\x00' after top-level value`},
		new: []string{"1:15 this is no JSON"},
	},
	{
		name: "two objects", content: "{\"debug\":true}\n{}\n",
		old: []string{"2:1 this is no JSON: invalid character '{' after top-level value"},
		new: []string{"2:1 this is no JSON"},
	},
	{
		name: "list", content: "[]",
		old: []string{"1:1 the file must hold one object"},
		new: []string{"1:1 the file must hold one object"},
	},
	{
		name: "string", content: "\n\"overlay2\"",
		old: []string{"2:1 the file must hold one object"},
		new: []string{"2:1 the file must hold one object"},
	},
	{
		name: "Latin-1", content: "{\n  \"labels\": [\"site=Z\xfcrich\"]\n}\n",
		new:    []string{"2:21 the byte 0xfc is no UTF-8"},
		edited: "{\n  \"labels\": [\"site=Z\xfcrich\"],\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "unknown key", content: "{\n  \"debug\": true,\n  \"storage_driver\": \"overlay2\"\n}\n",
		old:    []string{"3:3 \"storage_driver\": the engine doesn't know this key"},
		new:    []string{"3:3 \"storage_driver\": the engine doesn't know this key"},
		edited: "{\n  \"debug\": true,\n  \"storage_driver\": \"overlay2\",\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "other case", content: "{\n  \"Debug\": true,\n  \"Storage-Driver\": \"overlay2\"\n}\n",
		old:    []string{"2:3 \"Debug\": the engine doesn't know this key (write \"debug\")", "3:3 \"Storage-Driver\""},
		new:    []string{"2:3 \"Debug\": the engine doesn't know this key (write \"debug\")", "3:3 \"Storage-Driver\""},
		edited: "{\n  \"Debug\": true,\n  \"Storage-Driver\": \"thin\",\n  \"experimental\": true\n}\n",
	},
	{
		name: "other case that passes", content: "{\n  \"Features\": {\"debug\": true}\n}\n",
		edited: "{\n  \"Features\": {\"debug\": true},\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name:    "duplicate keys",
		content: "{\n  \"storage-driver\": \"aufs\",\n  \"mtu\": 1400,\n  \"storage-driver\": \"overlay2\"\n}\n",
		edited:  "{\n  \"storage-driver\": \"aufs\",\n  \"mtu\": 1400,\n  \"storage-driver\": \"thin\",\n  \"experimental\": true\n}\n",
	},
	{
		name: "escaped key", content: "{\"storage\\u002ddriver\": \"overlay2\"}",
		edited: "{\"storage\\u002ddriver\": \"thin\", \"experimental\": true}",
	},
	{
		name: "wrong types", content: "{\n  \"debug\": \"true\",\n  \"mtu\": 1.5,\n  \"storage-opts\": \"a=b\",\n  \"log-opts\": {\"max-file\": 3},\n  \"features\": {\"buildkit\": 1},\n  \"storage-driver\": 7\n}\n",
		old: []string{
			"2:12 \"debug\" must be true or false", "3:10 \"mtu\" must be a whole number",
			"4:19 \"storage-opts\" must be a list of strings", "5:15 \"log-opts\" must be an object of strings",
			"6:15 \"features\" must be an object of true and false", "7:21 \"storage-driver\" must be a string",
		},
		new:    []string{"2:12", "3:10", "4:19", "5:15", "6:15", "7:21"},
		edited: "{\n  \"debug\": \"true\",\n  \"mtu\": 1.5,\n  \"log-opts\": {\"max-file\": 3},\n  \"features\": {\"buildkit\": 1},\n  \"storage-driver\": \"thin\",\n  \"experimental\": true\n}\n",
	},
	{
		name: "nulls", content: "{\"debug\": null, \"hosts\": null, \"experimental\": null}",
		edited: "{\"debug\": null, \"hosts\": null, \"experimental\": true, \"storage-driver\": \"thin\"}",
	},
	{
		name: "nested", content: "{\n  \"default-ulimits\": {\"nofile\": {\"Name\": \"nofile\", \"Hard\": 64000, \"Soft\": 64000}},\n  \"builder\": {\"gc\": {\"enabled\": true}},\n  \"runtimes\": {\"nvidia\": {\"path\": \"nvidia-container-runtime\", \"runtimeArgs\": []}},\n  \"default-address-pools\": [{\"base\": \"172.80.0.0/16\", \"size\": 24}]\n}\n",
		edited: "{\n  \"default-ulimits\": {\"nofile\": {\"Name\": \"nofile\", \"Hard\": 64000, \"Soft\": 64000}},\n  \"builder\": {\"gc\": {\"enabled\": true}},\n  \"runtimes\": {\"nvidia\": {\"path\": \"nvidia-container-runtime\", \"runtimeArgs\": []}},\n  \"default-address-pools\": [{\"base\": \"172.80.0.0/16\", \"size\": 24}],\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		// passes, and does nothing
		name: "driver within another object", content: "{\n  \"storage\": {\"storage-driver\": \"overlay2\"}\n}\n",
		edited: "{\n  \"storage\": {\"storage-driver\": \"overlay2\"},\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "unknown key within another object", content: "{\n  \"storage\": {\"driver\": \"overlay2\"}\n}\n",
		old:    []string{"2:15 \"driver\": the engine doesn't know this key"},
		new:    []string{"2:15 \"driver\""},
		edited: "{\n  \"storage\": {\"driver\": \"overlay2\"},\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "a flag's name", content: "{\"storage-opt\": [\"overlay2.size=1G\"]}", // passes, and does nothing
		edited: "{\"storage-opt\": [\"overlay2.size=1G\"], \"experimental\": true, \"storage-driver\": \"thin\"}",
	},
	{
		name: "graph", content: "{\n  \"graph\": \"/data/docker\"\n}\n",
		new:    []string{"2:3 \"graph\": engines from 24 on don't know this key (remove it; it is \"data-root\" now)"},
		edited: "{\n  \"graph\": \"/data/docker\",\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "proxies", content: "{\n  \"proxies\": {\n    \"http-proxy\": \"http://proxy.example:3128\"\n  }\n}\n",
		old:    []string{"3:5 \"http-proxy\": engines before 23 don't know this key"},
		edited: "{\n  \"proxies\": {\n    \"http-proxy\": \"http://proxy.example:3128\"\n  },\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "large", content: "{\n  \"labels\": [\"n=" + strings.Repeat("x", 100_000) + "\"]\n}\n",
		edited: "{\n  \"labels\": [\"n=" + strings.Repeat("x", 100_000) +
			"\"],\n  \"experimental\": true,\n  \"storage-driver\": \"thin\"\n}\n",
	},
	{
		name: "deep", content: strings.Repeat("[", 20_000),
		old: []string{"1:10001 this is no JSON: invalid character '[' exceeded max depth"},
		new: []string{"1:10001 this is no JSON"},
	},
}

// wide is ASCII text in UTF-16, little-endian.
func wide(ascii string) string {
	var b strings.Builder
	for _, c := range []byte(ascii) {
		b.Write([]byte{c, 0})
	}
	return b.String()
}

// found makes a file of a content.
func found(t testing.TB, content string) *File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFilesInTheWild(t *testing.T) {
	for _, w := range wild {
		t.Run(w.name, func(t *testing.T) {
			f := found(t, w.content)
			comparePlaces(t, "20.10.24+dfsg1", f.Problems("20.10.24+dfsg1"), w.old)
			problems := f.Problems("")
			comparePlaces(t, "the newest engine", problems, w.new)
			fixable := len(problems) > 0
			for _, p := range problems {
				fixable = fixable && p.Fixable
			}
			if fixable {
				if _, err := f.Edit(f.Wanted(Wishes{Driver: "thin"})...); err == nil {
					t.Error("a file with comments or trailing commas was edited")
				}
				fixed, err := f.Fixed()
				if err != nil {
					t.Fatal(err)
				}
				if left := fixed.Problems(""); len(left) > 0 {
					t.Errorf("after Fixed: %v", left)
				}
				f = fixed
			}
			next, err := f.Edit(f.Wanted(Wishes{Driver: "thin"})...)
			if err != nil {
				if w.edited != "" {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(w.edited, string(next.content)); diff != "" {
				t.Fatalf("edited (-want +got):\n%s", diff)
			}
			again, err := next.Edit(next.Wanted(Wishes{Driver: "thin"})...)
			if err != nil || string(again.content) != w.edited {
				t.Errorf("the second edit gives %q, %v", again.content, err)
			}
			back, kept, err := next.Undo(f.content, next.content)
			if err != nil || len(kept) > 0 || string(back.content) != string(f.content) {
				t.Errorf("undone: %q, kept %v, %v", back.content, kept, err)
			}
		})
	}
}

func comparePlaces(t *testing.T, engine string, problems []Problem, want []string) {
	t.Helper()
	ok := len(problems) == len(want)
	for i := range min(len(problems), len(want)) {
		p := problems[i]
		ok = ok && strings.HasPrefix(fmt.Sprintf("%d:%d %s", p.Line, p.Column, p.Text), want[i])
	}
	if !ok {
		t.Errorf("problems of %s: %v, want %q", engine, problems, want)
	}
}

// tools are those of an engine, by one of the functions that find them.
func tools(t *testing.T, find func(context.Context, string) (*engine.Tools, error)) *engine.Tools {
	t.Helper()
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	found, err := find(t.Context(), cache)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skipf("needs a Docker engine: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Engine 26 judges by itself.
func TestANewEngineAgrees(t *testing.T) {
	newer := tools(t, engine.FindNewer)
	for _, w := range wild {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			f := found(t, w.content)
			err := f.Validate(t.Context(), newer.Dockerd, nil, newer.Environ())
			if errors.Is(err, ErrCannotValidate) {
				t.Fatal(err)
			}
			if problems := f.Problems("26.1.5"); (err == nil) != (len(problems) == 0) {
				t.Errorf("the engine says %v, we %v", err, problems)
			}
		})
	}
}

func TestAFlagThatContradictsTheFileIsToldByTheEngine(t *testing.T) {
	newer := tools(t, engine.FindNewer)
	f := found(t, `{"storage-driver": "thin"}`)
	flags := []string{"-H", "fd://", "--config-file", "/missing", "--storage-driver", "overlay2"}
	if err := f.Validate(t.Context(), newer.Dockerd, flags[:4], newer.Environ()); err != nil {
		t.Error(err)
	}
	err := f.Validate(t.Context(), newer.Dockerd, flags, newer.Environ())
	if err == nil || !strings.Contains(err.Error(), "validate "+f.Path+
		": unable to configure the Docker daemon with file "+f.Path+
		": the following directives are specified both as a flag and in the configuration file: storage-driver: (from flag: overlay2, from file: thin)") {
		t.Error(err)
	}
	if err := f.Validate(t.Context(), "/missing/dockerd", nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the program: %v", err)
	}
}

// Engine 20.10 can't, but one that is given a level of logging that there is not ends as soon as it has read its
// configuration.
func TestAnOldEngineAgrees(t *testing.T) {
	old := tools(t, engine.Find)
	if err := found(t, "{}").Validate(t.Context(), old.Dockerd, nil, old.Environ()); !errors.Is(err,
		ErrCannotValidate) {
		t.Fatalf("the old engine's validation: %v, want ErrCannotValidate", err)
	}
	// Of these it reads the first value, and doesn't see what follows.
	lenient := map[string]bool{"NUL bytes": true, "two objects": true}
	for _, w := range wild {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			f := found(t, w.content)
			cmd := exec.CommandContext(t.Context(), old.Dockerd, "--log-level", "none-such", "--config-file", f.Path)
			cmd.Env = old.Environ()
			out, err := cmd.CombinedOutput()
			accepted := strings.Contains(string(out), "unable to parse logging level")
			if err == nil || !accepted && !strings.Contains(string(out),
				"unable to configure the Docker daemon with file") {
				t.Fatalf("the engine: %v: %s", err, out)
			}
			if problems := f.Problems("20.10.24"); accepted != (len(problems) == 0) && !lenient[w.name] {
				t.Errorf("the engine says %s, we %v", out, problems)
			}
		})
	}
}
