package storage

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func put(t *testing.T, s Storage, name, content string) {
	t.Helper()
	if err := s.Put(context.Background(), name, strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
}

func TestLocalStorageKeepsWhatIsPut(t *testing.T) {
	for what, named := range map[string]bool{"files without names": false, "temporary names": true} {
		t.Run(what, func(t *testing.T) {
			ctx := t.Context()
			defer unix.Umask(unix.Umask(0o077))
			l, err := MakeLocal(filepath.Join(t.TempDir(), "www"))
			if err != nil {
				t.Fatal(err)
			}
			l.named.Store(named)
			want := map[string]string{"data/3f/abC": "catalog", "data/3f/ab": "", ".cvmfspublished": "new"}
			put(t, l, ".cvmfspublished", "old")
			put(t, l, "data/3f/ab", "what a loss of power left")
			for name, content := range want {
				put(t, l, name, content)
			}
			got := map[string]string{}
			err = l.List(ctx, "", func(s File) error {
				f, err := l.Get(ctx, s.Name)
				if err != nil {
					return err
				}
				defer f.Close()
				b, err := io.ReadAll(f)
				got[s.Name] = string(b)
				if info, statErr := os.Stat(filepath.Join(l.String(), s.Name)); statErr != nil ||
					info.Mode() != 0o644 || info.Size() != s.Size {
					t.Errorf("%s: %v, %v", s.Name, info.Mode(), statErr)
				}
				return err
			})
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%v, (-want +got):\n%s", err, diff)
			}
			if left, err := os.ReadDir(filepath.Join(l.String(), txnFolder)); err != nil || len(left) > 0 {
				t.Errorf("left in %s: %v, %v", txnFolder, left, err)
			}
			if err := l.Remove(ctx, "data/3f/ab", "data/3f/never"); err != nil {
				t.Error(err)
			}
			if _, err := l.Stat(ctx, "data/3f/ab"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stat of what was removed: %v", err)
			}
			if _, err := l.Get(ctx, "data/3f/ab"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("get of what was removed: %v", err)
			}
			if err := l.Sync(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLocalStorageListsByPrefix(t *testing.T) {
	l, err := MakeLocal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"data/3f/a", "data/3f/b", "data/40/a", ".cvmfsreflog"} {
		put(t, l, name, "x")
	}
	for prefix, want := range map[string][]string{
		"":          {".cvmfsreflog", "data/3f/a", "data/3f/b", "data/40/a"},
		"data/":     {"data/3f/a", "data/3f/b", "data/40/a"},
		"data/3f/a": {"data/3f/a"},
		".cvmfs":    {".cvmfsreflog"},
		"none":      nil,
	} {
		var got []string
		err := l.List(t.Context(), prefix, func(s File) error {
			got = append(got, s.Name)
			return nil
		})
		slices.Sort(got)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v, (-want +got):\n%s", prefix, err, diff)
		}
	}
}

func TestLocalStorageStoresNothingThatIsNotWhole(t *testing.T) {
	l, err := MakeLocal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	for what, content := range map[string]io.Reader{
		"too short": strings.NewReader("xx"),
		"too long":  strings.NewReader("xxxx"),
		"failing":   io.MultiReader(strings.NewReader("xx"), readFails{broken}),
	} {
		for _, name := range []string{"data/3f/a", ".cvmfspublished"} {
			if err := l.Put(t.Context(), name, content, 3); err == nil {
				t.Errorf("%s: %s was stored", what, name)
			}
			if _, err := l.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s is there: %v", what, name, err)
			}
		}
	}
	for _, name := range []string{"../out", "/abs", "data/../../x", ""} {
		if err := l.Put(t.Context(), name, bytes.NewReader(nil), 0); err == nil {
			t.Errorf("%q was stored", name)
		}
	}
}

type readFails struct{ err error }

func (r readFails) Read([]byte) (int, error) { return 0, r.err }
