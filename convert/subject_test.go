package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/internal/child"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/testutil"
)

// written converts an OCI image of a registry, "a:1", and returns the thin one's manifest and what was noted.
func written(t *testing.T, host, out string) (original v1.Hash, m *v1.Manifest, note string) {
	t.Helper()
	image := imageOf(t, true, layerOf(t, testutil.Tar(t, file("a", "b")), types.OCILayer))
	at, err := name.ParseReference(host + "/a:1")
	if err == nil {
		err = remote.Write(at, image)
	}
	if err != nil {
		t.Fatal(err)
	}
	repo, _ := newRepository(t)
	c := &Converter{Sink: sink.Native(repo), Progress: func(e Event) { note += e.Note }}
	to := refp(t, strings.ReplaceAll(out, "DIGEST", digestOf(t, image).Hex))
	s, err := c.Convert(t.Context(), Job{Input: ref(t, host+"/a:1"), Output: to})
	if err != nil {
		t.Fatal(err)
	}
	got := pulled(t, *to)
	if s.ThinDigest != digestOf(t, got).String() {
		t.Errorf("said to be %s, but it's %s", s.ThinDigest, digestOf(t, got))
	}
	if m, err = got.Manifest(); err != nil {
		t.Fatal(err)
	}
	again, err := c.Convert(t.Context(), Job{Input: ref(t, host+"/a:1"), Output: to})
	if err != nil || !again.Unchanged {
		t.Errorf("a second time: %+v, %v", again, err)
	}
	return digestOf(t, image), m, note
}

func digestOf(t testing.TB, image v1.Image) v1.Hash {
	t.Helper()
	d, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// referrers are what a registry lists as referring to an image.
func referrers(t *testing.T, repository string, d v1.Hash) []v1.Descriptor {
	t.Helper()
	r, err := name.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(r.Digest(d.String()))
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	return m.Manifests
}

// listing serves a registry that lists what refers to an image. keep decides which requests it sees.
func listing(t *testing.T, lists bool, keep func(http.ResponseWriter, *http.Request) bool) string {
	t.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(lists))
	s := testutil.NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if keep == nil || keep(w, r) {
			h.ServeHTTP(w, r)
		}
	}))
	return strings.TrimPrefix(s.URL, "http://")
}

