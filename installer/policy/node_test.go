package policy

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types"

	"cvmfs-graphdriver/rootfs"
)

// engineWith is an engine that has one plugin, p.
func engineWith(t *testing.T, p types.Plugin) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "e")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		switch {
		case strings.HasSuffix(r.URL.Path, "/plugins/"+p.Name+"/json"):
			json.NewEncoder(w).Encode(p)
		case !strings.HasSuffix(r.URL.Path, "/_ping"):
			http.Error(w, `{"message":"no such thing"}`, http.StatusNotFound)
		}
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return "unix://" + socket
}

func TestNodeOfThePluginIsFound(t *testing.T) {
	ours := types.Plugin{ID: strings.Repeat("4", 64), Name: "ours", Enabled: true}
	ours.Config.Entrypoint = []string{rootfs.Program}
	disabled, other := ours, ours
	disabled.Enabled = false
	other.Config.Entrypoint = []string{"/bin/other"}
	for _, c := range []struct {
		plugin types.Plugin
		name   string
		says   string
	}{
		{ours, "ours", ""},
		{ours, "another", "no plugin another"},
		{disabled, "ours", "docker plugin enable ours"},
		{other, "ours", "not this project's"},
	} {
		h, err := Find(t.Context(), Request{Host: engineWith(t, c.plugin), Name: c.name})
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.Node(t.Context())
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
		h.Close()
	}
	h, err := Find(t.Context(), Request{Host: "tcp://192.0.2.1:1", Name: "ours"})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.Node(t.Context()); !errors.As(err, new(UsageError)) {
		t.Errorf("an engine elsewhere: %v", err)
	}
	h.Socket = "/s"
	if _, err := h.Node(t.Context()); err != nil {
		t.Errorf("a socket that is named: %v", err)
	}
}
