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
func configured(t testing.TB, fqrn, url string) string {
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

// Who reads an open repository doesn't wait for one that is being opened, or for a Reload, whatever servers its
// configuration waits for.
func TestOpeningKeepsNobodyWaiting(t *testing.T) {
	dir := configured(t, features, "http://127.0.0.1:1/cvmfs/"+features)
	for name, text := range map[string]string{
		"default.conf":                     "CVMFS_CONFIG_REPOSITORY=config.example.org\n",
		"config.d/config.example.org.conf": "CVMFS_SERVER_URL=http://127.0.0.1:1\nCVMFS_HTTP_PROXY=DIRECT\nCVMFS_PUBLIC_KEY=/x\n",
		"config.d/other.example.org.conf":  "CVMFS_SERVER_URL=http://127.0.0.1:1\nCVMFS_HTTP_PROXY=DIRECT\nCVMFS_PUBLIC_KEY=" + testutil.PublicKey(t, features) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	asked, answer := make(chan bool), make(chan bool)
	folder := config.Folder{Dir: dir, ConfigRepository: func(*config.Config) (string, error) {
		asked <- true
		<-answer
		return t.TempDir(), nil
	}}
	s := NewRepositories(folder, nil, Options{Dir: t.TempDir()})
	open := func(name string) chan error {
		opened := make(chan error, 1)
		go func() {
			_, err := s.Repository(name)
			opened <- err
		}()
		<-asked
		return opened
	}
	first := open(features)
	answer <- true
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	second := open("other.example.org")
	if _, err := s.Fetcher(features); err != nil { // it would hang
		t.Error(err)
	}
	answer <- true
	if err := <-second; err != nil {
		t.Error(err)
	}
	reloaded := make(chan []Reloaded)
	go func() {
		list, _ := s.Reload(t.Context(), false) // what it says is in the list
		reloaded <- list
	}()
	for range 2 {
		<-asked
		if _, err := s.Fetcher(features); err != nil {
			t.Error(err)
		}
		answer <- true
	}
	if list := <-reloaded; len(list) != 2 || list[0].Err != nil || list[1].Err != nil {
		t.Errorf("%+v", list)
	}
}
