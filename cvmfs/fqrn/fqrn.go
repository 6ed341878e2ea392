// Package fqrn knows the names of repositories.
//
// A fully qualified repository name (FQRN) is what CernVM-FS calls a repository by: "unpacked.example.org". Such a name
// is good as a path component and in a URL.
package fqrn

import (
	"fmt"
	"regexp"
	"strings"
)

// maxLength is the most bytes of a name, as CernVM-FS has it.
const maxLength = 60

// syntax is that of names with at least one dot and of those that a default domain completes: no dot at either end nor
// two in a row, and no dash in front.
var syntax = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$`)

// Check returns an error if name can't be a repository's.
func Check(name string) error {
	if len(name) > maxLength || !syntax.MatchString(name) {
		return fmt.Errorf("%.80q isn't a repository's name: want at most %d letters, digits, '-', '_' and '.', such as unpacked.example.org", name, maxLength)
	}
	return nil
}

// ParseList returns the names in a list that commas separate. White space around a name doesn't count.
func ParseList(list string) ([]string, error) {
	names := strings.Split(list, ",")
	for i, name := range names {
		names[i] = strings.TrimSpace(name)
		if err := Check(names[i]); err != nil {
			return nil, err
		}
	}
	return names, nil
}
