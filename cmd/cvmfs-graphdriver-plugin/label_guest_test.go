//go:build guest

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

// loadPolicy has SELinux work by a small policy of ours; it stays until the machine ends.
func loadPolicy(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("selinuxfs", dir, "selinuxfs", 0, ""); err != nil {
		testutil.KernelLacks(t, "SELinux") // or was started without security=selinux
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	policy, err := os.ReadFile("testdata/selinux/policy.31")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "load"), policy, 0)) // by one write(2), as the kernel wants it
}

// Each container's files have the label that the engine gives, whatever shows them, and only they.
func TestFilesHaveTheLabelOfTheirContainer(t *testing.T) {
	loadPolicy(t)
	forRungs(t, func(t *testing.T, r rung) {
		p := r.start(t, t.TempDir(), testutil.Serve(t, testutil.Repository(t, fqrn)))
		p.init(r, object{})
		if text := p.apply("ordinary", "", archive(t, map[string]string{"f": "f"})); text != "" {
			t.Fatal(text)
		}
		if text := p.apply("thin", "", archive(t, map[string]string{"thin.json": descriptor(t)})); text != "" {
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
				label := make([]byte, 256)
				n, err := unix.Lgetxattr(filepath.Join(dir, name), "security.selinux", label)
				must(t, err)
				if got := string(bytes.TrimRight(label[:n], "\x00")); got != c.label {
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
