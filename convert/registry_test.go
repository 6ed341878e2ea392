package convert

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/test/testutil"
)

// TestRegistriesThatAskToWaitAreWaitedFor: for reading, and for writing.
func TestRegistriesThatAskToWaitAreWaitedFor(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			later := func(path string) testutil.Fault {
				return testutil.Fault{Path: path, Status: status, Times: 1, Header: http.Header{"Retry-After": {"1"}}}
			}
			repo, _ := newRepository(t)
			from, to := testutil.NewRegistry(t, "", ""), testutil.NewRegistry(t, "", "")
			in := ref(t, from.Push(t, "a:1", small(t, "a", "b"), nil))
			from.Set(later("/manifests/"), later("/blobs/"), later("/v2/"))
			to.Set(later("/manifests/"), later("/blobs/uploads/"), later("/blobs/"), later("/v2/"))
			c := &Converter{Sink: sink.Native(repo)}
			out := refp(t, to.Host+"/thin/a:1")
			if _, err := c.Convert(t.Context(), Job{Input: in, Output: out}); err != nil {
				t.Fatal(err)
			}
			if d := descriptorOf(t, pulled(t, *out)); len(d.Layers) != 2 {
				t.Errorf("%+v", d)
			}
		})
	}
}

// TestNothingIsReadForAnImageThatCantBeWritten: access to where it goes is tried first.
func TestNothingIsReadForAnImageThatCantBeWritten(t *testing.T) {
	r, closed := testutil.NewRegistry(t, "", ""), testutil.NewRegistry(t, "me", "secret")
	readOnly := testutil.NewRegistry(t, "", "")
	readOnly.Set(testutil.Fault{Path: "/blobs/uploads/", Status: http.StatusMethodNotAllowed})
	gone := testutil.NewRegistry(t, "", "")
	gone.Close()
	t.Setenv("DOCKER_HOST", "unix:///missing.sock")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	in := ref(t, r.Push(t, "a:1", small(t, "a", "b"), nil))
	for out, want := range map[string]error{
		closed.Host + "/thin:1":          source.ErrCredentials,
		readOnly.Host + "/thin:1":        nil,
		gone.Host + "/thin:1":            nil,
		"docker-archive:/missing/thin":   fs.ErrNotExist,
		"docker-archive:" + file + "/in": nil,
		"oci:" + file:                    nil,
		"docker-daemon:thin:1":           nil,
	} {
		repo, _ := newRepository(t)
		started := false
		c := &Converter{Sink: sink.Native(repo), Progress: func(e Event) {
			started = started ||
				e.Action == LayerStarted
		}}
		_, err := c.Convert(t.Context(), Job{Input: in, Output: refp(t, out)})
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", out, err)
		}
		if head, err := repo.Head(t.Context()); err != nil || head.Manifest.Revision != 0 || started {
			t.Errorf("%s: revision %d, %v; a layer was read: %t", out, head.Manifest.Revision, err, started)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestConnectionsServeAllImagesOfAList(t *testing.T) {
	repo, _ := newRepository(t)
	r := testutil.NewRegistry(t, "", "")
	var images []string
	for i := range 8 {
		images = append(images, fmt.Sprintf("image%d:1", i))
		r.Push(t, images[i], small(t, "base", images[i]), nil)
	}
	pushed := len(r.Log())
	c := &Converter{Sink: sink.Native(repo), Parallel: 1}
	for range 2 {
		if s, err := c.ConvertList(t.Context(), wishes(t, r, images...)); err != nil || len(s.Failures) > 0 {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	peers := map[string]int{}
	for _, q := range r.Log()[pushed:] {
		peers[q.RemoteAddr]++
	}
	if len(peers) > 8 { // some at once
		t.Errorf("%d connections: %v", len(peers), peers)
	}
}
