package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/test/testutil"
)

func TestSecretsAreRemovedAndNothingElse(t *testing.T) {
	var r Redactor
	r.Learn([]byte(`{"hosts":{"store":{"url":"https://s3.example.org","accessKey":"AKIDPLANTED","secretKey":"pla\"nted/s3cret"}},"auths":{"r.example.org":{"auth":"cGxhbnRlZA=="}}}`))
	r.LearnAddresses([]byte("CVMFS_HTTP_PROXY=http://user:proxypass@squid.example.org:3128"))
	for in, want := range map[string]string{
		"http://user:pass@proxy:3128":                    "http://(removed)@proxy:3128",
		"https://u:p@ss@proxy/x?y=1":                     "https://(removed)@proxy/x?y=1",
		"http://token@host/x":                            "http://(removed)@host/x",
		"CVMFS_HTTP_PROXY=user:pass@squid:3128|DIRECT":   "CVMFS_HTTP_PROXY=(removed)@squid:3128|DIRECT",
		`"http://a:b@p1:1;http://c:d@p2:2"`:              `"http://(removed)@p1:1;http://(removed)@p2:2"`,
		"the key AKIDPLANTED was refused":                "the key (removed) was refused",
		`"key": "pla\"nted/s3cret"`:                      `"key": "(removed)"`,
		`level=error msg="pla\"nted/s3cret"`:             `level=error msg="(removed)"`,
		"proxypass alone":                                "(removed) alone",
		"cGxhbnRlZA==":                                   "(removed)",
		`msg="{\"secretKey\":\"abc\",\"x\":1}"`:          `msg="{\"secretKey\":\"(removed)\",\"x\":1}"`,
		`token=""`:                                       `token="(removed)"`,
		`{"secretKey": "short"}`:                         `{"secretKey": "(removed)"}`,
		"S3_SECRET_KEY=abc def":                          "S3_SECRET_KEY=(removed) def",
		"password: 'x y'":                                "password: '(removed)'",
		`"identitytoken":"eyJ"`:                          `"identitytoken":"(removed)"`,
		"Authorization: Bearer abcdefgh.ijk":             "Authorization: (removed) (removed)",
		"Get https://s3/x?X-Amz-Signature=feed&a=1: 403": "Get https://s3/x?X-Amz-Signature=(removed)&a=1: 403",
		"-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nafter":                      "(removed)\nafter",
		"-----BEGIN PRIVATE KEY-----\ncut off":                                                            "(removed)",
		"-----BEGIN PUBLIC KEY-----\nMII\n-----END PUBLIC KEY-----":                                       "-----BEGIN PUBLIC KEY-----\nMII\n-----END PUBLIC KEY-----",
		"CVMFS_SERVER_URL=http://s1.example.org/cvmfs/@fqrn@":                                             "CVMFS_SERVER_URL=http://s1.example.org/cvmfs/@fqrn@",
		"CVMFS_SERVER_URL=\"http://s1.example.org/cvmfs/@fqrn@;http://s2.example.org:8000/cvmfs/@fqrn@\"": "CVMFS_SERVER_URL=\"http://s1.example.org/cvmfs/@fqrn@;http://s2.example.org:8000/cvmfs/@fqrn@\"",
		"images.example.org@7 of 2026-01-01 12:00:00":                                                     "images.example.org@7 of 2026-01-01 12:00:00",
		"CVMFS_PUBLIC_KEY=/etc/cvmfs/keys/x.pub":                                                          "CVMFS_PUBLIC_KEY=/etc/cvmfs/keys/x.pub",
		`time="2026-01-01T00:00:00Z" level=info msg="author: x"`:                                          `time="2026-01-01T00:00:00Z" level=info msg="author: x"`,
	} {
		if got := string(r.Redact([]byte(in))); got != want {
			t.Errorf("%s\n got %s\nwant %s", in, got, want)
		}
	}
}

// planted are secrets in every place a host may have them.
var planted = []string{
	"PLANTED-proxy", "PLANTED-minio", "PLANTED-access", "PLANTED-daemon", "PLANTED-log",
	"UExBTlRFRA-private",
}

