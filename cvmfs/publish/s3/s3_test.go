package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
	"cvmfs-graphdriver/cvmfs/publish/storage"
)

func openStore(t testing.TB, store *s3test.Store) *Storage {
	t.Helper()
	s, err := Open(store.Address(), Options{Getenv: s3test.Env})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t testing.TB, s *Storage, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
}

func read(ctx context.Context, s *Storage, name string) (string, error) {
	f, err := s.Get(ctx, name)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(f)
	return string(b), errors.Join(err, f.Close())
}

func names(t testing.TB, s *Storage, prefix string) []string {
	t.Helper()
	var found []string
	if err := s.List(t.Context(), prefix, func(f storage.File) error {
		found = append(found, fmt.Sprintf("%s %d", f.Name, f.Size))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestFilesAreKeptAsCachesWantThem(t *testing.T) {
	store := s3test.NewStore(t)
	s := openStore(t, store)
	put(t, s, "data/ab/cd", "object")
	put(t, s, ".cvmfspublished", "former")
	put(t, s, ".cvmfspublished", "manifest")
	put(t, s, "data/ab/empty", "")
	for name, want := range map[string][2]string{
		"data/ab/cd": {"object", objectCaching}, ".cvmfspublished": {"manifest", mutableCaching},
		"data/ab/empty": {"", objectCaching},
	} {
		got, err := read(t.Context(), s, name)
		if err != nil || got != want[0] {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if n, err := s.Stat(t.Context(), name); err != nil || n != int64(len(want[0])) {
			t.Errorf("size of %s: %d, %v", name, n, err)
		}
		header := store.Objects["cvmfs/repo/"+name].Header
		if header.Get("Cache-Control") != want[1] || header.Get("X-Amz-Acl") != "public-read" {
			t.Errorf("%s: stored with %v", name, header)
		}
	}
	if got, want := names(t, s, "data/"), []string{
		"data/ab/cd 6",
		"data/ab/empty 0",
	}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("list: %v, want %v", got, want)
	}
	if err := s.Remove(t.Context(), "data/ab/cd", "data/none"); err != nil {
		t.Error(err)
	}
	if _, err := s.Stat(t.Context(), "data/ab/cd"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
	if _, err := s.Get(t.Context(), "data/ab/cd"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
}

func TestManyFilesAreListedAndRemovedPageByPage(t *testing.T) {
	store := s3test.NewStore(t)
	s := openStore(t, store)
	var all []string
	for i := range removedAtOnce + 5 {
		all = append(all, fmt.Sprintf("data/%04d", i))
		store.Objects["cvmfs/repo/"+all[i]] = s3test.Object{}
	}
	store.Objects["cvmfs/repository/data/other"] = s3test.Object{}
	if got := names(t, s, ""); len(got) != len(all) {
		t.Errorf("%d listed, want %d", len(got), len(all))
	}
	if store.Lists < 2 {
		t.Errorf("%d requests", store.Lists)
	}
	stop := errors.New("enough")
	if err := s.List(t.Context(), "", func(storage.File) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a list that was ended: %v", err)
	}
	if err := s.Remove(t.Context(), all...); err != nil {
		t.Fatal(err)
	}
	if len(store.Objects) != 1 {
		t.Errorf("%d left", len(store.Objects))
	}
}

func TestPassingFailuresAreTriedAgain(t *testing.T) {
	store := s3test.NewStore(t)
	s := openStore(t, store)
	store.Fail = 2
	put(t, s, "data/a", "content")
	store.Fail = 2
	if got, err := read(t.Context(), s, "data/a"); err != nil || got != "content" {
		t.Errorf("%q, %v", got, err)
	}
	store.Fail = 1000
	if err := s.Put(t.Context(), "data/b", strings.NewReader("x"), 1); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a store that is down: %v", err)
	}
}

func TestTruncatedContentIsAnError(t *testing.T) {
	store := s3test.NewStore(t)
	s := openStore(t, store)
	put(t, s, "data/a", strings.Repeat("content", 1000))
	store.Cut = true
	if got, err := read(t.Context(), s, "data/a"); err == nil {
		t.Errorf("%d bytes of a truncated file", len(got))
	}
	if err := s.Put(t.Context(), "data/short", io.LimitReader(strings.NewReader("four"), 4), 5); err == nil {
		t.Error("a file shorter than said was stored")
	}
	if _, ok := store.Objects["cvmfs/repo/data/short"]; ok {
		t.Error("a truncated file is stored")
	}
}

func TestCancelledRequestsEnd(t *testing.T) {
	s := openStore(t, s3test.NewStore(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Stat(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("stat: %v", err)
	}
	if err := s.List(ctx, "", func(storage.File) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("list: %v", err)
	}
	if err := s.Remove(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("remove: %v", err)
	}
}

func TestMissingBucketAndWrongCredentialsAreNoMissingFile(t *testing.T) {
	store := s3test.NewStore(t)
	s, err := Open("s3://other/repo?endpoint="+store.URL, Options{Getenv: s3test.Env})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "a"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing bucket: %v", err)
	}
	wrong := func(name string) string { return strings.ReplaceAll(s3test.Env(name), s3test.AccessKey, "AKIDOTHER") }
	if s, err = Open(store.Address(), Options{Getenv: wrong}); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "a", bytes.NewReader(nil), 0); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("wrong credentials: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"s3://b/p": "", "s3://bucket/a/b/": "",
		"s3://bucket/p?acl=none&region=eu-west-1&endpoint=http://127.0.0.1:9000": "",
		"": "want s3://", "s3://": "want s3://", "s3://bucket": "want s3://", "http://b/p": "want s3://",
		"s3://b/../p": "want s3://", "s3://b/a//p": "want s3://",
		"s3://key:" + s3test.SecretKey + "@b/p": "no credentials", "s3://b/p?secret=x": "unknown",
		"s3://b/p?region=":          "want one value",
		"s3://b/p?endpoint=ftp://x": "endpoint: want", "s3://b/p?endpoint=http://u:p@x": "endpoint: want",
		"s3://b/p?endpoint=http://x/y": "endpoint: want",
	} {
		_, err := Open(text, Options{Getenv: s3test.Env})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), s3test.SecretKey) {
			t.Errorf("error shows the password: %v", err)
		}
	}
}

func TestCredentialsComeFromTheEnvironmentOrAPrivateFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials")
	text := "[default]\naws_access_key_id = " + s3test.AccessKey + "\naws_secret_access_key = " + s3test.SecretKey +
		"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	open := func(pairs ...string) error {
		get := func(name string) string {
			for i := 0; i < len(pairs); i += 2 {
				if pairs[i] == name {
					return pairs[i+1]
				}
			}
			return map[string]string{"HOME": home}[name]
		}
		s, err := Open(s3test.NewStore(t).Address(), Options{Getenv: get})
		if err != nil {
			return err
		}
		return s.Put(t.Context(), "a", strings.NewReader("x"), 1)
	}
	for _, pairs := range [][]string{
		{"AWS_ACCESS_KEY_ID", s3test.AccessKey, "AWS_SECRET_ACCESS_KEY", s3test.SecretKey},
		{"MINIO_ACCESS_KEY", s3test.AccessKey, "MINIO_SECRET_KEY", s3test.SecretKey},
		{"MINIO_ROOT_USER", s3test.AccessKey, "MINIO_ROOT_PASSWORD", s3test.SecretKey},
		{"AWS_SHARED_CREDENTIALS_FILE", file},
	} {
		if err := open(pairs...); err != nil {
			t.Errorf("%v: %v", pairs, err)
		}
	}
	if err := open(); !errors.Is(err, errNone) {
		t.Errorf("none: %v", err)
	}
	if err := open("AWS_ACCESS_KEY_ID", s3test.AccessKey); err == nil {
		t.Error("half of a pair was taken")
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := open("AWS_SHARED_CREDENTIALS_FILE", file); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("a file others can read: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"s3://b/p", "s3://b/p?endpoint=http://x:1&region=r&acl=none", "s3://u:p@b/p",
		"s3://b/%2e%2e/p", "://",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parse(text)
		if err == nil && (a.bucket == "" || a.prefix == "" || strings.HasPrefix(a.prefix, "..") ||
			strings.HasSuffix(a.prefix, "/")) {
			t.Errorf("%q gives %+v", text, a)
		}
	})
}
