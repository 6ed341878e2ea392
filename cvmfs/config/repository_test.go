package config

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const configFQRN = "config.example.org"

// remote gives a folder a configuration repository with these files, which the host sees below /cvmfs.
func remote(t testing.TB, host, files map[string]string) Folder {
	t.Helper()
	host["default.d/50-site.conf"] += "CVMFS_CONFIG_REPOSITORY=" + configFQRN + "\n"
	host["config.d/"+configFQRN+".conf"] = "CVMFS_SERVER_URL=http://c/@fqrn@\nCVMFS_HTTP_PROXY=DIRECT\nCVMFS_PUBLIC_KEY=/etc/cvmfs/keys/config.pub\n"
	dir := folder(t, files)
	return Folder{Dir: folder(t, host), ConfigRepository: func(c *Config) (string, error) {
		if c.FQRN != configFQRN || len(c.Servers) != 1 || c.Servers[0] != "http://c/"+configFQRN {
			t.Errorf("the configuration repository is configured as %+v", c)
		}
		return dir, nil
	}}
}

func TestConfigurationRepositoryIsReadInItsPlaces(t *testing.T) {
	order := []string{
		"default.conf", "default.d/50-site.conf", "R/default.conf", "default.local", "R/domain.d/example.org.conf",
		"domain.d/example.org.conf", "domain.d/example.org.local", "R/config.d/" + fqrn + ".conf",
		"config.d/" + fqrn + ".conf", "config.d/" + fqrn + ".local",
	}
	host, files := map[string]string{}, map[string]string{
		"etc/cvmfs/default.local": "ORDER=wrong\n", "etc/cvmfs/default.d/1.conf": "ORDER=wrong\n",
		"etc/cvmfs/domain.d/example.org.local": "ORDER=wrong\n",
	}
	for _, name := range order {
		text := "ORDER=\"$ORDER " + name + "\"\nCVMFS_CONFIG_REPOSITORY=other\n"
		if rest, ok := strings.CutPrefix(name, "R/"); ok {
			files["etc/cvmfs/"+rest] = text
		} else {
			host[name] = text
		}
	}
	host["default.local"] += complete
	f := remote(t, host, files)
	c, err := f.Load(fqrn)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(order, " "); c.Params["ORDER"] != want || c.Params[configRepository] != configFQRN {
		t.Errorf("got %q, want %q; %q", c.Params["ORDER"], want, c.Params[configRepository])
	}
	if at := c.Origins["ORDER"]; at.Network {
		t.Errorf("the last assignment was at %+v", at)
	}
	// The configuration repository itself has the host's files alone.
	if c, err := f.Load(configFQRN); err != nil || strings.Contains(c.Params["ORDER"], "R/") {
		t.Errorf("%v, %v", c, err)
	}
}

func TestConfigurationRepositoryBringsKeysAndBlacklist(t *testing.T) {
	f := remote(t, map[string]string{
		"default.local": "CVMFS_HTTP_PROXY=DIRECT\n", "default.conf": "CVMFS_MOUNT_DIR=/cvmfs\n",
	}, map[string]string{
		"etc/cvmfs/common.conf": "CVMFS_USE_CDN=no\n",
		"etc/cvmfs/domain.d/example.org.conf": `. ../common.conf
[ -f $CVMFS_MOUNT_DIR/$CVMFS_CONFIG_REPOSITORY/etc/cvmfs/keys/a.pub ] && HAS=yes
CVMFS_SERVER_URL=http://s/@fqrn@
CVMFS_KEYS_DIR=$CVMFS_MOUNT_DIR/$CVMFS_CONFIG_REPOSITORY/etc/cvmfs/keys
`,
		"etc/cvmfs/keys/a.pub": "", "etc/cvmfs/blacklist": "",
	})
	c, err := f.Load(fqrn)
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := f.ConfigRepository(&Config{FQRN: configFQRN, Servers: []string{"http://c/" + configFQRN}})
	if d := cmp.Diff([]string{filepath.Join(dir, "etc/cvmfs/keys/a.pub")}, c.PublicKeys); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{filepath.Join(f.Dir, "blacklist"), filepath.Join(dir, "etc/cvmfs/blacklist")},
		c.Blacklists); d != "" {
		t.Error(d)
	}
	want := Place{File: "/cvmfs/" + configFQRN + "/etc/cvmfs/common.conf", Line: 1, Network: true}
	if c.Params["HAS"] != "yes" || c.Origins["CVMFS_USE_CDN"] != want || len(c.Findings) > 0 {
		t.Errorf("%v\n%+v\n%s", c.Params, c.Origins, text(c.Findings))
	}
}

