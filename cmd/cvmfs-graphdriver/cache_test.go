package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/storage"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
)

var thinKey, idleKey, goneKey = strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)

// fakeCache is a node's cache with three images, of which the first is in use.
type fakeCache struct{ damaged, failed int }

func (fakeCache) CacheStatus() (control.CacheState, error) {
	return control.CacheState{
		Status: objects.Status{
			Limit: 300 << 20, Used: 200 << 20, Counted: true, Objects: 7, Floor: 50 << 20, Free: 1 << 30, Size: 2 << 30,
		},
		LimitBy: "storage option cvmfs.cache-limit",
	}, nil
}

func (fakeCache) CacheList(context.Context) ([]control.CachedImage, error) {
	hour := time.Now().Add(-time.Hour)
	some := objects.Share{Objects: 1, Of: 4, Bytes: 1 << 20, OfBytes: 4 << 20}
	half := objects.Share{Bytes: 1 << 10, OfBytes: 2 << 10, Estimated: true}
	return []control.CachedImage{
		{Entry: objects.Entry{Key: thinKey, Mounted: true, Used: hour, Local: some}},
		{Entry: objects.Entry{Key: idleKey, Pinned: true, Used: hour, Local: half}},
		{Entry: objects.Entry{Key: goneKey, Used: hour}, Layers: []status.Pin{{FQRN: "a.example.org", Path: "/layers/1"}}},
	}, nil
}

func (f fakeCache) CacheVerify(_ context.Context, key string, tell func(objects.Verified)) (objects.Verified, error) {
	tell(objects.Verified{Objects: 1})
	n := int64(10)
	if key == thinKey {
		n = 4
	}
	return objects.Verified{Objects: n, Damaged: int64(f.damaged)}, nil
}

func (fakeCache) CacheClean(_ context.Context, o objects.CleanOptions) (objects.Removed, error) {
	switch {
	case o.Image == thinKey:
		return objects.Removed{}, objects.ErrInUse
	case o.Image == idleKey:
		return objects.Removed{Objects: 1, Bytes: 4096}, nil
	case o.To == 1<<30:
		return objects.Removed{Objects: 2, Bytes: 8192}, nil
	}
	return objects.Removed{Objects: 3, Bytes: 12288}, nil
}

func (f fakeCache) CachePrewarm(_ context.Context, key string, tell func(objects.Completion)) (objects.Completion,
	error,
) {
	if key != thinKey {
		return objects.Completion{}, objects.ErrLimit
	}
	tell(objects.Completion{Fetched: 1, Of: 4})
	return objects.Completion{Fetched: 3 - f.failed, Failed: f.failed, Here: 1, Of: 4, Bytes: 3 << 20}, nil
}

func (fakeCache) CacheProfile(_ context.Context, key string) (string, error) {
	if key != thinKey {
		return "", errors.New("no start was recorded")
	}
	return "cvmfs start profile 1\n", nil
}

func (fakeCache) CachePin(key string, pinned bool) error {
	if key != idleKey || pinned {
		return errors.New("not what was asked")
	}
	return nil
}

// cacheEngine is an engine with a thin image, one that is idle, and an ordinary one.
func cacheEngine(t *testing.T) string {
	t.Helper()
	known := map[string]image.InspectResponse{}
	var list []image.Summary
	for _, i := range []struct {
		id, key string
		tags    []string
	}{
		{"sha256:" + strings.Repeat("1", 64), thinKey, []string{"python-thin:3.11", "python-thin:latest"}},
		{"sha256:" + strings.Repeat("2", 64), idleKey, nil},
		{"sha256:" + strings.Repeat("3", 64), "", []string{"debian:12"}},
	} {
		found := image.InspectResponse{
			ID: i.id, RepoTags: i.tags, GraphDriver: storage.DriverData{Data: map[string]string{"Image": i.key}},
		}
		known[i.id] = found
		for _, tag := range i.tags {
			known[tag] = found
		}
		list = append(list, image.Summary{ID: i.id, RepoTags: i.tags})
	}
	socket := filepath.Join(t.TempDir(), "e")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		_, path, _ := strings.Cut(r.URL.Path, "/images/")
		found, ok := known[strings.TrimSuffix(path, "/json")]
		switch {
		case path == "json":
			json.NewEncoder(w).Encode(list)
		case ok:
			json.NewEncoder(w).Encode(found)
		case !strings.HasSuffix(r.URL.Path, "/_ping"):
			http.Error(w, `{"message":"No such image"}`, http.StatusNotFound)
		}
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return "unix://" + socket
}

