package preflight

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/test/engine"
)

func TestMain(m *testing.M) {
	engine.Main()
	os.Exit(m.Run())
}

// privateEngine starts an engine for the time of the test.
func privateEngine(t *testing.T, find func(ctx context.Context, cache string) (*engine.Tools, error),
	settings map[string]any,
) *engine.Engine {
	t.Helper()
	e := engine.NewFor(t, find)
	if err := e.Start(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestRealEnginesAreKnown(t *testing.T) {
	for version, find := range map[string]func(context.Context, string) (*engine.Tools, error){
		"20.10.24": engine.Find,
		"26.1.5":   engine.FindNewer,
	} {
		t.Run(version, func(t *testing.T) { knows(t, version, find) })
	}
}

func knows(t *testing.T, version string, find func(context.Context, string) (*engine.Tools, error)) {
	e := privateEngine(t, find, map[string]any{"storage-driver": "vfs", "experimental": true})
	p := Plan{Install: true, Host: "unix://" + e.Socket(), Name: name, CVMFSConfig: emptyConfiguration(t)}
	f := Gather(t.Context(), p)
	if f.Engine.Err != "" || f.Engine.Elsewhere != "" || f.Engine.Driver != "vfs" || !f.Engine.Experimental ||
		f.Engine.Root != e.Data() {
		t.Errorf("engine %+v", f.Engine)
	}
	if !strings.HasPrefix(f.Engine.Version, version) || f.Engine.Product != "" && f.Engine.Product != "Engine" ||
		f.Engine.WantsVariable() {
		t.Errorf("engine %+v", f.Engine)
	}
	if all := Judge(f, p); len(found(all, "engine.version")) != 1 || found(all, "engine.version")[0].Severity != OK {
		t.Errorf("%+v", all)
	}
	if f.Service.PID == 0 || f.Service.LogFile != e.LogFile() || f.Service.Flags["config-file"] == "" {
		t.Errorf("service %+v", f.Service)
	}
	if f.File.Path != filepath.Join(filepath.Dir(e.Data()), "daemon.json") || f.File.Driver != "vfs" ||
		len(f.File.Problems) > 0 {
		t.Errorf("file %+v", f.File)
	}
	if f.Data.Dir != e.Data() || f.Data.Size == 0 || !f.Data.Typed {
		t.Errorf("data %+v", f.Data)
	}
	if f.Plugin.Present || f.Plugin.Err != "" {
		t.Errorf("plugin %+v", f.Plugin)
	}
	if !f.Kernel.Overlay.Works() {
		t.Errorf("kernel %+v", f.Kernel)
	}
}
