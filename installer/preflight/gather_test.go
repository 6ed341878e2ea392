package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/test/testutil"
)

// answers are what a fake engine says: paths without the API's version, and documents.
type answers map[string]any

// fakeEngine speaks an engine's API on a socket and gives its address. Whatever is not a question is a failure: nothing
// may change.
func fakeEngine(t *testing.T, api string, a answers) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fake-") // t.TempDir's are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	versioned := regexp.MustCompile(`^/v([0-9.]+)(/.*)$`)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			t.Errorf("the engine is asked to %s %s", r.Method, r.URL)
		}
		w.Header().Set("Api-Version", api)
		path := r.URL.Path
		if m := versioned.FindStringSubmatch(path); m != nil {
			path = m[2]
			if newer(m[1], api) {
				http.Error(w, `{"message":"client version is too new"}`, http.StatusBadRequest)
				return
			}
		}
		w.Header().Set("Content-Type", "application/json")
		switch v, ok := a[path]; {
		case path == "/_ping":
			w.Write([]byte("OK"))
		case ok:
			json.NewEncoder(w).Encode(v)
		case path == "/containers/json":
			w.Write([]byte("[]"))
		default:
			http.Error(w, `{"message":"not found"}`, http.StatusNotFound)
		}
	}))
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return "unix://" + l.Addr().String()
}

// newer compares versions of the API.
func newer(a, b string) bool { return number(a) > number(b) }

type object = map[string]any

// engineOf is a fake engine of a version, with its data in a folder.
func engineOf(version, api, root string) answers {
	return answers{
		"/version": object{
			"Version": version, "ApiVersion": api,
			"Components": []object{{"Name": "Engine", "Version": version}, {"Name": "containerd", "Version": "1"}},
		},
		"/info": object{
			"ID": "ABCD", "Driver": "overlay2", "DriverStatus": [][]string{{"Backing Filesystem", "extfs"}},
			"DockerRootDir": root,
			"ServerVersion": version, "ExperimentalBuild": false,
			"SecurityOptions": []string{"name=seccomp,profile=default"},
			"Swarm":           object{"LocalNodeState": "inactive"},
		},
	}
}

func (a answers) info(name string, value any) answers {
	a["/info"].(object)[name] = value
	return a
}

// emptyConfiguration is a folder without repositories.
func emptyConfiguration(t *testing.T) string { return testutil.Configure(t, nil) }

func planFor(t *testing.T, host string) Plan {
	return Plan{
		Install: true, Host: host, Name: name, CVMFSConfig: emptyConfiguration(t),
		DaemonJSON: filepath.Join(t.TempDir(), "daemon.json"),
	}
}

func TestEnginesAreRecognisedByWhatTheySay(t *testing.T) {
	root := t.TempDir()
	podman := engineOf("4.3.1", "1.41", root)
	podman["/version"].(object)["Components"] = []object{
		{"Name": "Podman Engine", "Version": "4.3.1"},
		{"Name": "Conmon"},
	}
	for _, c := range []struct {
		name string
		api  string
		a    answers
		want []string // errors
	}{
		{"17.03", "1.27", engineOf("17.03.2-ce", "1.27", root), []string{"engine.version"}},
		{"20.10", "1.41", engineOf("20.10.24+dfsg1", "1.41", root), nil},
		{"26", "1.45", engineOf("26.1.5", "1.45", root), nil},
		{"27 without systemd", "1.47", engineOf("27.5.1", "1.47", root), []string{"engine.variable"}},
		{"28", "1.51", engineOf("28.5.2", "1.51", root), []string{"engine.version"}},
		{"29", "1.52", engineOf("29.0.1", "1.52", root), []string{"engine.version"}},
		{"podman", "1.41", podman, []string{"engine.product"}},
		{"rootless", "1.41", engineOf("20.10.24", "1.41", root).info("SecurityOptions",
			[]string{"name=seccomp", "name=rootless"}), []string{"engine.rootless"}},
		{"containerd store", "1.45", engineOf("26.1.5", "1.45", root).info("DriverStatus",
			[][]string{{"driver-type", "io.containerd.snapshotter.v1"}}), []string{"engine.image-store"}},
		{
			"Docker Desktop", "1.45", engineOf("26.1.5", "1.45", root).info("OperatingSystem", "Docker Desktop"),
			[]string{"engine.remote"},
		},
		{"data elsewhere", "1.45", engineOf("26.1.5", "1.45", root+"/nowhere"), []string{"engine.remote"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := planFor(t, fakeEngine(t, c.api, c.a))
			f := Gather(t.Context(), p)
			f.Service.Manager, f.Root = "", true // of the machine, and of who tests
			if f.Data.Dir != "" {
				// of the machine, too
				f.Data.FileSystem, f.Data.Typed, f.Data.Free, f.Data.FreeInodes = "extfs", true, 1<<40, 1<<30
			}
			f.Kernel = Kernel{}
			var errs []string
			for _, finding := range Judge(f, p) {
				if finding.Severity == Error {
					errs = append(errs, finding.ID)
				}
			}
			if d := cmp.Diff(c.want, errs); d != "" {
				t.Errorf("errors (-want +got):\n%s\n%+v", d, f.Engine)
			}
		})
	}
}

