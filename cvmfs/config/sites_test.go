package config

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// set is configuration as it is installed at sites: the packages' files, written anew with the constructs that those
// have, and what is in the configuration repository they name.
type set struct {
	host, remote map[string]string
}

// packageBase is what every package of CernVM-FS installs.
var packageBase = map[string]string{
	"default.conf": `# Do not edit: use default.local
CVMFS_CACHE_BASE=/var/lib/cvmfs
CVMFS_QUOTA_LIMIT=4000
CVMFS_TIMEOUT=5
CVMFS_TIMEOUT_DIRECT=10
CVMFS_STRICT_MOUNT=no
CVMFS_NFILES=131072
CVMFS_SHARED_CACHE=yes
CVMFS_CHECK_PERMISSIONS=yes
CVMFS_CLAIM_OWNERSHIP=yes
CVMFS_KEYS_DIR=/etc/cvmfs/keys
CVMFS_PROXY_RESET_AFTER=300
CVMFS_HOST_RESET_AFTER=1800
CVMFS_MAX_RETRIES=1
CVMFS_BACKOFF_INIT=2
CVMFS_BACKOFF_MAX=10
CVMFS_SEND_INFO_HEADER=no
CVMFS_USE_GEOAPI=no
if [ "x$CVMFS_BASE_ENV" = x ]; then
  readonly CVMFS_USER=cvmfs
  readonly CVMFS_MOUNT_DIR=/cvmfs
  readonly CVMFS_RELOAD_SOCKETS=/var/run/cvmfs
  readonly CVMFS_BASE_ENV=1
fi
`,
}

// cern is the domain file that packages have for when the configuration repository can't be read.
const cern = `if [ "$CVMFS_CONFIG_REPO_DEFAULT_ENV" = 1 ]; then
  # the configuration repository has it all
  return
fi

if [ "$CVMFS_USE_CDN" = "yes" ]; then
    CVMFS_SERVER_URL="http://cdn1.example.net/cvmfs/@fqrn@;http://cdn2.example.net/cvmfs/@fqrn@"
else
    CVMFS_SERVER_URL="http://s1.example.net/cvmfs/@fqrn@;http://s2.example.net/cvmfs/@fqrn@;http://s3.example.net:8000/cvmfs/@fqrn@"
fi
CVMFS_KEYS_DIR=/etc/cvmfs/keys/cern.ch
CVMFS_USE_GEOAPI=yes
`

// remoteCommon is what the files of CERN's configuration repository source.
const remoteCommon = `# This is sourced by domain files: . ../common.conf
if [ "$CVMFS_CLIENT_PROFILE" = "single" ]; then
    CVMFS_HTTP_PROXY=${CVMFS_HTTP_PROXY:-"auto;DIRECT"}
    CVMFS_USE_CDN=${CVMFS_USE_CDN:-yes}
fi
if [ -z "$CVMFS_USE_CDN" ]; then
    if [ "$CVMFS_HTTP_PROXY" = "DIRECT" ] || [ "$CVMFS_HTTP_PROXY" = "auto;DIRECT" ]; then
        CVMFS_USE_CDN=yes
    fi
fi
if [ "$CVMFS_USE_CDN" != "yes" ] && [ "$CVMFS_CLIENT_PROFILE" != "custom" ]; then
    CVMFS_FALLBACK_PROXY=${CVMFS_FALLBACK_PROXY-"http://back1.example.net:3126|http://back2.example.net:3126"}
fi
`

