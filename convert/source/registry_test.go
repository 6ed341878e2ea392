package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	server "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/test/testutil"
)

// noise is an archive that compresses badly, so that its blob is long.
func noise(t testing.TB, size int64) []byte {
	t.Helper()
	l, err := random.Layer(size, types.DockerUncompressedLayer)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// layerOf packs an archive.
func layerOf(t testing.TB, archive []byte, c compression.Compression, media types.MediaType) v1.Layer {
	t.Helper()
	if c == compression.None {
		return static.NewLayer(archive, media)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }
	l, err := tarball.LayerFromOpener(open, tarball.WithCompression(c), tarball.WithMediaType(media))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// imageOf makes an image for a platform.
func imageOf(t testing.TB, arch string, layers ...v1.Layer) v1.Image {
	t.Helper()
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

// opened opens an image for the length of the test.
func opened(t testing.TB, text string, o Options) (*Image, error) {
	t.Helper()
	ref, err := Parse(text, "")
	if err != nil {
		t.Fatal(err)
	}
	image, err := Open(t.Context(), ref, o)
	if err == nil {
		t.Cleanup(func() { image.Close() })
	}
	return image, err
}

// archives reads the archives of an image's layers.
func archives(t testing.TB, image *Image) ([][]byte, error) {
	t.Helper()
	var all [][]byte
	for _, l := range image.Layers {
		c, err := l.Content(t.Context(), nil)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(c)
		if err == nil {
			err = c.Finish()
		}
		if err = errors.Join(err, c.Close()); err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

func TestLayersOfAllCompressionsAreRead(t *testing.T) {
	archive := noise(t, 100_000)
	reg := testutil.NewRegistry(t, "", "")
	for _, c := range []struct {
		compression compression.Compression
		media       types.MediaType
	}{
		{compression.GZip, types.DockerLayer},
		{compression.GZip, types.OCILayer},
		{compression.ZStd, types.OCILayerZStd},
		{compression.ZStd, dockerZstd},
		{compression.None, types.OCIUncompressedLayer},
		{compression.None, types.DockerLayer}, // the type is wrong about it
	} {
		in := reg.Push(t, "a:1", imageOf(t, "amd64", layerOf(t, archive, c.compression, c.media)), nil)
		image, err := opened(t, in, Options{})
		if err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		got, err := archives(t, image)
		if err != nil || len(got) != 1 || !bytes.Equal(got[0], archive) {
			t.Errorf("%v: %d archives, %v", c, len(got), err)
		}
	}
}

// tokens is a registry that wants a token and takes each for a few requests only.
type tokens struct {
	registry http.Handler
	user     string
	each     atomic.Int64 // requests that a token is good for
	issued   atomic.Int64
	left     atomic.Int64 // requests that the newest token is still good for
}

func (s *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" {
		if u, p, _ := r.BasicAuth(); u != s.user || p != "secret" {
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}`, http.StatusUnauthorized)
			return
		}
		s.left.Store(s.each.Load())
		fmt.Fprintf(w, `{"token":"%d"}`, s.issued.Add(1))
		return
	}
	if r.Header.Get("Authorization") != fmt.Sprintf("Bearer %d", s.issued.Load()) || s.left.Add(-1) < 0 {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"token"}]}`, http.StatusUnauthorized)
		return
	}
	s.registry.ServeHTTP(w, r)
}

// login is a keychain of one user.
type login authn.Basic

func (l login) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: l.Username, Password: l.Password}, nil
}

func TestTokensAreRefreshed(t *testing.T) {
	s := &tokens{registry: server.New(server.Logger(log.New(io.Discard, "", 0))), user: "me"}
	listening := httptest.NewServer(s)
	defer listening.Close()
	var layers []v1.Layer
	for range 6 {
		layers = append(layers, layerOf(t, noise(t, 1000), compression.GZip, types.DockerLayer))
	}
	ref, err := name.ParseReference(listening.Listener.Addr().String() + "/private/a:1")
	if err != nil {
		t.Fatal(err)
	}
	me := login{"me", "secret"}
	s.each.Store(1000)
	if err := remote.Write(ref, imageOf(t, "amd64", layers...), remote.WithAuthFromKeychain(me)); err != nil {
		t.Fatal(err)
	}
	s.each.Store(3)
	before := s.issued.Load()
	image, err := opened(t, ref.Name(), Options{Keychain: me})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := archives(t, image); err != nil {
		t.Fatal(err)
	}
	if n := s.issued.Load() - before; n < 2 {
		t.Errorf("%d tokens were asked for", n)
	}
	for _, wrong := range []login{{"me", "guess"}, {}} {
		_, err := opened(t, ref.Name(), Options{Keychain: wrong})
		if !errors.Is(err, ErrCredentials) || !strings.Contains(err.Error(), "docker login") ||
			strings.Contains(err.Error(), "guess") {
			t.Errorf("%+v: %v", wrong, err)
		}
	}
}

func TestPasswordsAreUsed(t *testing.T) {
	reg := testutil.NewRegistry(t, "me", "secret")
	in := reg.Push(t, "a:1", imageOf(t, "amd64"), &authn.Basic{Username: "me", Password: "secret"})
	if _, err := opened(t, in, Options{Keychain: login{"me", "secret"}}); err != nil {
		t.Error(err)
	}
	for _, o := range []Options{{}, {Keychain: login{"me", "guess"}}} {
		if _, err := opened(t, in, o); !errors.Is(err, ErrCredentials) || strings.Contains(err.Error(), "guess") {
			t.Errorf("%v", err)
		}
	}
}

// registryWith serves one image as "a:1" and gives what changes its answers.
func registryWith(t *testing.T, image v1.Image) (*testutil.Registry, string) {
	reg := testutil.NewRegistry(t, "", "")
	return reg, reg.Push(t, "a:1", image, nil)
}

func TestServerFaultsThatPassAreSurvived(t *testing.T) {
	archive := noise(t, 2_000_000)
	for name, faults := range map[string][]testutil.Fault{
		"the registry is overloaded": {{Path: "/v2/", Status: 503, Times: 1}},
		"it fails for a manifest":    {{Path: "/manifests/", Status: 500, Times: 2}},
		"it hangs up on a manifest":  {{Path: "/manifests/", Refuse: true, Times: 1}},
		"it fails for a blob":        {{Path: "/blobs/", Status: 502, Times: 2}},
		"it hangs up in a blob":      {{Path: "/blobs/", Cut: 1_500_000, Times: 2}},
		"it hangs up at once":        {{Path: "/blobs/", Cut: -1, Times: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg, in := registryWith(t, imageOf(t, "amd64", layerOf(t, archive, compression.GZip, types.DockerLayer)))
			reg.Set(faults...)
			image, err := opened(t, in, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := archives(t, image); err != nil || !bytes.Equal(got[0], archive) {
				t.Error(err)
			}
		})
	}
}

// failing is a server that fails always, in one way.
type failing struct {
	err   error
	asked int
}

func (f *failing) RoundTrip(*http.Request) (*http.Response, error) {
	f.asked++
	return nil, f.err
}

func TestServersThatDoNotAnswerInTimeAreAskedOnce(t *testing.T) {
	for err, want := range map[error]int{os.ErrDeadlineExceeded: 1, syscall.ECONNREFUSED: 1, syscall.ECONNRESET: 3} {
		f := &failing{err: &net.OpError{Op: "dial", Err: err}}
		r := httptest.NewRequest(http.MethodGet, "https://r.example.org/v2/", nil)
		if _, err := retrying(f).RoundTrip(r); err == nil || f.asked != want {
			t.Errorf("%v: asked %d times, want %d", err, f.asked, want)
		}
	}
}

func TestBlobsAreResumedWhereTheServerKnowsNoRanges(t *testing.T) {
	archive := noise(t, 2_000_000)
	reg := server.New(server.Logger(log.New(io.Discard, "", 0)))
	s := testutil.NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Range")
		reg.ServeHTTP(w, r)
	}))
	host := strings.TrimPrefix(s.URL, "http://")
	in := (&testutil.Registry{Faulty: s, Host: host}).Push(t, "a:1",
		imageOf(t, "amd64", layerOf(t, archive, compression.GZip, types.DockerLayer)), nil)
	image, err := opened(t, in, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Set(testutil.Fault{Path: "/blobs/", Cut: 1_500_000, Times: 1})
	if got, err := archives(t, image); err != nil || !bytes.Equal(got[0], archive) {
		t.Error(err)
	}
}