// host is a host with secrets everywhere.
func host(t *testing.T) (preflight.Facts, preflight.Plan) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"daemon.json":                        `{"http-proxy": "http://u:PLANTED-daemon@proxy:1", "storage-driver": "overlay2"}`,
		"m/config.json":                      `{"version":"9","hosts":{"s":{"accessKey":"PLANTED-access","secretKey":"PLANTED-minio"}}}`,
		"c/default.local":                    "CVMFS_HTTP_PROXY=http://u:PLANTED-proxy@127.0.0.1:1\nCVMFS_TIMEOUT=1\nCVMFS_MAX_RETRIES=0\n",
		"c/keys/x.pub":                       "-----BEGIN PUBLIC KEY-----\nMFwwDQ\n-----END PUBLIC KEY-----\n",
		"c/keys/x.masterkey":                 "-----BEGIN RSA PRIVATE KEY-----\nUExBTlRFRA-private\n-----END RSA PRIVATE KEY-----\n",
		"c/keys/wrong.pub":                   "-----BEGIN RSA PRIVATE KEY-----\nUExBTlRFRA-private\n-----END RSA PRIVATE KEY-----\n",
		"plugins/42/propagated-mount/layout": "1\n",
		"plugins/42/propagated-mount/state/revisions/seen": "x",
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	served := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(served.Close)
	conf := "CVMFS_SERVER_URL=" + served.URL + "/cvmfs/@fqrn@\nCVMFS_PUBLIC_KEY=" + testutil.PublicKey(t,
		"images.example.org") + "\n"
	if err := os.MkdirAll(filepath.Join(dir, "c/config.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "c/config.d/images.example.org.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	p := preflight.Plan{
		Host: "unix://" + dir + "/none", Name: "cvmfs-graphdriver", DaemonJSON: dir + "/daemon.json",
		CVMFSConfig: dir + "/c", MinioConfig: dir + "/m",
	}
	f := preflight.Gather(t.Context(), p)
	f.Plugin = preflight.Plugin{Name: p.Name, Present: true, Dir: dir + "/plugins/42"}
	f.Engine.DriverStatus = [][2]string{{"Note", "password=PLANTED-log"}}
	return f, p
}

// unpack reads an archive.
func unpack(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	testutil.Untar(t, z, func(h *tar.Header, content []byte) {
		files[path.Base(path.Dir(h.Name))+"/"+path.Base(h.Name)] = string(content)
	})
	return files
}

func TestArchiveHasWhatHelpsAndNoSecret(t *testing.T) {
	f, p := host(t)
	report := New(f, p, "1.0", "abc")
	file := filepath.Join(t.TempDir(), "report.tar.gz")
	if err := report.Archive(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: want it readable by its owner alone", info.Mode(), err)
	}
	files := unpack(t, file)
	for name, part := range map[string]string{
		"cvmfs-graphdriver-report/facts.json":        `"fqrn": "images.example.org"`,
		"cvmfs-graphdriver-report/findings.json":     "cvmfs.repository.proxy",
		"cvmfs-graphdriver-report/findings.txt":      "error",
		"cvmfs-graphdriver-report/program.txt":       "1.0 abc",
		"cvmfs-graphdriver-report/daemon.json":       `http://(removed)@proxy:1`,
		"cvmfs-graphdriver-report/minio-config.json": `"version":"9"`,
		"cvmfs-graphdriver-report/engine.log":        "",
		"cvmfs/default.local":                        "http://(removed)@127.0.0.1:1",
		"config.d/images.example.org.conf":           "CVMFS_PUBLIC_KEY=/",
		"keys/x.pub":                                 "MFwwDQ",
		"host/filesystems":                           "proc",
		"host/mounts":                                " / ",
		"plugin/files.txt":                           "state/revisions",
		"plugin/layout":                              "1",
	} {
		if text, ok := files[name]; !ok || !strings.Contains(text, part) {
			t.Errorf("%s: %.300q, want %q", name, text, part)
		}
	}
	for name, text := range files {
		for _, secret := range planted {
			if strings.Contains(text, secret) {
				t.Errorf("%s tells %s", name, secret)
			}
		}
		if strings.Contains(name, "masterkey") {
			t.Errorf("%s: a private key's file was taken", name)
		}
	}
	var out bytes.Buffer
	if err := report.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"PLANTED-proxy", "PLANTED-minio", "PLANTED-access", "PLANTED-daemon"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("the report tells %s", secret)
		}
	}
}