// What comes over the network reads nothing of the host, and names nothing of it but keys and blacklists.
func TestConfigurationRepositoryOpensNothingOutside(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("V=secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, script := range []string{
		"V=$(cat " + secret + ")", ". " + secret, "grep -q secret " + secret + " && V=secret",
		"[ -f " + secret + " ] && V=secret", "read V <" + secret, "V=$(cat <" + secret + ")",
		". /etc/cvmfs/secret.conf", "V=$(grep -o secret /etc/cvmfs/secret.conf)", "[ -f /etc/cvmfs/secret.conf ] && V=secret",
		"V=$(cat ../../../../../../../.." + secret + ")", "V=$(cat /cvmfs/" + configFQRN + "/../.." + secret + ")",
		"cd /; V=$(cat ." + secret + ")", "V=$(cat link)", ". ./link", "[ -f link ] && V=secret", "[ -s link/x ] && V=secret",
		"V=$(ls " + filepath.Dir(secret) + ")", "V=$(ls /etc/cvmfs)", "V=$(ls dir)",
		"CVMFS_MOUNT_DIR=/etc CVMFS_CONFIG_REPOSITORY=cvmfs\n. /etc/cvmfs/secret.conf",
		"CVMFS_MOUNT_DIR=" + filepath.Dir(secret) + "\nV=$(ls $CVMFS_MOUNT_DIR; cat $CVMFS_MOUNT_DIR/secret)",
		"eval 'V=$(cat " + secret + ")'",
	} {
		f := remote(t, map[string]string{"default.local": complete, "secret.conf": "V=secret\n"}, map[string]string{
			"etc/cvmfs/default.conf": script + "\n",
		})
		dir, _ := f.ConfigRepository(&Config{FQRN: configFQRN, Servers: []string{"http://c/" + configFQRN}})
		for link, to := range map[string]string{"link": secret, "dir": filepath.Dir(secret)} {
			if err := os.Symlink(to, filepath.Join(dir, "etc/cvmfs", link)); err != nil {
				t.Fatal(err)
			}
		}
		r, err := f.Report(fqrn)
		if err != nil {
			t.Fatal(err)
		}
		if s := r.String(); strings.Contains(strings.ReplaceAll(s, secret, ""), "V=secret") {
			t.Errorf("%s: it was read:\n%s", script, s)
		}
	}
	for setting, good := range map[string]bool{
		"CVMFS_PUBLIC_KEY=/etc/cvmfs/keys/a.pub":                              true,
		"CVMFS_KEYS_DIR=/etc/cvmfs/keys":                                      true,
		"CVMFS_BLACKLIST=/etc/cvmfs/blacklist":                                true,
		"CVMFS_UID_MAP=/cvmfs/" + configFQRN + "/etc/cvmfs/default.conf":      false, // no map
		"CVMFS_UID_MAP=/etc/cvmfs/uids":                                       false,
		"CVMFS_PUBLIC_KEY=" + secret:                                          false,
		"CVMFS_PUBLIC_KEY=../../" + secret:                                    false,
		"CVMFS_PUBLIC_KEY=/etc/cvmfs/../../" + secret:                         false,
		"CVMFS_KEYS_DIR=" + filepath.Dir(secret):                              false,
		"CVMFS_BLACKLIST=/dev/zero":                                           false,
		"CVMFS_KEYS_DIR=/cvmfs/" + configFQRN + "/../../../" + secret:         false,
		"X509_CERT_DIR=/tmp":                                                  false,
		"CVMFS_SERVER_URL=file:///etc":                                        false,
		"CVMFS_MOUNT_DIR=/etc CVMFS_PUBLIC_KEY=/etc/" + configFQRN + "/x.pub": false,
	} {
		f := remote(t, map[string]string{
			"default.conf": "CVMFS_SERVER_URL=http://s\nCVMFS_HTTP_PROXY=DIRECT\n", "keys/a.pub": "", "uids": "0 0\n",
		}, map[string]string{"etc/cvmfs/domain.d/example.org.conf": setting + "\n"})
		if _, err := f.Load(fqrn); (err == nil) != good {
			t.Errorf("%s: %v", setting, err)
		}
	}
}

