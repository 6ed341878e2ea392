package rootfs

import (
	"bytes"
	"encoding/json"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types"
)

func config(t *testing.T) (Config, []byte) {
	t.Helper()
	c := PluginConfig(Build{Version: "1.2.3", Commit: "c0ffee", Arch: "amd64", Time: time.Unix(0, 0)})
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return c, text
}

// The engine knows all that config.json says, and understands it as it was meant.
func TestTheEngineUnderstandsTheConfig(t *testing.T) {
	want, text := config(t)
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var got types.PluginConfig
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	back, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var ours Config
	if err := json.Unmarshal(back, &ours); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(want, ours) {
		t.Errorf("the engine understands\n%+v\nand was told\n%+v", ours, want)
	}
}

// The engine's rules: of the interface, of what may be settable and of what `docker plugin set` takes.
func TestTheConfigKeepsTheEnginesRules(t *testing.T) {
	c, _ := config(t)
	if c.Interface.Socket == "" || len(c.Interface.Socket) > 80 || strings.Contains(c.Interface.Socket, "/") {
		t.Errorf("socket %q", c.Interface.Socket)
	}
	for _, name := range c.Interface.Types {
		var kind types.PluginInterfaceType
		if err := kind.UnmarshalJSON([]byte(`"` + name + `"`)); err != nil || kind.Prefix != "docker" ||
			kind.Capability != "graphdriver" {
			t.Errorf("interface %q: %v, %v", name, kind, err)
		}
	}
	if len(c.Entrypoint) == 0 || !path.IsAbs(c.Entrypoint[0]) || !path.IsAbs(c.PropagatedMount) {
		t.Errorf("entry point %q, propagated mount %q", c.Entrypoint, c.PropagatedMount)
	}
	if !slices.Contains([]string{"host", "none", "bridge"}, c.Network.Type) {
		t.Errorf("network %q", c.Network.Type)
	}
	named := map[string]bool{}
	check := func(kind, name, description string, settable []string, may ...string) {
		switch {
		case name == "" || named[name]:
			t.Errorf("%s %q: no name of its own", kind, name)
		case len(description) < 10:
			t.Errorf("%s %s: no description", kind, name)
		case settable == nil || len(settable) > 1:
			t.Errorf("%s %s: settable %q: with exactly one field its name need not be given", kind, name, settable)
		}
		named[name] = true
		for _, field := range settable {
			if !slices.Contains(may, field) {
				t.Errorf("%s %s: the engine can't set %s", kind, name, field)
			}
		}
	}
	for _, m := range c.Mounts {
		check("mount", m.Name, m.Description, m.Settable, "source")
		if m.Type != "bind" || !path.IsAbs(m.Source) || !path.IsAbs(m.Destination) ||
			!slices.Contains(m.Options, "ro") {
			t.Errorf("mount %s: %+v", m.Name, m)
		}
		if !slices.Contains(Folders(), m.Destination[1:]) {
			t.Errorf("mount %s: the root file system has no folder %s", m.Name, m.Destination)
		}
	}
	if names, err := os.ReadDir(NoFolder); err != nil || len(names) > 0 {
		t.Errorf("%s, for folders that aren't wanted, holds %v, %v", NoFolder, names, err)
	}
	for _, d := range c.Linux.Devices {
		check("device", d.Name, d.Description, d.Settable, "path")
	}
	for _, e := range c.Env {
		check("env", e.Name, e.Description, e.Settable, "value")
	}
	for _, name := range c.Linux.Capabilities {
		if !strings.HasPrefix(name, "CAP_") {
			t.Errorf("capability %s: engines before 20.10 want the prefix CAP_", name)
		}
	}
}

func TestTheRootFileSystemIsComplete(t *testing.T) {
	folders := Folders()
	files, err := Files(Build{Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	for i, folder := range folders {
		if parent := path.Dir(folder); parent != "." && !slices.Contains(folders[:i], parent) {
			t.Errorf("%s comes before its folder", folder)
		}
	}
	for name := range files {
		if !slices.Contains(folders, path.Dir(name)) {
			t.Errorf("%s has no folder", name)
		}
	}
	if !slices.Contains(folders, path.Dir(Program)[1:]) || !slices.Contains(folders, PropagatedMount[1:]) {
		t.Error("the program or the propagated mount has no folder")
	}
	var back Build
	if err := json.Unmarshal(files[BuildFile[1:]], &back); err != nil || back.Version != "1.2.3" {
		t.Errorf("got %+v, %v", back, err)
	}
}
