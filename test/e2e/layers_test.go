package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/internal/layertar/layertartest"
	"cvmfs-graphdriver/test/engine"
)

// The table by which we take layers is that of engines on overlay2, but for what its rows say.
func TestLayersAreTakenAsByOverlay2(t *testing.T) {
	for name, find := range map[string]func(context.Context, string) (*engine.Tools, error){
		"older": engine.Find,
		"newer": engine.FindNewer,
	} {
		t.Run(name, func(t *testing.T) { layersOn(t, engine.NewFor(t, find)) })
	}
}

func layersOn(t *testing.T, e *engine.Engine) {
	if err := e.Start(t.Context(), map[string]any{"storage-driver": "overlay2"}); err != nil {
		t.Fatal(err)
	}
	for n, c := range layertartest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			name := fmt.Sprintf("case%d:1", n)
			archive := filepath.Join(t.TempDir(), "image.tar")
			if err := os.WriteFile(archive, saved(t, name, c.Archive), 0o600); err != nil {
				t.Fatal(err)
			}
			var tree []string
			said, err := e.Docker(t.Context(), "load", "--input", archive)
			if err == nil {
				upper, err := e.Docker(t.Context(), "image", "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}",
					name)
				if err != nil {
					t.Fatal(err)
				}
				tree = settled(layertartest.List(t, strings.TrimSpace(upper), true))
			}
			want := c.Tree
			if want != nil {
				want = append([]string{}, want...)
				sort.Strings(want)
			}
			diff := cmp.Diff(want, tree)
			if (diff == "") != (c.Overlay2 == "") {
				t.Errorf("said to differ: %q; %s %v; -want +got\n%s", c.Overlay2, said, err, diff)
			}
		})
	}
}

// settled returns implied folders, which engines make as old as the unpacking, the time that we give them.
func settled(lines []string) []string {
	out := []string{}
	at := regexp.MustCompile(`@\d+`)
	for _, line := range lines {
		out = append(out, at.ReplaceAllStringFunc(line, func(s string) string {
			if n, err := strconv.ParseInt(s[1:], 10, 64); err == nil && time.Since(time.Unix(n, 0)).Abs() < time.Hour {
				return fmt.Sprint("@", layertartest.Time)
			}
			return s
		}))
	}
	sort.Strings(out)
	return out
}

// saved makes an archive of an image of one layer, as "docker save" does.
func saved(t *testing.T, name string, layer []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, content []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"/x"}},
		"rootfs": map[string]any{
			"type":     "layers",
			"diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]map[string]any{{
		"Config": "config.json", "RepoTags": []string{name},
		"Layers": []string{"layer.tar"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	put("layer.tar", layer)
	put("config.json", config)
	put("manifest.json", manifest)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
