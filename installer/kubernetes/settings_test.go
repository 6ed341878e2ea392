package kubernetes

import (
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

// The cache gives room before kubelet looks for some, unless an administrator knows better.
func TestTheCachesFloorIsAboveKubelets(t *testing.T) {
	for options, want := range map[string]string{
		`[]`:                          `["cvmfs.cache-floor=200"]`,
		`["cvmfs.isolate=yes"]`:       `["cvmfs.isolate=yes","cvmfs.cache-floor=200"]`,
		`["cvmfs.cache-floor=7G"]`:    `["cvmfs.cache-floor=7G"]`,
		`["cvmfs.cache-floored=yes"]`: `["cvmfs.cache-floored=yes","cvmfs.cache-floor=200"]`,
	} {
		s, err := readText(t, "state: installed\ndefault: true\nsnapshotter: {debug: true, storage-opts: "+options+"}")
		must(t, err)
		text, err := s.config("/run/c.sock", 1000)
		must(t, err)
		var got struct {
			Options    json.RawMessage `json:"storage-opts"`
			Containerd string          `json:"containerd"`
			Debug      bool            `json:"debug"`
		}
		must(t, json.Unmarshal(text, &got))
		compact := strings.Join(strings.Fields(string(got.Options)), "")
		if compact != want || got.Containerd != "/run/c.sock" || !got.Debug {
			t.Errorf("%s gives %s", options, text)
		}
	}
}
