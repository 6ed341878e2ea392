package e2e

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"cvmfs-graphdriver/test/engine"
)

// everyVariable, if it isn't empty, has each test run with all engines and views that it is for, as make test-engines
// does. Without, tests that take minutes leave out those of which others are enough: a run of all tests is to take no
// longer than somebody waits for it.
const everyVariable = "CVMFS_TEST_EVERY_ENGINE"

// engines are those of Docker's that run plugins.
func engines() map[string]func(*testing.T) *engine.Tools {
	return map[string]func(*testing.T) *engine.Tools{"20.10": tools, "26.1": newerTools}
}

// of returns all that a test is for, or only those named.
func of[T any](all map[string]T, enough ...string) map[string]T {
	if os.Getenv(everyVariable) != "" {
		return all
	}
	some := map[string]T{}
	for name, one := range all {
		if slices.Contains(enough, name) {
			some[name] = one
		}
	}
	if len(some) != len(enough) {
		panic(fmt.Sprintf("not all of %q are there", enough))
	}
	return some
}

// among is of for a list.
func among[T comparable](all []T, enough ...T) []T {
	if os.Getenv(everyVariable) != "" {
		return all
	}
	return enough
}
