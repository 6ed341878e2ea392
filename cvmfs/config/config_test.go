package config

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const fqrn = "atlas.example.org"

// folder writes a configuration folder: contents by name, plus a key.
func folder(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// complete is what any repository needs, to be added to.
const complete = "CVMFS_SERVER_URL=http://s1.example.org/cvmfs/@fqrn@\nCVMFS_HTTP_PROXY=DIRECT\nCVMFS_PUBLIC_KEY=/etc/cvmfs/keys/example.org.pub\n"

// settled leaves of a configuration what most tests are about.
func settled(c *Config) {
	c.Params, c.Origins, c.Findings, c.Network = nil, nil, nil, Network{}
}

// minimal is a folder with complete and more in the repository's own file.
func minimal(t testing.TB, more string) string {
	return folder(t, map[string]string{"config.d/" + fqrn + ".conf": complete + more})
}

// packaged has the constructs and the arrangement of the files that CernVM-FS and its configuration packages install.
func packaged(t testing.TB, more map[string]string) string {
	files := map[string]string{
		"default.conf": `# Don't edit here.
CVMFS_CACHE_BASE=/var/lib/cvmfs
CVMFS_QUOTA_LIMIT=4000
CVMFS_TIMEOUT=5
CVMFS_TIMEOUT_DIRECT=10
CVMFS_STRICT_MOUNT=no
CVMFS_CLAIM_OWNERSHIP=yes
CVMFS_KEYS_DIR=/etc/cvmfs/keys
CVMFS_PROXY_RESET_AFTER=300
CVMFS_HOST_RESET_AFTER=1800
CVMFS_SEND_INFO_HEADER=no
if [ "x$CVMFS_BASE_ENV" = "x" ]; then
  readonly CVMFS_USER=cvmfs
  readonly CVMFS_MOUNT_DIR=/cvmfs
  readonly CVMFS_BASE_ENV=1
fi
`,
		"default.d/50-site.conf": "CVMFS_CONFIG_REPO_DEFAULT_ENV=\nCVMFS_DEFAULT_DOMAIN=example.org\n",
		"default.d/README":       "this is (not a script\n",
		"domain.d/example.org.conf": `if [ "$CVMFS_CONFIG_REPO_DEFAULT_ENV" != "" ]; then
  # the configuration repository has it all
  return
fi

CVMFS_HTTP_PROXY="$CVMFS_HTTP_PROXY"
. ../common.conf

if [ "$CVMFS_USE_CDN" = "yes" ]; then
  CVMFS_SERVER_URL="http://cdn.example.org/cvmfs/@fqrn@"
else
  CVMFS_SERVER_URL="http://s1.example.org:8000/cvmfs/@fqrn@;http://s2.example.org/opt/@org@/"
fi
CVMFS_KEYS_DIR=/etc/cvmfs/keys/example.org
CVMFS_USE_GEOAPI=yes
`,
		"common.conf": `if [ -z "$CVMFS_USE_CDN" ]; then
  if [ "$CVMFS_HTTP_PROXY" = "DIRECT" ] || [ "$CVMFS_HTTP_PROXY" = "auto;DIRECT" ]; then
    CVMFS_USE_CDN=yes
  fi
fi
if [ "$CVMFS_USE_CDN" != "yes" ] && [ "$CVMFS_CLIENT_PROFILE" != "custom" ]; then
  CVMFS_FALLBACK_PROXY="http://back1.example.org:3126;http://back2.example.org:3126"
fi
`,
		"keys/example.org/b.pub": "", "keys/example.org/a.pub": "", "keys/example.org/a.key": "", "keys/other.pub": "",
	}
	maps.Copy(files, more)
	return folder(t, files)
}

func TestPackagedConfigurationIsUnderstood(t *testing.T) {
	dir := packaged(t, map[string]string{"default.local": "CVMFS_HTTP_PROXY='http://p1:3128|p2:3128;DIRECT'\n"})
	for _, name := range []string{fqrn, "atlas"} {
		got, err := Load(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		params := got.Params
		settled(got)
		want := &Config{
			FQRN:    fqrn,
			Servers: []string{"http://s1.example.org:8000/cvmfs/" + fqrn, "http://s2.example.org/opt/atlas"},
			ProxyGroups: [][]string{
				{"http://p1:3128", "http://p2:3128"},
				{"http://back1.example.org:3126"},
				{"http://back2.example.org:3126"},
			},
			Timeout: 5 * time.Second, TimeoutDirect: 10 * time.Second, LowSpeedLimit: 1024, MaxRetries: 1,
			BackoffInit: 2 * time.Second, BackoffMax: 10 * time.Second,
			ProxyResetAfter: 300 * time.Second, HostResetAfter: 1800 * time.Second,
			PublicKeys: []string{
				filepath.Join(dir, "keys/example.org/a.pub"),
				filepath.Join(dir, "keys/example.org/b.pub"),
			},
			Blacklists:     []string{filepath.Join(dir, "blacklist")},
			ClaimOwnership: true,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		for name, want := range map[string]string{
			"CVMFS_USER": "cvmfs", "CVMFS_BASE_ENV": "1",
			"CVMFS_CACHE_BASE": "/var/lib/cvmfs", "CVMFS_CONFIG_REPO_DEFAULT_ENV": "",
		} {
			if got, ok := params[name]; !ok || got != want {
				t.Errorf("%s: got %q, %t, want %q", name, got, ok, want)
			}
		}
	}
}

func TestReturnEndsItsFileOnly(t *testing.T) {
	dir := packaged(t, map[string]string{
		"default.local":              "CVMFS_HTTP_PROXY=DIRECT\nCVMFS_CONFIG_REPO_DEFAULT_ENV=1\n",
		"config.d/" + fqrn + ".conf": complete + ". ./sub.conf\nAFTER=yes\n",
		"config.d/sub.conf":          "if [ a ]; then return; fi\nSUB=yes\n",
	})
	got, err := Load(dir, fqrn)
	if err != nil {
		t.Fatal(err)
	}
	if got.Params["CVMFS_USE_GEOAPI"] != "" || got.Params["SUB"] != "" || got.Params["AFTER"] != "yes" {
		t.Errorf("got %q", got.Params)
	}
}

func TestBuiltInDefaultsApplyWithoutPackage(t *testing.T) {
	dir := minimal(t, "")
	got, err := Load(dir, fqrn)
	if err != nil {
		t.Fatal(err)
	}
	settled(got)
	want := &Config{
		FQRN: fqrn, Servers: []string{"http://s1.example.org/cvmfs/" + fqrn}, ProxyGroups: [][]string{{Direct}},
		Timeout: 5 * time.Second, TimeoutDirect: 10 * time.Second, LowSpeedLimit: 1024, MaxRetries: 1,
		BackoffInit: 2 * time.Second, BackoffMax: 10 * time.Second,
		ProxyResetAfter: 300 * time.Second, HostResetAfter: 1800 * time.Second,
		PublicKeys: []string{filepath.Join(dir, "keys/example.org.pub")},
		Blacklists: []string{filepath.Join(dir, "blacklist")},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// What the folder says, in whichever of its files, replaces a default.
func TestFilesOfTheFolderOverrideDefaults(t *testing.T) {
	defaults := []byte("CVMFS_TIMEOUT=11\nCVMFS_TIMEOUT_DIRECT=12\nCVMFS_MAX_RETRIES=13\nCVMFS_BACKOFF_INIT=14\nCVMFS_KEYS_DIR=/etc/cvmfs/keys/@org@\n")
	dir := folder(t, map[string]string{
		"default.conf":               "CVMFS_TIMEOUT=21\n",
		"default.local":              "CVMFS_TIMEOUT_DIRECT=22\nCVMFS_HTTP_PROXY=DIRECT\nCVMFS_SERVER_URL=http://s1.example.org\n",
		"config.d/" + fqrn + ".conf": "CVMFS_MAX_RETRIES=23\n",
		"keys/atlas/a.pub":           "",
	})
	c, err := Folder{Dir: dir, Defaults: defaults}.Load(fqrn)
	if err != nil {
		t.Fatal(err)
	}
	if c.Timeout != 21*time.Second || c.TimeoutDirect != 22*time.Second || c.MaxRetries != 23 ||
		c.BackoffInit != 14*time.Second || len(c.PublicKeys) != 1 {
		t.Errorf("got %+v", c)
	}
}

func TestLaterFilesOverride(t *testing.T) {
	order := []string{
		"default.conf", "default.d/10-a.conf", "default.d/20-b.conf", "default.local",
		"domain.d/example.org.conf", "domain.d/example.org.local", "config.d/" + fqrn + ".conf",
		"config.d/" + fqrn + ".local",
	}
	files := map[string]string{
		"default.d/30-c.local": "ORDER=wrong\n", "domain.d/org.conf": "ORDER=wrong\n",
		"config.d/other.example.org.conf": "ORDER=wrong\n",
	}
	for _, name := range order {
		files[name] = complete + "ORDER=\"$ORDER " + name + "\"\nLAST=" + name + "\n"
	}
	got, err := Load(folder(t, files), fqrn)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(order, " "); got.Params["ORDER"] != want || got.Params["LAST"] != order[len(order)-1] {
		t.Errorf("got %q, last %q", got.Params["ORDER"], got.Params["LAST"])
	}
}

func TestValuesAreThoseOfTheShell(t *testing.T) {
	for script, want := range map[string]string{
		`V=plain`:                   "plain",
		`V=`:                        "",
		`V=""`:                      "",
		`V="a  b	c"`:                "a b c",
		"V=' a\n b '":               "a b",
		`V='a'\''b'`:                "a'b",
		`V=a\ b\\`:                  `a b\`,
		`V="a\"b\$c\d\\"`:           `a"b$c\d\`,
		"V=a\\\nb":                  "ab",
		`V=a#b # comment`:           "a#b",
		`A=x; V=$A$A"-$A"'$A'`:      "xx-x$A",
		`A=x; V=${A}y`:              "xy",
		`V=${A:-"d e"}`:             "d e",
		`V="${A:-d e}"`:             "d e",
		`A=; V=${A:-d}${A-n}`:       "d",
		`A=x; V=${A:-d}`:            "x",
		`V=${A:-${B:-deep}}`:        "deep",
		`V=${A:=s}$A`:               "ss",
		`A=; V=${A=s}${A:=t}$A`:     "tt",
		`A=; V=${A:+a}${A+b}${B+c}`: "b",
		`A=x; V=${A:?needed}`:       "x",
		`export V="x y" W=z`:        "x y",
		`readonly V=a\;b; readonly V; export V W`: "a;b",
		`V=1 V=2`:                              "2",
		`V=*`:                                  "*",
		`V={a,b}`:                              "{a,b}",
		`V=@fqrn@:@org@:@x@`:                   fqrn + ":atlas:@x@",
		`V=$CVMFS_FQRN`:                        fqrn,
		`V=http://h/~user`:                     "http://h/~user",
		`if [ a = a ]; then V=1; else V=2; fi`: "1",
		`if [ a = b ]; then V=1; else V=2; fi`: "2",
		`if [ a == b ]; then V=1; elif [ a == a ]; then V=2; else V=3; fi`: "2",
		`V=0; if [ "$A" != "" ]; then V=1; fi`:                             "0",
		`V=0; if ! [ -n "$A" ]; then V=1; fi`:                              "1",
		`V=0; [ -z "$A" ] && V=1`:                                          "1",
		`V=0; [ -n "$A" ] && V=1`:                                          "0",
		`V=0; [ -n $A ] && V=1`:                                            "1",
		`V=0; [ $A = yes ] && V=1`:                                         "0",
		`V=0; [ $A ] || V=1`:                                               "1",
		`V=0; [ ] || V=1`:                                                  "1",
		`V=0; [ x ] && V=1`:                                                "1",
		`V=0; test x != y -a ! -z x && V=1`:                                "1",
		`V=0; [ x = y -a x = x -o y = y ] && V=1`:                          "1",
		`V=0; [ ! = ! ] && V=1`:                                            "1",
		`A=-n; V=0; [ "$A" = -n ] && V=1`:                                  "1",
		`V=0; [ ! x = y ] && { V=1; }`:                                     "1",
		`V=0; ! [ x ] || [ y ] && V=1`:                                     "1",
		`V=0; [ -f /etc/cvmfs/default.conf ] || V=1`:                       "1",
		`V=0; [ -f /etc/cvmfs/config.d/atlas.example.org.conf ] && V=1`:    "1",
		`V=0; [ -e atlas.example.org.conf -a -r ./atlas.example.org.conf -a -s ./atlas.example.org.conf ] && V=1`: "1",
		`V=0; [ -d ../config.d ] && [ ! -f ../config.d ] && [ ! -e "" ] && V=1`:                                   "1",
	} {
		got, err := Load(minimal(t, script+"\n"), fqrn)
		if err != nil {
			t.Errorf("%s: %v", script, err)
		} else if got.Params["V"] != want {
			t.Errorf("%s: got %q, want %q", script, got.Params["V"], want)
		}
	}
}

func TestSettingsAreRead(t *testing.T) {
	dir := minimal(t, `
CVMFS_SERVER_URL="http://a/x;; https://b/y/ ;http://c/z"
CVMFS_MAX_SERVERS=2
CVMFS_TIMEOUT=7
CVMFS_TIMEOUT_DIRECT=8
CVMFS_LOW_SPEED_LIMIT=0
CVMFS_MAX_RETRIES=0
CVMFS_BACKOFF_INIT=0
CVMFS_BACKOFF_MAX=3
CVMFS_PROXY_RESET_AFTER=9
CVMFS_HOST_RESET_AFTER=11
CVMFS_FOLLOW_REDIRECTS=TRUE
CVMFS_CLAIM_OWNERSHIP=No
CVMFS_WORLD_READABLE=on
CVMFS_MAX_TTL=3
CVMFS_QUOTA_LIMIT=-1
CVMFS_PUBLIC_KEY=/etc/cvmfs/keys/a.pub:/srv/b.pub:c.pub
CVMFS_KEYS_DIR=/nonexistent
CVMFS_BLACKLIST=/srv/bad
CVMFS_UID_MAP=/etc/cvmfs/uids
CVMFS_GID_MAP=
`)
	if err := os.WriteFile(filepath.Join(dir, "uids"), []byte("# map\n1000 2000\n* 99 # others\n0 0\n"),
		0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir, fqrn)
	if err != nil {
		t.Fatal(err)
	}
	if text := got.UIDMap.String(); text != "0 0\n1000 2000\n* 99\n" || got.GIDMap != nil {
		t.Errorf("maps %q and %q", text, got.GIDMap.String())
	}
	settled(got)
	got.UIDMap = nil
	want := &Config{
		FQRN: fqrn, Servers: []string{"http://a/x", "https://b/y"}, ProxyGroups: [][]string{{Direct}},
		Timeout: 7 * time.Second, TimeoutDirect: 8 * time.Second, BackoffMax: 3 * time.Second,
		ProxyResetAfter: 9 * time.Second, HostResetAfter: 11 * time.Second, FollowRedirects: true,
		PublicKeys: []string{filepath.Join(dir, "keys/a.pub"), "/srv/b.pub", filepath.Join(dir, "c.pub")},
		Blacklists: []string{"/srv/bad"}, WorldReadable: true, MaxTTL: 3 * time.Minute,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestUnconfiguredRepositoryNamesTheFileToWrite(t *testing.T) {
	const key = "CVMFS_PUBLIC_KEY=/etc/cvmfs/keys/example.org.pub"
	for name, c := range map[string]struct {
		files        map[string]string
		want, absent []string
	}{
		"nothing at all": {
			nil,
			[]string{"repository atlas.example.org is not configured on this host: write /etc/cvmfs/config.d/atlas.example.org.conf with CVMFS_SERVER_URL=http://SERVER/cvmfs/@fqrn@", "CVMFS_HTTP_PROXY=DIRECT", key},
			[]string{"note:"},
		},
		"no proxy, though there are fallbacks": {
			map[string]string{"config.d/" + fqrn +
				".conf": "CVMFS_SERVER_URL=http://s/x\nCVMFS_FALLBACK_PROXY=http://p:1\n", "keys/k.pub": ""},
			[]string{"write /etc/cvmfs/config.d/atlas.example.org.local with CVMFS_HTTP_PROXY=DIRECT"},
			[]string{"CVMFS_SERVER_URL", "CVMFS_PUBLIC_KEY"},
		},
		"no key in the folder that is named": {
			map[string]string{
				"default.local": complete + "CVMFS_PUBLIC_KEY=\nCVMFS_KEYS_DIR=/etc/cvmfs/keys/none\n",
				"keys/k.pub":    "",
			},
			[]string{"atlas.example.org.conf with " + key},
			[]string{"CVMFS_SERVER_URL", "CVMFS_HTTP_PROXY"},
		},
		"a configuration repository would know": {
			map[string]string{"default.d/50-site.conf": "CVMFS_CONFIG_REPOSITORY=config.example.org\n"},
			[]string{"note: /etc/cvmfs/default.d/50-site.conf:1: CVMFS_CONFIG_REPOSITORY: its files are not read here"},
			nil,
		},
	} {
		got, err := Load(folder(t, c.files), fqrn)
		if got != nil || !errors.Is(err, ErrNotConfigured) {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v\nlacks %q", name, err, want)
			}
		}
		for _, absent := range c.absent {
			if strings.Contains(err.Error(), absent) {
				t.Errorf("%s: %v\nspeaks of %q", name, err, absent)
			}
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "absent"), fqrn); !errors.Is(err, ErrNotConfigured) {
		t.Errorf("no folder: got %v", err)
	}
	if _, err := Load(t.TempDir(), "atlas"); !errors.Is(err, ErrNotConfigured) ||
		!strings.Contains(err.Error(), "CVMFS_DEFAULT_DOMAIN in /etc/cvmfs/default.local") {
		t.Errorf("no default domain: got %v", err)
	}
}

func TestFolderMayBeCalledOtherwise(t *testing.T) {
	_, err := Folder{Dir: t.TempDir(), Shown: "/srv/cvmfs"}.Load(fqrn)
	if err == nil || !strings.Contains(err.Error(), "write /srv/cvmfs/config.d/") ||
		!strings.Contains(err.Error(), "master key as /srv/cvmfs/keys/") {
		t.Errorf("got %v", err)
	}
}

func TestStrictMountAllowsListedRepositoriesOnly(t *testing.T) {
	dir := packaged(t, map[string]string{"default.local": "CVMFS_HTTP_PROXY=DIRECT\nCVMFS_STRICT_MOUNT=yes\nCVMFS_REPOSITORIES=atlas,full.example.org,other.example.com\n"})
	for name, want := range map[string]error{
		fqrn: nil, "atlas": nil, "full": nil, "full.example.org": nil,
		"cms": ErrNotAllowed, "cms.example.org": ErrNotAllowed, "atlas.example.com": ErrNotAllowed,
	} {
		if _, err := Load(dir, name); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
}

func TestDanglingLinkIsNotPassedOverSilently(t *testing.T) {
	dir := minimal(t, "")
	if err := os.Symlink("/srv/absent/site.conf", filepath.Join(dir, "default.local")); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir, fqrn)
	if err != nil || len(got.Findings) != 1 || !strings.HasPrefix(got.Findings[0].String(),
		"/etc/cvmfs/default.local: the file is not read: it is a link to /srv/absent/site.conf") {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestFaultyFolders(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"a folder as file": func(dir string) error { return os.Mkdir(filepath.Join(dir, "default.local"), 0o755) },
		"a file as default.d": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "default.d"), nil,
				0o644)
		},
		"a link to itself": func(dir string) error {
			return os.Symlink("default.conf",
				filepath.Join(dir, "default.conf"))
		},
		"a device in default.d": func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "default.d"), 0o755),
				os.Symlink("/dev/zero", filepath.Join(dir, "default.d/x.conf")))
		},
	} {
		dir := minimal(t, "")
		if err := change(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir, fqrn); err == nil || errors.Is(err, ErrNotConfigured) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestFoldersAreNotAskedForWhatIsNoName(t *testing.T) {
	for _, bad := range []string{"", "..", "a/b", "../x", "a\x00", "-a", strings.Repeat("a", 61)} {
		if _, err := Load(t.TempDir(), bad); err == nil || errors.Is(err, ErrNotConfigured) {
			t.Errorf("%q is loaded: %v", bad, err)
		}
	}
}

func TestProxySpecifications(t *testing.T) {
	for spec, want := range map[string][][]string{
		"DIRECT":                      {{Direct}},
		"http://p:3128":               {{"http://p:3128"}},
		"p:3128":                      {{"http://p:3128"}},
		"p":                           {{"http://p"}},
		"a:1|b:2;c:3":                 {{"http://a:1", "http://b:2"}, {"http://c:3"}},
		" a:1 | b:2 ;; c:3|; ;DIRECT": {{"http://a:1", "http://b:2"}, {"http://c:3"}, {Direct}},
		"https://p;socks5://q:1":      {{"https://p"}, {"socks5://q:1"}},
		"http://user:pw@p:3128":       {{"http://user:pw@p:3128"}},
		"[2001:db8::1]:3128":          {{"http://[2001:db8::1]:3128"}},
		"auto":                        {{Auto}},
		"a;auto|;DIRECT":              {{"http://a"}, {Auto}, {Direct}},
	} {
		got, err := ParseProxies(spec)
		if err != nil || !cmp.Equal(want, got) {
			t.Errorf("%q: got %q, %v, want %q", spec, got, err, want)
		}
	}
	for spec, want := range map[string]string{
		"": "names no proxy", ";|;": "names no proxy",
		"a:1;b:2|auto": "group 2: auto must be a group of its own", "auto|auto": "group 1: auto must be",
		"ftp://p": "isn't a URL", "http://": "isn't a URL", "http://:3128": "isn't a URL", "a b": "isn't a URL",
		"p:port": "isn't a URL", "http://u:secret@[": "isn't a URL",
	} {
		if _, err := ParseProxies(spec); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got %v, want %q", spec, err, want)
		}
	}
}

func TestServersAreOfAKnownKind(t *testing.T) {
	for server, good := range map[string]bool{
		"http://s/x": true, "https://s/x": true, "file:///srv/x": true, "http:///x": false, "ftp://s/x": false,
		"file://host/x": false, "file:x": false, "/srv/x": false, "s": false,
	} {
		if _, err := Load(minimal(t, "CVMFS_SERVER_URL="+server+"\n"), fqrn); (err == nil) != good {
			t.Errorf("%s: %v", server, err)
		}
	}
}

func TestAutoIsAGroupOfItsOwn(t *testing.T) {
	for spec, want := range map[string][][]string{
		"auto": {{Auto}}, "auto;DIRECT": {{Auto}, {Direct}}, "p:1; auto ;": {{"http://p:1"}, {Auto}},
	} {
		c, found := load(t, minimal(t, "CVMFS_HTTP_PROXY='"+spec+"'\n"))
		if !cmp.Equal(c.ProxyGroups, want) || found != "" {
			t.Errorf("%s: %q, %s", spec, c.ProxyGroups, found)
		}
	}
	for spec, want := range map[string][][]string{
		"auto|p:1;DIRECT": {{"http://p:1"}, {Direct}}, "auto;p:1|auto": {{Auto}, {"http://p:1"}},
	} {
		c, found := load(t, minimal(t, "CVMFS_HTTP_PROXY='"+spec+"'\n"))
		if !cmp.Equal(c.ProxyGroups, want) || !strings.Contains(found, ":4: CVMFS_HTTP_PROXY: auto has no effect") {
			t.Errorf("%s: %q, %s", spec, c.ProxyGroups, found)
		}
	}
	c, found := load(t, minimal(t, "CVMFS_HTTP_PROXY=DIRECT\nCVMFS_FALLBACK_PROXY=auto\n"))
	if !cmp.Equal(c.ProxyGroups, [][]string{{Direct}}) || !strings.Contains(found, ":5: CVMFS_FALLBACK_PROXY: auto has") {
		t.Errorf("%q, %s", c.ProxyGroups, found)
	}
}

func TestWhereProxiesAreFound(t *testing.T) {
	for text, want := range map[string]Discovery{
		"":                 {URLs: []string{"http://wpad/wpad.dat"}},
		"CVMFS_PAC_URLS=;": {URLs: []string{"http://wpad/wpad.dat"}},
		"CVMFS_PAC_URLS='auto ; http://a/b?c;file:///etc/cvmfs/x.pac;file:///srv/y'": {
			URLs: []string{"http://wpad/wpad.dat", "http://a/b?c", "file://DIR/x.pac", "file:///srv/y"},
		},
		"http_proxy=http://p:1;q:2\nCVMFS_FALLBACK_PROXY=f": {
			URLs: []string{"http://wpad/wpad.dat"}, Proxies: "http://p:1", NoDirect: true,
		},
	} {
		dir := minimal(t, text+"\n")
		c, _ := load(t, dir)
		for i, at := range c.Network.Auto.URLs {
			c.Network.Auto.URLs[i] = strings.Replace(at, dir, "DIR", 1)
		}
		if diff := cmp.Diff(want, c.Network.Auto); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
	for _, at := range []string{"ftp://a/b", "file://host/x", "wpad.dat", "file:x"} {
		if _, err := Load(minimal(t, "CVMFS_PAC_URLS="+at+"\n"), fqrn); err == nil || !strings.Contains(err.Error(), "script 1 isn't a URL") {
			t.Errorf("%s: %v", at, err)
		}
	}
}

func TestFallbackProxiesReplaceDirect(t *testing.T) {
	for _, c := range []struct {
		regular, fallback string
		want              [][]string
	}{
		{"a;DIRECT", "b|DIRECT;c", [][]string{{"http://a"}, {"http://b"}, {"http://c"}}},
		{"a|DIRECT", "b", [][]string{{"http://a"}, {"http://b"}}},
		{"DIRECT", "b", [][]string{{"http://b"}}},
		{"a;DIRECT", "DIRECT", [][]string{{"http://a"}, {Direct}}},
	} {
		got, err := Load(minimal(t, "CVMFS_HTTP_PROXY='"+c.regular+"'\nCVMFS_FALLBACK_PROXY='"+c.fallback+"'\n"), fqrn)
		if err != nil || !cmp.Equal(c.want, got.ProxyGroups) {
			t.Errorf("%s with %s: got %v, %v", c.regular, c.fallback, got, err)
		}
	}
}

func TestIDMaps(t *testing.T) {
	m, err := ParseIDMap("1 10\n2\t 20\n1 11\n")
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[uint32]uint32{0: 0, 1: 11, 2: 20, 3: 3} {
		if got := m.Map(from); got != to {
			t.Errorf("%d: got %d, want %d", from, got, to)
		}
	}
	if m, err = ParseIDMap("* 5\n1 1"); err != nil || m.Map(1) != 1 || m.Map(2) != 5 {
		t.Errorf("with *: %v, %v", m, err)
	}
	if got := (*IDMap)(nil).Map(7); got != 7 {
		t.Errorf("no map: got %d", got)
	}
	for _, bad := range []string{"1", "1 2 3", "a 1", "1 *", "-1 1", "1 4294967296", "1 4294967295", "* *"} {
		if _, err := ParseIDMap("0 0\n" + bad); err == nil || !strings.HasPrefix(err.Error(), "2: ") {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, script := range []string{
		complete, "if [ \"x$A\" = x ]; then readonly B='c'; fi", "A=${B:-\"$C\"}; [ -z \"$A\" ] && . ./x || return",
		"export A=a\\ b\nV=@fqrn@ # c\n", "A=$(x)", "[ ! -f a -o b != c ]", "{ A=1; }; ! [ ]",
		"V=$(( (1+A++) ? $$ % 2 : B=3, 1<<2 ))", "case $A in a*|[b-c]) V=`echo x|cut -d. -f1`;; esac",
		"for i in a b; do V=${V%%[0-9]*}; done; while [ 1 -lt 2 ]; do break; done",
		"V=$((echo a; echo b)|sort -u|tr ' ' ,)", "eval 'V=1'; unset V; cd ..; . ./x; grep -qiE '^a(b|c)*' x <y 2>&1",
		"V='\nCVMFS_KEYS_DIR=(", "printf '%s,' $A | head -1",
	} {
		f.Add(script)
	}
	dir := f.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "config.d"), 0o755); err != nil {
		f.Fatal(err)
	}
	file := filepath.Join(dir, "config.d", fqrn+".conf")
	f.Fuzz(func(t *testing.T, script string) {
		if err := os.WriteFile(file, []byte(script), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := Load(dir, fqrn)
		if errors.Is(err, errParser) {
			t.Error(err)
		}
		if err != nil {
			return
		}
		if len(c.Servers) == 0 || len(c.ProxyGroups) == 0 || len(c.PublicKeys) == 0 || c.Timeout <= 0 ||
			c.TimeoutDirect <= 0 {
			t.Errorf("accepted %+v", c)
		}
	})
}

func FuzzParseProxies(f *testing.F) {
	for _, spec := range []string{"DIRECT", "a:1|b:2;c:3", "auto;DIRECT", "http://u:p@h:1/", "[::1]:3"} {
		f.Add(spec)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		groups, err := ParseProxies(spec)
		if err != nil {
			return
		}
		if len(groups) == 0 || slices.ContainsFunc(groups, func(g []string) bool {
			return len(g) == 0 ||
				slices.Contains(g, "")
		}) {
			t.Errorf("%q: %q", spec, groups)
		}
		var joined []string
		for _, g := range groups {
			joined = append(joined, strings.Join(g, "|"))
		}
		if again, err := ParseProxies(strings.Join(joined, ";")); err != nil || !cmp.Equal(groups, again) {
			t.Errorf("%q: %q, written and read again %q, %v", spec, groups, again, err)
		}
	})
}

func FuzzParseIDMap(f *testing.F) {
	f.Add("1 2\n* 3 # c\n")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ParseIDMap(text)
		if err != nil {
			return
		}
		if again, err := ParseIDMap(m.String()); err != nil || again.String() != m.String() {
			t.Errorf("%q: %v", m.String(), err)
		}
	})
}

