package publish_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/trust"
	. "cvmfs-graphdriver/test/publishtest"
)

// ownKeys makes a repository whose keys no other test sees, for one that changes them.
func ownKeys(t testing.TB) *Repository {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repo")
	if err := Create(t.Context(), dir, Small(Settings{}), Options{}); err != nil {
		t.Fatal(err)
	}
	return open(t, dir, time.Now)
}

func open(t testing.TB, dir string, now func() time.Time) *Repository {
	t.Helper()
	r, err := Open(dir, Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestExpiredWhitelistIsRenewed(t *testing.T) {
	r := New(t, Small(Settings{}))
	late := open(t, r.Dir(), func() time.Time { return time.Now().Add(40 * 24 * time.Hour) })
	if _, err := late.Begin(t.Context()); !errors.Is(err, ErrExpired) ||
		!strings.Contains(err.Error(), "publish resign") {
		t.Fatalf("begin with an expired whitelist: %v", err)
	}
	info, err := late.Info(t.Context())
	if err != nil || !info.Expired {
		t.Fatalf("info: %+v, %v", info, err)
	}
	expires, err := late.Resign(t.Context(), ResignOptions{Days: 5})
	if err != nil {
		t.Fatal(err)
	}
	info, err = late.Info(t.Context())
	if err != nil || info.Expired || !info.Expires.Equal(expires) {
		t.Errorf("info after resign: %+v, %v; want %v", info, err, expires)
	}
	if left := expires.Sub(late.Now()); left > 5*24*time.Hour || left < 5*24*time.Hour-time.Hour {
		t.Errorf("the list is good for %v", left)
	}
	publishFile(t, late, "/after")
}

func TestNewKeyPublishesAndTheFormerRevisionStaysBelieved(t *testing.T) {
	r := ownKeys(t)
	before, err := r.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resign(t.Context(), ResignOptions{NewKey: true}); err != nil {
		t.Fatal(err)
	}
	still, err := r.Head(t.Context())
	if err != nil || still.Certificate.String() != before.Certificate.String() {
		t.Fatalf("former revision: %v", err)
	}
	publishFile(t, r, "/new")
	after, err := r.Head(t.Context())
	if err != nil || after.Certificate.String() == before.Certificate.String() {
		t.Errorf("new revision is signed with %v: %v", after.Certificate, err)
	}
	for name, mode := range map[string]os.FileMode{".key": 0o600, ".masterkey": 0o600} {
		if info, err := os.Stat(r.Key(name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestChangeOfKeysThatWasCutOffIsFinishedByTheNextResign(t *testing.T) {
	r := ownKeys(t)
	if err := r.ReplaceKey(); err != nil { // and the process ends here
		t.Fatal(err)
	}
	if _, err := r.Begin(t.Context()); !errors.Is(err, ErrOtherKey) ||
		!strings.Contains(err.Error(), "publish resign") {
		t.Fatalf("begin: %v", err)
	}
	if err := r.SettleCertificate(); err != nil { // and here, before the whitelist
		t.Fatal(err)
	}
	if _, err := r.Begin(t.Context()); !errors.Is(err, trust.ErrNotWhitelisted) ||
		!strings.Contains(err.Error(), "publish resign") {
		t.Fatalf("begin: %v", err)
	}
	if _, err := r.Resign(t.Context(), ResignOptions{}); err != nil {
		t.Fatal(err)
	}
	publishFile(t, r, "/after")
	if _, err := r.Head(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestResignRefusesWhatItCannotVouchFor(t *testing.T) {
	r := ownKeys(t)
	list := filepath.Join(r.Storage().String(), trust.WhitelistFile)
	good, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1
	if err := os.WriteFile(list, forged, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resign(t.Context(), ResignOptions{}); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("a list somebody else signed: %v", err)
	}
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resign(t.Context(), ResignOptions{}); err != nil {
		t.Errorf("no list: %v", err)
	}
	if _, err := r.Head(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := r.Resign(t.Context(), ResignOptions{Days: -1}); err == nil {
		t.Error("a list of the past was signed")
	}
	if err := os.Chmod(r.Key(".masterkey"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resign(t.Context(), ResignOptions{}); err == nil || !strings.Contains(err.Error(), "0600") {
		t.Errorf("a master key others can read: %v", err)
	}
	if err := os.Remove(r.Key(".masterkey")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resign(t.Context(), ResignOptions{}); !errors.Is(err, os.ErrNotExist) ||
		!strings.Contains(err.Error(), "bring the master key") {
		t.Errorf("no master key: %v", err)
	}
	publishFile(t, r, "/without-master-key")
}

func TestInfoTellsWhatIsPublished(t *testing.T) {
	r := New(t, Small(Settings{}))
	s := publishFile(t, r, "/dir/file")
	i, err := r.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i.FQRN != FQRN || i.Revision != s.Revision || i.Root != s.Root.String() || i.Expired || i.Tags != 3 ||
		i.Counters.Regular != 1 || i.Counters.Dir != 2 ||
		i.Counters.FileSize != int64(len("/dir/file")) {
		t.Errorf("info: %+v", i)
	}
}
