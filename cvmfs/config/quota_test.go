package config

import (
	"strings"
	"testing"
)

func TestTheLimitOfTheCacheIsWhatTheSiteItselfSays(t *testing.T) {
	for name, c := range map[string]struct {
		files  map[string]string
		bytes  int64
		at     string // "": no file sets it
		unused string // part of it; "": it counts
		told   bool   // as something without effect
	}{
		"nobody":      {files: map[string]string{"default.conf": "CVMFS_TIMEOUT=5\n"}},
		"the package": {map[string]string{"default.conf": "A=1\nCVMFS_QUOTA_LIMIT=4000\n"}, 4000 << 20, "default.conf:2", "a package sets it", false},
		"another package": {
			map[string]string{"default.d/60-grid.conf": "CVMFS_QUOTA_LIMIT=20000\n"},
			20000 << 20, "default.d/60-grid.conf:1", "set it in default.local", true,
		},
		"the site": {
			map[string]string{"default.conf": "CVMFS_QUOTA_LIMIT=4000\n", "default.local": "CVMFS_QUOTA_LIMIT=50000\n"},
			50000 << 20, "default.local:1", "", false,
		},
		"the site, as the package": {
			map[string]string{"default.conf": "CVMFS_QUOTA_LIMIT=4000\n", "default.local": "CVMFS_QUOTA_LIMIT=4000\n"},
			4000 << 20, "default.local:1", "", false,
		},
		"a file that the site sources": {
			map[string]string{"default.local": ". /etc/cvmfs/cache.conf\n", "cache.conf": "\nCVMFS_QUOTA_LIMIT=70\n"},
			70 << 20, "cache.conf:2", "", false,
		},
		"no limit":    {map[string]string{"default.local": "CVMFS_QUOTA_LIMIT=-1\n"}, 0, "default.local:1", "", false},
		"none at all": {map[string]string{"default.local": "CVMFS_QUOTA_LIMIT=0\n"}, 0, "default.local:1", "", false},
		"no number":   {map[string]string{"default.local": "CVMFS_QUOTA_LIMIT=much\n"}, 0, "default.local:1", "it is no number", true},
		"empty":       {files: map[string]string{"default.local": "CVMFS_QUOTA_LIMIT=\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.files["config.d/"+fqrn+".conf"] = complete
			dir := folder(t, c.files)
			q, ok, err := Folder{Dir: dir}.Quota()
			if err != nil || ok != (c.at != "") {
				t.Fatalf("%+v, %t, %v", q, ok, err)
			}
			if ok && (q.Bytes != c.bytes || q.Place.String() != "/etc/cvmfs/"+c.at || (q.Unused == "") != (c.unused == "") ||
				!strings.Contains(q.Unused, c.unused)) {
				t.Errorf("got %+v", q)
			}
			if _, found := load(t, dir); strings.Contains(found, "has no effect here") != c.told {
				t.Errorf("told:\n%s", found)
			}
			r, err := Folder{Dir: dir}.Report(fqrn)
			if err != nil || strings.Contains(r.String(), ", no effect: ") != (c.unused != "") {
				t.Errorf("%v\n%s", err, r)
			}
		})
	}
}

// A number of another unit must not make a cache that evicts what it has just fetched.
func TestALimitOfTheCacheHasALeastValue(t *testing.T) {
	for value, want := range map[string]struct {
		mib  int64
		told string // "": nothing
	}{
		"1": {64, `"1" is taken as 64, the least: it is a number of MiB`}, "63": {64, `"63" is taken as 64, the least: it is a number of MiB`}, "64": {64, ""},
		"20G": {64, `"20G" is taken as 64, the least: it is a number of MiB`}, "4000.5": {4000, `"4000.5" is taken as 4000: it is a number of MiB`},
		"300M": {300, `"300M" is taken as 300: it is a number of MiB`}, "0": {0, ""}, "-20": {0, ""}, "+70": {70, ""},
	} {
		dir := folder(t, map[string]string{
			"default.local": "CVMFS_QUOTA_LIMIT=" + value + "\n", "config.d/" + fqrn + ".conf": complete,
		})
		q, ok, err := Folder{Dir: dir}.Quota()
		if err != nil || !ok || q.Bytes != want.mib<<20 || q.Unused != "" || (q.Odd == "") != (want.told == "") {
			t.Errorf("%s: %+v, %t, %v", value, q, ok, err)
		}
		_, found := load(t, dir)
		if n := strings.Count(found, "CVMFS_QUOTA_LIMIT"); !strings.Contains(found, want.told) || (n == 0) != (want.told == "") || n > 1 {
			t.Errorf("%s: told %d times:\n%s", value, n, found)
		}
	}
}

// The cache is one for all repositories: what one of them has of its own doesn't size it.
func TestARepositorysOwnLimitOfTheCacheIsTold(t *testing.T) {
	for _, file := range []string{"config.d/" + fqrn + ".local", "domain.d/example.org.local"} {
		dir := folder(t, map[string]string{
			"default.local": "CVMFS_QUOTA_LIMIT=50000\n", "config.d/" + fqrn + ".conf": complete,
			file: "CVMFS_QUOTA_LIMIT=4000\n",
		})
		q, ok, err := Folder{Dir: dir}.Quota()
		if err != nil || !ok || q.Bytes != 50000<<20 || q.Unused != "" {
			t.Errorf("%+v, %t, %v", q, ok, err)
		}
		if _, found := load(t, dir); !strings.Contains(found, file+":1: CVMFS_QUOTA_LIMIT: is set and has no effect here: there is one cache") {
			t.Errorf("%s: told:\n%s", file, found)
		}
	}
}
