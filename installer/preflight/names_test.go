package preflight

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/driver/status"
)

func TestImagesAndContainersAreNamedByTheirComposedImage(t *testing.T) {
	const tagged, plain, bare = "sha256:aaaa", "sha256:bbbb", "sha256:cccccccccccccccccccc"
	driver := func(key string) object {
		return object{"Name": name, "Data": map[string]string{"Image": key, "Local": "1 of 2 objects"}}
	}
	c, err := Dial(fakeEngine(t, "1.41", answers{
		"/images/json": []object{
			{"Id": tagged, "RepoTags": []string{"r.example.org/b:1", "a:latest"}},
			{"Id": plain, "RepoTags": []string{"ordinary:1"}},
			{"Id": bare, "RepoTags": []string{"<none>:<none>"}},
			{"Id": "sha256:gone", "RepoTags": []string{"gone:1"}},
		},
		"/images/" + tagged + "/json": object{"GraphDriver": driver("k1")},
		"/images/" + plain + "/json":  object{"GraphDriver": object{"Name": name, "Data": map[string]string{}}},
		"/images/" + bare + "/json":   object{"GraphDriver": driver("k2")},
		"/containers/json": []object{
			{"Id": "1", "Names": []string{"/web"}}, {"Id": "2", "Names": []string{"/db"}}, {"Id": "3", "Names": []string{"/x"}},
		},
		"/containers/1/json": object{"GraphDriver": driver("k1")},
		"/containers/2/json": object{"GraphDriver": driver("k1")},
		"/containers/3/json": object{"GraphDriver": object{"Name": name, "Data": nil}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := Names(t.Context(), c)
	want := map[string]*Named{
		"k1": {
			Images: []string{"a:latest", "r.example.org/b:1"}, Containers: []string{"db", "web"},
			Local: "1 of 2 objects",
		},
		"k2": {Images: []string{"cccccccccccc"}, Local: "1 of 2 objects"},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v -want +got\n%s", err, diff)
	}
	s := State{Images: []Image{{Key: "k1"}, {Key: "k3"}}}
	s.name(got)
	if diff := cmp.Diff([]Image{{
		Key: "k1", Names: []string{"a:latest", "r.example.org/b:1"}, Containers: []string{"db", "web"},
		Local: "1 of 2 objects",
	}, {Key: "k3"}}, s.Images); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestDifferencesFromTheFilesAreTold(t *testing.T) {
	place := func(file string) *config.Place { return &config.Place{File: file, Line: 1} }
	used := []status.Setting{
		{Name: "SAME", Value: "1", Place: "/etc/cvmfs/a:1"},
		{Name: "OTHER", Value: "1", Place: "/etc/cvmfs/a:1"},
		{Name: "GONE", Value: "1", Place: "/etc/cvmfs/a:1"},
		{Name: "OURS", Value: "1", BuiltIn: true},
		{Name: "OURS_GONE", Value: "1", BuiltIn: true},
		{Name: "OVERRIDDEN", Value: "1", BuiltIn: true},
	}
	files := []config.Setting{
		{Name: "SAME", Value: "1", Place: place("/x/b")},
		{Name: "OTHER", Value: "2", Place: place("/x/b")},
		{Name: "NEW", Value: "2", Place: place("/x/b")},
		{Name: "OURS", Value: "2", Place: place(config.BuiltIn)},
		{Name: "OURS_NEW", Value: "2", Place: place(config.BuiltIn)},
		{Name: "OVERRIDDEN", Value: "2", Place: place("/x/b")},
	}
	if diff := cmp.Diff([]string{
		`GONE: "1" is used (/etc/cvmfs/a:1), and the files don't say it any more`,
		`NEW: it isn't used, and the files say "2" (/x/b:1)`,
		`OTHER: "1" is used (/etc/cvmfs/a:1), and the files say "2" (/x/b:1)`,
		`OVERRIDDEN: "1" is used (), and the files say "2" (/x/b:1)`,
	}, differences(used, files)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
