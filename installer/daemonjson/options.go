package daemonjson

import (
	"slices"
	"strings"

	"cvmfs-graphdriver/driver/options"
)

// TakesBack reports whether a wish takes an option away: it has no value.
func TakesBack(wish string) bool { return strings.HasSuffix(wish, "=") }

// DriverOptions returns the storage options for the plugin's driver: of those present what it knows by name, and in
// place of those with the same name, or after them, what is wished. A wish without a value takes an option away.
func DriverOptions(present, wished []string) []string {
	var kept []string
	for _, p := range present {
		same := func(w string) bool { return options.Name(w) == options.Name(p) }
		if options.Ours(p) && !slices.ContainsFunc(wished, same) {
			kept = append(kept, p)
		}
	}
	return append(kept, slices.DeleteFunc(slices.Clone(wished), TakesBack)...)
}
