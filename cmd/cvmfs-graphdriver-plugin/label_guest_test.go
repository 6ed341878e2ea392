//go:build guest

package main

import (
	"os"
	"path/filepath"
	"testing"

	"cvmfs-graphdriver/test/referenceimage"
	"cvmfs-graphdriver/test/testutil"
)

// Each container's files have the label that the engine gives, whatever shows them, and only they.
func TestFilesHaveTheLabelOfTheirContainer(t *testing.T) {
	testutil.LoadPolicy(t)
	forRungs(t, func(t *testing.T, r rung) {
		p := r.start(t, t.TempDir(), testutil.ServeReference(t, fqrn))
		p.init(r, object{})
		if text := p.apply("ordinary", "", archive(t, map[string]string{"f": "f"})); text != "" {
			t.Fatal(text)
		}
		if text := p.apply("thin", "", archive(t, map[string]string{"thin.json": referenceimage.Descriptor(t)})); text != "" {
			t.Fatal(text)
		}
		for id, c := range map[string]struct{ image, file, label string }{
			"ordinary-1": {"ordinary", "f", "system_u:object_r:container_file_t:s0:c1,c2"},
			"ordinary-2": {"ordinary", "f", "system_u:object_r:container_file_t:s0:c17,c942"},
			"thin-1":     {"thin", "data/a.txt", "system_u:object_r:container_file_t:s0:c3,c4"},
			"thin-2":     {"thin", "data/a.txt", "system_u:object_r:container_file_t:s0:c5,c1023"},
		} {
			p.ok("CreateReadWrite", object{"ID": id, "Parent": c.image, "MountLabel": c.label})
			dir := p.root + p.ok("Get", object{"ID": id, "MountLabel": c.label})["Dir"].(string)
			must(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644))
			for _, name := range []string{c.file, "new"} {
				if got := testutil.SELinuxLabel(t, filepath.Join(dir, name)); got != c.label {
					t.Errorf("%s: %s has the label %q, want %q", id, name, got, c.label)
				}
			}
			if _, err := os.ReadFile(filepath.Join(dir, c.file)); err != nil {
				t.Error(err)
			}
			p.ok("Put", object{"ID": id})
		}
	})
}
