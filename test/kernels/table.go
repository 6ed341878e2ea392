package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// kernel is a line of the table of kernels.
type kernel struct {
	name   string   // as KERNEL= has it
	series string   // the version begins with it; "" for the newest of the suites
	suites []string // Debian's releases that have it: the newest of all is taken
	view   string   // that the driver chooses: see the tests that read CVMFS_TEST_VIEW
	lacks  []string // what its tests may skip for want of, in the words of testutil.KernelLacks
}

// kernels are Debian's for virtual machines. The versions that Debian has move within a series.
var kernels = []kernel{
	{name: "5.10", series: "5.10.", suites: []string{"bullseye", "bullseye-security"}, view: "fuse", lacks: old},
	{name: "6.1", series: "6.1.", suites: []string{"bookworm", "bookworm-security"}, view: "fuse", lacks: old},
	{name: "6.12", series: "6.12.", suites: []string{"trixie", "trixie-security"}, view: "erofs by two overlays"},
	{name: "6.16", series: "6.16.", suites: []string{"trixie-backports"}, view: "erofs"},
	{name: "6.18", series: "6.18.", suites: []string{"trixie-backports"}, view: "erofs"},
	{name: "newest", suites: []string{"trixie-backports"}, view: "erofs"},
}

// old is what kernels before 6.5 lack, of what tests need.
var old = []string{
	"the erofs view", "EROFS images mounted from files", "data-only layers",
	"resending of FUSE requests", "mapped owners",
}

// named returns the kernels of a list of names, divided by commas; all for "".
func named(list string) ([]kernel, error) {
	if list == "" {
		return kernels, nil
	}
	var found []kernel
	for name := range strings.SplitSeq(list, ",") {
		at := slices.IndexFunc(kernels, func(k kernel) bool { return k.name == name })
		if at < 0 {
			var names []string
			for _, k := range kernels {
				names = append(names, k.name)
			}
			return nil, fmt.Errorf("no kernel %q in the table; there are %s", name, strings.Join(names, ", "))
		}
		found = append(found, kernels[at])
	}
	return found, nil
}

// packageName is that of a kernel for virtual machines; its version is in it, and goes away when Debian has a newer
// one.
var packageName = regexp.MustCompile(`^linux-image-([0-9]+\.[0-9]+\.[0-9].*-cloud-amd64)$`)

// choose returns the packages of the newest kernel of the series. From Linux 6.19 on it is in two, and linux-image has
// nothing.
func (k *kernel) choose(names []string) (chosen []string, err error) {
	newest := ""
	for _, name := range names {
		m := packageName.FindStringSubmatch(name)
		if m != nil && strings.HasPrefix(m[1], k.series) && (newest == "" || older(newest, m[1])) {
			newest = m[1]
		}
	}
	if newest == "" {
		return nil, fmt.Errorf("no package of a kernel %s* for virtual machines in %s", k.series,
			strings.Join(k.suites, ", "))
	}
	for _, part := range []string{"linux-image-", "linux-binary-", "linux-modules-"} {
		if slices.Contains(names, part+newest) {
			chosen = append(chosen, part+newest)
		}
	}
	return chosen, nil
}

// older reports whether a version, as names of kernels have it, is older than another: numbers count as numbers, other
// bytes as such.
func older(a, b string) bool {
	for a != "" && b != "" {
		var x, y string
		x, a = leading(a)
		y, b = leading(b)
		if x == y {
			continue
		}
		n, errN := strconv.Atoi(x)
		m, errM := strconv.Atoi(y)
		if errN == nil && errM == nil {
			return n < m
		}
		return x < y
	}
	return a == "" && b != ""
}

// leading cuts a number, or one other byte, off the beginning.
func leading(s string) (first, rest string) {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	n = max(n, 1)
	return s[:n], s[n:]
}