// sets are the configuration sets by name.
func sets() map[string]set {
	with := func(all ...map[string]string) map[string]string {
		files := map[string]string{}
		for _, m := range all {
			maps.Copy(files, m)
		}
		return files
	}
	cernHost := map[string]string{
		"default.d/50-cern.conf": "CVMFS_CONFIG_REPOSITORY=cvmfs-config.cern.ch\nCVMFS_DEFAULT_DOMAIN=cern.ch\n",
		"config.d/cvmfs-config.cern.ch.conf": `CVMFS_SERVER_URL="http://s1.example.net/cvmfs/@fqrn@;http://s2.example.net/cvmfs/@fqrn@"
CVMFS_PUBLIC_KEY=/etc/cvmfs/keys/cern.ch/cern-it1.cern.ch.pub
CVMFS_HTTP_PROXY="${CVMFS_HTTP_PROXY:-DIRECT}"
CVMFS_FALLBACK_PROXY="http://back1.example.net:3126"
CVMFS_USE_GEOAPI=yes
`,
		"domain.d/cern.ch.conf": cern,
		"domain.d/egi.eu.conf": strings.NewReplacer("cern.ch", "egi.eu", "example.net", "egi.example.net").
			Replace(cern),
		"domain.d/opensciencegrid.org.conf": strings.NewReplacer("cern.ch", "opensciencegrid.org", "example.net", "osg.example.net").
			Replace(cern),
		"keys/cern.ch/cern.ch.pub": "", "keys/cern.ch/cern-it1.cern.ch.pub": "", "keys/cern.ch/cern-it4.cern.ch.pub": "",
		"keys/egi.eu/egi.eu.pub": "", "keys/opensciencegrid.org/opensciencegrid.org.pub": "",
	}
	cernRemote := map[string]string{
		"default.conf": `CVMFS_CONFIG_REPO_DEFAULT_ENV=1
if [ $((RANDOM % 2)) -eq 0 ]; then
    CVMFS_LOTS=even
else
    CVMFS_LOTS=odd
fi
: $CVMFS_LOTS
`,
		"common.conf": remoteCommon,
		"domain.d/cern.ch.conf": `. ../common.conf
if [ "$CVMFS_USE_CDN" = yes ]; then
    CVMFS_SERVER_URL="http://cdn1.example.net/cvmfs/@fqrn@"
else
    CVMFS_SERVER_URL="http://r1.example.net/cvmfs/@fqrn@;http://r2.example.net/cvmfs/@fqrn@"
fi
CVMFS_KEYS_DIR=$CVMFS_MOUNT_DIR/$CVMFS_CONFIG_REPOSITORY/etc/cvmfs/keys/cern.ch
CVMFS_USE_GEOAPI=yes
`,
		"domain.d/egi.eu.conf": `. ../common.conf
CVMFS_SERVER_URL="http://r1.egi.example.net/cvmfs/@fqrn@"
CVMFS_KEYS_DIR=/etc/cvmfs/keys/egi.eu
`,
		"config.d/alice.cern.ch.conf": `CVMFS_GRACE=3
if [ $CVMFS_GRACE -lt 9 ] && [ "$CVMFS_HTTP_PROXY" != "" ]; then
    CVMFS_TIMEOUT=9
fi
`,
		"config.d/cms.osgstorage.org.conf": ". ../../../../config-osg.opensciencegrid.org/etc/cvmfs/common.conf\nCVMFS_SERVER_URL=http://osdf.example.net/cvmfs/@fqrn@\nCVMFS_KEYS_DIR=/etc/cvmfs/keys/cern.ch\n",
		"keys/cern.ch/cern.ch.pub":         "", "keys/cern.ch/cern-it5.cern.ch.pub": "",
	}
	debian := with(packageBase, cernHost)
	delete(debian, "default.d/50-cern.conf")
	debian["default.d/50-cern-debian.conf"] = `CVMFS_DEFAULT_DOMAIN=cern.ch
CVMFS_CONFIG_REPOSITORY=cvmfs-config.cern.ch

# Old releases have FUSE without this feature.
if [ -f /etc/cvmfs/debian_version ] && grep -q "^[89]\." /etc/cvmfs/debian_version; then
    CVMFS_CACHE_SYMLINKS=no
fi
[ -f /etc/cvmfs/debian_version ] && grep -q bookworm /etc/cvmfs/debian_version && CVMFS_NFILES=65536
`
	debian["debian_version"] = "9.13 bookworm\n"
	osg := with(packageBase, map[string]string{
		"default.d/60-osg.conf": "CVMFS_CONFIG_REPOSITORY=config-osg.opensciencegrid.org\nCVMFS_CONFIG_REPO_REQUIRED=yes\nCVMFS_DEFAULT_DOMAIN=opensciencegrid.org\n",
		"config.d/config-osg.opensciencegrid.org.conf": `# half of the hosts begin with the other one
if [ $(($$ % 2)) -eq 0 ]; then
    CVMFS_SERVER_URL="http://a.osg.example.net:8000/cvmfs/@fqrn@;http://b.osg.example.net:8000/cvmfs/@fqrn@"
else
    CVMFS_SERVER_URL="http://b.osg.example.net:8000/cvmfs/@fqrn@;http://a.osg.example.net:8000/cvmfs/@fqrn@"
fi
CVMFS_PUBLIC_KEY=/etc/cvmfs/keys/opensciencegrid.org/opensciencegrid.org.pub
`,
		"keys/opensciencegrid.org/opensciencegrid.org.pub": "",
	})
	osgRemote := map[string]string{
		"common.conf": remoteCommon,
		"domain.d/opensciencegrid.org.conf": `. ../common.conf
CVMFS_SERVER_URL="http://a.osg.example.net:8000/cvmfs/@fqrn@;http://b.osg.example.net:8000/cvmfs/@fqrn@"
CVMFS_KEYS_DIR=/cvmfs/$CVMFS_CONFIG_REPOSITORY/etc/cvmfs/keys/opensciencegrid.org
`,
		"keys/opensciencegrid.org/opensciencegrid.org.pub": "",
	}
	egi := with(packageBase, map[string]string{
		"default.d/60-egi.conf":           "CVMFS_CONFIG_REPOSITORY=config-egi.egi.eu\nCVMFS_CONFIG_REPO_REQUIRED=yes\nCVMFS_DEFAULT_DOMAIN=egi.eu\n",
		"config.d/config-egi.egi.eu.conf": "CVMFS_SERVER_URL='http://a.egi.example.net:8000/cvmfs/@fqrn@'\nCVMFS_PUBLIC_KEY=/etc/cvmfs/keys/egi.eu/egi.eu.pub\n",
		"keys/egi.eu/egi.eu.pub":          "",
	})
	egiRemote := map[string]string{
		"common.conf":          remoteCommon,
		"domain.d/egi.eu.conf": ". ../common.conf\nCVMFS_SERVER_URL=\"http://a.egi.example.net:8000/cvmfs/@fqrn@\"\nCVMFS_KEYS_DIR=/etc/cvmfs/keys/egi.eu\n",
	}
	eessi := with(packageBase, map[string]string{
		"domain.d/eessi.io.conf": `CVMFS_SERVER_URL="http://aws.eessi.example.net/cvmfs/@fqrn@;http://azure.eessi.example.net/cvmfs/@fqrn@"
CVMFS_KEYS_DIR="/etc/cvmfs/keys/eessi.io"
CVMFS_USE_GEOAPI="yes"
`,
		"keys/eessi.io/eessi.io.pub": "",
	})
	return map[string]set{
		"EL": {with(packageBase, cernHost), cernRemote}, "Debian": {debian, cernRemote}, "OSG": {osg, osgRemote},
		"EGI": {egi, egiRemote}, "EESSI": {eessi, nil}, "CERN offline": {with(packageBase, cernHost), nil},
	}
}

