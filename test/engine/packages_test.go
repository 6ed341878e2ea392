package engine

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// fakeApt puts programs first in PATH that stand for apt-get, dpkg-deb and go: a download is an empty package, which
// unpacks to programs that print their version, to a loader that starts what it is told, and to a patchelf that writes
// beside a program which loader that wants. Each call of apt-get and each build adds a line to the file it gives.
func fakeApt(t *testing.T, aptGet string) (calls string) {
	t.Helper()
	dir := t.TempDir()
	calls = filepath.Join(dir, "calls")
	scripts := map[string]string{
		"apt-get":   "echo \"$*\" >>" + calls + "\n" + aptGet,
		"apt-cache": "printf 'thing-1\\nthing-2\\nother\\n'",
		"dpkg-deb": `for p in usr/sbin/dockerd usr/bin/docker usr/bin/containerd usr/bin/ctr usr/sbin/runc bin/busybox usr/bin/docker-registry usr/bin/dbus-daemon usr/sbin/squid; do
	mkdir -p "$3/${p%/*}" && printf '#!/bin/sh\necho version\n' >"$3/$p" && chmod 755 "$3/$p" || exit 1
done
mkdir -p "$3/usr/lib/x-linux-gnu"
cp "${0%/*}/loader" "$3/usr/lib/x-linux-gnu/ld-linux-x.so.2"
cp "${0%/*}/patchelf" "$3/usr/bin/"`,
		"loader": `shift 2; exec "$@"`,
		"patchelf": `for file; do :; done
case $1 in
--set-interpreter) echo "$2" >"$file.wants" ;;
--print-interpreter) cat "$file.wants" ;;
esac`,
		"go": "echo \"go $*\" >>" + calls + "\nmkdir bin",
	}
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("ENGINE", "")
	return calls
}

// goodApt downloads one package on install; $2 is the configuration, which lies in the work folder.
const goodApt = `case "$*" in *install*) sleep 0.2; touch "${2%/*}/archive/archives/docker.io.deb";; esac`

func count(t *testing.T, calls string) int {
	t.Helper()
	b, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

func TestFetchTwiceAtOnceFetchesOnce(t *testing.T) {
	calls := fakeApt(t, goodApt)
	cache := filepath.Join(t.TempDir(), "cache")
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			tools, err := Fetch(t.Context(), cache, io.Discard)
			if err != nil {
				t.Error(err)
			} else if want := filepath.Join(cache, "engine/usr/sbin/dockerd"); tools.Dockerd != want {
				t.Errorf("got %s, want %s", tools.Dockerd, want)
			}
		})
	}
	both.Wait()
	if got := count(t, calls); got != 2 {
		t.Errorf("apt-get was called %d times, want update and install", got)
	}
	if _, err := Find(t.Context(), cache); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(cache, "fetching")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the work folder is left: %v", err)
	}
}

