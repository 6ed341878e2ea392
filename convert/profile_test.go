package convert

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/cvmfs/pack"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

// startOf is a profile of reads of pages of files in a repository.
func startOf(t *testing.T, repo *publish.Repository, reads map[string][2]int) objects.Profile {
	t.Helper()
	p := objects.Profile{}
	for path, pages := range reads {
		e, err := publishtest.Newest(t, repo).Lookup(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		p = append(p, objects.Read{Name: nameOf(t, repo, path), Unit: objects.Pages, First: pages[0], Last: pages[1]})
		if int64(pages[1]) > e.Size/objects.PageSize {
			t.Fatalf("%s has no page %d", path, pages[1])
		}
	}
	return p
}

// nameOf is the name of the object that a file in a repository is.
func nameOf(t *testing.T, repo *publish.Repository, path string) objects.Name {
	t.Helper()
	e, err := publishtest.Newest(t, repo).Lookup(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	o, err := objects.FromEntry(e, "")
	if err != nil {
		t.Fatal(err)
	}
	n, err := objects.ParseName(o.Name())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// published is the start profile that a thin image names, as it is published.
func published(t *testing.T, repo *publish.Repository, d *thin.Descriptor) objects.Profile {
	t.Helper()
	if d.Profile == nil {
		t.Fatal("no profile is named")
	}
	text, err := content(t, repo, d.Profile.Path)
	if err != nil {
		t.Fatal(err)
	}
	if sha256Of([]byte(text)) != d.Profile.Digest {
		t.Error("the profile isn't the one that is named")
	}
	p, err := objects.ParseProfile([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// filesOf are the names of the files beside a start profile.
func filesOf(t *testing.T, repo *publish.Repository, p *thin.Profile) []string {
	t.Helper()
	files := publishtest.ReadAll(t, publishtest.Newest(t, repo), p.Files())
	delete(files, "") // the folder
	delete(files, catalog.Marker)
	return slices.Sorted(maps.Keys(files))
}

// packedPlain is the plain content of the first pack beside a start profile.
func packedPlain(t *testing.T, repo *publish.Repository, folder string) (plain string) {
	t.Helper()
	text, err := content(t, repo, folder+"/"+pack.Name(0))
	if err != nil {
		t.Fatal(err)
	}
	r := pack.NewReader(bufio.NewReader(strings.NewReader(text)))
	for {
		path, _, err := r.Next()
		if errors.Is(err, io.EOF) {
			return plain
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if d := hash.SHA1.Digest(b); path != d.Path(hash.Chunk) && path != d.Path(hash.File) {
			t.Errorf("%s is %v", path, d)
		}
		z, err := zlib.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		plain += string(content)
	}
}

func TestFilesAreCutForTheirStartProfile(t *testing.T) {
	repo, _ := newRepository(t)
	registry := testutil.NewRegistry(t, "", "")
	big := string(testutil.Sample(300_000))
	layer := layerOf(t, testutil.Tar(t, file("big", big), file("small", "text")), types.DockerLayer)
	job := Job{
		Input:  ref(t, registry.Push(t, "a:1", imageOf(t, false, layer), nil)),
		Output: refp(t, registry.Host+"/a_thin:1"),
	}
	c := &Converter{Sink: sink.Native(repo)}
	convert := func() (*Summary, *thin.Descriptor) {
		t.Helper()
		s, err := c.Convert(t.Context(), job)
		if err != nil {
			t.Fatal(err)
		}
		return s, descriptorOf(t, pulled(t, *job.Output))
	}
	_, d := convert()
	at := d.Layers[0].Path
	was := nameOf(t, repo, at+"/big")
	job.Profile = startOf(t, repo, map[string][2]int{at + "/big": {0, 3}}).Encode()
	_, d = convert()
	p := published(t, repo, d)
	cut := nameOf(t, repo, d.Profile.Files()+"/"+was.String())
	if len(p) != 1 || p[0].Name != cut || cut == was || p[0].First != 0 || p[0].Last != 3 {
		t.Errorf("the profile has %+v, want %v", p, cut)
	}
	if got, err := content(t, repo, d.Profile.Files()+"/"+was.String()); err != nil || got != big {
		t.Errorf("the file that was cut has other content: %v", err)
	}
	if names := filesOf(t, repo, d.Profile); !slices.Equal(names, []string{was.String(), "pack-0"}) {
		t.Errorf("files of the profile: %v", names)
	}
	if got := packedPlain(t, repo, d.Profile.Files()); got != big[:4*objects.PageSize] {
		t.Errorf("the pack has %d bytes of what a start reads, or others", len(got))
	}
	if now := nameOf(t, repo, at+"/big"); now != was {
		t.Errorf("the layer's file was %v and is %v", was, now)
	}
	publishtest.MustBeSound(t, repo)

	// The same once more changes nothing, nor does none, and forced it comes to the same.
	if s, again := convert(); !s.Unchanged || *again.Profile != *d.Profile {
		t.Errorf("with the same profile: %+v, %+v", s, again.Profile)
	}
	job.Profile = nil
	if s, kept := convert(); !s.Unchanged || *kept.Profile != *d.Profile {
		t.Errorf("without one: %+v, %+v", s, kept.Profile)
	}
	c.Force = true
	job.Profile = startOf(t, repo, map[string][2]int{at + "/big": {0, 3}}).Encode()
	if _, forced := convert(); *forced.Profile != *d.Profile {
		t.Errorf("forced: %+v, was %+v", forced.Profile, d.Profile)
	}
	c.Force = false

	// Another start reads all of it: nothing is cut any more.
	job.Profile = append(startOf(t, repo, map[string][2]int{at + "/big": {0, 73}, at + "/small": {0, 0}}).Encode(),
		strings.Repeat("0", 40)+".z.7\n"...) // of what isn't the image's
	_, d = convert()
	if string(published(t, repo, d).Encode()) != string(job.Profile) {
		t.Errorf("the profile isn't published as it was given")
	}
	if names := filesOf(t, repo, d.Profile); !slices.Equal(names, []string{"pack-0"}) {
		t.Errorf("for a start that reads all there are %v, want a pack alone", names)
	}
	publishtest.MustBeSound(t, repo)

	// Of another image under the same name nothing of the profile stays.
	job.Profile = startOf(t, repo, map[string][2]int{at + "/big": {0, 3}}).Encode()
	_, d = convert()
	other := layerOf(t, testutil.Tar(t, file("other", "text")), types.DockerLayer)
	job.Input, job.Profile = ref(t, registry.Push(t, "a:1", imageOf(t, false, other), nil)), nil
	if _, d := convert(); d.Profile != nil {
		t.Errorf("another image has the profile %+v", d.Profile)
	}
	for _, path := range []string{d.Profile.Path, d.Profile.Files()} {
		if _, err := publishtest.Newest(t, repo).Lookup(t.Context(), path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	publishtest.MustBeSound(t, repo)
}

// A profile may be attached as the layers are published, and one of an older version at any time.
func TestProfilesArePublishedWithTheirLayers(t *testing.T) {
	repo, _ := newRepository(t)
	registry := testutil.NewRegistry(t, "", "")
	layer := layerOf(t, testutil.Tar(t, file("big", string(testutil.Sample(300_000)))), types.DockerLayer)
	in := ref(t, registry.Push(t, "a:1", imageOf(t, false, layer), nil))
	c := &Converter{Sink: sink.Native(repo)}
	if _, err := c.Convert(t.Context(), Job{Input: in}); err != nil {
		t.Fatal(err)
	}
	var at string
	for path := range publishtest.ReadAll(t, publishtest.Newest(t, repo), "/layers") {
		if strings.HasSuffix(path, "/big") {
			at = "/layers/" + path
		}
	}
	profile := startOf(t, repo, map[string][2]int{at: {0, 3}}).Encode()
	other, _ := newRepository(t)
	c = &Converter{Sink: sink.Native(other)}
	job := Job{Input: in, Output: refp(t, registry.Host+"/a_thin:1"), Profile: profile}
	if _, err := c.Convert(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	d := descriptorOf(t, pulled(t, *job.Output))
	if p := published(t, other, d); len(p) != 1 || !p[0].Name.Chunked {
		t.Errorf("the profile has %+v", p)
	}
	publishtest.MustBeSound(t, other)
	job.Profile = []byte("cvmfs start profile 1\n" + nameOf(t, other, at).String() + "\n")
	if _, err := c.Convert(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	d = descriptorOf(t, pulled(t, *job.Output))
	if p := published(t, other, d); len(p) != 1 || p[0].Name.Chunked {
		t.Errorf("the older profile has become %+v", p)
	}
}

// Sinks that leave cutting files to somebody else have the profile as it was recorded.
func TestProfilesAreKeptWhereNothingIsCut(t *testing.T) {
	registry := testutil.NewRegistry(t, "", "")
	layer := layerOf(t, testutil.Tar(t, file("big", string(testutil.Sample(300_000)))), types.DockerLayer)
	in := ref(t, registry.Push(t, "a:1", imageOf(t, false, layer), nil))
	folder, err := sink.Open("dir:"+t.TempDir(), sink.Options{FQRN: fqrn})
	if err != nil {
		t.Fatal(err)
	}
	job := Job{
		Input: in, Output: refp(t, registry.Host+"/a_thin:1"),
		Profile: []byte("cvmfs start profile 2\n5798f7f4ca7585d850eea64610a1f73d8f8de7a3.z.300000 0-3\n"),
	}
	if _, err := (&Converter{Sink: folder}).Convert(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	d := descriptorOf(t, pulled(t, *job.Output))
	if d.Profile == nil || d.Profile.Digest != sha256Of(job.Profile) {
		t.Errorf("the profile is %+v", d.Profile)
	}
	tx, err := folder.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Abort()
	if b, err := tx.ReadFile(t.Context(), d.Profile.Path); err != nil || string(b) != string(job.Profile) {
		t.Errorf("%q, %v", b, err)
	}
}
