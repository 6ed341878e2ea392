package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"cvmfs-graphdriver/driver/control"
)

// control is what the host's programs speak to.
func (d *daemon) control() *control.Client { return control.NewClient(d.dir + "/control.sock") }

// The node answers at a socket for root alone, which the server that follows a killed one opens again, and says what
// the snapshotter shows.
func TestCommandsAreAnsweredBesideContainerd(t *testing.T) {
	d := start(t, rung{view: "auto"})
	d.unpackThin("thin", "")
	d.mount(d.Prepare(t.Context(), "c1", "thin"))
	st, err := control.Status.Ask(t.Context(), d.control(), control.None{})
	if err != nil || st.Store.Thin != 1 || len(st.Store.Images) != 1 || len(st.Store.Mounts) != 1 {
		t.Fatalf("%+v, %v", st.Store, err)
	}
	info, err := os.Stat(d.dir + "/control.sock")
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has the mode %v", info.Mode())
	}
	list, err := control.CacheList.Do(t.Context(), d.control(), control.None{}, nil)
	if err != nil || len(list) != 1 || !list[0].Mounted {
		t.Errorf("%+v, %v", list, err)
	}
	reloaded, err := control.Reload.Do(t.Context(), d.control(), control.None{}, nil)
	if err != nil || len(reloaded.Repositories) != 1 || reloaded.Repositories[0].Err != "" {
		t.Errorf("%+v, %v", reloaded, err)
	}
	must(t, syscall.Kill(st.PID, syscall.SIGKILL))
	eventually(t, "its successor answers", func() bool {
		next, err := control.Status.Ask(t.Context(), d.control(), control.None{})
		if err != nil && !errors.Is(err, control.ErrSilent) {
			t.Fatal(err)
		}
		return err == nil && next.PID != st.PID
	})
}

func TestMetricsAreServedAtASocket(t *testing.T) {
	d := start(t, rung{view: "auto"})
	d.unpackThin("thin", "")
	metrics := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.dir+"/metrics.sock")
		},
	}}
	var text []byte
	eventually(t, "a scrape is answered", func() bool {
		resp, err := metrics.Get("http://node/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err = io.ReadAll(resp.Body)
		must(t, err)
		return true
	})
	if !strings.Contains(string(text), "\ncvmfs_images 1\n") {
		t.Errorf("%s", text)
	}
}
