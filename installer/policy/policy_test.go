package policy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/daemonjson"
)

// find finds a host where no engine answers.
func find(t *testing.T, r Request) *Host {
	t.Helper()
	r.Host, r.Record = "unix://"+filepath.Join(t.TempDir(), "none"), filepath.Join(t.TempDir(), "record")
	h, err := Find(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// wishes returns what an install is asked for, with an image of the user's as this program may not be static.
func wishes(t *testing.T, h *Host) (installer.Wishes, error) {
	t.Helper()
	i, err := h.Installer(func(installer.Event) {}, func(context.Context, []string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return h.Install(t.Context(), i)
}

func TestRequestsThatCannotBeMeantAreRefused(t *testing.T) {
	for want, r := range map[string]Request{
		"--data-root data: want an absolute path":                   {DataRoot: "data"},
		`"cvmfs.view": want NAME=VALUE`:                             {StorageOpts: []string{"cvmfs.view"}},
		`"=erofs": want NAME=VALUE`:                                 {StorageOpts: []string{"=erofs"}},
		`"DEBUG": want NAME=VALUE`:                                  {Settings: []string{"A=", "DEBUG"}},
		"--from takes the plugin from a registry: no --bundle":      {From: "x/y", Bundle: "z"},
		"from a registry: no --bundle and no --key with it":         {From: "x/y", Key: "z"},
		"no plugin bundle is in " + PackagedDir + " or beside this": {Images: installer.Images{Ordinary: "x"}},
	} {
		_, err := wishes(t, find(t, r))
		if !errors.As(err, new(UsageError)) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", r, err, want)
		}
	}
}

func TestAnEngineOfAnotherHostIsNotChanged(t *testing.T) {
	h, err := Find(t.Context(), Request{Host: "tcp://192.0.2.1:2375"})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.Installer(nil, nil); !errors.As(err, new(UsageError)) ||
		!strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("got %v", err)
	}
}

func TestFlagsBecomeSettingsOfThePlugin(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		r        Request
		settings []string
		folders  []string
	}{
		{Request{}, nil, []string{ConfigDir}},
		{
			Request{CVMFSConfig: "x", MinioConfig: "/m", Debug: new(true)},
			[]string{"cvmfs_ext_config=" + here + "/x", "minio_ext_config=/m", "DEBUG=1"},
			nil,
		},
		{
			Request{Settings: []string{"fuse=/dev/fuse", "cvmfs_ext_config.source=/y"}, Debug: new(false)},
			[]string{"fuse=/dev/fuse", "cvmfs_ext_config.source=/y", "DEBUG=0"},
			nil,
		},
	} {
		c.r.From, c.r.Images.Ordinary = "registry.example.org/plugin", "x"
		w, err := wishes(t, find(t, c.r))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([][]string{c.settings, c.folders}, [][]string{w.Settings, w.Folders}); d != "" {
			t.Errorf("-want +got\n%s", d)
		}
		if w.Name != installer.DefaultName || w.File != daemonjson.DefaultPath {
			t.Errorf("the plugin %q, the file %q", w.Name, w.File)
		}
	}
}

func TestFlagsBecomeSettingsOfTheSnapshotter(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	h := find(t, Request{CVMFSConfig: "x", MinioConfig: "m", Debug: new(true), Containerd: "/c"})
	changes, err := h.snapshotterSettings()
	if err != nil {
		t.Fatal(err)
	}
	f, err := daemonjson.Read(filepath.Join(t.TempDir(), "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if f, err = f.Edit(changes...); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"cvmfs-config": here + "/x", "push-back": here + "/m/config.json", "containerd": "/c",
	} {
		if got := f.String(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}

func TestABundleBesideThisProgramIsFound(t *testing.T) {
	if _, err := os.Stat(PackagedDir); err == nil {
		t.Skip("this host has the package")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := find(t, Request{Version: "1.2"})
	for _, c := range []struct{ name, want string }{
		{"1.1", "cvmfs-graphdriver-plugin-1.1-"},  // the only one
		{"1.3", "several bundles"},                // of other versions
		{"1.2", "cvmfs-graphdriver-plugin-1.2-"},  // of this program's
		{"1.20", "cvmfs-graphdriver-plugin-1.2-"}, // which that is not
	} {
		for _, arch := range []string{"amd64", "arm64"} {
			name := filepath.Join(filepath.Dir(self), "cvmfs-graphdriver-plugin-"+c.name+"-"+arch+".tar.gz")
			if err := os.WriteFile(name, []byte("no archive"), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(name) })
		}
		if _, err := h.bundle(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("with %s: %v, want %q", c.name, err, c.want)
		}
	}
}

// What the preflight finds is told, and ends an install of a host that doesn't qualify.
func TestAHostThatDoesNotQualifyIsRefused(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "engine.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go http.Serve(listener, http.NotFoundHandler())
	h, err := Find(t.Context(), Request{
		Host: socket, Record: filepath.Join(t.TempDir(), "record"), Name: "x", From: "x/y",
		File: filepath.Join(t.TempDir(), "daemon.json"), Images: installer.Images{Ordinary: "x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var said strings.Builder
	i, err := h.Installer(func(e installer.Event) { said.WriteString(e.Text) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := h.Install(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Preflight(t.Context()); err == nil || !strings.Contains(err.Error(), "doesn't qualify") ||
		!strings.Contains(said.String(), "engine.unreachable") {
		t.Errorf("%v: %s", err, &said)
	}
	if err := w.Validate(t.Context(), nil); err != nil { // no process of an engine is behind the socket
		t.Error(err)
	}
}

// An engine that takes no plugin, and one that keeps its images in containerd, have the snapshotter; so has a
// containerd that is named.
func TestTheEngineTellsPluginOrSnapshotter(t *testing.T) {
	const store = `[["driver-type","io.containerd.snapshotter.v1"]]`
	for _, c := range []struct {
		version, status, containerd string
		second                      bool
	}{
		{"20.10.24", `[]`, "", false},
		{"27.5.1", `[["Backing Filesystem","extfs"]]`, "", false},
		{"27.5.1", store, "", true},
		{"28.5.2", `[]`, "", true},
		{"29.0.0-beta.24", store, "", true},
		{"dev", `[]`, "", false},
		{"20.10.24", `[]`, "/run/containerd/containerd.sock", true},
	} {
		dir, err := os.MkdirTemp("", "door-") // a socket's path is short
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		l, err := net.Listen("unix", filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/info") {
				fmt.Fprintf(w, `{"ServerVersion":%q,"DriverStatus":%s}`, c.version, c.status)
			}
		})}
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
		h, err := Find(t.Context(), Request{
			Host: "unix://" + l.Addr().String(), Containerd: c.containerd, Record: filepath.Join(dir, "record"),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		if second, err := h.Second(t.Context()); err != nil || second != c.second {
			t.Errorf("%+v: %t, %v", c, second, err)
		}
	}
}

// A host on the snapshotter is looked at by its rules, and others, also with a containerd beside, by the plugin's.
func TestHostsAreLookedAtByWhatRunsTheirImages(t *testing.T) {
	for text, want := range map[string]bool{
		`{"features": {"containerd-snapshotter": true}, "storage-driver": "cvmfs"}`: true,
		`{"storage-driver": "cvmfs-graphdriver"}`:                                   false,
	} {
		file := filepath.Join(t.TempDir(), "daemon.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h := find(t, Request{File: file, Socket: filepath.Join(t.TempDir(), "none")})
		p, err := h.Plan(t.Context())
		if err != nil || p.Snapshots != want || want && (p.Name != "cvmfs" || p.DaemonJSON != file || p.DataRoot == "") {
			t.Errorf("%s: %+v, %v", text, p, err)
		}
	}
}

func TestTheSnapshotterIsWhereItsSettingsSay(t *testing.T) {
	for text, want := range map[string]places{
		"": {"/var/lib/cvmfs-snapshotter", "/run/cvmfs-snapshotter/cvmfs-snapshotter.sock", "/run/cvmfs-snapshotter/control.sock"},
		`{"root": "/data/cvmfs"}`: {
			"/data/cvmfs", "/run/cvmfs-snapshotter/cvmfs-snapshotter.sock", "/run/cvmfs-snapshotter/control.sock",
		},
		`{"address": "/run/x/s"}`:                      {"/var/lib/cvmfs-snapshotter", "/run/x/s", "/run/x/control.sock"},
		`{"address": "/run/x/s", "control": "/run/y"}`: {"/var/lib/cvmfs-snapshotter", "/run/x/s", "/run/y"},
	} {
		file := filepath.Join(t.TempDir(), "config.json")
		if text != "" {
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := placesIn(file); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
}
