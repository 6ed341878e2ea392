package client

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/test/testutil"
)

var _ objects.Sources = (*Repositories)(nil)

// configured writes a configuration folder for a repository.
func configured(t *testing.T, fqrn, url string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "config.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "CVMFS_SERVER_URL=" + url + "\nCVMFS_HTTP_PROXY=DIRECT\nCVMFS_PUBLIC_KEY=" + testutil.PublicKey(t, fqrn) +
		"\nVARIANT=configured\n"
	if err := os.WriteFile(filepath.Join(dir, "config.d", fqrn+".conf"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestRepositoriesAreOpenedOnceAsConfigured(t *testing.T) {
	dir := configured(t, features, referenceSite(t, features).url)
	s := NewRepositories(config.Folder{Dir: dir}, nil, Options{Dir: t.TempDir()})
	r, err := s.Repository(features)
	if err != nil {
		t.Fatal(err)
	}
	newest(t, r)
	if got := r.Expand("$(VARIANT)"); got != "configured" {
		t.Errorf("parameters of the configuration don't reach links: %q", got)
	}
	again, err := s.Repository(features)
	if err != nil || again != r {
		t.Errorf("a second repository was made (%v)", err)
	}
	if f, err := s.Fetcher(features); err != nil || f != r.Fetcher() {
		t.Errorf("Fetcher: %v, %v", f, err)
	}
	if c, err := s.Config(features); err != nil || c.FQRN != features {
		t.Errorf("Config: %v, %v", c, err)
	}
	s.Reload()
	fresh, err := s.Repository(features)
	if err != nil || fresh == r {
		t.Errorf("Reload has no effect (%v)", err)
	}
	newest(t, r) // what was given out goes on to work
}

func TestRepositoriesNotAllowedOrNotConfiguredAreRefusedByName(t *testing.T) {
	dir := configured(t, features, "http://127.0.0.1:1/cvmfs/"+features)
	s := NewRepositories(config.Folder{Dir: dir}, []string{"images.example.org"}, Options{Dir: t.TempDir()})
	if _, err := s.Repository(features); !errors.Is(err, ErrNotAllowed) || !strings.Contains(err.Error(), features) {
		t.Errorf("got %v, want ErrNotAllowed naming the repository", err)
	}
	if _, err := s.Repository("images.example.org"); !errors.Is(err, config.ErrNotConfigured) {
		t.Errorf("got %v, want config.ErrNotConfigured", err)
	}
	for _, name := range []string{"", "..", "a/b", "../" + features} {
		r := NewRepositories(config.Folder{Dir: dir}, nil, Options{Dir: t.TempDir()})
		if _, err := r.Repository(name); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
}
