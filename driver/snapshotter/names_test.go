package snapshotter

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

const chainID = "sha256:b22a4a203adc848396086c43da7ee0efa5677fae8da00ec06300620e7ded457b"

func TestLayersOfImagesAreToldFromStepsOfBuilds(t *testing.T) {
	for _, c := range []struct {
		key, name string
		want      bool
	}{
		{"moby/1/extract-76564416-fMJj " + chainID, "moby/2/" + chainID, true},
		{"k8s.io/7/extract-76564416-fMJj " + chainID, "k8s.io/8/" + chainID, true},
		{"moby/3/Y29tbWl0-" + chainID, "moby/4/" + chainID, true}, // docker commit
		{"moby/18/t98u7oqkzl5gcwui25z5oiqtl", "moby/19/koxf3r7gizom1ed3iqrf6r8z1", false},
		{"moby/9/4744-init-key", "moby/10/4744-init", false},
		{"default/1/a", "default/2/sha256:short", false},
	} {
		if got := ofImage(c.key, c.name); got != c.want {
			t.Errorf("%s committed as %s: %v, want %v", c.key, c.name, got, c.want)
		}
	}
}

func TestOnlyWhoMountsGetsDataOnlyLayers(t *testing.T) {
	for key, want := range map[string]bool{
		"moby/11/4744": false, "moby-100000.100000/1/x": false, "buildkit/1/x": false,
		"k8s.io/6/ceaa": true, "default/1/byctr": true, "mobydick/1/x": true,
	} {
		if got := readsLowers(key); got != want {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
}

// Of chains that no image keeps the topmost one is told, in whatever order they are looked at.
func TestOfUnnamedChainsTheTopmostIsTold(t *testing.T) {
	for range 50 {
		got := topmost(map[digest.Digest]chain{
			"a": {snapshot: "a"}, "b": {snapshot: "b", below: "a"}, "c": {snapshot: "c", below: "b"},
			"d": {snapshot: "d", below: "a"},
		})
		if len(got) != 2 || got["c"].snapshot != "c" || got["d"].snapshot != "d" {
			t.Fatal(got)
		}
	}
}