func TestEngineIsAskedForAllThatMatters(t *testing.T) {
	root := t.TempDir()
	a := engineOf("20.10.24", "1.41", root).
		info("SecurityOptions", []string{"name=seccomp,profile=default", "name=userns", "name=selinux"}).
		info("Swarm", object{"LocalNodeState": "active", "ControlAvailable": true}).
		info("LiveRestoreEnabled", true).info("Images", 5).info("Containers", 3).info("ContainersRunning",
		1).info("ExperimentalBuild", true)
	a["/containers/json"] = []object{{"Id": "0123456789abcdef", "Names": []string{"/web"}}}
	a["/plugins/"+name+"/json"] = object{
		"Id": "42", "Name": name + ":latest", "Enabled": true,
		"Config": object{"Entrypoint": []string{"/bin/cvmfs-graphdriver-plugin"}},
		"Settings": object{
			"Mounts": []object{{"Name": "cvmfs_ext_config", "Source": "/srv/cvmfs"}},
			"Env":    []string{"DEBUG=1"},
		},
	}
	f := Gather(t.Context(), planFor(t, fakeEngine(t, "1.41", a)))
	e := f.Engine
	e.Host, e.DriverStatus = "", nil
	want := Engine{
		Product: "Engine", Version: "20.10.24", API: "1.41", Driver: "overlay2", Root: root, Experimental: true,
		UserNS:      true,
		LiveRestore: true, Swarm: "manager", Images: 5, Containers: 3, Running: []string{"web"}, Labels: true,
	}
	if d := cmp.Diff(want, e); d != "" {
		t.Errorf("engine (-want +got):\n%s", d)
	}
	g := f.Plugin
	if g.State == nil || g.State.Err == "" {
		t.Errorf("state %+v: the plugin can't have answered", g.State)
	}
	g.State, g.Disk, g.names = nil, nil, nil
	wantPlugin := Plugin{
		Name: name, ID: "42", Present: true, Enabled: true, Ours: true, Dir: root + "/plugins/42",
		Settings: map[string]string{"cvmfs_ext_config": "/srv/cvmfs", "DEBUG": "1"},
	}
	if d := cmp.Diff(wantPlugin, g, cmp.AllowUnexported(Plugin{})); d != "" {
		t.Errorf("plugin (-want +got):\n%s", d)
	}
}

func TestFoldersAboveRemappedContainersAreLookedAt(t *testing.T) {
	root := t.TempDir()
	for dir, mode := range map[string]os.FileMode{"plugins": 0o711, "plugins/42": 0o700} {
		if err := os.Mkdir(filepath.Join(root, dir), mode); err != nil && dir == "plugins" {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "plugins/42"), 0o700); err != nil {
		t.Fatal(err)
	}
	a := engineOf("20.10.24", "1.41", root).info("SecurityOptions", []string{"name=userns"})
	a["/plugins/"+name+"/json"] = object{"Id": "42", "Config": object{"Entrypoint": []string{"/bin/other"}}}
	f := Gather(t.Context(), planFor(t, fakeEngine(t, "1.41", a)))
	if d := cmp.Diff([]string{root + "/plugins/42"}, f.Plugin.Barred); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if f.Plugin.Ours {
		t.Error("another's plugin is taken for ours")
	}
}

