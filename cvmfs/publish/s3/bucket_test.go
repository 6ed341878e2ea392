package s3

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
)

func openBucket(t *testing.T, store *s3test.Store, prefix string) *Bucket {
	t.Helper()
	b, err := OpenBucket("s3://"+s3test.Bucket+prefix+"?endpoint="+store.URL, Options{Getenv: s3test.Env})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBucketsTellWhatOthersPut(t *testing.T) {
	store := s3test.NewStore(t)
	for _, key := range []string{"top", "in/a", "in/deep/b", "inside"} {
		store.Set(key, []byte("content of "+key), http.Header{"X-Amz-Meta-Node": {"n1"}, "Content-Type": {"text/x"}})
	}
	for prefix, want := range map[string][]string{
		"": {"in/a", "in/deep/b", "inside", "top"}, "/": {"in/a", "in/deep/b", "inside", "top"}, "/in": {"a", "deep/b"},
	} {
		b := openBucket(t, store, prefix)
		versions := map[string]string{}
		var keys []string
		if err := b.List(t.Context(), func(o Object) error {
			keys, versions[o.Key] = append(keys, o.Key), o.Version
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, keys); diff != "" {
			t.Errorf("%q: %s", prefix, diff)
		}
		for _, key := range keys {
			o, err := b.Stat(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if o.Version != versions[key] || o.Metadata["node"] != "n1" || o.Size == 0 {
				t.Errorf("%q: %+v, listed as %q", prefix, o, versions[key])
			}
		}
		if below, ok := b.Below("in/a"); !ok || below != keys[0] {
			t.Errorf("%q: %q, %t", prefix, below, ok)
		}
	}
	b := openBucket(t, store, "/in")
	f, err := b.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(f); string(text) != "content of in/a" || f.Close() != nil {
		t.Errorf("%q, %v", text, err)
	}
	if _, ok := b.Below("inside"); ok {
		t.Error("what lies elsewhere is taken for its own")
	}
	if err := errors.Join(b.Remove(t.Context(), "a"), b.Remove(t.Context(), "a")); err != nil {
		t.Error(err)
	}
	if _, err := b.Stat(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if got := strings.Join(store.Keys(), " "); got != "in/deep/b inside top" {
		t.Errorf("left: %s", got)
	}
}

func TestAnObjectThatIsReplacedHasAnotherVersion(t *testing.T) {
	store := s3test.NewStore(t)
	b := openBucket(t, store, "")
	seen := map[string]bool{}
	for _, content := range []string{"one", "two"} {
		store.Set("a", []byte(content), nil)
		o, err := b.Stat(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		seen[o.Version] = true
	}
	if len(seen) != 2 {
		t.Errorf("%v", seen)
	}
}

func TestAListThatStallsIsGivenUp(t *testing.T) {
	store, done := s3test.NewStore(t), make(chan struct{})
	defer close(done)
	store.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "<ListBucketResult>")
		w.(http.Flusher).Flush()
		<-done
	})
	b := openBucket(t, store, "")
	b.s.stall = 50 * time.Millisecond
	err := b.List(t.Context(), func(Object) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "nothing came") {
		t.Error(err)
	}
}
