package thin

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLayersOfAConfigurationAreReplacedAndNothingElse(t *testing.T) {
	const config = `{"os":"linux","created":"2026-01-01T00:00:00Z","new.field":{"a":[1]},"config":{"Cmd":["x"]},
		"RootFS":{"type":"layers","diff_ids":["sha256:hidden"]},
		"rootfs":{"type":"layers","diff_ids":["sha256:a","sha256:b","sha256:c"]},
		"history":[{"created_by":"a"},{"created_by":"e","empty_layer":true},{"created_by":"b","Empty_Layer":false},null]}`
	type step struct {
		By      string `json:"created_by"`
		Empty   bool   `json:"empty_layer"`
		Comment string `json:"comment"`
		Created string `json:"created"`
	}
	made := step{By: "me", Comment: "of x", Created: "2026-01-01T00:00:00Z"}
	for keep, want := range map[int]struct {
		ids   []string
		steps []step
	}{
		0: {[]string{"sha256:t"}, []step{{By: "a", Empty: true}, {By: "e", Empty: true}, {By: "b", Empty: true}, {Empty: true}, made}},
		1: {[]string{"sha256:a", "sha256:t"}, []step{{By: "a"}, {By: "e", Empty: true}, {By: "b", Empty: true}, {Empty: true}, made}},
		2: {[]string{"sha256:a", "sha256:b", "sha256:t"}, []step{{By: "a"}, {By: "e", Empty: true}, {By: "b"}, {Empty: true}, made}},
	} {
		b, err := ReplaceLayers([]byte(config), keep, "sha256:t", Step{"me", "of x"})
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			OS     string
			RootFS rootFS          `json:"rootfs"`
			Steps  []step          `json:"history"`
			New    json.RawMessage `json:"new.field"`
			Config json.RawMessage
		}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.ids, got.RootFS.DiffIDs); diff != "" || strings.Contains(string(b), "hidden") {
			t.Errorf("%d stay: %s", keep, diff)
		}
		if diff := cmp.Diff(want.steps, got.Steps); diff != "" {
			t.Errorf("%d stay: %s", keep, diff)
		}
		if got.OS != "linux" || string(got.New) != `{"a":[1]}` || string(got.Config) != `{"Cmd":["x"]}` {
			t.Errorf("%d stay: %s", keep, b)
		}
	}
	for name, c := range map[string]struct {
		config string
		keep   int
	}{
		"no JSON": {"{", 0}, "history": {`{"history":1}`, 0}, "no layers": {"{}", 1}, "fewer": {config, 4},
	} {
		if b, err := ReplaceLayers([]byte(c.config), c.keep, "sha256:t", Step{}); err == nil {
			t.Errorf("%s: %s", name, b)
		}
	}
}