func TestWrongBlobsAreRefused(t *testing.T) {
	good := layerOf(t, noise(t, 100_000), compression.GZip, types.DockerLayer)
	for name, c := range map[string]struct {
		fault testutil.Fault
		layer func(t *testing.T) v1.Layer
	}{
		"a bit is wrong": {fault: testutil.Fault{Path: "/blobs/", Flip: true}},
		"it is too long": {fault: testutil.Fault{Path: "/blobs/", Extra: "more"}},
		"its deflate is broken": {layer: func(t *testing.T) v1.Layer {
			return spoiled(t, compression.GZip,
				types.DockerLayer)
		}},
		"its zstd is broken": {layer: func(t *testing.T) v1.Layer {
			return spoiled(t, compression.ZStd,
				types.OCILayerZStd)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			layer := good
			if c.layer != nil {
				layer = c.layer(t)
			}
			reg, in := registryWith(t, imageOf(t, "amd64", layer))
			image, err := opened(t, in, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if c.fault.Path != "" {
				reg.Set(c.fault)
				blob := image.Layers[0].Blob(t.Context())
				defer blob.Close()
				if _, err := io.Copy(io.Discard, blob); !errors.Is(err, ErrDamaged) {
					t.Errorf("blob: %v", err)
				}
			}
			if _, err := archives(t, image); !errors.Is(err, ErrDamaged) {
				t.Errorf("archive: %v", err)
			}
		})
	}
}

func TestDrippingServersAreGivenUp(t *testing.T) {
	reg, in := registryWith(t, imageOf(t, "amd64", layerOf(t, noise(t, 1000), compression.None, types.DockerLayer)))
	image, err := opened(t, in, Options{})
	if err != nil {
		t.Fatal(err)
	}
	image.Layers[0].in = impatient{image.Layers[0].in}
	reg.Set(testutil.Fault{Path: "/blobs/", Cut: 1}) // each answer brings one byte at most
	if _, err := archives(t, image); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
	if n := reg.Requests(image.Layers[0].Digest.Hex); n > 6 {
		t.Errorf("%d requests", n)
	}
}

// impatient opens a blob twice at most.
type impatient struct{ blobs }

func (impatient) attempts() int { return 2 }

// lying is a layer that says it holds another archive.
type lying struct {
	v1.Layer
	diffID v1.Hash
}

func (l lying) DiffID() (v1.Hash, error) { return l.diffID, nil }

// spoiled is a layer whose blob is what its digest says but can't be decompressed to its end.
func spoiled(t testing.TB, c compression.Compression, media types.MediaType) v1.Layer {
	t.Helper()
	whole := layerOf(t, bytes.Repeat(noise(t, 1000), 100), c, media)
	r, err := whole.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(b) / 3; i < len(b)/2; i++ {
		b[i] = 0xff
	}
	diffID, err := whole.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	return lying{static.NewLayer(b, media), diffID}
}

func TestMirrorsAreAskedFirstAndMayFail(t *testing.T) {
	image := imageOf(t, "amd64", layerOf(t, noise(t, 1000), compression.GZip, types.DockerLayer))
	origin, in := registryWith(t, image)
	mirror, _ := registryWith(t, image)
	without := testutil.NewRegistry(t, "", "")
	dead := testutil.NewRegistry(t, "", "")
	dead.Close()
	asked := origin.Requests("/blobs/")
	o := Options{Mirrors: []string{
		origin.Host + "=http://" + dead.Host, origin.Host + "=http://" + without.Host,
		origin.Host + "=http://" + mirror.Host,
	}}
	img, err := opened(t, in, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := archives(t, img); err != nil {
		t.Fatal(err)
	}
	if n := origin.Requests("/blobs/") - asked; n != 0 || mirror.Requests("/blobs/") == 0 ||
		without.Requests("/manifests/") == 0 {
		t.Errorf("the registry was asked for %d blobs", n)
	}
	mirror.Set(testutil.Fault{Path: "/blobs/", Status: 404})
	if img, err = opened(t, in, o); err == nil {
		_, err = archives(t, img)
	}
	if err != nil {
		t.Errorf("a mirror without the blobs: %v", err)
	}
	// A mirror that lies about a digest is passed over.
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	mirror.Set(testutil.Fault{Path: "/manifests/", Flip: true})
	if img, err = opened(t, origin.Host+"/a@"+digest.String(), o); err != nil || img.Digest != digest {
		t.Errorf("%v", err)
	}
}

func TestOnePlatformOfAListIsChosen(t *testing.T) {
	reg := testutil.NewRegistry(t, "", "")
	index := v1.ImageIndex(empty.Index)
	want := map[string]v1.Hash{}
	for _, p := range []v1.Platform{
		{OS: "unknown", Architecture: "unknown"},
		{OS: "linux", Architecture: "arm", Variant: "v7"},
		{OS: "linux", Architecture: "arm64"},
		{OS: "linux", Architecture: "amd64"},
	} {
		image := imageOf(t, p.Architecture, layerOf(t, noise(t, 100), compression.GZip, types.DockerLayer))
		digest, err := image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		want[p.String()] = digest
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &p}})
	}
	in := reg.Push(t, "list:1", index, nil)
	for platform, key := range map[string]string{
		"": "linux/amd64", "linux/arm64": "linux/arm64",
		"linux/arm/v7": "linux/arm/v7", "linux/arm": "linux/arm/v7",
	} {
		if image, err := opened(t, in, Options{Platform: platform}); err != nil || image.Digest != want[key] {
			t.Errorf("%q: %v", platform, err)
		}
	}
	_, err := opened(t, in, Options{Platform: "linux/s390x"})
	if !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "linux/arm64") ||
		strings.Contains(err.Error(), "unknown/") {
		t.Errorf("%v", err)
	}
	single := reg.Push(t, "single:1", imageOf(t, "amd64"), nil)
	if _, err := opened(t, single, Options{Platform: "linux/arm64"}); !errors.Is(err, ErrPlatform) ||
		!strings.Contains(err.Error(), "linux/amd64") {
		t.Errorf("an image of another platform: %v", err)
	}
	if _, err := opened(t, reg.Push(t, "single:2", imageOf(t, "arm64"), nil), Options{}); err != nil {
		t.Errorf("an image of another platform than the usual one: %v", err)
	}
	if _, err := opened(t, single, Options{Platform: "arm64"}); err == nil ||
		!strings.Contains(err.Error(), "OS/ARCH") {
		t.Errorf("%v", err)
	}
}

