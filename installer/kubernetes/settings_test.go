package kubernetes

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func readText(t *testing.T, text string) (*Settings, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "node.yaml")
	must(t, os.WriteFile(name, []byte(text), 0o600))
	return ReadSettings(name)
}

func TestWrongSettingsAreRefused(t *testing.T) {
	for text, says := range map[string]string{
		"":                                        "state",
		"state: instaled":                         `"instaled"`,
		"state: installed":                        "no pod would use",
		"state: installed\nusual: true":           "usual",
		"state: installed\nruntimeClass: A_b":     "handler",
		"state: removed\ncontainerd: crio":        "k3s",
		"state: removed\ncvmfs: {../x: y}":        "../x",
		"state: removed\ncvmfs: {a//x: y}":        "a//x",
		"state: removed\nsnapshotter: {root: /x}": "root",
	} {
		if _, err := readText(t, text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// The snapshotter gets an administrator's keys as they are. A floor that they don't name isn't one: below it nothing is
// fetched, and a node may be fuller than that for good.
func TestTheSnapshottersKeysAreTheAdministrators(t *testing.T) {
	for keys, want := range map[string]string{
		"": `{"containerd":"/run/c.sock"}`,
		`debug: true, storage-opts: ["cvmfs.cache-floor=7G"]`: `{"containerd":"/run/c.sock","debug":true,` +
			`"storage-opts":["cvmfs.cache-floor=7G"]}`,
	} {
		s, err := readText(t, "state: installed\ndefault: true\nsnapshotter: {"+keys+"}")
		must(t, err)
		text, err := s.config("/run/c.sock")
		must(t, err)
		var got bytes.Buffer
		must(t, json.Compact(&got, text))
		if got.String() != want {
			t.Errorf("%q gives %s, want %s", keys, &got, want)
		}
	}
}
