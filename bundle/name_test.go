package bundle

import (
	"strings"
	"testing"
)

func TestNamesThatCanBeAStorageDriver(t *testing.T) {
	for name, want := range map[string]string{
		"cvmfs-graphdriver":                "cvmfs-graphdriver",
		"cvmfs/graphdriver":                "cvmfs/graphdriver",
		"my-graphdriver:latest":            "my-graphdriver:latest",
		"127.0.0.1:5000/path/name:v1.2":    "127.0.0.1:5000/path/name:v1.2",
		"registry.example.org/overlay2":    "registry.example.org/overlay2",
		"docker.io/cvmfs/graphdriver":      "cvmfs/graphdriver",
		"docker.io/library/my-graphdriver": "my-graphdriver",
	} {
		if got, err := CheckName(name); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
}

func TestNamesThatCannotBeAStorageDriverAreRefusedWithAReason(t *testing.T) {
	for name, says := range map[string]string{
		"":                                      "invalid reference format",
		"My-Graphdriver":                        "lower case",
		"a b":                                   "such as cvmfs-graphdriver",
		"../x":                                  "invalid reference format",
		"a,b":                                   "invalid reference format",
		"overlay2":                              "storage driver of its own",
		"docker.io/library/vfs":                 "storage driver of its own",
		strings.Repeat("0", 64):                 "invalid repository name",
		"a:b@sha256:" + strings.Repeat("0", 64): "leave out @sha256:",
	} {
		if got, err := CheckName(name); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %q, %v, want an error with %q", name, got, err, says)
		}
	}
}
