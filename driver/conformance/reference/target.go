package reference

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"cvmfs-graphdriver/driver/conformance"
)

// Target runs a driver of this package until a test ends. The test is skipped where layers can't be mounted.
func Target(t testing.TB) conformance.Target {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts file systems")
	}
	dir, err := os.MkdirTemp("", "r") // short, unlike the test's own
	if err != nil {
		t.Fatal(err)
	}
	driver := New(dir)
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	server := &http.Server{Handler: driver}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		err := server.Close()
		if end := <-ended; !errors.Is(end, http.ErrServerClosed) {
			err = errors.Join(err, end)
		}
		if err := errors.Join(err, driver.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return conformance.Target{Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
}
