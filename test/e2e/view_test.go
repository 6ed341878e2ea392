package e2e

import (
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/stand"
)

func TestAThinContainerSaysWhatItsOrdinaryTwinSays(t *testing.T) {
	u := onStand(t)
	for name, args := range map[string][]string{
		"its command":        nil,
		"a file on top":      {"/data/a.txt"},
		"a file at the base": {"/data/b.txt", "/data/b-again.txt", "/data/owned"},
		"a name in UTF-8":    {"/data/ünïcode-名前"},
	} {
		t.Run(name, func(t *testing.T) {
			ordinary, thin := u.run(stand.Ordinary, args...), u.run(stand.Thin, args...)
			if ordinary == "" || ordinary != thin {
				t.Errorf("the ordinary container says %q, the thin one %q", ordinary, thin)
			}
		})
	}
}

func TestAThinContainerShowsTheLayersMerged(t *testing.T) {
	u := onStand(t)
	files := u.export(u.create(stand.Thin))
	under := func(folder string) (names []string) {
		for name := range files {
			if path.Dir(name) == folder {
				names = append(names, path.Base(name))
			}
		}
		slices.Sort(names)
		return names
	}
	for folder, want := range map[string][]string{
		"/data":    {"a.txt", "b-again.txt", "b.txt", "blob", "owned", "ünïcode-名前"},
		"/opt/old": {"z"},
		"/srv":     {"dir-becomes-file", "file-becomes-dir"},
	} {
		if diff := cmp.Diff(want, under(folder)); diff != "" {
			t.Errorf("%s: %s", folder, diff)
		}
	}
	if got := files["/data/a.txt"].Content; got != "a is back\n" {
		t.Errorf("/data/a.txt holds %q", got)
	}
	if got := files["/srv/dir-becomes-file"].Type; got != '0' {
		t.Errorf("/srv/dir-becomes-file is of type %q", got)
	}
	if _, ok := files["/srv/file-becomes-dir/inside"]; !ok {
		t.Error("no /srv/file-becomes-dir/inside")
	}
	for name := range files {
		if base := path.Base(name); strings.HasPrefix(base, ".wh.") || base == ".cvmfscatalog" || base == "thin.json" {
			t.Errorf("%s is visible", name)
		}
	}
}

func TestAThinContainerListsAsItsOrdinaryTwin(t *testing.T) {
	u := onStand(t)
	ordinary, thin := u.export(u.create(stand.Ordinary)), u.export(u.create(stand.Thin))
	for _, files := range []map[string]file{ordinary, thin} {
		// What the engine puts into every container, at the time it does; and the root folder, whose time no layer
		// says.
		for _, added := range []string{
			"/", "/.dockerenv", "/dev", "/dev/console", "/dev/pts", "/dev/shm",
			"/etc/hostname", "/etc/hosts", "/etc/mtab", "/etc/resolv.conf", "/proc", "/sys",
		} {
			delete(files, added)
		}
		etc := files["/etc"]
		etc.ModTime = 0
		files["/etc"] = etc
	}
	if diff := cmp.Diff(ordinary, thin); diff != "" {
		t.Error(diff)
	}
	if len(ordinary) < 15 {
		t.Errorf("only %d files compared", len(ordinary))
	}
}