func TestFetchMendsWhatAnInterruptedOneLeft(t *testing.T) {
	fakeApt(t, goodApt)
	cache := t.TempDir()
	for _, dir := range []string{"fetching/root/usr", "engine/usr/sbin"} {
		if err := os.MkdirAll(filepath.Join(cache, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Fetch(t.Context(), cache, io.Discard); err != nil {
		t.Error(err)
	}
}

func TestAFetchThatFailsLeavesNothingThatCounts(t *testing.T) {
	for name, test := range map[string]struct{ apt, says string }{
		"no network":      {"echo 'E: no network'; exit 100", "fetch the lists of Debian's packages"},
		"no such package": {`case "$*" in *install*) exit 100;; esac`, "fetch Debian's engine packages"},
		"nothing comes":   {"true", "try Debian's engine packages"},
	} {
		t.Run(name, func(t *testing.T) {
			fakeApt(t, test.apt)
			cache := t.TempDir()
			_, err := Fetch(t.Context(), cache, io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want an error with %q", err, test.says)
			}
			if _, err := Find(t.Context(), cache); !errors.Is(err, ErrNotFetched) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestAptWorksInFoldersOfOurOwn(t *testing.T) {
	seen := filepath.Join(t.TempDir(), "conf")
	fakeApt(t, `cp "$2" `+seen+"; "+goodApt)
	cache := t.TempDir()
	if _, err := Fetch(t.Context(), cache, io.Discard); err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`Dir::State "` + cache + `/`, `Dir::Cache "` + cache + `/`,
		"#clear APT::Update::Post-Invoke;", `Debug::NoLocking "true";`,
	} {
		if !strings.Contains(string(conf), line) {
			t.Errorf("apt's configuration lacks %s", line)
		}
	}
}

func TestFetchAllBringsNewerEnginesFromTheMachinesOwnMirror(t *testing.T) {
	seen := filepath.Join(t.TempDir(), "seen")
	calls := fakeApt(t, `case "$*" in
*indextargets*) printf 'Debian|Debian-Security|http://security.example.org/\nDebian|Debian|http://mirror.example.org/debian/\n';;
*download-only*) touch "${2%/*}/archive/archives/docker.io.deb";;
*download*) cat "${2%/*}"/*.list "$2" >>`+seen+` 2>/dev/null; touch "$(echo "$5" | cut -d: -f1).deb";;
esac`)
	cache := t.TempDir()
	for range 2 {
		if err := FetchAll(t.Context(), cache, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := count(t, calls), 2+4+4+2+4+2; got != want {
		t.Errorf("apt-get and go were called %d times, want %d", got, want)
	}
	sources, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	for _, suite := range []string{"trixie", "sid"} {
		want := "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example.org/debian/ " + suite +
			" main\n"
		if !strings.Contains(string(sources), want) || strings.Count(string(sources), "deb [") != 2 ||
			strings.Count(string(sources), `Dir::Etc::sourceparts "/dev/null";`) != 2 {
			t.Errorf("the sources of newer engines are %q, want %q and but one more", sources, want)
		}
	}
	newer, err := FindNewer(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(cache, "engine-trixie/usr/sbin/dockerd"); newer.Dockerd != want {
		t.Errorf("the newer engine is %s, want %s", newer.Dockerd, want)
	}
	for _, name := range []string{"busybox", "docker-registry", "dbus-daemon"} {
		if _, err := FindProgram(cache, name); err != nil {
			t.Error(err)
		}
	}
	if _, err := FindSquid(t.Context(), cache); err != nil {
		t.Error(err)
	}
}

func TestWhereAptKnowsNoDebianArchiveOnlyTheNewerEngineIsMissing(t *testing.T) {
	fakeApt(t, `case "$*" in
*download-only*) touch "${2%/*}/archive/archives/docker.io.deb";;
*download*) touch busybox.deb;;
esac`)
	cache := t.TempDir()
	err := FetchAll(t.Context(), cache, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "fetch the engine packages of Debian trixie") {
		t.Errorf("got %v, want an error about the newer engine", err)
	}
	if _, err := Find(t.Context(), cache); err != nil {
		t.Error(err)
	}
	if _, err := FindNewer(t.Context(), cache); !errors.Is(err, ErrNotFetched) {
		t.Errorf("the newer engine: %v", err)
	}
	if _, err := FindProgram(cache, "busybox"); err != nil {
		t.Error(err)
	}
}

func TestWhenTheCacheHasMovedSidsRuncIsPatchedAnew(t *testing.T) {
	calls := fakeApt(t, `case "$*" in
*indextargets*) printf 'Debian|Debian|http://mirror.example.org/debian/\n';;
*download*) touch thing.deb;;
esac`)
	former, cache := filepath.Join(t.TempDir(), "former"), filepath.Join(t.TempDir(), "cache")
	for range 2 {
		if err := fetchSid(t.Context(), former, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if got := count(t, calls); got != 4 {
		t.Errorf("apt-get was called %d times, want 4", got)
	}
	if err := os.Rename(former, cache); err != nil {
		t.Fatal(err)
	}
	if err := fetchSid(t.Context(), cache, io.Discard); err != nil {
		t.Fatal(err)
	}
	wants, err := os.ReadFile(filepath.Join(cache, sid.folder, sidRunc+".wants"))
	if want := filepath.Join(cache, sid.folder, sidLibraries, "ld-linux-x.so.2"); err != nil ||
		strings.TrimSpace(string(wants)) != want {
		t.Errorf("runc wants %q, %v, want %s", wants, err, want)
	}
}