func FuzzRedactedValuesStayJSON(f *testing.F) {
	for _, s := range []string{"", "password=", `token="x`, `http://a:b@c`, `\`, "secret: {", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		const secret = "PLANTED-value"
		var r Redactor
		r.Learn([]byte(`{"password":"` + secret + `"}`))
		b, err := r.RedactJSON(map[string]any{
			"text": s + secret, "list": []string{s}, "secret": secret, s: secret,
			"n": 1 << 60,
		})
		if err != nil {
			t.Fatal(err)
		}
		var back map[string]any
		if err := json.Unmarshal(b, &back); err != nil || strings.Contains(string(b), secret) ||
			!strings.Contains(string(b), "1152921504606846976") {
			t.Errorf("%v: %s", err, b)
		}
	})
}

func TestArchiveIsCompleteOrAbsent(t *testing.T) {
	disk := testutil.SmallDisk(t, "64k")
	file := filepath.Join(disk, "report.tar.gz")
	if err := os.WriteFile(file, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	full, err := os.Create(filepath.Join(disk, "full"))
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for err == nil {
		_, err = full.Write(make([]byte, 512))
	}
	f := preflight.Facts{Time: time.Now()}
	if err := New(f, preflight.Plan{}, "1", "").Archive(t.Context(), file); err == nil ||
		!strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), file) {
		t.Errorf("%v, want what is full", err)
	}
	if b, err := os.ReadFile(file); string(b) != "older" || err != nil {
		t.Errorf("the older file is %q, %v", b, err)
	}
	if names, err := os.ReadDir(disk); len(names) != 2 || err != nil {
		t.Errorf("left: %v, %v", names, err)
	}
}

// running is a host on which the driver is in use.
func running() preflight.Facts {
	return preflight.Facts{
		Engine: preflight.Engine{
			Host: "unix:///run/docker.sock", Product: "Engine", Version: "20.10.24", API: "1.41",
			Driver: "g", DriverStatus: [][2]string{{"View", "erofs"}},
		},
		Data: preflight.Data{
			Dir: "/var/lib/docker", FileSystem: "extfs", Typed: true, Free: 10 << 30,
			Size: 20 << 30,
		},
		Plugin: preflight.Plugin{
			Name: "g", ID: "42", Present: true, Enabled: true, Ours: true, Settings: map[string]string{"DEBUG": "0"},
			State: &preflight.State{
				Version: "0.9", Layers: 3, Thin: 1, Mounts: 2, View: "erofs", Images: []preflight.Image{
					{Key: "k", Objects: 5, Size: 2048, Repositories: map[string]uint64{
						"b.example.org": 2,
						"a.example.org": 1,
					}},
					{
						Key: "l", Names: []string{"r.example.org/x:1", "x:1"}, Containers: []string{"db", "web"},
						Local: "2 of 5 objects, 0.8 of 2.1 MB", Err: "torn",
					},
				},
				Repositories: []preflight.InUse{{
					Repository: status.Repository{
						FQRN: "a.example.org", Since: time.Unix(0, 0), Err: "no server",
						Servers: []status.Member{{Name: "http://s/a", Answers: 7, Wait: 0.0123}},
						Proxies: []status.Member{{Name: "http://p:3128", Err: "refused"}},
					},
					Differences: []string{"CVMFS_TIMEOUT: …"},
				}},
				Metrics: &preflight.Metrics{Address: "127.0.0.1:9324"},
				Cache:   status.Cache{Limit: 2 << 30, Used: 1 << 30, Objects: 7, Free: 3 << 30, Floor: 1 << 20},
			},
			Disk: &preflight.Disk{Objects: 4, Bytes: 1024},
		},
		Configuration: preflight.Configuration{Dir: "/etc/cvmfs", Repositories: []preflight.Repository{
			{FQRN: "a.example.org", Revision: 1, Published: time.Unix(0, 0)},
			{FQRN: "c.example.org", Trouble: preflight.Proxy, Err: "refused"},
		}},
	}
}

func TestStatusTellsWhatRuns(t *testing.T) {
	var out strings.Builder
	if err := StatusOf(running(), "1.0").Write(&out); err != nil {
		t.Fatal(err)
	}
	const want = `engine        20.10.24 (API 1.41) at unix:///run/docker.sock
driver        g: this plugin
plugin        g is enabled, id 42
settings      DEBUG=0
version       0.9
layers        3, of them thin 1; mounted 2
view          erofs
cache         1.0 GiB of 2.0 GiB used by 7 objects; 3.0 GiB free, of which 1.0 MiB stay free
metrics       at 127.0.0.1:9324
image         k: 5 objects, 2.0 KiB, of a.example.org@1 b.example.org@2
image         r.example.org/x:1, x:1: 0 objects, 0 B, of 
              damaged: torn
              on this host: 2 of 5 objects, 0.8 of 2.1 MB
              used by db, web
in use        a.example.org, configured since 1970-01-01 00:00:00
              server http://s/a: in order; 7 answers, 0.012 s on average
              proxy http://p:3128: others are preferred: refused
              its files were changed, and can't be used: no server
              differs from the files: CVMFS_TIMEOUT: …
store         at least 4 objects, 1.0 KiB
              View: erofs
repository    a.example.org revision 1 of 1970-01-01 00:00:00
repository    c.example.org can't be used (proxy): refused
data          /var/lib/docker on ext4, 10 GiB of 20 GiB free
program       1.0
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}

func TestOlderPluginIsSaid(t *testing.T) {
	for version, want := range map[string]bool{"0.9": false, "1.0": true} {
		said := false
		for _, f := range New(running(), preflight.Plan{Name: "g"}, version, "").Findings {
			said = said || f.ID == "plugin.version"
		}
		if said != want {
			t.Errorf("program %s: said %t, want %t", version, said, want)
		}
	}
}
