package convert

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/convert/wish"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/testutil"
)

// wishes makes a list of images of a registry, "repository:tag".
func wishes(t testing.TB, r *testutil.Registry, images ...string) *wish.List {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nuser: u\ncvmfs_repo: %s\noutput_format: 'http://%s/thin/$(image)'\ninput:\n", fqrn,
		r.Host)
	for _, i := range images {
		fmt.Fprintf(&b, "  - 'http://%s/%s'\n", r.Host, i)
	}
	l, err := wish.Read(strings.NewReader(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// small is an image whose layers hold one file each.
func small(t testing.TB, names ...string) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for _, n := range names {
		layers = append(layers, layerOf(t, testutil.Tar(t, file(n, n)), types.DockerLayer))
	}
	return imageOf(t, false, layers...)
}

func TestOneBadWishDoesNotStopTheOthers(t *testing.T) {
	repo, _ := newRepository(t)
	r := testutil.NewRegistry(t, "", "")
	r.Push(t, "a:1.0", small(t, "base", "a1"), nil)
	r.Push(t, "a:1.1", small(t, "base", "a2"), nil)
	r.Push(t, "a:2.0", small(t, "base", "a3"), nil)
	r.Push(t, "b:x", small(t, "base", "b"), nil)
	c := &Converter{Sink: sink.Native(repo)}
	list := wishes(t, r, "none:1", "a:1.*", "a:1.0", "b:nothing*", "b:x")
	s, err := c.ConvertList(t.Context(), list)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Err(); err == nil || err.Error() != "2 of 5 images failed" {
		t.Errorf("wishes that failed: %v", err)
	}
	if layers, stored := s.Added(); layers != 4 || stored <= 0 {
		t.Errorf("%d layers of %d bytes were added", layers, stored)
	}
	if s.Converted != 3 || s.Unchanged != 0 || len(s.Failures) != 2 || s.Images[1].Added != 1 ||
		s.Images[1].Present != 1 {
		t.Errorf("summary %+v", s)
	}
	for _, tag := range []string{"a:1.0", "a:1.1", "b:x"} {
		if d := descriptorOf(t, pulled(t, ref(t, "http://"+r.Host+"/thin/"+tag))); len(d.Layers) != 2 {
			t.Errorf("%s: %+v", tag, d)
		}
	}
	again, err := c.ConvertList(t.Context(), list)
	if err != nil || again.Converted != 0 || again.Unchanged != 3 {
		t.Errorf("again: %+v, %v", again, err)
	}
	r.Push(t, "b:x", small(t, "base", "b new"), nil)
	again, err = c.ConvertList(t.Context(), list)
	if err != nil || again.Converted != 1 || again.Unchanged != 2 {
		t.Errorf("after a push: %+v, %v", again, err)
	}
}

func TestThinImageNeverReplacesItsOriginal(t *testing.T) {
	repo, _ := newRepository(t)
	r := testutil.NewRegistry(t, "", "")
	r.Push(t, "a:1", small(t, "a"), nil)
	list := wishes(t, r, "a:1")
	list.Format = "http://$(registry)/$(image)"
	s, err := (&Converter{Sink: sink.Native(repo)}).ConvertList(t.Context(), list)
	if err != nil || len(s.Failures) != 1 || !strings.Contains(s.Failures[0].Error, "original's place") {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestUnusedLayersGoAfterTheirTimeOfGrace(t *testing.T) {
	for _, ducc := range []bool{false, true} {
		t.Run(fmt.Sprintf("ducc=%t", ducc), func(t *testing.T) {
			repo, _ := newRepository(t)
			r := testutil.NewRegistry(t, "", "")
			r.Push(t, "a:1", small(t, "base", "a"), nil)
			r.Push(t, "b:1", small(t, "base", "b"), nil)
			single := ref(t, "http://"+r.Push(t, "single:1", small(t, "single"), nil))
			c := &Converter{Sink: sink.Native(repo), Layout: Layout{DUCC: ducc}}
			if _, err := c.Convert(t.Context(), Job{Input: single}); err != nil {
				t.Fatal(err)
			}
			s, err := c.ConvertList(t.Context(), wishes(t, r, "a:*", "b:1"))
			if err != nil || s.Converted != 2 {
				t.Fatalf("%+v, %v", s, err)
			}
			gone := strings.TrimPrefix(s.Images[1].Paths[1], "cvmfs://"+fqrn)
			now := time.Now()
			collect := func(after time.Duration, dry bool) *CollectSummary {
				t.Helper()
				g, err := c.Collect(t.Context(), CollectOptions{
					Lists: []*wish.List{wishes(t, r, "a:*")},
					Grace: time.Hour, DryRun: dry, Now: now.Add(after),
				})
				if err != nil {
					t.Fatal(err)
				}
				return g
			}
			image := r.Host + "/b:1"
			want := &CollectSummary{Images: []string{image}, Removed: []string{}, Waiting: []string{gone}, Kept: 3}
			if diff := cmp.Diff(want, collect(0, true)); diff != "" {
				t.Errorf("dry run: %s", diff)
			}
			if diff := cmp.Diff(want, collect(0, false)); diff != "" {
				t.Errorf("first: %s", diff)
			}
			want = &CollectSummary{Images: []string{}, Removed: []string{}, Waiting: []string{gone}, Kept: 3}
			if diff := cmp.Diff(want, collect(59*time.Minute, false)); diff != "" {
				t.Errorf("in the time of grace: %s", diff)
			}
			want.Removed, want.Waiting = want.Waiting, want.Removed
			if diff := cmp.Diff(want, collect(61*time.Minute, true)); diff != "" {
				t.Errorf("dry run afterwards: %s", diff)
			}
			if _, err := content(t, repo, gone+"/b"); err != nil {
				t.Errorf("a dry run removed something: %v", err)
			}
			if diff := cmp.Diff(want, collect(61*time.Minute, false)); diff != "" {
				t.Errorf("afterwards: %s", diff)
			}
			if _, err := content(t, repo, gone+"/b"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the layer is still there: %v", err)
			}
			for _, path := range s.Images[0].Paths {
				path = strings.TrimPrefix(path, "cvmfs://"+fqrn)
				_, errBase := content(t, repo, path+"/base")
				_, errA := content(t, repo, path+"/a")
				if errBase != nil && errA != nil {
					t.Errorf("%s: %v, %v", path, errBase, errA)
				}
			}
		})
	}
}

func TestLayerThatIsNamedAgainStartsItsGraceAnew(t *testing.T) {
	repo, _ := newRepository(t)
	r := testutil.NewRegistry(t, "", "")
	r.Push(t, "a:1", small(t, "a"), nil)
	r.Push(t, "b:1", small(t, "b"), nil)
	c := &Converter{Sink: sink.Native(repo)}
	both, only := wishes(t, r, "a:1", "b:1"), wishes(t, r, "a:1")
	now := time.Now()
	for i, step := range []struct {
		list    *wish.List
		after   time.Duration
		convert bool
		waiting int
	}{
		{only, 0, false, 1},
		{both, time.Hour / 2, true, 0},
		{only, time.Hour, false, 1},
		{only, 3 * time.Hour / 2, false, 1},
	} {
		if i == 0 || step.convert {
			if _, err := c.ConvertList(t.Context(), both); err != nil {
				t.Fatal(err)
			}
		}
		g, err := c.Collect(t.Context(), CollectOptions{
			Lists: []*wish.List{step.list}, Grace: time.Hour,
			Now: now.Add(step.after),
		})
		if err != nil || len(g.Removed) != 0 || len(g.Waiting) != step.waiting {
			t.Errorf("step %d: %+v, %v", i, g, err)
		}
	}
}

func TestListOfAnotherRepositoryIsRefused(t *testing.T) {
	repo, _ := newRepository(t)
	r := testutil.NewRegistry(t, "", "")
	list := wishes(t, r, "a:1")
	list.Repository = "other.example.org"
	if _, err := (&Converter{Sink: sink.Native(repo)}).ConvertList(t.Context(), list); err == nil ||
		!strings.Contains(err.Error(), "other.example.org") {
		t.Errorf("error %v", err)
	}
}

func TestRegistryFaultsAreToldApart(t *testing.T) {
	r := testutil.NewRegistry(t, "", "")
	r.Push(t, "a:1", small(t, "a"), nil)
	unknown := testutil.Fault{
		Path: "/manifests/", Status: 404,
		Body: `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`,
	}
	for name, c := range map[string]struct {
		image string
		o     source.Options
		fault testutil.Fault
		want  error
		text  string
	}{
		"no such image": {image: "none:1", want: source.ErrNoImage, text: "check the name"},
		"no such tag":   {image: "a:2", want: source.ErrNoTag, text: "check the tag"},
		"no repository, told as no tag": {
			image: "none:1", fault: unknown, want: source.ErrNoImage,
			text: "has no none",
		},
		"no repository, told as nothing": {
			image: "none:1", fault: testutil.Fault{Path: "/manifests/", Status: 404},
			want: source.ErrNoImage, text: "has no none",
		},
		"no tag, told as nothing": {
			image: "a:2", fault: testutil.Fault{Path: "/manifests/", Status: 404},
			want: source.ErrNoTag, text: "check the tag",
		},
		"no tag, and no list of tags": {
			image: "a:2", fault: testutil.Fault{Path: "/a/", Status: 404, Times: 1},
			want: source.ErrNoTag, text: "check the tag",
		},
		"access denied": {
			image: "a:1", fault: testutil.Fault{Path: "/manifests/", Status: 403},
			want: source.ErrCredentials, text: "docker login",
		},
		"platform in vain": {image: "a:1", o: source.Options{Platform: "linux"}, text: "OS/ARCHITECTURE"},
		"damaged manifest": {
			image: "a@sha256:" + strings.Repeat("0", 64), want: source.ErrNoTag,
			text: "check the tag",
		},
	} {
		r.Set(c.fault)
		_, err := source.Open(t.Context(), ref(t, "http://"+r.Host+"/"+c.image), c.o)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: error %v, want %v with %q", name, err, c.want, c.text)
		}
	}
}

func TestAStateThatCantBeUnderstoodKeepsAllLayersAndIsWrittenAnew(t *testing.T) {
	repo, _ := newRepository(t)
	r := testutil.NewRegistry(t, "", "")
	input := ref(t, "http://"+r.Push(t, "a:1", small(t, "base"), nil))
	c := &Converter{Sink: sink.Native(repo)}
	s, err := c.Convert(t.Context(), Job{Input: input})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := repo.Begin(t.Context())
	if err == nil {
		err = tx.WriteFile(t.Context(), metadataFolder+"/"+r.Host+"/a:1/"+stateName, []byte("{"), 0o644)
	}
	if err == nil {
		_, err = tx.Commit(t.Context(), publish.CommitOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if g, err := c.Collect(t.Context(), CollectOptions{}); !errors.Is(err, errState) {
		t.Errorf("collect: %+v, %v", g, err)
	}
	again, err := c.Convert(t.Context(), Job{Input: input})
	if err != nil || again.Unchanged || again.Present != s.Layers {
		t.Errorf("convert again: %+v, %v", again, err)
	}
	if g, err := c.Collect(t.Context(), CollectOptions{}); err != nil || len(g.Removed) != 0 || g.Kept != s.Layers {
		t.Errorf("collect: %+v, %v", g, err)
	}
}

// TestNamesOfImagesAreNotTakenForFilesOfOurs: whoever names an image chooses the names of the metadata's folders.
func TestNamesOfImagesAreNotTakenForFilesOfOurs(t *testing.T) {
	testutil.NeedRoot(t)
	repo, _ := newRepository(t)
	dir := t.TempDir()
	folder, err := sink.Open("dir:"+dir, sink.Options{FQRN: fqrn})
	if err != nil {
		t.Fatal(err)
	}
	for name, place := range map[string]sink.Sink{"native": sink.Native(repo), "dir": folder} {
		t.Run(name, func(t *testing.T) {
			c := &Converter{Sink: place}
			r := testutil.NewRegistry(t, "", "")
			images := []string{
				"a:conf.json", "tool.json/b:1", "deep/tool.json/er/c:1", "manifest.json:1",
				"manifest.json/d:manifest.json",
				"docker2cvmfs.json/e:docker2cvmfs.json", "layers/f:layers", "local:1", "docker2cvmfs-unused.json/g:1",
				"h.json:h.json",
			}
			for _, i := range images {
				in := ref(t, "http://"+r.Push(t, i, small(t, "only in "+i), nil))
				if _, err := c.Convert(t.Context(), Job{Input: in}); err != nil {
					t.Fatal(err)
				}
			}
			if s, err := c.Collect(t.Context(), CollectOptions{}); err != nil || s.Kept != len(images) ||
				len(s.Removed) != 0 {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}

func TestLayersDoNotLieAmongTheMetadata(t *testing.T) {
	for _, folder := range []string{".metadata", "/.metadata/", ".metadata/x"} {
		if _, err := ParseLayout("layers", folder); err == nil {
			t.Errorf("%s is taken", folder)
		}
	}
	if _, err := ParseLayout("layers", ".metadata-of-mine"); err != nil {
		t.Error(err)
	}
}
