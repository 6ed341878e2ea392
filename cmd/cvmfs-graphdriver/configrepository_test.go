package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/publishtest"
)

// configSite is a configuration repository with a server, and a host that uses it.
type configSite struct {
	t          *testing.T
	repository *publish.Repository
	folder     config.Folder
	down       atomic.Bool
	requests   atomic.Int32
}

func newConfigSite(t *testing.T) *configSite {
	t.Helper()
	s := &configSite{t: t, repository: publishtest.New(t, publish.Settings{FQRN: "config.example.org"})}
	files := http.FileServer(http.Dir(filepath.Join(s.repository.Dir(), "www")))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		if s.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"default.d/50-site.conf": "CVMFS_CONFIG_REPOSITORY=config.example.org\n",
		"default.local":          "CVMFS_HTTP_PROXY=DIRECT\nCVMFS_MAX_RETRIES=0\n",
		"config.d/config.example.org.conf": "CVMFS_SERVER_URL=" + server.URL + "/cvmfs/@fqrn@\nCVMFS_PUBLIC_KEY=" +
			s.repository.MasterKeyFile() + "\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.folder = config.Folder{Dir: dir}
	return s
}

// publish makes a revision with these below /etc/cvmfs.
func (s *configSite) publish(items ...publishtest.Item) {
	s.t.Helper()
	tx := publishtest.Begin(s.t, s.repository)
	publishtest.Ingest(s.t, tx, "/etc/cvmfs", publishtest.Pack(s.t, items...))
	publishtest.Commit(s.t, tx)
}

// load reads a repository's configuration as a process does that keeps its state in dir.
func (s *configSite) load(dir string) (*config.Config, error) {
	f := s.folder
	f.ConfigRepository = client.ConfigRepository(s.t.Context(), client.Options{Dir: dir})
	return f.Load("a.example.org")
}

func link(name, to string) publishtest.Item {
	return publishtest.Entry(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}, "")
}

func domain(server string) publishtest.Item {
	return publishtest.File("domain.d/example.org.conf", ". ../common.conf\nCVMFS_SERVER_URL=http://"+server+
		"/cvmfs/@fqrn@\nCVMFS_KEYS_DIR=/cvmfs/config.example.org/etc/cvmfs/keys\n")
}

func TestConfigurationRepositoryIsReadAndKeptForOfflineStarts(t *testing.T) {
	s := newConfigSite(t)
	key, err := os.ReadFile(s.repository.MasterKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	items := []publishtest.Item{
		publishtest.File("common.conf", "CVMFS_TIMEOUT=7\n"), domain("one"),
		publishtest.File("keys/a.pub", string(key)), publishtest.File("blacklist", "# none\n"),
		link("config.d/a.example.org.conf", "../more.conf"), publishtest.File("more.conf", "MORE=yes\n"),
		link("passwd", "/etc/passwd"), link("up", "../../../../../../etc/passwd"), link("loop", "loop"),
		link("inside", "/cvmfs/config.example.org/etc/cvmfs/common.conf"),
		publishtest.File("huge", strings.Repeat("x", 2<<20)),
	}
	s.publish(items...)
	state := t.TempDir()
	c, err := s.load(state)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Servers) != 1 || c.Servers[0] != "http://one/cvmfs/a.example.org" || c.Timeout.Seconds() != 7 ||
		c.Params["MORE"] != "yes" || len(c.PublicKeys) != 1 || len(c.Blacklists) != 2 || len(c.Findings) > 0 {
		t.Errorf("%+v", c)
	}
	if got, err := os.ReadFile(c.PublicKeys[0]); err != nil || !bytes.Equal(got, key) {
		t.Errorf("key: %q, %v", got, err)
	}
	root := filepath.Dir(c.Blacklists[1])
	for name, there := range map[string]bool{"inside": true, "passwd": false, "up": false, "loop": false, "huge": false} {
		info, err := os.Lstat(filepath.Join(root, name))
		if (err == nil) != there || there && !info.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	t.Run("a repository opened by it", func(t *testing.T) {
		all := client.NewRepositories(s.folder, nil, client.Options{Dir: state})
		if _, err := all.Repository("a.example.org"); err != nil {
			t.Error(err)
		}
	})
	t.Run("within a process it is asked for once", func(t *testing.T) {
		f := s.folder
		f.ConfigRepository = client.ConfigRepository(t.Context(), client.Options{Dir: state})
		for i, name := range []string{"a.example.org", "b.example.org", "c.example.org"} {
			if _, err := f.Load(name); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				s.requests.Store(0)
			}
		}
		if n := s.requests.Load(); n > 0 {
			t.Errorf("%d requests", n)
		}
	})
	t.Run("offline", func(t *testing.T) {
		s.down.Store(true)
		defer s.down.Store(false)
		if c, err := s.load(state); err != nil || c.Servers[0] != "http://one/cvmfs/a.example.org" {
			t.Errorf("%v", err)
		}
		// Nothing is known yet: the host's files alone don't do.
		if _, err := s.load(t.TempDir()); !errors.Is(err, config.ErrNotConfigured) ||
			!strings.Contains(err.Error(), "the configuration repository config.example.org: ") {
			t.Errorf("without a copy: %v", err)
		}
	})
	t.Run("a new revision", func(t *testing.T) {
		tx := publishtest.Begin(t, s.repository)
		if err := tx.Remove(t.Context(), "/etc/cvmfs"); err != nil {
			t.Fatal(err)
		}
		items[1] = domain("two")
		publishtest.Ingest(t, tx, "/etc/cvmfs", publishtest.Pack(t, items...))
		publishtest.Commit(t, tx)
		if c, err := s.load(state); err != nil || c.Servers[0] != "http://two/cvmfs/a.example.org" {
			t.Errorf("%+v, %v", c, err)
		}
		if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the files of the revision before are still there: %v", err)
		}
		s.down.Store(true)
		defer s.down.Store(false)
		if c, err := s.load(state); err != nil || c.Servers[0] != "http://two/cvmfs/a.example.org" {
			t.Errorf("offline: %+v, %v", c, err)
		}
	})
	t.Run("blacklisted by the host", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(s.folder.Dir, "blacklist"), []byte("<config.example.org 100\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.load(state); err == nil || !strings.Contains(err.Error(), "blacklist") {
			t.Errorf("got %v", err)
		}
	})
}
