//go:build guest

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/referenceimage"
	"cvmfs-graphdriver/test/testutil"
)

// quotaDisk mounts a file system of 400 MiB with project quotas, made by a command, and gives the folder.
func quotaDisk(t *testing.T, mountOption string, mkfs ...string) string {
	t.Helper()
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, 400<<20))
	for _, command := range [][]string{append(mkfs, disk), {"mount", "-o", "loop," + mountOption, disk, dir}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// fill writes mebibytes to a new file and gives the error.
func fill(name string, size int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	for range size {
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

func TestSizeOfAContainerIsLimited(t *testing.T) {
	for name, disk := range map[string]func(t *testing.T) string{
		"ext4": func(t *testing.T) string {
			return quotaDisk(t, "prjquota", "mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota")
		},
		"xfs": func(t *testing.T) string { return quotaDisk(t, "prjquota", "mkfs.xfs", "-q") },
	} {
		t.Run(name, func(t *testing.T) { limitSize(t, disk(t)) })
	}
}

func limitSize(t *testing.T, disk string) {
	p := start(t, disk, testutil.ServeReference(t, fqrn))
	p.init(rung{view: "auto"}, object{})
	if text := p.apply("ordinary", "", archive(t, map[string]string{"f": "f"})); text != "" {
		t.Fatal(text)
	}
	if text := p.apply("thin", "", archive(t, map[string]string{"thin.json": referenceimage.Descriptor(t)})); text != "" {
		t.Fatal(text)
	}
	for _, image := range []string{"ordinary", "thin"} {
		limited, free := image+"-limited", image+"-free"
		p.ok("CreateReadWrite", object{"ID": limited, "Parent": image, "StorageOpt": object{"size": "16m"}})
		dir := p.root + p.ok("Get", object{"ID": limited})["Dir"].(string)
		other := p.container(free, image)

		must(t, fill(filepath.Join(dir, "fits"), 8))
		if err := fill(filepath.Join(dir, "more"), 16); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
			t.Errorf("%s: 24 MiB where 16 are allowed: %v", image, err)
		}
		must(t, fill(filepath.Join(other, "much"), 32))

		// What is deleted can be written again; a server that comes after knows the limit.
		must(t, unix.Kill(p.status().PID, unix.SIGKILL))
		must(t, os.Remove(filepath.Join(dir, "more")))
		must(t, fill(filepath.Join(dir, "again"), 6))
		if err := fill(filepath.Join(dir, "more"), 16); err == nil {
			t.Errorf("%s: no limit after the server's death", image)
		}
		for _, id := range []string{limited, free} {
			p.ok("Put", object{"ID": id})
			p.ok("Remove", object{"ID": id})
		}
	}
}

// A size is refused where nothing would come of it.
func TestSizeIsRefusedWithoutQuotas(t *testing.T) {
	p := start(t, quotaDisk(t, "rw", "mkfs.ext4", "-q", "-F"), "http://127.0.0.1:1")
	p.init(rung{view: "auto"}, object{})
	text := fmt.Sprint(p.call("CreateReadWrite", object{"ID": "c", "StorageOpt": object{"size": "16m"}})["Err"])
	if !strings.Contains(text, "prjquota") {
		t.Errorf("%q", text)
	}
}