func TestCacheCommands(t *testing.T) {
	engine := cacheEngine(t)
	sound := serveNode(t, &fakeNode{Cache: fakeCache{}})
	broken := serveNode(t, &fakeNode{Cache: fakeCache{damaged: 2, failed: 1}})
	for _, c := range []struct {
		node string
		args string
		code int
		want []string // parts of what is written
	}{
		{sound, "status", 0, []string{"200MiB of 300MiB in 7 objects", "storage option cvmfs.cache-limit", "50MiB stay free"}},
		{sound, "status --json", 0, []string{`"limit":314572800`, `"limit_by":"storage option`}},
		{sound, "ls", 0, []string{
			"python-thin:3.11, python-thin:latest 4MiB", "25%", "about an hour ago in use", "sha256:222222222222 2KiB",
			"about 1KiB", "pinned", goneKey[:12] + " (cvmfs://a.example.org/layers/1)",
		}},
		{sound, "ls --json", 0, []string{`"names":["python-thin:3.11","python-thin:latest"]`, `"names":[]`, `"of_bytes":4194304`}},
		{sound, "verify", 0, []string{"10 objects"}},
		{sound, "verify python-thin:3.11", 0, []string{"4 objects"}},
		{broken, "verify", 1, []string{"damaged", "are fetched again"}},
		{broken, "verify --json", 1, []string{`"damaged":2`}},
		{sound, "verify a b", 2, []string{"want one image"}},
		{sound, "clean", 0, []string{"3 objects"}},
		{sound, "clean --to 1G", 0, []string{"2 objects"}},
		{sound, "clean --to much", 2, []string{"want a size"}},
		{sound, "clean --to 1G --image debian:12", 2, []string{"either"}},
		{sound, "clean --image sha256:" + strings.Repeat("2", 64), 0, []string{"1 objects, 4KiB"}},
		{sound, "clean --image python-thin:latest", 1, []string{"in use: stop its containers"}},
		{sound, "clean --json", 0, []string{`{"objects":3,"bytes":12288}`}},
		{sound, "clean debian:12", 2, []string{"unknown argument"}},
		{sound, "prewarm python-thin:3.11", 0, []string{"3 objects, 3MiB", "were here"}},
		{sound, "prewarm --json " + thinKey, 0, []string{`"fetched":3`}},
		{sound, "prewarm " + idleKey, 1, []string{"at its limit"}},
		{broken, "prewarm python-thin:3.11", 1, []string{"1 objects could not be had"}},
		{sound, "prewarm", 2, []string{"want one image"}},
		{sound, "prewarm debian:12", 1, []string{"debian:12: it is not a thin image"}},
		{sound, "prewarm nothing:1", 1, []string{"there is no image nothing:1 on this host", "docker pull"}},
		{sound, "profile python-thin:3.11", 0, []string{"cvmfs start profile 1"}},
		{sound, "profile " + idleKey, 1, []string{"no start was recorded"}},
		{sound, "pin --remove " + idleKey, 0, nil},
		{sound, "pin " + idleKey, 1, []string{"not what was asked"}},
		{filepath.Join(t.TempDir(), "none"), "status", 1, []string{"no node answers"}},
		{filepath.Join(t.TempDir(), "none"), "ls", 1, []string{"no node answers"}},
	} {
		sub, rest, _ := strings.Cut(c.args, " ")
		args := []string{"cvmfs-graphdriver", "cache", sub, "--socket", c.node, "--host", engine}
		var out, errOut bytes.Buffer
		code := run(t.Context(), append(args, strings.Fields(rest)...), &out, &errOut)
		text := out.String() + errOut.String()
		for _, want := range c.want {
			if !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
				t.Errorf("cache %s lacks %q:\n%s", c.args, want, text)
			}
		}
		if code != c.code {
			t.Errorf("cache %s: exit code %d\n%s", c.args, code, text)
		}
	}
}

// Without an engine, as where containerd runs the node, images have their keys.
func TestCacheIsListedWithoutAnEngine(t *testing.T) {
	code, out, errOut := runOn(t, "cache", "ls", "--socket", serveNode(t, &fakeNode{Cache: fakeCache{}}))
	if code != 0 || !strings.Contains(out, thinKey[:12]) || !strings.Contains(errOut, "without their names") {
		t.Errorf("%d %s %s", code, out, errOut)
	}
}

// Behind containerd the node knows the names.
func TestCacheIsListedByContainerdsNames(t *testing.T) {
	node := &fakeNode{Cache: fakeCache{}, names: status.Names{Known: true, Images: []status.Name{
		{Key: thinKey, Namespace: "moby", Name: "docker.io/library/python:3"},
		{Key: idleKey, Namespace: "k8s.io", Name: "docker.io/library/idle:1"},
	}}}
	socket := serveNode(t, node)
	code, out, errOut := runOn(t, "cache", "ls", "--socket", socket)
	if code != 0 || !strings.Contains(out, "\npython:3 ") || !strings.Contains(out, "docker.io/library/idle:1 (k8s.io)") ||
		errOut != "" {
		t.Errorf("%d %s %s", code, out, errOut)
	}
	if code, _, errOut := runOn(t, "cache", "clean", "--image", "python:3", "--socket", socket); code != 1 ||
		!strings.Contains(errOut, "in use") {
		t.Errorf("%d %s", code, errOut)
	}
	node.names.Err = "containerd is silent"
	if code, _, errOut := runOn(t, "cache", "ls", "--socket", socket); code != 0 || !strings.Contains(errOut, "silent") {
		t.Errorf("%d %s", code, errOut)
	}
}

// An image's layers have the names that its maker likes.
func TestListSendsATerminalNoCommands(t *testing.T) {
	var out strings.Builder
	image := control.CachedImage{Layers: []status.Pin{{FQRN: "a.example.org", Path: "/layers/\x1b]0;x\a\tb"}}}
	writeCacheList(&out, []namedImage{{CachedImage: image}})
	if strings.ContainsAny(out.String(), "\x1b\a") || !strings.Contains(out.String(), `(cvmfs://a.example.org/layers/\x1b]0;x\a\tb)`) {
		t.Errorf("%q", &out)
	}
}
