package source

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// shelf is an OCI layout whose manifests are written as a test wants them.
type shelf struct {
	t   testing.TB
	dir string
}

func newShelf(t testing.TB) *shelf {
	t.Helper()
	s := &shelf{t, t.TempDir()}
	if err := os.MkdirAll(filepath.Join(s.dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

// fields are those of a JSON object.
type fields map[string]any

// blob keeps bytes and gives their descriptor, with more fields.
func (s *shelf) blob(content string, media types.MediaType, more fields) fields {
	s.t.Helper()
	hex := sha(s.t, content)
	if err := os.WriteFile(filepath.Join(s.dir, "blobs/sha256", hex), []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
	d := fields{"mediaType": media, "digest": "sha256:" + hex, "size": len(content)}
	maps.Copy(d, more)
	return d
}

func (s *shelf) json(what any) string {
	s.t.Helper()
	b, err := json.Marshal(what)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// image keeps an image for a platform, whose layer says what it is, and gives its descriptor.
func (s *shelf) image(says, arch, variant string, more fields) fields {
	s.t.Helper()
	layer := string(archiveOf(s.t, member{name: "which", content: says}))
	config := fields{"os": "linux", "architecture": arch, "rootfs": fields{
		"type":     "layers",
		"diff_ids": []string{"sha256:" + sha(s.t, layer)},
	}}
	if variant != "" {
		config["variant"] = variant
	}
	return s.blob(s.json(fields{
		"schemaVersion": 2, "mediaType": types.OCIManifestSchema1,
		"config": s.blob(s.json(config), types.OCIConfigJSON, nil),
		"layers": []fields{s.blob(layer, types.OCIUncompressedLayer, nil)},
	}), types.OCIManifestSchema1, more)
}

// list keeps a list of images and gives its descriptor.
func (s *shelf) list(more fields, images ...any) fields {
	return s.blob(s.json(fields{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": images}),
		types.OCIImageIndex, more)
}

// tagged makes these the layout's images and gives the reference of the one tagged "1".
func (s *shelf) tagged(images ...any) string {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "index.json"),
		[]byte(s.json(fields{"schemaVersion": 2, "manifests": images})), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return "oci:" + s.dir + ":1"
}

var tagOne = fields{"annotations": fields{refName: "1"}}

// on is the field of a descriptor that says what an image is for.
func on(arch, variant string) fields {
	p := fields{"os": "linux", "architecture": arch}
	if variant != "" {
		p["variant"] = variant
	}
	return fields{"platform": p}
}

// taken reports which image of a reference is taken for a platform, by its layer, or why none is.
func taken(t testing.TB, text, platform string) string {
	t.Helper()
	image, err := opened(t, text, Options{Platform: platform})
	if err != nil {
		return err.Error()
	}
	all, err := archives(t, image)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(string(all[0][512:1024]), "\x00")
}

func TestPlatformsAreChosenAsEnginesDo(t *testing.T) {
	s := newShelf(t)
	lists := map[string]fields{
		"v3 first": s.list(tagOne, s.image("v3", "amd64", "v3", on("amd64", "v3")),
			s.image("plain", "amd64", "", on("amd64", ""))),
		"v1 named": s.list(tagOne, s.image("v3", "amd64", "v3", on("amd64", "v3")),
			s.image("plain", "amd64", "", on("amd64", "v1"))),
		"only v3":  s.list(tagOne, s.image("v3", "amd64", "v3", on("amd64", "v3"))),
		"arm64":    s.list(tagOne, s.image("arm", "arm64", "", on("arm64", ""))),
		"arm64 v8": s.list(tagOne, s.image("arm", "arm64", "v8", on("arm64", "v8"))),
		"arms": s.list(tagOne, s.image("v5", "arm", "v5", on("arm", "v5")),
			s.image("v6", "arm", "v6", on("arm", "v6")), s.image("v7", "arm", "v7", on("arm", "v7"))),
		"aliases": s.list(tagOne, s.image("arm", "aarch64", "", on("aarch64", "")),
			s.image("intel", "x86_64", "", on("x86_64", ""))),
		"unnamed": s.list(tagOne, s.image("attested", "unknown", "", nil), s.image("other", "s390x", "", nil),
			s.image("one", "amd64", "", nil)),
		"unnamed, with an attestation": s.list(tagOne, s.image("one", "amd64", "", nil),
			s.image("attested", "amd64", "", fields{"platform": fields{"os": "unknown", "architecture": "unknown"}})),
		"attestation by its annotation": s.list(tagOne, s.image("attested", "amd64", "",
			fields{"annotations": fields{attestation: "attestation-manifest"}}),
			s.image("one", "amd64", "", nil)),
		"one named, the better not": s.list(tagOne, s.image("older", "386", "", on("386", "")),
			s.image("one", "amd64", "", nil)),
		"a list within": s.list(tagOne, s.list(nil, s.image("arm", "arm64", "", on("arm64", "")),
			s.image("one", "amd64", "", on("amd64", ""))), s.image("z", "s390x", "", nil)),
		"empty platform": s.list(tagOne, s.image("one", "amd64", "", fields{"platform": fields{}}),
			s.image("z", "s390x", "", fields{"platform": nil})),
		"something else unnamed": s.list(tagOne, s.blob(`{"schemaVersion":2}`, types.OCIManifestSchema1, nil),
			s.blob("x", "text/plain", nil), s.image("one", "amd64", "", nil)),
	}
	for _, c := range []struct{ list, platform, want string }{
		{"v3 first", "", "plain"},
		{"v3 first", "linux/amd64", "plain"},
		{"v3 first", "linux/amd64/v1", "plain"},
		{"v3 first", "linux/x86_64", "plain"},
		{"v3 first", "linux/amd64/v2", "plain"},
		{"v3 first", "linux/amd64/v3", "v3"},
		{"v3 first", "linux/amd64/v4", "v3"},
		{"v1 named", "", "plain"},
		{"only v3", "", "there are \"linux/amd64/v3\""},
		{"arm64", "linux/arm64/v8", "arm"},
		{"arm64", "linux/aarch64", "arm"},
		{"arm64", "Linux/ARM64", "arm"},
		{"arm64 v8", "linux/arm64", "arm"},
		{"arms", "linux/arm", "v7"},
		{"arms", "linux/arm/v6", "v6"},
		{"arms", "linux/arm/6", "v6"},
		{"arms", "linux/armhf", "v7"},
		{"arms", "linux/arm64", "v7"},
		{"aliases", "", "intel"},
		{"aliases", "linux/arm64", "arm"},
		{"unnamed", "", "one"},
		{"unnamed", "linux/s390x", "other"},
		{"unnamed", "linux/ppc64le", "linux/s390x"},
		{"unnamed, with an attestation", "", "one"},
		{"attestation by its annotation", "", "one"},
		{"one named, the better not", "", "one"},
		{"a list within", "", "one"},
		{"a list within", "linux/arm64", "arm"},
		{"empty platform", "", "one"},
		{"something else unnamed", "", "one"},
	} {
		if got := taken(t, s.tagged(lists[c.list]), c.platform); got != c.want &&
			!(strings.Contains(c.want, "/") && strings.Contains(got, c.want)) {
			t.Errorf("%s for %q: %q, want %q", c.list, c.platform, got, c.want)
		}
	}
}

// TestAnImageForAnotherPlatformIsRefusedByItsConfiguration: no list offered a choice.
func TestAnImageForAnotherPlatformIsRefusedByItsConfiguration(t *testing.T) {
	s := newShelf(t)
	for _, c := range []struct {
		arch, variant, platform string
		fits                    bool
	}{
		{"arm64", "v8", "linux/arm64", true},
		{"arm64", "", "linux/arm64/v8", true},
		{"aarch64", "", "linux/arm64", true},
		{"amd64", "", "linux/amd64/v1", true},
		{"amd64", "", "linux/amd64/v3", true},
		{"amd64", "v3", "linux/amd64", false},
		{"amd64", "v3", "", true}, // it is the image there is
		{"arm", "", "linux/arm/v6", true},
		{"arm", "v7", "linux/arm/v6", false},
		{"arm64", "", "linux/amd64", false},
		{"", "", "linux/amd64", true},
	} {
		_, err := opened(t, s.tagged(s.image("x", c.arch, c.variant, tagOne)), Options{Platform: c.platform})
		if (err == nil) != c.fits || err != nil && !errors.Is(err, ErrPlatform) {
			t.Errorf("%s/%s for %q: %v", c.arch, c.variant, c.platform, err)
		}
	}
}

func TestATagOfSeveralPlatformsIsChosenFrom(t *testing.T) {
	s := newShelf(t)
	both := func(platform, annotations fields) fields {
		return fields{"platform": platform["platform"], "annotations": annotations["annotations"]}
	}
	in := s.tagged(s.image("arm", "arm64", "", both(on("arm64", ""), tagOne)),
		s.image("intel", "amd64", "", both(on("amd64", ""), tagOne)))
	if got := taken(t, in, ""); got != "intel" {
		t.Errorf("by its tag: %s", got)
	}
	if got := taken(t, strings.TrimSuffix(in, ":1"), "linux/arm64"); got != "arm" {
		t.Errorf("without one: %s", got)
	}
	two := fields{"annotations": fields{refName: "2"}}
	in = s.tagged(s.image("a", "amd64", "", both(on("amd64", ""), tagOne)),
		s.image("b", "amd64", "", both(on("amd64", ""), two)))
	if _, err := opened(t, strings.TrimSuffix(in, ":1"), Options{}); !errors.Is(err, ErrNoTag) {
		t.Errorf("two images, none named: %v", err)
	}
}

// TestFieldsThatNobodyNeedsMayBeAnything: engines take null for what is left out, and don't look at most of the rest.
func TestFieldsThatNobodyNeedsMayBeAnything(t *testing.T) {
	s := newShelf(t)
	layer := string(archiveOf(t, member{name: "which", content: "one"}))
	diffs := fields{"type": nil, "diff_ids": []string{"sha256:" + sha(t, layer)}}
	configs := map[string]fields{
		"nulls": {
			"os": "linux", "architecture": "amd64", "rootfs": diffs,
			"history": []any{nil, fields{"created_by": nil}}, "config": nil, "created": nil, "variant": nil,
			"os.features": nil,
		},
		"odd": {
			"os": "linux", "architecture": "amd64", "rootfs": diffs, "history": "none",
			"config": fields{"Cmd": "one text", "Healthcheck": fields{"Interval": "1s"}}, "created": "",
		},
	}
	manifests := map[string]fields{
		"plain": {},
		"nulls": {"annotations": nil, "subject": nil, "manifests": nil, "artifactType": nil, "mediaType": nil},
		"odd":   {"annotations": fields{"a": 1}, "subject": fields{"digest": "sha512:" + strings.Repeat("0", 128)}},
	}
	for what, c := range configs {
		for how, m := range manifests {
			m["schemaVersion"] = 2
			m["config"] = s.blob(s.json(c), types.OCIConfigJSON,
				fields{"annotations": nil, "platform": nil, "data": nil})
			m["layers"] = []fields{s.blob(layer, types.OCIUncompressedLayer,
				fields{"urls": nil, "annotations": nil, "data": "no base64!"})}
			image := s.blob(s.json(m), types.OCIManifestSchema1, on("amd64", ""))
			odd := fields{
				"mediaType": types.OCIManifestSchema1, "digest": "sha512:" + strings.Repeat("0", 128),
				"size": 1, "platform": fields{"os": "linux", "architecture": "s390x"},
			}
			for _, in := range []string{
				s.tagged(s.blob(s.json(m), types.OCIManifestSchema1, tagOne)),
				s.tagged(s.list(tagOne, nil, odd, image)),
				s.tagged(s.blob(s.json(fields{
					"schemaVersion": 2, "layers": nil, "config": nil,
					"manifests": []any{image},
				}), types.OCIImageIndex, tagOne)),
			} {
				if got := taken(t, in, "linux/amd64"); got != "one" {
					t.Errorf("configuration %s, manifest %s: %s", what, how, got)
				}
			}
		}
	}
	for how, list := range map[string]string{
		"nulls": `[{"Config":"c","RepoTags":null,"Layers":["l"],"Parent":null,"LayerSources":null}]`,
		"odd":   `[{"Config":"c","RepoTags":[null],"Layers":["l"],"Parent":7,"LayerSources":[]}]`,
	} {
		saved := archiveOf(t, member{name: "c", content: s.json(configs["odd"])}, member{name: "l", content: layer},
			member{name: "manifest.json", content: list})
		if got := taken(t, "docker-archive:"+written(t, saved), ""); got != "one" {
			t.Errorf("manifest.json, %s: %s", how, got)
		}
	}
}

func TestAListThatHidesWhatItIsForIsBounded(t *testing.T) {
	s := newShelf(t)
	var images []any
	for i := range maxUnnamed + 1 {
		images = append(images, s.image(fmt.Sprint(i), "s390x", "", nil))
	}
	if _, err := opened(t, s.tagged(s.list(tagOne, images...)), Options{}); err == nil ||
		!strings.Contains(err.Error(), "more than 64") {
		t.Errorf("%v", err)
	}
	lost := s.image("lost", "amd64", "", nil)
	digest, err := v1.NewHash(lost["digest"].(string))
	if err == nil {
		err = os.Remove(filepath.Join(s.dir, blobName(digest)))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := opened(t, s.tagged(s.list(tagOne, lost, s.image("z", "s390x", "", nil))), Options{}); err == nil ||
		errors.Is(err, ErrPlatform) {
		t.Errorf("what can't be read isn't passed over: %v", err)
	}
}