// with makes a folder of a set with a default.local.
func (s set) with(t testing.TB, local string) Folder {
	t.Helper()
	host := maps.Clone(s.host)
	host["default.local"] = local
	f := Folder{Dir: folder(t, host)}
	if s.remote != nil {
		files := map[string]string{}
		for name, text := range s.remote {
			files["etc/cvmfs/"+name] = text
		}
		dir := folder(t, files)
		f.ConfigRepository = func(*Config) (string, error) { return dir, nil }
	}
	return f
}

func TestSitesConfigurationsGiveWhatTheClientTakesFromThem(t *testing.T) {
	const squids = "CVMFS_HTTP_PROXY='http://squid1.example.net:3128|http://squid2.example.net:3128'\n"
	two := []string{"http://squid1.example.net:3128", "http://squid2.example.net:3128"}
	back := []string{"http://back1.example.net:3126", "http://back2.example.net:3126"}
	for _, c := range []struct {
		set, local, fqrn string
		servers          []string // without the repository's path
		proxies          [][]string
		keys             []string
		params           map[string]string
		found            string // a part of the findings; "": there are none but of GEOAPI
	}{
		{
			"EL", squids, "unpacked.cern.ch",
			[]string{"http://r1.example.net", "http://r2.example.net"},
			[][]string{two, back},
			[]string{"cern-it5.cern.ch.pub", "cern.ch.pub"},
			map[string]string{"CVMFS_CONFIG_REPO_DEFAULT_ENV": "1"},
			"",
		},
		{
			"EL", squids, "unpacked",
			[]string{"http://r1.example.net", "http://r2.example.net"},
			[][]string{two, back},
			[]string{"cern-it5.cern.ch.pub", "cern.ch.pub"},
			nil, "",
		},
		{
			"EL", "CVMFS_CLIENT_PROFILE=single\n", "unpacked.cern.ch",
			[]string{"http://cdn1.example.net"},
			[][]string{{Auto}, {Direct}},
			[]string{"cern-it5.cern.ch.pub", "cern.ch.pub"},
			nil, "",
		},
		{
			"EL", "CVMFS_HTTP_PROXY=DIRECT\n", "unpacked.cern.ch",
			[]string{"http://cdn1.example.net"},
			[][]string{{Direct}},
			[]string{"cern-it5.cern.ch.pub", "cern.ch.pub"},
			nil, "",
		},
		{
			"EL", squids + "CVMFS_CLIENT_PROFILE=custom\n", "alice.cern.ch",
			[]string{"http://r1.example.net", "http://r2.example.net"},
			[][]string{two},
			[]string{"cern-it5.cern.ch.pub", "cern.ch.pub"},
			map[string]string{"CVMFS_TIMEOUT": "9"},
			"",
		},
		{
			"EL", squids, "grid.egi.eu",
			[]string{"http://r1.egi.example.net"},
			[][]string{two, back},
			[]string{"egi.eu.pub"},
			nil, "",
		},
		{
			"CERN offline", squids, "grid.egi.eu",
			[]string{"http://s1.egi.example.net", "http://s2.egi.example.net", "http://s3.egi.example.net:8000"},
			[][]string{two},
			[]string{"egi.eu.pub"},
			nil, "its files are not read here",
		},
		{
			"CERN offline", squids, "unpacked.cern.ch",
			[]string{"http://s1.example.net", "http://s2.example.net", "http://s3.example.net:8000"},
			[][]string{two},
			[]string{"cern-it1.cern.ch.pub", "cern-it4.cern.ch.pub", "cern.ch.pub"},
			nil,
			"its files are not read here",
		},
		{
			"CERN offline", squids + "CVMFS_USE_CDN=yes\n", "a.opensciencegrid.org",
			[]string{"http://cdn1.osg.example.net", "http://cdn2.osg.example.net"},
			[][]string{two},
			[]string{"opensciencegrid.org.pub"},
			nil, "its files are not read here",
		},
		{
			"Debian", squids, "unpacked.cern.ch",
			[]string{"http://r1.example.net", "http://r2.example.net"},
			[][]string{two, back},
			[]string{"cern-it5.cern.ch.pub", "cern.ch.pub"},
			map[string]string{"CVMFS_CACHE_SYMLINKS": "no", "CVMFS_NFILES": "65536"},
			"",
		},
		{
			"OSG", squids, "singularity.opensciencegrid.org",
			[]string{"http://a.osg.example.net:8000", "http://b.osg.example.net:8000"},
			[][]string{two, back},
			[]string{"opensciencegrid.org.pub"},
			nil, "",
		},
		{
			"OSG", squids + "CVMFS_REPOSITORIES=\"`echo $((echo oasis.opensciencegrid.org;echo cms.cern.ch;ls /cvmfs)|sort -u)|tr ' ' ,`\"\n",
			"oasis.opensciencegrid.org",
			[]string{"http://a.osg.example.net:8000", "http://b.osg.example.net:8000"},
			[][]string{two, back},
			[]string{"opensciencegrid.org.pub"},
			map[string]string{"CVMFS_REPOSITORIES": "cms.cern.ch,oasis.opensciencegrid.org"},
			"",
		},
		{
			"EGI", squids, "dirac.egi.eu",
			[]string{"http://a.egi.example.net:8000"},
			[][]string{two, back},
			[]string{"egi.eu.pub"},
			nil, "",
		},
		{
			"EESSI", squids, "software.eessi.io",
			[]string{"http://aws.eessi.example.net", "http://azure.eessi.example.net"},
			[][]string{two},
			[]string{"eessi.io.pub"},
			nil, "",
		},
	} {
		t.Run(c.set+" "+c.fqrn, func(t *testing.T) {
			got, err := sets()[c.set].with(t, c.local).Load(c.fqrn)
			if err != nil {
				t.Fatal(err)
			}
			var servers, keys []string
			for _, s := range got.Servers {
				servers = append(servers, strings.TrimSuffix(s, "/cvmfs/"+got.FQRN))
			}
			for _, k := range got.PublicKeys {
				keys = append(keys, filepath.Base(k))
			}
			for what, d := range map[string]string{
				"servers": cmp.Diff(c.servers, servers), "proxies": cmp.Diff(c.proxies, got.ProxyGroups), "keys": cmp.Diff(c.keys, keys),
			} {
				if d != "" {
					t.Errorf("%s (-want +got):\n%s", what, d)
				}
			}
			for name, want := range c.params {
				if got.Params[name] != want {
					t.Errorf("%s: got %q, want %q", name, got.Params[name], want)
				}
			}
			found := text(slices.DeleteFunc(got.Findings, func(f Finding) bool { return f.Kind == NotHonored }))
			if c.found == "" && found != "" || !strings.Contains(found, c.found) {
				t.Errorf("found %q", found)
			}
		})
	}
}

