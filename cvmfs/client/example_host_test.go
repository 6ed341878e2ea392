package client_test

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
)

// exampleHost is what the examples stand on: a server of a reference repository, and the configuration and cache of a
// host that reads it.
func exampleHost() (etc, cache string, stop func()) {
	const name = "features.example.org"
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	data, err := filepath.Abs("../../testdata")
	if err != nil {
		log.Fatal(err)
	}
	archive := filepath.Join(data, "repositories", name+".tar.gz")
	if out, err := exec.Command("tar", "-xzf", archive, "-C", dir).CombinedOutput(); err != nil {
		log.Fatalf("%v: %s", err, out)
	}
	server := httptest.NewServer(http.StripPrefix("/cvmfs/", http.FileServer(http.Dir(dir))))
	etc, cache = filepath.Join(dir, "etc"), filepath.Join(dir, "cache")
	conf := fmt.Sprintf("CVMFS_SERVER_URL=%s/cvmfs/@fqrn@\nCVMFS_HTTP_PROXY=DIRECT\nCVMFS_PUBLIC_KEY=%s\n", server.URL,
		filepath.Join(data, "keys", name+".pub"))
	if err := os.MkdirAll(filepath.Join(etc, "config.d"), 0o755); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(etc, "config.d", name+".conf"), []byte(conf), 0o600); err != nil {
		log.Fatal(err)
	}
	return etc, cache, func() {
		server.Close()
		os.RemoveAll(dir)
	}
}