// What protects a host by its own files, what comes over the network can't switch off.
func TestConfigurationRepositoryOnlyAddsToWhatProtects(t *testing.T) {
	const site = "CVMFS_BLACKLIST=/etc/cvmfs/site.blacklist\n"
	for _, c := range []struct {
		host, script string
		own          string // the host's blacklist, which must count
	}{
		{"", "CVMFS_BLACKLIST=/etc/cvmfs/nothing", "blacklist"},
		{"", "unset CVMFS_BLACKLIST", "blacklist"},
		{site, "CVMFS_BLACKLIST=/etc/cvmfs/nothing", "site.blacklist"},
		{site, "CVMFS_BLACKLIST=", "site.blacklist"},
		{site, "unset CVMFS_BLACKLIST", "site.blacklist"},
		{site, "unset CVMFS_BLACKLIST; CVMFS_BLACKLIST=/etc/cvmfs/nothing", "site.blacklist"},
		{site, "CVMFS_BLACKLIST=/etc/cvmfs/blacklist; unset CVMFS_BLACKLIST", "site.blacklist"},
		{
			"CVMFS_BLACKLIST='/etc/cvmfs/@org@.blacklist'\n", "eval 'CVMFS_BLACKLIST=/etc/cvmfs/blacklist'",
			"atlas.blacklist",
		},
	} {
		f := remote(t, map[string]string{"default.local": complete + c.host}, map[string]string{
			"etc/cvmfs/config.d/" + fqrn + ".conf": c.script + "\n",
		})
		if got, err := f.Load(fqrn); err != nil || !slices.Contains(got.Blacklists, filepath.Join(f.Dir, c.own)) {
			t.Errorf("%s%s: %v, %+v", c.host, c.script, err, got)
		}
	}
	for script, strict := range map[string]string{
		"CVMFS_STRICT_MOUNT=no":                                "CVMFS_STRICT_MOUNT=yes\n",
		"unset CVMFS_STRICT_MOUNT":                             "CVMFS_STRICT_MOUNT=yes\n",
		"CVMFS_REPOSITORIES=$CVMFS_REPOSITORIES," + fqrn:       "CVMFS_STRICT_MOUNT=yes\n",
		"CVMFS_REPOSITORIES=" + fqrn + " CVMFS_STRICT_MOUNT=1": "CVMFS_STRICT_MOUNT=yes\n",
	} {
		f := remote(t, map[string]string{
			"default.local": complete + "CVMFS_REPOSITORIES=" + configFQRN + ",other.example.org\n" + strict,
		}, map[string]string{"etc/cvmfs/domain.d/example.org.conf": script + "\n"})
		if _, err := f.Load(fqrn); !errors.Is(err, ErrNotAllowed) {
			t.Errorf("%s: %v", script, err)
		}
	}
}

func TestKeysOfTheHostsLaterFilesReplaceThoseOfTheNetwork(t *testing.T) {
	f := remote(t, map[string]string{
		"default.local": complete, "config.d/" + fqrn + ".conf": "CVMFS_KEYS_DIR=/etc/cvmfs/keys/own\n", "keys/own/a.pub": "",
	}, map[string]string{
		"etc/cvmfs/config.d/" + fqrn + ".conf": "CVMFS_PUBLIC_KEY=/cvmfs/" + configFQRN + "/etc/cvmfs/other.pub\n",
		"etc/cvmfs/other.pub":                  "",
	})
	c, err := f.Load(fqrn)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{filepath.Join(f.Dir, "keys/own/a.pub")}, c.PublicKeys); d != "" {
		t.Error(d)
	}
}

