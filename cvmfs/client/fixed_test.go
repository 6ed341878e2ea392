package client_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/trust"
	"cvmfs-graphdriver/test/publishtest"
)

// past is a repository of three revisions after the empty one, the first of which has the tag v1.
type past struct {
	*publish.Repository
	config.Config
	dir string // what the client keeps
}

func newPast(t *testing.T) *past {
	t.Helper()
	r := publishtest.New(t, publish.Settings{FQRN: "past.example.org"})
	for i := range 3 {
		tx := publishtest.Begin(t, r)
		layer := publishtest.Pack(t, publishtest.Entry(
			tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("file", i+1), Mode: 0o644}, fmt.Sprint(i)))
		publishtest.Ingest(t, tx, fmt.Sprint("/r", i+1), layer)
		publishtest.Commit(t, tx)
		if i == 0 {
			if err := r.AddTag(t.Context(), "v1", "", ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(r.Dir(), "www"))))
	t.Cleanup(server.Close)
	return &past{r, config.Config{
		FQRN: r.FQRN(), Servers: []string{server.URL + "/cvmfs/" + r.FQRN()}, ProxyGroups: [][]string{{config.Direct}},
		PublicKeys: []string{r.MasterKeyFile()},
	}, t.TempDir()}
}

// newest opens the repository as its configuration is now.
func (p *past) newest(t *testing.T) (*client.Revision, error) {
	t.Helper()
	r, err := client.Open(&p.Config, client.Options{Dir: p.dir})
	if err != nil {
		return nil, err
	}
	defer r.Fetcher().Close()
	return r.Newest(t.Context())
}

// folders tells which of the layers a revision has.
func folders(t *testing.T, v *client.Revision) (names string) {
	t.Helper()
	for i := range 3 {
		if _, err := v.Lookup(t.Context(), fmt.Sprint("/r", i+1)); err == nil {
			names += fmt.Sprint(i + 1)
		}
	}
	return names
}

func TestConfigurationHoldsOnToARevision(t *testing.T) {
	p := newPast(t)
	last, err := p.newest(t)
	if err != nil {
		t.Fatal(err)
	}
	tags, err := p.Tags(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var first string
	for _, tag := range tags {
		if tag.Name == "v1" {
			first = tag.Root.String()
		}
	}
	later := time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05Z")
	for _, c := range []struct {
		name  string
		fixed config.Fixed
		want  string // folders; or else an error
	}{
		{"the newest", config.Fixed{}, "123"},
		{"a tag", config.Fixed{Tag: "v1"}, "1"},
		{"a hash", config.Fixed{RootHash: first}, "1"},
		{"a hash before a tag", config.Fixed{RootHash: last.Root.String(), Tag: "v1"}, "123"},
		{"a tag before a date", config.Fixed{Tag: "v1", Date: later}, "1"},
		{"a date", config.Fixed{Date: later}, "123"},
		{"a date before all", config.Fixed{Date: "2001-01-31T12:00:00Z"}, "no revision was tagged on 2001-01-31T12:00:00Z"},
		{"no date", config.Fixed{Date: "2001-01-31"}, "CVMFS_REPOSITORY_DATE"},
		{"no such tag", config.Fixed{Tag: "v2"}, `no tag "v2"`},
		{"no tag's name", config.Fixed{Tag: "a b"}, "CVMFS_REPOSITORY_TAG"},
		{"no hash", config.Fixed{RootHash: "123"}, "CVMFS_ROOT_HASH"},
		{"nobody's hash", config.Fixed{RootHash: strings.Repeat("ab", 20)}, "holds on to this revision"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.Fixed = c.fixed
			v, err := p.newest(t)
			if err != nil {
				if !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %s", err, c.want)
				}
				return
			}
			if got := folders(t, v); got != c.want || v.Published.IsZero() {
				t.Errorf("folders %s, want %s; published %v", got, c.want, v.Published)
			}
		})
	}
}

// A revision that is held on to is none that is blacklisted, and what was the newest is remembered all the same.
func TestRevisionHeldOnToIsProtectedAsAnyOther(t *testing.T) {
	p := newPast(t)
	p.Fixed.Tag = "v1"
	v, err := p.newest(t)
	if err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile(filepath.Join(p.dir, "newest"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(string(state), fmt.Sprintf("R%d\n", v.Number)) {
		t.Errorf("what is remembered is the old revision: %s", state)
	}
	blacklist := filepath.Join(t.TempDir(), "blacklist")
	if err := os.WriteFile(blacklist, fmt.Appendf(nil, "<%s %d\n", v.FQRN, v.Number+1), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Blacklists = []string{blacklist}
	for _, fixed := range []config.Fixed{{Tag: "v1"}, {RootHash: v.Root.String()}} {
		p.Fixed = fixed
		if _, err := p.newest(t); !errors.Is(err, trust.ErrBlacklisted) {
			t.Errorf("%+v: %v", fixed, err)
		}
	}
	p.Fixed = config.Fixed{}
	if _, err := p.newest(t); err != nil {
		t.Errorf("the newest: %v", err)
	}
}
