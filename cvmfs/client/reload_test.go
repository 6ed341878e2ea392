package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/test/testutil"
)

// reloading is an open repository, its configuration and the log.
type reloading struct {
	*Repositories
	t   *testing.T
	dir string
	log bytes.Buffer
}

func newReloading(t *testing.T) *reloading {
	t.Helper()
	r := &reloading{t: t, dir: configured(t, features, "http://127.0.0.1:1/cvmfs/"+features)}
	r.Repositories = NewRepositories(config.Folder{Dir: r.dir}, nil,
		Options{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&r.log, nil))})
	if _, err := r.Repository(features); err != nil {
		t.Fatal(err)
	}
	return r
}

// write writes a file of the configuration.
func (r *reloading) write(name, text string) {
	r.t.Helper()
	name = filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// reload reloads, and returns what came of it.
func (r *reloading) reload() Reloaded {
	r.t.Helper()
	list, err := r.Reload(r.t.Context(), false)
	if err != nil {
		r.t.Fatal(err)
	}
	if len(list) != 1 || list[0].FQRN != features {
		r.t.Fatalf("%+v", list)
	}
	return list[0]
}

func TestChangedConfigurationCounts(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key.pub")
	for _, c := range []struct {
		name, file, text string
		changed          []string
	}{
		{"nothing", "config.d/other.example.org.conf", "CVMFS_TIMEOUT=1\n", nil},
		{"a proxy", "default.local", "CVMFS_HTTP_PROXY=http://127.0.0.1:3\n", nil}, // config.d says otherwise
		{"a proxy", "config.d/" + features + ".local", "CVMFS_HTTP_PROXY=http://127.0.0.1:3\n", []string{"CVMFS_HTTP_PROXY"}},
		{"a new file", "domain.d/example.org.conf", "CVMFS_TIMEOUT=7\n", []string{"CVMFS_TIMEOUT"}},
		{"a comment", "default.local", "# CVMFS_TIMEOUT=7\n", nil},
	} {
		r := newReloading(t)
		before, err := r.Fetcher(features)
		if err != nil {
			t.Fatal(err)
		}
		r.write(c.file, c.text)
		got := r.reload()
		after, err := r.Fetcher(features)
		if diff := cmp.Diff(c.changed, got.Changed); diff != "" || got.Err != nil || err != nil {
			t.Errorf("%s: %v, %v %s", c.name, got.Err, err, diff)
		}
		if (before != after) != (c.changed != nil) { // what hasn't changed keeps what it knows of servers
			t.Errorf("%s: another fetcher: %t", c.name, before != after)
		}
	}
	// The content of a file that is named counts as what names it.
	r := newReloading(t)
	text, err := os.ReadFile(testutil.PublicKey(t, features))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r.write("config.d/"+features+".local", "CVMFS_PUBLIC_KEY="+key+"\n")
	r.write("blacklist", "")
	if got := r.reload(); !slices.Contains(got.Changed, "CVMFS_PUBLIC_KEY") || got.Err != nil {
		t.Errorf("%+v", got)
	}
	if err := os.WriteFile(key, []byte("no key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := r.reload(); !errors.Is(got.Err, config.ErrTrust) {
		t.Errorf("a key that is none: %+v", got)
	}
	if err := os.WriteFile(key, append(text, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := r.reload(); !slices.Equal(got.Changed, []string{key}) || got.Err != nil {
		t.Errorf("a changed key: %+v", got)
	}
	r.write("blacklist", "<"+features+" 1000\n")
	if got := r.reload(); !slices.Equal(got.Changed, []string{filepath.Join(r.dir, "blacklist")}) || got.Err != nil {
		t.Errorf("a changed blacklist: %+v", got)
	}
}

func TestConfigurationThatCanNotBeUsedLeavesTheFormerOne(t *testing.T) {
	r := newReloading(t)
	before, err := r.Fetcher(features)
	if err != nil {
		t.Fatal(err)
	}
	const local = "config.d/" + features + ".local"
	r.write(local, "CVMFS_SERVER_URL=ftp://nowhere/x\nCVMFS_TIMEOUT=7\n")
	for range 3 {
		if got := r.reload(); got.Err == nil || got.Changed != nil {
			t.Fatalf("%+v", got)
		}
	}
	if n := strings.Count(r.log.String(), "can't be used"); n != 1 {
		t.Errorf("told %d times:\n%s", n, &r.log)
	}
	if after, err := r.Fetcher(features); err != nil || after != before {
		t.Errorf("the former one doesn't count: %v", err)
	}
	if _, err := r.Repository(features); err != nil {
		t.Errorf("only servers were wrong, and yet: %v", err)
	}
	r.write(local, "CVMFS_TIMEOUT=7\n")
	if got := r.reload(); got.Err != nil || !slices.Equal(got.Changed, []string{"CVMFS_TIMEOUT"}) {
		t.Errorf("mended: %+v", got)
	}
}

// Whom to trust is never taken from what was read before: images that there are can be read, and others not be had.
func TestLossOfTrustEndsPullsAndNoReads(t *testing.T) {
	const local = "config.d/" + features + ".local"
	for name, text := range map[string]string{
		"no key":            "CVMFS_PUBLIC_KEY=\n",
		"a key's file":      "CVMFS_PUBLIC_KEY=/nowhere/x.pub\n",
		"a failed line":     "CVMFS_PUBLIC_KEY=$(some-program)\n",
		"not allowed":       "CVMFS_STRICT_MOUNT=yes\n",
		"repository needed": "", // see below
	} {
		r := newReloading(t)
		before, err := r.Fetcher(features)
		if err != nil {
			t.Fatal(err)
		}
		r.write(local, text)
		if text == "" {
			r.write("config.d/config.example.org.conf", "CVMFS_SERVER_URL=http://127.0.0.1:1/x\nCVMFS_HTTP_PROXY=DIRECT\n"+
				"CVMFS_PUBLIC_KEY="+testutil.PublicKey(t, features)+"\nCVMFS_MAX_RETRIES=0\n")
			r.write("default.conf", "CVMFS_CONFIG_REPOSITORY=config.example.org\nCVMFS_CONFIG_REPO_REQUIRED=yes\n")
		}
		if got := r.reload(); !errors.Is(got.Err, config.ErrTrust) {
			t.Errorf("%s: %+v", name, got)
		}
		if _, err := r.Repository(features); !errors.Is(err, config.ErrTrust) {
			t.Errorf("%s: a repository to pull from: %v", name, err)
		}
		if after, err := r.Fetcher(features); err != nil || after != before {
			t.Errorf("%s: objects can't be fetched: %v", name, err)
		}
		for _, file := range []string{local, "default.conf"} {
			if err := os.Remove(filepath.Join(r.dir, file)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
		if got := r.reload(); got.Err != nil {
			t.Errorf("%s, mended: %+v", name, got)
		}
		if _, err := r.Repository(features); err != nil {
			t.Errorf("%s, mended: %v", name, err)
		}
	}
}

// Files that lie there as they did are not read again, unless somebody wants it.
func TestWhatHasNotChangedIsNotReadAgain(t *testing.T) {
	r := newReloading(t)
	at := func() *config.Seen { return r.kept(features).seen }
	opened := at()
	r.reload()
	if at() == opened {
		t.Error("files that have just been written are taken for those that were read")
	}
	time.Sleep(2100 * time.Millisecond) // until a further change would show in their times
	r.reload()
	quiet := at()
	if r.reload(); at() != quiet {
		t.Error("files that have not changed are read again")
	}
	if _, err := r.Reload(t.Context(), true); err != nil || at() == quiet {
		t.Errorf("files aren't read again though somebody wants it: %v", err)
	}
	r.write("default.d/10-new.conf", "CVMFS_TIMEOUT=7\n") // was looked for, in a folder that wasn't there
	if got := r.reload(); !slices.Equal(got.Changed, []string{"CVMFS_TIMEOUT"}) {
		t.Errorf("a new file: %+v", got)
	}
}

// A caller who leaves ends reading, which says nothing of the files.
func TestReloadEndsWithItsCaller(t *testing.T) {
	r := newReloading(t)
	r.write("default.conf", "CVMFS_TIMEOUT=7\n")
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the caller has gone")
	cancel(gone)
	if list, err := r.Reload(ctx, true); !errors.Is(err, gone) || list != nil {
		t.Errorf("%+v, %v", list, err)
	}
	if got := r.InUse()[0]; got.Err != nil || strings.Contains(r.log.String(), "can't be used") {
		t.Errorf("%v\n%s", got.Err, &r.log)
	}
	if got := r.reload(); !slices.Equal(got.Changed, []string{"CVMFS_TIMEOUT"}) {
		t.Errorf("afterwards: %+v", got)
	}
}

// What a tick of the poll costs where nothing has changed, and where all is read again.
func BenchmarkReload(b *testing.B) {
	folder := config.Folder{Dir: configured(b, features, "http://127.0.0.1:1/cvmfs/"+features)}
	r := NewRepositories(folder, nil, Options{Dir: b.TempDir()})
	if _, err := r.Repository(features); err != nil {
		b.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond) // as above
	for _, anew := range []bool{false, true} {
		b.Run(fmt.Sprintf("anew=%t", anew), func(b *testing.B) {
			for b.Loop() {
				if _, err := r.Reload(b.Context(), anew); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A configuration repository that can't be had at first is asked for again, and what came from one isn't given up for
// its absence.
func TestConfigurationRepositoryIsAskedForAgain(t *testing.T) {
	r := &reloading{t: t, dir: configured(t, features, "http://127.0.0.1:1/cvmfs/"+features)}
	r.write("config.d/config.example.org.conf", "CVMFS_SERVER_URL=http://127.0.0.1:1/x\nCVMFS_HTTP_PROXY=DIRECT\n"+
		"CVMFS_PUBLIC_KEY=/x\n")
	r.write("default.conf", "CVMFS_CONFIG_REPOSITORY=config.example.org\n")
	remote := t.TempDir()
	if err := os.MkdirAll(filepath.Join(remote, "etc/cvmfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(remote, "etc/cvmfs/blacklist")
	if err := os.WriteFile(list, []byte("<"+features+" 1000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	away := errors.New("no server answers")
	r.Repositories = NewRepositories(config.Folder{Dir: r.dir, ConfigRepository: func(*config.Config) (string, error) {
		return remote, away
	}}, nil, Options{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&r.log, nil))})
	if _, err := r.Repository(features); err != nil {
		t.Fatal(err)
	}
	if got := r.reload(); got.Err != nil || got.Changed != nil {
		t.Errorf("still away: %+v", got)
	}
	away = nil
	if got := r.reload(); got.Err != nil || !slices.Contains(got.Changed, list) {
		t.Errorf("it is there: %+v", got)
	}
	away = errors.New("expired")
	if got := r.reload(); got.Err == nil || !strings.Contains(got.Err.Error(), "can't be had") {
		t.Errorf("it is away again: %+v", got)
	}
	if c, err := r.Config(features); err != nil || !slices.Contains(c.Blacklists, list) {
		t.Errorf("its blacklist has gone: %v", err)
	}
}

// The servers of the configuration repository are asked again after a failure, later after an answer, and at once
// where somebody says so.
func TestAnswersOfTheConfigurationRepositoryGetOld(t *testing.T) {
	g := newConfigGetter(Options{Dir: t.TempDir()})
	c := &config.Config{FQRN: "config.example.org"} // it has no servers, so nobody is waited for
	before := time.Now()
	if _, err := g.get(t.Context(), c); err == nil {
		t.Fatal("files of nowhere")
	}
	if until := g.got[c.FQRN].until; until.Before(before.Add(configRetry)) || until.After(time.Now().Add(configRetry)) {
		t.Errorf("asked again in %v", time.Until(until))
	}
	g.got[c.FQRN] = configAnswer{dir: "kept", until: time.Now().Add(time.Hour)}
	if dir, err := g.get(t.Context(), c); dir != "kept" || err != nil {
		t.Errorf("%q, %v", dir, err)
	}
	g.forget()
	if _, err := g.get(t.Context(), c); err == nil {
		t.Error("the servers aren't asked")
	}
}