func TestWithoutConfigurationRepositoryTheHostsFilesCount(t *testing.T) {
	for required, want := range map[string]string{"": "", "yes": "nothing is used without it", "$(x)": "is not certain"} {
		f := remote(t, map[string]string{
			"default.local": complete, "default.d/50-site.conf": "CVMFS_CONFIG_REPO_REQUIRED=" + required + "\n",
		}, nil)
		f.ConfigRepository = func(*Config) (string, error) { return "", errors.New("no server answers") }
		c, err := f.Load(fqrn)
		switch {
		case want != "":
			if err == nil || !strings.Contains(err.Error(), want) ||
				required == "yes" && !strings.Contains(err.Error(), "no server answers") {
				t.Errorf("required %q: %v", required, err)
			}
		case err != nil || len(c.Findings) != 1 || c.Findings[0].Kind != Unread ||
			!strings.Contains(c.Findings[0].Text, "no server answers"):
			t.Errorf("%v, %+v", err, c)
		}
		f.ConfigRepository = nil
		if _, err := f.Load(fqrn); (err == nil) != (required == "") {
			t.Errorf("required %q, not read: %v", required, err)
		}
	}
	// A repository that isn't configured is one that can't be read.
	f := remote(t, map[string]string{"default.local": complete}, nil)
	if err := os.Remove(filepath.Join(f.Dir, "config.d", configFQRN+".conf")); err != nil {
		t.Fatal(err)
	}
	f.ConfigRepository = func(c *Config) (string, error) { return t.TempDir(), nil }
	if err := os.WriteFile(filepath.Join(f.Dir, "default.local"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Load(fqrn); !errors.Is(err, ErrNotConfigured) || !strings.Contains(err.Error(), configFQRN) {
		t.Errorf("got %v", err)
	}
}

// The host's own files may take up what came over the network, and still protect by what they say of themselves.
func TestHostsFilesThatUseTheNetworksValuesProtectAllTheSame(t *testing.T) {
	later := "config.d/" + fqrn + ".local"
	const nothing = "CVMFS_BLACKLIST=/etc/cvmfs/nothing"
	for host, script := range map[string]string{
		"CVMFS_BLACKLIST=${CVMFS_BLACKLIST:-/etc/cvmfs/own}":                        nothing,
		": ${CVMFS_BLACKLIST:=/etc/cvmfs/own}; export CVMFS_BLACKLIST":              nothing,
		"if [ \"$SITE\" != no ]; then CVMFS_BLACKLIST=/etc/cvmfs/own; fi":           "SITE=no",
		"CVMFS_BLACKLIST=$(echo /etc/cvmfs/${NAME:-own})":                           "NAME=nothing",
		"CVMFS_BLACKLIST=/etc/cvmfs/own\nCVMFS_BLACKLIST=${NONE:-$CVMFS_BLACKLIST}": "NONE=/etc/cvmfs/nothing",
	} {
		f := remote(t, map[string]string{"default.local": complete, later: host + "\n"}, map[string]string{
			"etc/cvmfs/default.conf": script + "\n",
		})
		got, err := f.Load(fqrn)
		if err != nil || !slices.Contains(got.Blacklists, filepath.Join(f.Dir, "own")) {
			t.Errorf("%s after %s: %v, %+v", host, script, err, got)
		}
	}
	for host, script := range map[string]string{
		"CVMFS_STRICT_MOUNT=${CVMFS_STRICT_MOUNT:-yes}":                           "CVMFS_STRICT_MOUNT=no",
		"[ \"$LAX\" = 1 ] || CVMFS_STRICT_MOUNT=yes":                              "LAX=1",
		"CVMFS_STRICT_MOUNT=yes; CVMFS_REPOSITORIES=$CVMFS_REPOSITORIES,$MORE":    "MORE=" + fqrn,
		"CVMFS_REPOSITORIES=$CVMFS_REPOSITORIES${MORE:+,x}; CVMFS_STRICT_MOUNT=1": "MORE=1; CVMFS_REPOSITORIES=" + fqrn,
	} {
		f := remote(t, map[string]string{
			"default.local": complete + "CVMFS_REPOSITORIES=" + configFQRN + "\n" + host + "\n",
		}, map[string]string{"etc/cvmfs/default.conf": script + "\n"})
		if _, err := f.Load(fqrn); !errors.Is(err, ErrNotAllowed) {
			t.Errorf("%s after %s: %v", host, script, err)
		}
	}
}

// What came over the network opens no file of the host's by way of the host's own files either.
func TestNetworksValuesInHostsFilesNameNoFiles(t *testing.T) {
	later := "config.d/" + fqrn + ".local"
	for _, host := range []string{
		"CVMFS_UID_MAP=$X", "CVMFS_UID_MAP=$(echo $X)", "Y=$X; CVMFS_UID_MAP=$Y", "eval \"CVMFS_UID_MAP=$X\"",
		"for y in $X; do CVMFS_UID_MAP=$y; done", "CVMFS_PUBLIC_KEY=$X", "X509_CERT_BUNDLE=${X:-/none}",
		"export CVMFS_UID_MAP=\"$X\"", "CVMFS_SERVER_URL=file://$X", "CVMFS_PAC_URLS=file://$X",
		": ${CVMFS_UID_MAP:=$X}",
	} {
		f := remote(t, map[string]string{"default.local": complete, later: host + "\n"}, map[string]string{
			"etc/cvmfs/default.conf": "X=/etc/passwd\n",
		})
		if _, err := f.Load(fqrn); err == nil || !strings.Contains(err.Error(), errForbidden.Error()) {
			t.Errorf("%s: %v", host, err)
		}
	}
	f := remote(t, map[string]string{
		"default.local": complete, later: "Z=$X\nCVMFS_UID_MAP=/etc/cvmfs/map\nCVMFS_HTTP_PROXY=$P\n", "map": "* 0\n",
	}, map[string]string{"etc/cvmfs/default.conf": "X=/etc/passwd P=http://p:3128\n"})
	if c, err := f.Load(fqrn); err != nil || c.UIDMap == nil || c.ProxyGroups[0][0] != "http://p:3128" {
		t.Errorf("what is the host's own: %v", err)
	}
}
