package config

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Whatever was looked at when a configuration was read tells that it would read otherwise now.
func TestSeenTellsEveryChange(t *testing.T) {
	write := func(dir, name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(dir string){
		"a file":                    func(dir string) { write(dir, "default.local", "C=4") },
		"a file, of the same size":  func(dir string) { write(dir, "default.conf", "C=4\n") },
		"a file that has gone":      func(dir string) { must(os.Remove(filepath.Join(dir, "default.conf"))) },
		"a file of a folder":        func(dir string) { write(dir, "default.d/20.conf", "C=4") },
		"a file of the repository":  func(dir string) { write(dir, "config.d/"+fqrn+".local", "C=4") },
		"a file of the domain":      func(dir string) { write(dir, "domain.d/example.org.conf", "C=4") },
		"a file that is sourced":    func(dir string) { write(dir, "sourced", "C=4") },
		"a file that is tested for": func(dir string) { write(dir, "tested", "") },
		"a file that is read":       func(dir string) { write(dir, "read", "5") },
		"a folder that is listed":   func(dir string) { write(dir, "listed/b", "") },
		"a key":                     func(dir string) { write(dir, "keys/new.pub", "") },
		"a map":                     func(dir string) { write(dir, "map", "* 7\n") },
		"a link to something else":  func(dir string) { replaceLink(t, dir, "other") },
		"what a link leads to":      func(dir string) { write(dir, "linked", "C=6\n") },
		"a file in another's place": func(dir string) { must(os.Rename(filepath.Join(dir, "other"), filepath.Join(dir, "default.conf"))) },
		"permissions":               func(dir string) { must(os.Chmod(filepath.Join(dir, "default.conf"), 0o644)) },
		"a time that was turned back": func(dir string) {
			write(dir, "default.conf", "C=9\n")
			must(os.Chtimes(filepath.Join(dir, "default.conf"), time.Unix(1e9, 0), time.Unix(1e9, 0)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, map[string]string{
				"default.conf": "C=1\n", "default.d/10.conf": "C=2\n", "config.d/" + fqrn + ".conf": complete +
					"\n. /etc/cvmfs/sourced\n[ -f /etc/cvmfs/tested ] && C=3\nR=$(cat /etc/cvmfs/read)\nL=$(ls /etc/cvmfs/listed)\n" +
					"CVMFS_UID_MAP=/etc/cvmfs/map\n. /etc/cvmfs/link\nCVMFS_KEYS_DIR=/etc/cvmfs/keys\nunset CVMFS_PUBLIC_KEY\n",
				"read": "4", "listed/a": "", "map": "* 6\n", "linked": "C=5\n", "other": "C=6\n", "sourced": "C=1\n", "keys/a.pub": "",
			})
			must(os.Symlink("linked", filepath.Join(dir, "link")))
			must(os.Chtimes(filepath.Join(dir, "default.conf"), time.Unix(1e9, 0), time.Unix(1e9, 0)))
			seen := &Seen{}
			if _, err := (Folder{Dir: dir, Seen: seen}).Load(fqrn); err != nil {
				t.Fatal(err)
			}
			if seen.Same() {
				t.Error("what has just changed may change again without a trace")
			}
			seen.young = false
			if !seen.Same() {
				t.Fatal("nothing has changed, and is told to have")
			}
			change(dir)
			if seen.Same() {
				t.Error("it isn't told")
			}
		})
	}
}

func replaceLink(t *testing.T, dir, to string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
}
