//go:build guest

package kubernetes

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/testutil"
)

var update = flag.Bool("update", false, "write the manifests that the chart gives")

// The manifests are what the chart gives with its values as they are.
func TestManifestsAreTheChart(t *testing.T) {
	cache, err := engine.CacheDir()
	must(t, err)
	programs, err := engine.KubernetesPrograms(cache)
	must(t, err)
	dir := filepath.Join(testutil.Root(t), "packaging/kubernetes")
	helm := filepath.Join(programs["helm"], "helm")
	got := output(t, helm, "template", "cvmfs-snapshotter", filepath.Join(dir, "chart"),
		"--namespace", "kube-system", "--kube-version", "1.36.3")
	file := filepath.Join(dir, "cvmfs-snapshotter.yaml")
	if *update {
		must(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if got != string(want) {
		t.Errorf("%s isn't what the chart gives: run this test with -update", file)
	}
	output(t, helm, "lint", "--strict", "--kube-version", "1.36.3", filepath.Join(dir, "chart"))
}

// chart is the life of a release of the chart, whose pods alone use the snapshotter that are of a runtime class.
func (s *stand) chart() {
	values := map[string]any{
		"image": map[string]any{"repository": s.registry.Host + "/cvmfs-snapshotter"}, "default": false, "runtimeClass": "cvmfs",
		"systemdCgroup": false,
	}
	maps.Copy(values, s.settings)
	text, err := yaml.Marshal(values)
	must(s.t, err)
	s.write(s.t, "/srv/test/values.yaml", string(text))
	s.guide("## Install by Helm")
	s.run("thin", s.thin, "cvmfs")
	s.run("ordinary", s.ordinary, "")
	s.same("the snapshotter of a pod of the class", s.snapshotterOf("thin"), "cvmfs")
	s.same("the snapshotter of another pod", s.snapshotterOf("ordinary"), "overlayfs")
	s.same("what both read", s.sh(s.t, "kubectl exec thin -- cat /first"), s.sh(s.t, "kubectl exec ordinary -- cat /first"))
	s.upgrade(func() { s.guide("## Upgrade by Helm") })

	s.sh(s.t, "kubectl delete pod thin --wait")
	began := time.Now()
	s.guide("### By Helm")
	s.t.Logf("removed in %v", time.Since(began).Round(time.Second))
	s.same("a release that is left", strings.TrimSpace(s.sh(s.t, "helm list --namespace kube-system --short")), "")
	s.running("ordinary")
	s.sh(s.t, "kubectl delete pod ordinary --wait")
}