// raw serves what a test says as a repository's manifest and blobs.
func raw(t *testing.T, manifest string, blobs ...string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			io.WriteString(w, manifest)
			return
		}
		for _, b := range blobs {
			if h, _, err := v1.SHA256(strings.NewReader(b)); err == nil && strings.HasSuffix(r.URL.Path, h.String()) {
				io.WriteString(w, b)
				return
			}
		}
		if r.URL.Path != "/v2/" {
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://") + "/a:1"
}

func TestHostileManifestsAreRefused(t *testing.T) {
	config := `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`
	blob := func(media, text string) string {
		h, n, err := v1.SHA256(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`{"mediaType":%q,"size":%d,"digest":%q}`, media, n, h)
	}
	good := blob("application/vnd.oci.image.config.v1+json", config)
	many := strings.TrimSuffix(strings.Repeat(good+",", 5000), ",")
	for what, c := range map[string]struct{ manifest, says string }{
		"no JSON":  {`{`, "JSON"},
		"schema 1": {`{"schemaVersion":1,"fsLayers":[]}`, "schema 1"},
		"too long": {`{"schemaVersion":2,"config":` + good + `,"layers":[],"x":"` + strings.Repeat("x",
			maxManifest) + `"}`, "bytes"},
		"image and list at once":   {`{"schemaVersion":2,"config":` + good + `,"layers":[],"manifests":[]}`, "both"},
		"more layers than diffIDs": {`{"schemaVersion":2,"config":` + good + `,"layers":[` + good + `]}`, "layers"},
		"too many layers":          {`{"schemaVersion":2,"config":` + good + `,"layers":[` + many + `]}`, "layers"},
		"config isn't there":       {`{"schemaVersion":2,"config":` + blob("x", "y") + `,"layers":[]}`, "missing"},
		"config of another kind": {
			`{"schemaVersion":2,"config":` + blob("x", "null") + `,"layers":[]}`,
			"no container image",
		},
		"huge config": {`{"schemaVersion":2,"config":{"size":9999999999,"digest":"sha256:` +
			strings.Repeat("0", 64) + `"},"layers":[]}`, "limit"},
		"list of nothing": {`{"schemaVersion":2,"manifests":[]}`, "platform"},
		"another type": {
			`{"schemaVersion":2,"mediaType":"text/plain","config":` + good + `,"layers":[]}`,
			"no container image",
		},
	} {
		if _, err := opened(t, raw(t, c.manifest, config, "null"), Options{}); err == nil ||
			!strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %.300v, want %q", what, err, c.says)
		}
	}
	if _, err := opened(t, raw(t, `{"schemaVersion":2,"config":`+good+`,"layers":[]}`, config), Options{}); err != nil {
		t.Errorf("an image without layers: %v", err)
	}
}

func TestLayersKeptElsewhereAreRefused(t *testing.T) {
	layer := layerOf(t, noise(t, 100), compression.GZip, types.DockerForeignLayer)
	_, in := registryWith(t, imageOf(t, "amd64"))
	image := imageOf(t, "amd64", layer)
	manifest, err := image.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := opened(t, in, Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := opened(t, raw(t, string(manifest), string(config)), Options{}); err == nil ||
		!strings.Contains(err.Error(), "foreign") {
		t.Errorf("%v", err)
	}
}

func TestWhatRegistriesSayIsQuotedAndBounded(t *testing.T) {
	evil, err := json.Marshal(map[string]any{"errors": []map[string]string{{
		"code":    "DENIED",
		"message": "\x1b[2J" + strings.Repeat("no ", 10_000),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{string(evil), "\x1b[2J" + strings.Repeat("no ", 10_000)} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, body)
		}))
		_, err := opened(t, strings.TrimPrefix(s.URL, "http://")+"/a:1", Options{})
		s.Close()
		if !errors.Is(err, ErrCredentials) || len(err.Error()) > 1500 || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%d bytes: %.200q", len(err.Error()), err)
		}
	}
}
