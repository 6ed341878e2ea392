package receive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
	"cvmfs-graphdriver/pushback/api"
	"cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
)

const (
	testFQRN = publishtest.FQRN
	token1   = "the-token-of-the-first-node"
	token2   = "the-token-of-the-second-node"
)

// layer is a layer that a node sends.
type layer struct {
	digest, diffID string
	archive        []byte
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func zipped(t testing.TB, plain []byte) layer {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return layer{hexSum(b.Bytes()), hexSum(plain), b.Bytes()}
}

// newLayer makes a layer of one file of a name, with content that doesn't compress to nothing.
func newLayer(t testing.TB, name string) layer {
	t.Helper()
	content := strings.Repeat(name+" ", 1000)
	return zipped(t, testutil.Tar(t,
		tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Linkname: content},
		tar.Header{Name: "etc/.wh.gone", Typeflag: tar.TypeReg, Mode: 0o644}))
}

// site is a service with what is around it.
type site struct {
	*Service
	t     testing.TB
	store *s3test.Store
	web   *httptest.Server
	dir   string // the publisher's
}

// newConfig makes a publisher's folder and a configuration for it.
func newConfig(t testing.TB) *Config {
	t.Helper()
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte("n1 "+token1+"\nn2 "+token2+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := defaults()
	repo := publishtest.New(t, publishtest.Small(publish.Settings{}))
	c.Target, c.State, c.Tokens = "native:"+repo.Dir(), filepath.Join(t.TempDir(), "state"), tokens
	c.Audit = filepath.Join(c.State, "audit.jsonl")
	c.Listen = "127.0.0.1:0"
	return c
}

// newSite makes a service whose rounds the test goes itself. change, which may be nil, changes its configuration.
func newSite(t testing.TB, change func(c *Config)) *site {
	t.Helper()
	c := newConfig(t)
	store := s3test.NewStore(t)
	c.Bucket.Address = "s3://" + s3test.Bucket + "/in?endpoint=" + store.URL
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	if change != nil {
		change(c)
	}
	s, err := New(c, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s.handler())
	t.Cleanup(web.Close)
	at := &site{s, t, store, web, strings.TrimPrefix(c.Target, "native:")}
	t.Cleanup(func() {
		if err := at.Close(); err != nil { // of the last that was restarted
			t.Error(err)
		}
	})
	return at
}

// puts an object of a layer into the bucket.
func (s *site) puts(folder string, l layer, metadata ...string) {
	header := http.Header{}
	for i := 0; i < len(metadata); i += 2 {
		header.Set("X-Amz-Meta-"+metadata[i], metadata[i+1])
	}
	s.store.Objects["in/"+folder+l.digest] = s3test.Object{Content: l.archive, Header: header, Modified: time.Now()}
}

// round does all that can be done now, one after the other.
func (s *Service) round(ctx context.Context) {
	s.arrivals(ctx, func(r Record) { s.judge(ctx, r.Digest) })
	s.publish(ctx)
}

// turn looks into the bucket and does what there is to do.
func (s *site) turn() {
	s.t.Helper()
	if err := s.poll(s.t.Context()); err != nil {
		s.t.Error(err)
	}
	s.round(s.t.Context())
}

func (s *site) client(token string) *api.Client {
	s.t.Helper()
	c, err := api.NewClient(s.web.URL+"/status", api.Options{Token: token})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// is checks a layer's status, as a node sees it.
func (s *site) is(l layer, want api.Status, reason string) *api.Answer {
	s.t.Helper()
	a, err := s.client(token1).Status(s.t.Context(), l.digest)
	if err != nil {
		s.t.Fatal(err)
	}
	if a.Status != want || !strings.Contains(a.Reason, reason) {
		s.t.Errorf("layer %.8s: %+v, want %s for %q", l.digest, a, want, reason)
	}
	return a
}

// revision is the repository's newest.
func (s *site) revision() uint64 {
	s.t.Helper()
	r, err := publish.Open(s.dir, publish.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	head, err := r.Head(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return head.Manifest.Revision
}

// has checks which layers the repository has.
func (s *site) has(layers ...layer) {
	s.t.Helper()
	hasLayers(s.t, s.c, layers...)
}

func hasLayers(t testing.TB, c *Config, layers ...layer) {
	t.Helper()
	target, err := sink.Open(c.Target, sink.Options{FQRN: c.Repository})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Abort()
	paths, err := c.Layout.Layers(t.Context(), tx)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, l := range layers {
		want = append(want, c.Layout.Path(l.digest))
	}
	slices.Sort(want)
	if !slices.Equal(paths, want) {
		t.Errorf("the repository has %v, want %v", paths, want)
	}
}

// audited returns the decisions on a layer, in order.
func audited(t testing.TB, c *Config, l layer) (all []auditLine) {
	t.Helper()
	b, err := os.ReadFile(c.Audit)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var a auditLine
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if a.Digest == l.digest {
			all = append(all, a)
		}
	}
	return all
}

func decided(lines []auditLine) string {
	var all []string
	for _, l := range lines {
		all = append(all, string(l.Decision))
	}
	return strings.Join(all, " ")
}

func TestAllLayersOfTheBucketArePublishedInOneTransaction(t *testing.T) {
	s := newSite(t, nil)
	var all []layer
	for n := range 5 {
		l := newLayer(t, fmt.Sprint("file", n))
		all = append(all, l)
		s.puts("", l, api.MetaNode, "n1", api.MetaImage, "registry.example.org/a:1", api.MetaDiffID, l.diffID)
	}
	s.store.Objects["in/readme"] = s3test.Object{Content: []byte("no layer")}
	s.turn()
	s.has(all...)
	for _, l := range all {
		a := s.is(l, api.Done, "")
		if a.URL != "cvmfs://"+testFQRN+"/layers/"+l.digest || a.Revision != 1 || a.DiffID != l.diffID {
			t.Errorf("%+v", a)
		}
		lines := audited(t, s.c, l)
		if decided(lines) != "received published" || lines[1].Node != "n1" || lines[1].Image != "registry.example.org/a:1" ||
			lines[1].Revision != 1 {
			t.Errorf("audit: %+v", lines)
		}
	}
	if len(s.store.Objects) != 1 || s.revision() != 1 {
		t.Errorf("left in the bucket: %d, revision %d", len(s.store.Objects), s.revision())
	}
	s.puts("", all[0])
	s.turn()
	if len(s.store.Objects) != 1 || s.revision() != 1 {
		t.Errorf("sent again: left in the bucket: %d, revision %d", len(s.store.Objects), s.revision())
	}
}

func TestLayersThatAreSentArePublished(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	sent := api.Layer{Digest: l.digest, DiffID: l.diffID, Size: int64(len(l.archive)), Node: "n1", Image: "a:1"}
	a, err := s.client(token1).Upload(t.Context(), sent, bytes.NewReader(l.archive))
	if err != nil || a.Status != api.Publishing {
		t.Fatalf("%+v, %v", a, err)
	}
	s.round(t.Context())
	s.is(l, api.Done, "")
	s.has(l)
	a, err = s.client(token2).Upload(t.Context(), sent, nil)
	if err != nil || a.Status != api.Done {
		t.Errorf("again: %+v, %v", a, err)
	}
	if left, err := os.ReadDir(filepath.Join(s.c.State, incomingFolder)); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// request sends something as a node does, and returns the answer's code, its reason and its headers.
func (s *site) request(method, path, token string, body []byte, headers ...string) (int, string, http.Header) {
	s.t.Helper()
	q, err := http.NewRequestWithContext(s.t.Context(), method, s.web.URL+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		q.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultClient.Do(q)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(answer.Body); err != nil {
		s.t.Fatal(err)
	}
	return answer.StatusCode, text.String(), answer.Header
}

func TestAnUploadThatIsNotCompleteIsNotPublished(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	size, half := len(l.archive), len(l.archive)/2
	put := func(token string, from, to, want int) http.Header {
		t.Helper()
		code, text, header := s.request(http.MethodPut, "/layers/"+l.digest, token, l.archive[from:to], "Content-Range",
			fmt.Sprintf("bytes %d-%d/%d", from, to-1, size))
		if code != want {
			t.Errorf("bytes %d to %d: %d %s, want %d", from, to, code, text, want)
		}
		return header
	}
	put(token1, 0, half, http.StatusAccepted)
	s.round(t.Context())
	s.is(l, api.Unknown, "isn't complete")
	s.has()
	if header := put(token1, half+1, size, http.StatusConflict); header.Get(api.HeaderOffset) != fmt.Sprint(half) {
		t.Errorf("%v", header)
	}
	put(token1, 0, half, http.StatusConflict)
	put(token2, half, size, http.StatusConflict) // it is the first node's
	if code, _, header := s.request(http.MethodHead, "/layers/"+l.digest, token1, nil); code != http.StatusOK ||
		header.Get(api.HeaderOffset) != fmt.Sprint(half) {
		t.Errorf("%d %v", code, header)
	}
	put(token1, half, size, http.StatusAccepted)
	s.round(t.Context())
	s.is(l, api.Done, "")
	s.has(l)
}

func TestAnotherNodeMaySendWhatOneHasGivenUp(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	size := fmt.Sprint(len(l.archive))
	s.request(http.MethodPut, "/layers/"+l.digest, token1, []byte("nonsense"), "Content-Range", "bytes 0-7/"+size)
	old := time.Now().Add(-2 * takeOver)
	if err := os.Chtimes(s.book.archive(l.digest), old, old); err != nil {
		t.Fatal(err)
	}
	if code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token2, l.archive); code != http.StatusAccepted {
		t.Fatalf("%d %s", code, text)
	}
	s.round(t.Context())
	s.is(l, api.Done, "")
	if lines := audited(t, s.c, l); lines[len(lines)-1].Node != "n2" {
		t.Errorf("%+v", lines)
	}
}

func TestWhatIsWrongWithALayerHoldsUpNoOther(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Limits.Entries, c.Limits.Content = 10, 1<<20 })
	good := newLayer(t, "good")
	type bad struct {
		layer
		reason string
	}
	lied := newLayer(t, "lied")
	lied.digest = strings.Repeat("1", 64)
	cut := newLayer(t, "cut")
	cut.archive = cut.archive[:len(cut.archive)-9]
	cut.digest = hexSum(cut.archive)
	tailed := newLayer(t, "tailed")
	tailed.archive = append(tailed.archive, "tail"...)
	tailed.digest = hexSum(tailed.archive)
	var many []tar.Header
	for n := range 11 {
		many = append(many, tar.Header{Name: fmt.Sprint("f", n), Typeflag: tar.TypeReg})
	}
	header := func(h tar.Header) []byte { return testutil.Tar(t, h) }
	hardLinked := header(tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"})
	plain := testutil.Tar(t, many[0])
	wrong := []bad{
		{lied, "its digest is"},
		{cut, "no whole gzip file"},
		{tailed, "no whole gzip file"},
		{layer{hexSum(plain), "", plain}, "no whole gzip file"},
		{layer{hexSum(nil), "", nil}, "no whole gzip file"},
		{zipped(t, testutil.Tar(t, many...)), "more than 10 entries"},
		{zipped(t, make([]byte, 2<<20)), "more than 1048576 bytes"},
		{zipped(t, header(tar.Header{Name: "z", Typeflag: 'Z'})), "type 'Z'"},
		{zipped(t, header(tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 4096})), "a thin image can't show it"},
		{zipped(t, hardLinked), "isn't there"},
		{zipped(t, header(tar.Header{Name: strings.Repeat("n", 256), Typeflag: tar.TypeReg})), "256 bytes"},
		{zipped(t, plain[:600]), "cut short"},
	}
	s.puts("", good)
	for i, b := range wrong {
		if i%2 == 0 {
			s.puts("", b.layer)
			continue
		}
		code, text, _ := s.request(http.MethodPut, "/layers/"+b.digest, token1, b.archive)
		if code != http.StatusAccepted {
			t.Errorf("%s: %d %s", b.reason, code, text)
		}
	}
	claims := newLayer(t, "claims another diffID")
	s.puts("", claims, api.MetaDiffID, strings.Repeat("2", 64))
	wrong = append(wrong, bad{claims, "its diffID is"})
	s.turn()
	s.has(good)
	s.is(good, api.Done, "")
	for _, b := range wrong {
		s.is(b.layer, api.Failed, b.reason)
		if lines := audited(t, s.c, b.layer); decided(lines) != "received refused" {
			t.Errorf("%s: audit: %s", b.reason, decided(lines))
		}
	}
	if s.revision() != 1 {
		t.Errorf("revision %d", s.revision())
	}
	// what failed is looked at again if it is put again, and only then
	s.turn()
	if lines := audited(t, s.c, lied); len(lines) != 2 {
		t.Errorf("audit: %s", decided(lines))
	}
	again := s.store.Objects["in/"+lied.digest]
	again.Modified = again.Modified.Add(5 * time.Second)
	s.store.Objects["in/"+lied.digest] = again
	s.turn()
	if lines := audited(t, s.c, lied); len(lines) != 4 {
		t.Errorf("audit: %s", decided(lines))
	}
}

// What failed when it was sent may be sent again.
func TestADamagedUploadCanBeSentAgain(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	damaged := slices.Clone(l.archive)
	damaged[len(damaged)/2] ^= 1
	s.request(http.MethodPut, "/layers/"+l.digest, token1, damaged)
	s.round(t.Context())
	s.is(l, api.Failed, "")
	sent := api.Layer{Digest: l.digest, Size: int64(len(l.archive))}
	if _, err := s.client(token1).Upload(t.Context(), sent, bytes.NewReader(l.archive)); err != nil {
		t.Fatal(err)
	}
	s.round(t.Context())
	s.is(l, api.Done, "")
}

func TestARepositoryThatIsLockedIsWaitedFor(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	s.puts("", l)
	r, err := publish.Open(s.dir, publish.Options{})
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := r.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.turn()
	s.is(l, api.Publishing, "locked by process")
	if !strings.Contains(string(s.metrics()), "docker2cvmfs_receive_publishing_fails 1") {
		t.Errorf("%s", s.metrics())
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	s.turn() // too early
	s.is(l, api.Publishing, "locked by process")
	s.resume = time.Time{}
	s.turn()
	s.is(l, api.Done, "")
}

func TestLayersThatTheRepositoryLostAreUnknownAgain(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	s.puts("", l)
	s.turn()
	s.is(l, api.Done, "")
	target, err := s.open()
	if err != nil {
		t.Fatal(err)
	}
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Remove(t.Context(), s.c.Layout.Path(l.digest)); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context(), "removed"); err != nil {
		t.Fatal(err)
	}
	s.is(l, api.Done, "") // asking has it looked for
	s.seen = time.Now().Add(-2 * lookAge)
	s.round(t.Context())
	s.is(l, api.Unknown, "")
	s.puts("", l)
	s.turn()
	s.is(l, api.Done, "")
	s.has(l)
}

// A service that has lost its state knows what is in the repository.
func TestLayersOfTheRepositoryAreDoneAtOnce(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	s.puts("", l)
	s.turn()
	other := newSite(t, func(c *Config) { c.Target = s.c.Target })
	other.round(t.Context())
	other.is(l, api.Done, "")
	a, err := other.client(token1).Upload(t.Context(), api.Layer{Digest: l.digest}, nil)
	if err != nil || a.Status != api.Done || a.URL != "cvmfs://"+testFQRN+"/layers/"+l.digest {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestPeopleDecide(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.Nodes = []Node{{Name: "n1", Approval: true}, {Name: "n2"}}
	})
	good, bad, free := newLayer(t, "good"), newLayer(t, "bad"), newLayer(t, "free")
	s.puts("", good, api.MetaNode, "n1")
	s.puts("", bad, api.MetaNode, "n1")
	s.puts("", free, api.MetaNode, "n2")
	s.turn()
	s.has(free)
	s.is(good, api.Publishing, "approval")
	records, err := List(s.c)
	if err != nil || len(records) != 3 {
		t.Fatalf("%+v, %v", records, err)
	}
	if b, err := os.ReadFile(Archive(s.c, good.digest)); err != nil || !bytes.Equal(b, good.archive) {
		t.Errorf("what is to be approved can't be looked at: %v", err)
	}
	if _, err := Decide(s.c, free.digest, true, "me", ""); err == nil {
		t.Error("a layer is approved that is published already")
	}
	for l, approve := range map[string]bool{good.digest: true, bad.digest: false} {
		if _, err := Decide(s.c, l, approve, "me", "no good"); err != nil {
			t.Fatal(err)
		}
	}
	s.turn()
	s.has(free, good)
	s.is(good, api.Done, "")
	s.is(bad, api.Failed, "rejected by me: no good")
	for l, want := range map[*layer]string{&good: "received approved published", &bad: "received rejected"} {
		if got := audited(t, s.c, *l); decided(got) != want || got[1].By != "me" {
			t.Errorf("audit: %+v", got)
		}
	}
	s.puts("", bad, api.MetaNode, "n1")
	s.turn()
	s.is(bad, api.Failed, "rejected by me")
	if len(s.store.Objects) != 0 {
		t.Errorf("left in the bucket: %d", len(s.store.Objects))
	}
	if code, text, _ := s.request(http.MethodPut, "/layers/"+bad.digest, token1, bad.archive); code != http.StatusForbidden {
		t.Errorf("%d %s", code, text)
	}
	if said, err := Decide(s.c, bad.digest, true, "me", ""); err != nil || !strings.Contains(said, "waits for approval") {
		t.Fatal(err)
	}
	s.round(t.Context())
	s.is(bad, api.Unknown, "")
}

// hosted gives a configuration a publisher whose repository is in the bucket where layers come.
func hosted(t testing.TB, c *Config) {
	t.Helper()
	address := strings.Replace(c.Bucket.Address, "/in?", "/cvmfs/repo?", 1)
	c.Target = "native:" + publishtest.New(t, publishtest.Small(publish.Settings{Storage: address})).Dir()
}