// What sites' sets refuse, they refuse for a reason they are told.
func TestSitesConfigurationsThatLackSomethingSayWhat(t *testing.T) {
	for name, c := range map[string]struct{ set, local, fqrn, want string }{
		"no proxy":                  {"EESSI", "", "software.eessi.io", "CVMFS_HTTP_PROXY=DIRECT"},
		"no such domain":            {"EESSI", "CVMFS_HTTP_PROXY=DIRECT\n", "a.example.org", "CVMFS_SERVER_URL="},
		"a file that leads outside": {"EL", "CVMFS_HTTP_PROXY=DIRECT\n", "cms.osgstorage.org", "may read nothing outside of it"},
		"required and not there":    {"OSG", "CVMFS_HTTP_PROXY=DIRECT\n", "a.opensciencegrid.org", "CVMFS_CONFIG_REPO_REQUIRED"},
	} {
		s := sets()[c.set]
		if name == "required and not there" {
			s.remote = nil
		}
		if _, err := s.with(t, c.local).Load(c.fqrn); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// Lines of default.local, each with the value that the reference client takes from it by /bin/sh ("-": none), as it was
// found beside the client itself (2.12). Where it depends on a program the line fails here, and has none.
func TestLinesHaveTheReferencesValues(t *testing.T) {
	s := sets()["EESSI"]
	for _, c := range []struct {
		lines, name, want string
		fails             bool
	}{
		{"CVMFS_REPOSITORIES=a, b", "CVMFS_REPOSITORIES", "-", true},
		{"CVMFS_REPOSITORIES='a, b'", "CVMFS_REPOSITORIES", "a, b", false},
		{"CVMFS_REPOSITORIES=a.example.org,b.example.org", "CVMFS_REPOSITORIES", "a.example.org,b.example.org", false},
		{"CVMFS_HTTP_PROXY=http://p1;http://p2", "CVMFS_HTTP_PROXY", "http://p1", true},
		{"CVMFS_HTTP_PROXY=http://p1;DIRECT", "CVMFS_HTTP_PROXY", "http://p1", true},
		{"V=http://p1|http://p2", "V", "-", true},
		{"CVMFS_HTTP_PROXY='http://p1|http://p2'", "CVMFS_HTTP_PROXY", "http://p1|http://p2", false},
		{`CVMFS_HTTP_PROXY="http://p1;http://p2"`, "CVMFS_HTTP_PROXY", "http://p1;http://p2", false},
		{`CVMFS_HTTP_PROXY=http://p1\;DIRECT`, "CVMFS_HTTP_PROXY", "http://p1;DIRECT", false},
		{"V = 1", "V", "-", true},
		{"V= 1", "V", "-", true},
		{"V =1", "V", "-", true},
		{"CVMFS_NFILES=1\nunset CVMFS_NFILES", "CVMFS_NFILES", "-", false},
		{"CVMFS_QUOTA_LIMIT=$((4*1000))", "CVMFS_QUOTA_LIMIT", "4000", false},
		{"N=3; [ $N -lt 9 ] && V=yes", "V", "yes", false},
		{"N=10\n[ $N -lt 9 ] && V=yes", "V", "-", false},
		{"case $CVMFS_FQRN in\n*.eessi.io) V=1 ;;\n*) V=2 ;;\nesac", "V", "1", false},
		{"V=`hostname -d`", "V", "", true},
		{"V=$(hostname -s)x", "V", "", true},
		{"[[ a = a ]]\nV=1", "V", "1", true},
		{"if [[ a = a ]]; then V=1; else V=2; fi", "V", "2", true},
		{"CVMFS_QUOTA_LIMIT=20G", "CVMFS_QUOTA_LIMIT", "20G", false},
		{"CVMFS_QUOTA_LIMIT=4000.5", "CVMFS_QUOTA_LIMIT", "4000.5", false},
		{"CVMFS_TIMEOUT=0", "CVMFS_TIMEOUT", "0", false},
		{"if [ $CVMFS_FQRN = software.eessi.io ]; then V=1; fi", "V", "1", false},
		{"\tV=tab\t# comment", "V", "tab", false},
		{"V=a # b", "V", "a", false},
		{"V=a#b", "V", "a#b", false},
		{"# V=a", "V", "-", false},
		{"V=crlf\r", "V", "crlf", false},
		{"${V:=y}\nV=$V", "V", "y", true},
		{": ${V:=y}", "V", "y", false},
		{"export V=1", "V", "1", false},
		{"readonly V=1", "V", "1", false},
		{"export V='a b' W=c", "V", "a b", false},
		{"eval V=1", "V", "1", false},
		{"V='  a   b  '", "V", "a b", false},
		{"V=$http_proxy", "V", "", false},
		{"V=\"a;b\" # c", "V", "a;b", false},
		{"V=\"multi\nline\"", "V", "multi line", false},
		{"V=$HOSTNAME", "V", "", false},
		{"V=@fqrn@-@org@-@x@", "V", "software.eessi.io-software-@x@", false},
		{"V=$CVMFS_MOUNT_DIR/x", "V", "/cvmfs/x", false},
		{"CVMFS_TIMEOUT=$((CVMFS_TIMEOUT + 1))", "CVMFS_TIMEOUT", "6", false},
		{". /etc/cvmfs/site.conf\nV=$SITE", "V", "here", false},
		{"[ -r /etc/cvmfs/site.conf ] && . /etc/cvmfs/site.conf; V=$SITE", "V", "here", false},
		{"V=$(cat /etc/cvmfs/site.conf)", "V", "SITE=here", false},
		{"V=\"$(sed -n 1p /etc/cvmfs/site.conf)\"", "V", "", true},
		{"if test -d /etc/cvmfs/keys; then V=1; fi", "V", "1", false},
		{"V=${CVMFS_FQRN#*.}", "V", "eessi.io", false},
		{"for p in a b; do V=\"$V;http://$p:3128\"; done", "V", ";http://a:3128;http://b:3128", false},
		{"V=x; exit 0; V=y", "V", "x", false},
		{"source ./site.conf && V=$SITE", "V", "here", false},
	} {
		host := maps.Clone(s.host)
		host["site.conf"] = "SITE=here\n"
		s := set{host: host}
		r, err := s.with(t, c.lines+"\n").Report("software.eessi.io")
		if err != nil {
			t.Errorf("%q: %v", c.lines, err)
			continue
		}
		got := "-"
		for _, p := range r.Parameters {
			if p.Name == c.name && p.Place != nil {
				got = p.Value
			}
		}
		fails := slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Kind == Failed })
		if got != c.want || fails != c.fails {
			t.Errorf("%q: got %q, want %q; fails: %t, %v", c.lines, got, c.want, fails, r.Findings)
		}
		// Whatever the line, what the set itself says is read.
		if !slices.ContainsFunc(r.Parameters, func(p Setting) bool { return p.Name == "CVMFS_SERVER_URL" && p.Value != "" }) {
			t.Errorf("%q: the rest isn't read", c.lines)
		}
	}
}