// refuse answers as a registry that finds something wrong.
func refuse(w http.ResponseWriter, status int, code string) bool {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"no"}]}`, code)
	return false
}

func TestThinImagesReferToTheirOriginalInTheSameRegistry(t *testing.T) {
	for name, host := range map[string]func(*testing.T) string{
		"one that lists what refers to an image": func(t *testing.T) string { return listing(t, true, nil) },
		"one with a tag for that":                func(t *testing.T) string { return listing(t, false, nil) },
		"docker-registry":                        dockerRegistry,
	} {
		t.Run(name, func(t *testing.T) {
			host := host(t)
			original, m, note := written(t, host, host+"/thin:1")
			if note != "" || m.Subject == nil || m.Subject.Digest != original || m.Subject.Size == 0 ||
				m.Subject.MediaType != types.OCIManifestSchema1 {
				t.Errorf("subject %+v, %s", m.Subject, note)
			}
			if list := referrers(t, host+"/thin", original); len(list) != 1 {
				t.Errorf("%d images refer to the original: %+v", len(list), list)
			}
		})
	}
}

func TestThinImagesElsewhereHaveNoSubject(t *testing.T) {
	from, to := listing(t, true, nil), listing(t, true, nil)
	if _, m, note := written(t, from, to+"/thin:1"); m.Subject != nil || note != "" {
		t.Errorf("in another registry: %+v, %s", m.Subject, note)
	}
	// The tag under which others look for what refers to the original.
	if _, m, note := written(t, from, from+"/thin:sha256-DIGEST"); m.Subject != nil || note != "" {
		t.Errorf("with the tag of the list: %+v, %s", m.Subject, note)
	}
}

func TestARegistryThatRefusesASubjectGetsTheImageWithout(t *testing.T) {
	for _, status := range []int{
		http.StatusBadRequest, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity,
	} {
		host := listing(t, false, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") {
				return true
			}
			b, err := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(b))
			return err == nil && !bytes.Contains(b, []byte(`"subject"`)) || refuse(w, status, "MANIFEST_INVALID")
		})
		if _, m, note := written(t, host, host+"/thin:1"); m.Subject != nil || !strings.Contains(note, "without") {
			t.Errorf("%d: %+v, %q", status, m.Subject, note)
		}
	}
}

func TestAListThatCantBeWrittenIsNoFailure(t *testing.T) {
	for what, keep := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"the question is refused": func(w http.ResponseWriter, r *http.Request) bool {
			return !strings.Contains(r.URL.Path, "/referrers/") || refuse(w, http.StatusForbidden, "DENIED")
		},
		"the tag is refused": func(w http.ResponseWriter, r *http.Request) bool {
			return r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/sha256-") ||
				refuse(w, http.StatusBadRequest, "MANIFEST_INVALID")
		},
	} {
		host := listing(t, false, keep)
		if _, m, note := written(t, host, host+"/thin:1"); m.Subject == nil || !strings.Contains(note, "list of what refers") {
			t.Errorf("%s: %+v, %q", what, m.Subject, note)
		}
	}
}

func TestOtherRefusalsAreFailures(t *testing.T) {
	r := testutil.NewRegistry(t, "", "")
	in := ref(t, r.Push(t, "a:1", imageOf(t, true, layerOf(t, testutil.Tar(t, file("a", "b")), types.OCILayer)), nil))
	r.Set(testutil.Fault{Path: "/thin/manifests/", Status: http.StatusForbidden})
	repo, _ := newRepository(t)
	c := &Converter{Sink: sink.Native(repo)}
	if _, err := c.Convert(t.Context(), Job{Input: in, Output: refp(t, r.Host+"/thin:1")}); err == nil {
		t.Error("it is said to be written")
	}
}

func TestLabelsSayWhatAThinImageIs(t *testing.T) {
	for _, oci := range []bool{false, true} {
		r := testutil.NewRegistry(t, "", "")
		image := imageOf(t, oci, layerOf(t, testutil.Tar(t, file("a", "b")), types.DockerLayer))
		in := ref(t, r.Push(t, "a:1", image, nil))
		repo, _ := newRepository(t)
		c := &Converter{Sink: sink.Native(repo)}
		out := refp(t, r.Host+"/thin:1")
		if _, err := c.Convert(t.Context(), Job{Input: in, Output: out}); err != nil {
			t.Fatal(err)
		}
		labels := mustConfig(t, pulled(t, *out)).Config.Labels
		if labels["cvmfs-graphdriver.thin-image"] != "1.1" ||
			labels["org.opencontainers.image.base.name"] != r.Host+"/a:1" ||
			labels["org.opencontainers.image.base.digest"] != digestOf(t, image).String() ||
			!strings.Contains(labels["cvmfs-graphdriver.thin-image.note"], "storage driver") {
			t.Errorf("%v", labels)
		}
	}
}

// dockerRegistry runs Debian's docker-registry and returns its address.
func dockerRegistry(t *testing.T) string {
	t.Helper()
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	program, err := engine.FindProgram(cache, "docker-registry")
	if err != nil {
		t.Skipf("needs a registry: %v (make packages)", err)
	}
	dir, address := t.TempDir(), testutil.ClosedAddress(t, "127.0.0.1")
	config, err := json.Marshal(map[string]any{ // JSON is YAML
		"version": "0.1", "log": map[string]any{"level": "error", "accesslog": map[string]any{"disabled": true}},
		"storage": map[string]any{"filesystem": map[string]any{"rootdirectory": filepath.Join(dir, "data")}},
		"http":    map[string]any{"addr": address},
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.yml"), config, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	var said testutil.Buffer
	server := exec.Command(program, "serve", filepath.Join(dir, "config.yml"))
	server.Stdout, server.Stderr = &said, &said
	if err := child.Start(server); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = server.Wait() // killed, so that its error says nothing
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		answer, err := http.Get("http://" + address + "/v2/")
		if err == nil {
			answer.Body.Close()
			return address
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v: %s", err, &said)
		}
	}
}
