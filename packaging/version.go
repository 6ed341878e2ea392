package main

import (
	"regexp"
	"strings"
	"time"
)

// described is what `git describe --always --dirty` says where there is a tag that is a semantic version: TAG,
// TAG-COMMITS-gHASH, and "-dirty" after either. Groups are version, pre-release, commits since, hash.
var described = regexp.MustCompile(`^v?(\d+(?:\.\d+)*)(?:-((?:alpha|beta|rc|pre)[0-9A-Za-z.]*))?(?:-(\d+)-g([0-9a-f]+))?$`)

// unsuited is what may not stand in a package's version.
var unsuited = regexp.MustCompile(`[^0-9A-Za-z.]+`)

// packageVersion makes a version of the programs one of Debian's and RPM's, of the same order in both: 1.2.3;
// 1.2.3~rc.1 before it; 1.2.3+5.g0123abc, the fifth commit after it. What no release comes before, as a bare hash, is
// older than any release, and younger with its date: 0~git20260131120000.0123abc.
func packageVersion(version string, date time.Time) string {
	version, dirty := strings.CutSuffix(version, "-dirty")
	var v string
	if m := described.FindStringSubmatch(version); m != nil {
		v = m[1]
		if m[2] != "" {
			v += "~" + m[2]
		}
		if m[3] != "" {
			v += "+" + m[3] + ".g" + m[4]
		}
	} else {
		v = "0~git" + date.UTC().Format("20060102150405") + "." + unsuited.ReplaceAllString(version, ".")
	}
	if dirty {
		v += "+dirty"
	}
	return v
}