func TestRepositoriesOfAFolderAreNamed(t *testing.T) {
	dir := folder(t, map[string]string{
		"default.local":                   "CVMFS_REPOSITORIES='atlas,b.example.com, d.example.com'\nCVMFS_DEFAULT_DOMAIN=example.org\n",
		"config.d/c.example.com.conf":     "",
		"config.d/c.example.com.local":    "",
		"config.d/a.example.com.local":    "",
		"config.d/README.md":              "",
		"config.d/README.conf":            "",
		"config.d/-not.a.repository.conf": "",
	})
	got, found, err := Folder{Dir: dir}.Repositories()
	if err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
	want := []string{"a.example.com", "atlas.example.org", "b.example.com", "c.example.com", "d.example.com"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if _, _, err := (Folder{Dir: "/nowhere"}).Repositories(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if got, _, err := (Folder{Dir: t.TempDir()}).Repositories(); len(got) > 0 || err != nil {
		t.Errorf("empty folder: %q, %v", got, err)
	}
	for text, want := range map[string]string{
		"CVMFS_REPOSITORIES=atlas,a.b\n":           "CVMFS_DEFAULT_DOMAIN",
		"CVMFS_REPOSITORIES=../x.example,a.b\n":    "isn't a repository's name",
		"CVMFS_REPOSITORIES=a.b\nrm -rf nowhere\n": "default.local:2",
	} {
		got, found, err := (Folder{Dir: folder(t, map[string]string{"default.local": text})}).Repositories()
		if err != nil || !cmp.Equal(got, []string{"a.b"}) || len(found) != 1 || !strings.Contains(found[0].String(), want) {
			t.Errorf("%q: %q, %v, %v, want %q", text, got, found, err, want)
		}
	}
}