func TestEngineThatIsNotThereIsSaid(t *testing.T) {
	p := planFor(t, "unix://"+filepath.Join(t.TempDir(), "none"))
	if f := Gather(t.Context(), p); f.Engine.Err == "" || found(Judge(f, p), "engine.unreachable") == nil {
		t.Errorf("%+v", f.Engine)
	}
	p.Host = "tcp://user:secret@127.0.0.1:1"
	f := Gather(t.Context(), p)
	if f.Engine.Elsewhere == "" || strings.Contains(f.Engine.Host, "secret") ||
		found(Judge(f, p), "engine.remote") == nil {
		t.Errorf("%+v", f.Engine)
	}
}

func TestEngineThatDoesNotAnswerIsGivenUp(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s")) // accepts, and nobody reads
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	p := planFor(t, "unix://"+l.Addr().String())
	f := Gather(ctx, p)
	if f.Engine.Err == "" || len(found(Judge(f, p), "engine.unreachable")) != 1 {
		t.Errorf("%+v", f.Engine)
	}
}

func TestConfigurationFileIsJudgedByTheEnginesRules(t *testing.T) {
	p := planFor(t, fakeEngine(t, "1.41", engineOf("20.10.24", "1.41", t.TempDir())))
	text := "{\n  // mine\n  \"storage-driver\": \"overlay2\",\n  \"storage-opts\": [\"a=b\"],\n  \"features\": {\"containerd-snapshotter\": true},\n}\n"
	if err := os.WriteFile(p.DaemonJSON, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f := Gather(t.Context(), p)
	if len(f.File.Problems) != 2 || f.File.Problems[0].Line != 2 || f.File.Problems[0].Column != 3 ||
		!f.File.Problems[1].Fixable {
		t.Errorf("problems: %+v", f.File.Problems)
	}
	if f.File.Driver != "overlay2" || !slices.Equal(f.File.Options, []string{"a=b"}) || !f.File.Store {
		t.Errorf("%+v", f.File)
	}
}

func TestRepositoriesAreAskedAndTheirTroubleIsNamed(t *testing.T) {
	const fqrn = "images.example.org"
	good := testutil.ServeReference(t, fqrn)
	configure := func(url, more string) string {
		dir := testutil.Configure(t, map[string]string{fqrn: url})
		f, err := os.OpenFile(filepath.Join(dir, "default.local"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(more); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dead := httptest.NewServer(nil)
	dead.Close()
	forged := testutil.Repository(t, fqrn)
	published := filepath.Join(forged, ".cvmfspublished")
	b, err := os.ReadFile(published)
	if err != nil {
		t.Fatal(err)
	}
	b[1] ^= 1 // of the root catalog's digest
	if err := os.WriteFile(published, b, 0o600); err != nil {
		t.Fatal(err)
	}
	empty := httptest.NewServer(http.NotFoundHandler())
	defer empty.Close()
	for _, c := range []struct {
		name string
		dir  string
		want Trouble
	}{
		{"good", configure(good, ""), ""},
		{"nobody answers", configure(dead.URL+"/cvmfs/"+fqrn, ""), Unreachable},
		{"no such repository", configure(empty.URL+"/cvmfs/"+fqrn, ""), Absent},
		{"forged", configure(testutil.Serve(t, forged), ""), Untrusted},
		{"proxy", configure(good, "CVMFS_HTTP_PROXY="+strings.Replace(dead.URL, "http://", "http://user:secret@", 1)+
			"\n"), Proxy},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := lookAtConfiguration(t.Context(), Plan{CVMFSConfig: c.dir, Agent: "test/1"}, "")
			if len(got.Repositories) != 1 {
				t.Fatalf("%+v", got)
			}
			r := got.Repositories[0]
			if r.Trouble != c.want || strings.Contains(r.Err, "secret") {
				t.Errorf("%+v, want %q", r, c.want)
			}
			if c.want == "" && (r.Revision == 0 || r.Expires.IsZero()) {
				t.Errorf("%+v: nothing is known", r)
			}
		})
	}
	t.Run("one of two proxies", func(t *testing.T) {
		dir := configure(good, "CVMFS_HTTP_PROXY='"+strings.Replace(dead.URL, "http://", "http://user:secret@", 1)+
			";DIRECT'\n")
		r := lookAtConfiguration(t.Context(), Plan{CVMFSConfig: dir}, "").Repositories[0]
		if r.Trouble != "" || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "proxy failed") ||
			strings.Contains(r.Notes[0], "secret") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("no key at all", func(t *testing.T) {
		dir := configure(good, "")
		file := filepath.Join(dir, "config.d", fqrn+".conf")
		if err := os.WriteFile(file, []byte("CVMFS_SERVER_URL="+good+"\nCVMFS_PUBLIC_KEY=/nowhere.pub\n"),
			0o600); err != nil {
			t.Fatal(err)
		}
		if got := lookAtConfiguration(t.Context(), Plan{CVMFSConfig: dir}, ""); got.Repositories[0].Trouble != Key {
			t.Errorf("%+v", got)
		}
	})
	t.Run("a command", func(t *testing.T) {
		if got := lookAtConfiguration(t.Context(), Plan{CVMFSConfig: configure(good, "rm -rf /nowhere\n")},
			""); got.Err != "" || len(got.Notes) != 1 || !strings.Contains(got.Notes[0], "default.local:4") ||
			got.Repositories[0].Revision == 0 || len(got.Repositories[0].Notes) > 0 {
			t.Errorf("%+v: want the line told once, and the repository", got)
		}
	})
	t.Run("no folder", func(t *testing.T) {
		if got := lookAtConfiguration(t.Context(), Plan{CVMFSConfig: "/nowhere"}, ""); !got.Missing {
			t.Errorf("%+v", got)
		}
	})
}

func TestStateOfThePluginIsTaken(t *testing.T) {
	var answer status.Node
	if err := json.Unmarshal([]byte(`{"version":"1.2","commit":"abc","memory":{"resident":7},"store":{"layers":4,"thin_layers":1,
		"images":[{"key":"k","objects":3,"size":12,"layers":[{"repository":"a.example.org","revision":2},{"repository":"a.example.org","revision":5}]}],
		"mounts":[{"layer":"x","stale":true},{"layer":"y"}]}}`), &answer); err != nil {
		t.Fatal(err)
	}
	want := &State{Version: "1.2", Commit: "abc", Memory: 7, Layers: 4, Thin: 1, Mounts: 2, Stale: 1, Images: []Image{
		{Key: "k", Objects: 3, Size: 12, Repositories: map[string]uint64{"a.example.org": 5}},
	}}
	if d := cmp.Diff(want, stateOf(answer)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if s := askNode(t.Context(), t.TempDir()+"/plugin.sock"); s.Err == "" {
		t.Errorf("%+v of nobody", s)
	}
}

func TestObjectStoreConfigurationIsRead(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.json")
	if m := lookAtMinio(t.Context(), Plan{}, file); m != nil {
		t.Errorf("%+v, and none is set", m)
	}
	if m := lookAtMinio(t.Context(), Plan{MinioConfig: dir}, ""); m == nil || m.Err == "" {
		t.Errorf("%+v, and there is no file", m)
	}
	for text, good := range map[string]bool{
		`{"CvmfsRepo":"layers.example.org","PublishStatusURL":"https://publisher.example.org/status"}`: true,
		`{"version":"9"}`: false, `{`: false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if m := lookAtMinio(t.Context(), Plan{}, file); m == nil || (m.Err == "") != good {
			t.Errorf("%s: %+v", text, m)
		}
	}
	// The plugin sees the folder alone, the snapshotter all of the host.
	outside := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(outside, []byte("of the node"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`{"CvmfsRepo":"layers.example.org",`+
		`"PublishStatusURL":"https://publisher.example.org/status","TokenFile":"`+outside+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for snapshots, want := range map[bool][]string{false: {outside}, true: nil} {
		m := lookAtMinio(t.Context(), Plan{Snapshots: snapshots}, file)
		if m == nil || m.Err != "" || m.Repository != "layers.example.org" || m.Asked || !slices.Equal(m.Outside, want) {
			t.Errorf("snapshots %v: %+v", snapshots, m)
		}
	}
	// What an administrator names is tried.
	text := `{"CvmfsRepo":"layers.example.org","PublishStatusURL":"http://` + testutil.ClosedAddress(t, "127.0.0.1") + `/status"}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if m := lookAtMinio(t.Context(), Plan{MinioConfig: dir}, ""); m == nil || !strings.Contains(m.Err, "refused") {
		t.Errorf("of a service that isn't there: %+v", m)
	}
}

func TestSettingsOfPushBackAreFound(t *testing.T) {
	f := &Facts{Plugin: Plugin{Settings: map[string]string{"minio_ext_config": "/m"}}}
	for want, p := range map[string]Plan{
		"/m/config.json": {},
		"/etc/cvmfs-snapshotter/push-back/config.json": {Snapshots: true},
		"/s/other.json": {Snapshots: true, PushBack: "/s/other.json"},
	} {
		if got := f.pushBackFile(p); got != want {
			t.Errorf("%+v: %s, want %s", p, got, want)
		}
	}
	// Commits would give ordinary layers, without a word.
	p := Plan{Snapshots: true, PushBack: filepath.Join(t.TempDir(), "missing.json")}
	if m := lookAtMinio(t.Context(), p, f.pushBackFile(p)); m == nil || !m.Missing {
		t.Errorf("of a file that the snapshotter is told of and that is missing: %+v", m)
	}
	if got := (&Facts{}).pushBackFile(Plan{}); got != "" {
		t.Errorf("%q of a plugin without settings", got)
	}
}

func TestKernelIsTriedAndNothingIsLeft(t *testing.T) {
	testutil.NeedRoot(t)
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	k := try(dir)
	if !k.Overlay.Works() || !k.FUSE.Works() || k.Device != "" || k.Err != "" {
		t.Errorf("%+v", k)
	}
	if view := Expected(k); testutil.ViewWords(view) != testutil.KnownView() {
		t.Errorf("the view %q is expected, and known is %q: %+v", view, testutil.KnownView(), k)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(before), string(after)); d != "" {
		t.Errorf("mounts (-before +after):\n%s", d)
	}
	if names, err := os.ReadDir(dir); len(names) > 0 || err != nil {
		t.Errorf("left: %v, %v", names, err)
	}
}

func TestFullAndForeignFileSystemsAreSeen(t *testing.T) {
	dir := testutil.SmallDisk(t, "1m")
	d := examine(filepath.Join(dir, "not", "there", "yet"))
	if d.Dir != dir || d.FileSystem != "tmpfs" || !d.Typed || d.Size != 1<<20 || d.Free > d.Size || d.ReadOnly {
		t.Errorf("%+v", d)
	}
}

func TestDeviceThatIsNotFUSEsIsRefused(t *testing.T) {
	for _, path := range []string{"/nowhere", "/dev/null", "/etc"} {
		if lookAtFUSE(path) == "" {
			t.Errorf("%s is taken for FUSE's device", path)
		}
	}
}

func TestWhatHangsIsGivenUp(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	if _, ok := within(time.Millisecond, func() int { <-release; return 1 }); ok {
		t.Error("what never came was taken")
	}
	if got, ok := within(time.Minute, func() int { return 2 }); got != 2 || !ok {
		t.Errorf("%d, %t", got, ok)
	}
}

func TestUnitsAndProcessesTellFlagsAndTheVariable(t *testing.T) {
	s := Service{Flags: map[string]string{}}
	s.take([]string{"-H", "fd://", "-s", "overlay2", "--storage-opt=a=1", "--storage-opt", "b=2", "--debug"},
		[]string{"PATH=/bin", marked + "=1"})
	want := Service{
		Flags:    map[string]string{"debug": "", "storage-driver": "overlay2", "storage-opt": "a=1 b=2"},
		Variable: true,
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestFilesThatTheEngineMountsMustBeThere(t *testing.T) {
	dir := t.TempDir()
	there, dangling, absent := filepath.Join(dir, "there"), filepath.Join(dir, "dangling"), filepath.Join(dir, "absent")
	if err := errors.Join(os.WriteFile(there, nil, 0o644), os.Symlink("nowhere", dangling)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{dangling, absent}, missing(there, dangling, absent)); d != "" {
		t.Error(d)
	}
}

// A start that failed is told with the cause in the engine's log.
func TestTheCauseOfAStartThatFailedIsAFact(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(log, []byte("unable to configure the Docker daemon with file x: it is bad\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	p := Plan{Host: "unix://" + filepath.Join(t.TempDir(), "none"), Name: name, CVMFSConfig: t.TempDir(), Log: log}
	f := Gather(t.Context(), p)
	found := found(Judge(f, p), "engine.unreachable")
	if len(found) != 1 || !strings.Contains(found[0].Detail, "with file x: it is bad") {
		t.Errorf("%q: %+v", f.Service.Cause, found)
	}
}
