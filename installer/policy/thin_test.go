package policy

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
)

func TestAThinImageIsNamedInFull(t *testing.T) {
	for _, c := range []struct{ image, as, want string }{
		{"a/b:1", "", "docker.io/a/b:1-thin"},
		{"b", "", "docker.io/library/b:latest-thin"},
		{"r.example.org:5000/b:1", "", "r.example.org:5000/b:1-thin"},
		{"0123456789ab", "c", "docker.io/library/c:latest"},
		{"0123456789ab", "", ""},
		{"sha256:0123456789ab", "", ""},
		{"b@sha256:" + strings.Repeat("a", 64), "", ""},
		{"b", "c@sha256:" + strings.Repeat("a", 64), ""},
		{"b", "C D", ""},
	} {
		got, err := thinName(c.image, c.as)
		if got != c.want || (c.want == "") != errors.As(err, new(UsageError)) {
			t.Errorf("%s as %q: %q, %v", c.image, c.as, got, err)
		}
	}
}

func TestTheImageOfContainerdsThatIsMeantIsFound(t *testing.T) {
	key := strings.Repeat("a", 64)
	node := Node{Client: control.NewClient(serve(t, snapshotter{names: status.Names{Known: true, Images: []status.Name{
		{Key: key, Namespace: "moby", Name: "docker.io/library/python:3"},
		{Key: strings.Repeat("b", 64), Namespace: "moby", Name: "docker.io/library/python:3"}, // for another platform
		{Key: key, Namespace: "moby", Name: "docker.io/library/two:1"},
		{Key: key, Namespace: "k8s.io", Name: "docker.io/library/two:1"},
		{Key: key, Namespace: "moby", Snapshot: "moby/9/sha256:" + key},
	}}}))}
	found, err := node.ImageToThin(t.Context(), "python:3", "")
	if err != nil {
		t.Fatal(err)
	}
	want := control.ImageToThin{
		Namespace: "moby", Name: "docker.io/library/python:3", As: "docker.io/library/python:3-thin",
	}
	if !found.InContainerd || found.Of != want {
		t.Errorf("%+v", found)
	}
	if _, err := node.ImageToThin(t.Context(), "two:1", ""); err == nil || !strings.Contains(err.Error(), "(k8s.io)") {
		t.Errorf("one of two: %v", err)
	}
	if _, err := node.ImageToThin(t.Context(), "none:1", ""); !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(err.Error(), "make-thin") {
		t.Errorf("of no thin image: %v", err)
	}
}
