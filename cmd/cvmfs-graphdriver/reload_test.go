package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
)

// fakeNode is a node that says what it was given to say.
type fakeNode struct {
	control.Cache
	control.Thinner
	status status.Node
	reload status.Reload
	names  status.Names
	err    error // of Reload
}

func (n *fakeNode) Names(context.Context) (status.Names, error) { return n.names, nil }

func (n *fakeNode) Status() status.Node { return n.status }

func (n *fakeNode) Reload(context.Context) (status.Reload, error) { return n.reload, n.err }

// serveNode serves a node at a socket, and returns it.
func serveNode(t *testing.T, n control.Node) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: control.NewHandler(t.Context(), control.Config{Node: n})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return socket
}

// runOn runs this program on a host where no engine answers.
func runOn(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	args = append([]string{"cvmfs-graphdriver"}, args...)
	code = run(t.Context(), append(args, "--host", "unix://"+t.TempDir()+"/none"), &o, &e)
	return code, o.String(), e.String()
}

func TestReloadTellsWhatCameOfIt(t *testing.T) {
	same := status.Reloaded{FQRN: "a.example.org"}
	changed := status.Reloaded{
		FQRN: "b.example.org", Changed: []string{"CVMFS_HTTP_PROXY", "CVMFS_UID_MAP"}, Later: []string{"CVMFS_UID_MAP"},
	}
	socket := serveNode(t, &fakeNode{reload: status.Reload{Repositories: []status.Reloaded{same, changed}}})
	const text = `a.example.org: nothing has changed
b.example.org: CVMFS_HTTP_PROXY CVMFS_UID_MAP count from now on; CVMFS_UID_MAP for images that are pulled from now on
`
	if code, out, errOut := runOn(t, "reload", "--socket", socket); code != 0 || out != text {
		t.Errorf("%d %q %q", code, out, errOut)
	}
	code, out, errOut := runOn(t, "reload", "--json", "--socket", socket)
	if code != 0 || !strings.HasPrefix(out, `{"repositories":[{"repository":"a.example.org"},{`) {
		t.Errorf("%d %q %q", code, out, errOut)
	}
	socket = serveNode(t, &fakeNode{})
	if code, out, errOut := runOn(t, "reload", "--socket", socket); code != 0 || !strings.Contains(out, "in use") {
		t.Errorf("%d %q %q", code, out, errOut)
	}
}

func TestReloadFailsWhereTheConfigurationCanNotBeUsed(t *testing.T) {
	bad := status.Reloaded{FQRN: "a.example.org", Err: "it is wrong"}
	for _, n := range []*fakeNode{
		{reload: status.Reload{Repositories: []status.Reloaded{bad}}}, {err: errors.New("it is wrong")},
	} {
		code, out, errOut := runOn(t, "reload", "--socket", serveNode(t, n))
		if code != 1 || !strings.Contains(out+errOut, "it is wrong") {
			t.Errorf("%d %q %q", code, out, errOut)
		}
	}
	if code, out, errOut := runOn(t, "reload"); code != 1 || !strings.Contains(errOut, "/none") {
		t.Errorf("without a node: %d %q %q", code, out, errOut)
	}
}
