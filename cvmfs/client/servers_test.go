package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/fetch"
)

// localConfig reads a default.local for a repository.
func localConfig(t *testing.T, text string, overrides map[string]string) *config.Config {
	t.Helper()
	dir := t.TempDir()
	text = "CVMFS_SERVER_URL=http://a/@org@;http://b/@fqrn@\nCVMFS_HTTP_PROXY=DIRECT\nCVMFS_PUBLIC_KEY=/k.pub\n" + text
	if err := os.WriteFile(filepath.Join(dir, "default.local"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Folder{Dir: dir, Overrides: overrides}.Load("x.example.org")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConfigurationReachesTheFetcher(t *testing.T) {
	got := servers(localConfig(t, `CVMFS_SERVER_URL="http://a/@org@;http://b/@fqrn@;http://c"
CVMFS_USE_GEOAPI=yes
CVMFS_MAX_SERVERS=2
CVMFS_PROXY_TEMPLATE=site
CVMFS_PROXY_SHARD=yes
CVMFS_MAX_IPADDR_PER_PROXY=3
CVMFS_IPFAMILY_PREFER=6
CVMFS_DNS_TIMEOUT=4
CVMFS_DNS_RETRIES=0
CVMFS_DNS_MIN_TTL=120
CVMFS_DNS_SERVER=192.0.2.1
CVMFS_TIMEOUT=0
CVMFS_LOW_SPEED_LIMIT=0
CVMFS_BACKOFF_INIT=0
CVMFS_BACKOFF_MAX=0
CVMFS_MAX_RETRIES=0
X509_CERT_DIR=/certificates
X509_CERT_BUNDLE=/bundle
CVMFS_PAC_URLS=http://wpad.example.org/w.dat
CVMFS_FALLBACK_PROXY=DIRECT
CVMFS_FAILOVER_INDEFINITELY=yes
`, nil), Options{Dir: "/state"})
	want := fetch.Config{
		Servers: []string{"http://a/x", "http://b/x.example.org", "http://c"},
		Proxies: [][]string{{"DIRECT"}},
		Auto:    fetch.Auto{URLs: []string{"http://wpad.example.org/w.dat"}, NoDirect: true, Cache: "/state/proxies"},
		Timeout: -1, TimeoutDirect: 10 * time.Second, LowSpeedLimit: -1, BackoffInit: -1, BackoffMax: -1,
		ProxyResetAfter: 5 * time.Minute, HostResetAfter: 30 * time.Minute,
		Names: fetch.Names{
			MaxAddresses: 3, PreferIPv6: true, Timeout: 4 * time.Second, Retries: -1, MinTTL: 2 * time.Minute,
			MaxTTL: 24 * time.Hour, Server: "192.0.2.1",
		},
		Geo: fetch.Geo{Use: true, Template: "site"}, MaxServers: 2, Shard: true, Persistent: true,
		Authorities: fetch.Authorities{Dir: "/certificates", File: "/bundle"},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(fetch.Config{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// External files have servers, proxies and timeouts of their own; the rest is the repository's.
func TestConfigurationOfExternalFilesReachesTheFetcher(t *testing.T) {
	none := servers(localConfig(t, "CVMFS_EXTERNAL_HTTP_PROXY=p\n", nil), Options{})
	if none.External != nil || none.TellInfo {
		t.Errorf("without servers: %+v", none.External)
	}
	for text, want := range map[string]fetch.Config{
		"CVMFS_EXTERNAL_URL='http://e/@fqrn@;http://f'": {
			Servers: []string{"http://e/x.example.org", "http://f"}, Proxies: [][]string{{"DIRECT"}},
			Timeout: 7 * time.Second, TimeoutDirect: 10 * time.Second,
		},
		"CVMFS_EXTERNAL_SERVER_URL=http://e\nCVMFS_EXTERNAL_FALLBACK_PROXY=q\nCVMFS_EXTERNAL_TIMEOUT=0": {
			Servers: []string{"http://e"}, Proxies: [][]string{{"http://q"}}, Timeout: -1,
			TimeoutDirect: 10 * time.Second,
		},
		"CVMFS_EXTERNAL_URL='http://e;http://f'\nCVMFS_EXTERNAL_HTTP_PROXY='p|q;DIRECT'\nCVMFS_EXTERNAL_MAX_SERVERS=1\n" +
			"CVMFS_EXTERNAL_TIMEOUT_DIRECT=3": {
			Servers: []string{"http://e", "http://f"}, Proxies: [][]string{{"http://p", "http://q"}, {"DIRECT"}},
			MaxServers: 1, Timeout: 7 * time.Second, TimeoutDirect: 3 * time.Second,
		},
	} {
		got := servers(localConfig(t, "CVMFS_HTTP_PROXY=repository:3128\nCVMFS_TIMEOUT=7\nCVMFS_USE_GEOAPI=yes\n"+
			"CVMFS_SEND_INFO_HEADER=yes\n"+text+"\n", nil), Options{Dir: "/state"}).External
		if got == nil || got.Geo.Use || !got.TellInfo || got.Auto.Cache != "/state/proxies-external" {
			t.Fatalf("%s: %+v", text, got)
		}
		is := fetch.Config{
			Servers: got.Servers, Proxies: got.Proxies, MaxServers: got.MaxServers, Timeout: got.Timeout,
			TimeoutDirect: got.TimeoutDirect,
		}
		if diff := cmp.Diff(want, is, cmpopts.IgnoreUnexported(fetch.Config{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
}

// Whoever reads that a key's file is missing has to know who named it.
func TestAKeyThatCanNotBeReadIsToldWithWhoNamesIt(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.pub")
	if err := os.WriteFile(bad, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"/nowhere/x.pub", bad} {
		c := localConfig(t, "CVMFS_PUBLIC_KEY="+file+"\n", nil)
		_, err := Open(c, Options{Dir: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), file) ||
			!strings.Contains(err.Error(), "CVMFS_PUBLIC_KEY, set in ") || !strings.Contains(err.Error(), "default.local:") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// A command's flags are parameters as those in files are.
func TestOverridesAreParameters(t *testing.T) {
	c := localConfig(t, "CVMFS_MAX_RETRIES=4\n", map[string]string{
		"CVMFS_SERVER_URL": "http://c/@fqrn@/ ; file:///srv/@org@", "CVMFS_HTTP_PROXY": "p|q;DIRECT",
	})
	want := []string{"http://c/x.example.org", "file:///srv/x"}
	if diff := cmp.Diff(want, c.Servers); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([][]string{{"http://p", "http://q"}, {"DIRECT"}}, c.ProxyGroups); diff != "" {
		t.Errorf("proxies (-want +got):\n%s", diff)
	}
	if c.MaxRetries != 4 || c.Timeout != 5*time.Second {
		t.Errorf("retries %d, timeout %v", c.MaxRetries, c.Timeout)
	}
}
