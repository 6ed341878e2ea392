package receive

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/internal/layertar/layertartest"
	"cvmfs-graphdriver/pushback/api"
)

// named is a file of a long name, which is in a pax record.
func named(name, body string) layertartest.Item {
	return layertartest.Item{Name: "x", Body: body, PAX: map[string]string{"path": name}}
}

// sparse is the archive of a file with a hole of so many bytes, and data of 3 bytes behind it.
func sparse(hole int64, data string) []byte {
	m := fmt.Sprintf("1\n%d\n3\n", hole)
	return layertartest.Tar(layertartest.Item{
		Name: "GNUSparseFile.1/a", Body: m + strings.Repeat("\x00", 512-len(m)) + data,
		PAX: map[string]string{
			"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a",
			"GNU.sparse.realsize": fmt.Sprint(hole + 3),
		},
	})
}

// What is wrong with an archive is found at the first try, whatever finds it.
func TestHostileArchivesAreRefusedAtOnce(t *testing.T) {
	implied := func(n int) (items []layertartest.Item) {
		for i := range n {
			items = append(items, named(fmt.Sprintf("%d/", i)+strings.Repeat("a/", 2000)+"f", "1"))
		}
		return items
	}
	long := strings.Repeat("d/../", 818) + "."
	links := []layertartest.Item{
		{Name: "d", Type: '5'}, {Name: "l", Type: '2', Link: "y", PAX: map[string]string{"linkpath": long}},
	}
	var marked, attributes []layertartest.Item
	for n := range 1001 {
		marked = append(marked, layertartest.Item{Name: fmt.Sprintf("d%d/.cvmfscatalog", n)})
	}
	for n := range 100 {
		links = append(links, named(strings.Repeat("l/", 38)+fmt.Sprint("f", n), ""))
	}
	for n := range 900 {
		attributes = append(attributes, layertartest.Item{
			Name: fmt.Sprint("f", n), PAX: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("v", 60000)},
		})
	}
	for name, c := range map[string]struct {
		archive []byte
		want    string
	}{
		"implied folders":         {layertartest.Tar(implied(6)...), "more than 10000 entries, with the folders"},
		"paths through links":     {layertartest.Tar(links...), "too many folders"},
		"catalogs":                {layertartest.Tar(marked...), "1001 folders have a .cvmfscatalog"},
		"a large record":          {layertartest.Tar(attributes...), "the limit is"},
		"sparse without its data": {sparse(100_000, ""), "archive"},
		"sparse with more":        {sparse(100_000, "xyzabcdef"), "archive"},
		"a long whiteout's name as folder": {
			layertartest.Tar(named(".wh."+strings.Repeat("n", 253)+"/x", "1")), "a name of 257 bytes",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && len(c.archive) > 50<<20 {
				t.Skip("it takes seconds with the race detector")
			}
			s := newSite(t, func(c *Config) { c.Limits.Entries = 10_000 })
			l := zipped(t, c.archive)
			s.puts("", l)
			s.turn()
			s.is(l, api.Failed, c.want)
		})
	}
	good := newSite(t, nil)
	l := zipped(t, sparse(100_000, "xyz"))
	good.puts("", l)
	good.turn()
	good.has(l)
}

// Whoever may write to the bucket may put any number of objects there.
func TestObjectsOfOneOriginHoldUpNoOther(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.Nodes = []Node{{Name: "n1", Prefixes: []string{"n1"}, Archive: 10}, {Name: "n2"}}
	})
	for n := range mostRefusals + 5 {
		s.puts(fmt.Sprintf("n1/%d/", n), layer{digest: fmt.Sprintf("%064x", n), archive: []byte("more than ten bytes")})
	}
	for range 2 {
		if err := s.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.audit.counts[DecidedRefused]; n != mostRefusals {
		t.Errorf("%d are refused, want %d", n, mostRefusals)
	}
	for n := range mostFaults {
		digest := fmt.Sprintf("f%063x", n)
		s.book.records[digest] = Record{Digest: digest, Key: "n1/" + digest, Node: "n1", State: Failed, Changed: time.Now()}
	}
	l, other := newLayer(t, "honest"), newLayer(t, "of n1")
	if code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token2, l.archive); code != http.StatusAccepted {
		t.Errorf("another node: %d %s", code, text)
	}
	s.puts("n1/", other)
	if err := s.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.is(other, api.Publishing, "layers of n1 ")
}

func TestObjectsOfOneDigestAreBounded(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	r := Record{Digest: l.digest, State: Failed, Reason: "no good", Failed: make([]string, mostObjects)}
	if err := s.book.put(r); err != nil {
		t.Fatal(err)
	}
	s.puts("another/", l)
	s.turn()
	s.is(l, api.Failed, "no good")
	if got := audited(t, s.c, l); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestARefusedObjectEndsNoUpload(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1"}} })
	l := newLayer(t, "file")
	s.half(l, token1)
	s.ages(l, 2*takeOver)
	s.puts("evil/", l, api.MetaNode, "stranger")
	for range 2 {
		if err := s.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := decided(audited(t, s.c, l)); got != "received refused" {
		t.Errorf("audit: %s", got)
	}
	code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token1, l.archive[len(l.archive)/2:], "Content-Range",
		fmt.Sprintf("bytes %d-%d/%d", len(l.archive)/2, len(l.archive)-1, len(l.archive)))
	if code != http.StatusAccepted {
		t.Errorf("%d %s", code, text)
	}
	s.round(t.Context())
	s.is(l, api.Done, "")
}

func TestAnUploadThatWasGivenUpLeavesRoom(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1", Queue: 1}, {Name: "n2"}} })
	given, next := newLayer(t, "given up"), newLayer(t, "next")
	s.half(given, token1)
	put := func(l layer, token string, want int) {
		t.Helper()
		if code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token, l.archive); code != want {
			t.Errorf("%d %s, want %d", code, text, want)
		}
	}
	put(next, token1, http.StatusTooManyRequests) // it may still go on
	s.ages(given, 2*takeOver)
	put(next, token1, http.StatusAccepted)
	if _, known := s.book.get(given.digest); known {
		t.Error("the upload is kept")
	}
	// What takes the place of a layer needs none besides.
	full := newSite(t, func(c *Config) { c.Limits.Queue = 1 })
	full.half(given, token1)
	full.ages(given, 2*takeOver)
	if code, text, _ := full.request(http.MethodPut, "/layers/"+given.digest, token2, given.archive); code != http.StatusAccepted {
		t.Errorf("%d %s", code, text)
	}
}

func TestAnObjectThatCanNotBeLookedAtHidesNoOther(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Limits.Queue, c.Approval = 1, true })
	first, waits, evil := newLayer(t, "first"), newLayer(t, "waits"), newLayer(t, "evil")
	inner := s.store.Server.Config.Handler
	s.store.Server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		// As of an object that was encrypted with a key of the node's own.
		if q.Method == http.MethodHead && strings.HasSuffix(q.URL.Path, evil.digest) {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		inner.ServeHTTP(w, q)
	})
	s.puts("", evil)
	if err := s.poll(t.Context()); err == nil {
		t.Error("nobody is told")
	}
	s.puts("", first)
	s.puts("", waits)
	for range 2 {
		s.poll(t.Context()) // fails for the one
	}
	waiting := 0
	for _, l := range []layer{first, waits} {
		if a := s.answer(l.digest); a.Status == api.Publishing {
			waiting++
		}
	}
	if waiting != 2 {
		t.Errorf("of two layers %d are known", waiting)
	}
}

// The store of a site may take its time to give an object; what a person has approved doesn't wait for that.
func TestASlowObjectHoldsUpNothing(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Approval = true })
	asks, slow := newLayer(t, "asks"), newLayer(t, "slow")
	s.puts("", asks)
	s.turn()
	inner := s.store.Server.Config.Handler
	s.store.Server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodGet && strings.HasSuffix(q.URL.Path, slow.digest) {
			<-q.Context().Done()
			return
		}
		inner.ServeHTTP(w, q)
	})
	s.puts("", slow)
	if err := s.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { s.work(ctx); close(ended) }()
	if _, err := Decide(s.c, asks.digest, true, "alice", ""); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(30 * time.Second)
	for s.answer(asks.digest).Status != api.Done && time.Now().Before(end) {
		time.Sleep(20 * time.Millisecond)
	}
	if time.Now().After(end) {
		t.Error("it waits for the other one")
	}
	stop()
	<-ended
	if r, _ := s.book.get(slow.digest); r.State != Arrived {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(s.book.archive(slow.digest)); err == nil {
		t.Error("half an archive is left")
	}
}

func TestKeysOfEventsAreNoLongerThanKeysAre(t *testing.T) {
	s := newSite(t, nil)
	key := "in/" + strings.Repeat("a", 900_000) + "/" + strings.Repeat("ab", 32)
	s.told(event{s.bucket.Name(), key})
	if len(s.hints) != 0 {
		t.Error("it is kept")
	}
}

func TestFailuresCountForTheNodeWhoseFolderItIs(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.Nodes = []Node{
			{Name: "n1", Prefixes: []string{"site/n1"}, Archive: 10, PerHour: 1}, {Name: "n2", Prefixes: []string{"site/n2"}},
		}
	})
	for n := range mostFaults {
		digest := fmt.Sprintf("f%063x", n)
		s.book.records[digest] = Record{Digest: digest, Key: "site/n1/" + digest, State: Failed, Changed: time.Now()}
	}
	l := newLayer(t, "of n2")
	s.puts("site/n2/", l)
	s.turn()
	s.is(l, api.Done, "")
}

// The oldest gives way: nobody's layers wait for an administrator because of those of many others.
func TestFailuresOfManyStopNobody(t *testing.T) {
	s := newSite(t, nil)
	for n := range mostFailed {
		digest := fmt.Sprintf("f%063x", n)
		s.book.records[digest] = Record{
			Digest: digest, Node: fmt.Sprint("n", n/(mostFaults-1)), State: Failed, Changed: time.Unix(int64(n), 0),
		}
	}
	oldest := fmt.Sprintf("f%063x", 0)
	if err := s.book.put(s.book.records[oldest]); err != nil {
		t.Fatal(err)
	}
	l := newLayer(t, "file")
	if code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token1, l.archive); code != http.StatusAccepted {
		t.Errorf("%d %s", code, text)
	}
	if _, known := s.book.get(oldest); known {
		t.Error("the oldest is kept")
	}
}

func TestAStrangersObjectFailsNoLayerThatWaits(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1", Prefixes: []string{"n1"}, PerHour: 1}} })
	first, l := newLayer(t, "first"), newLayer(t, "waits")
	s.puts("n1/", first)
	s.turn()
	s.puts("n1/", l)
	s.puts("evil/", l, api.MetaNode, "stranger")
	for range 2 {
		s.turn()
		s.is(l, api.Publishing, "within an hour")
	}
}

// Names that are only claimed share what one may have refused.
func TestRefusalsOfClaimedNamesAreBoundedTogether(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1"}} })
	for n := range mostRefusals + 5 {
		s.puts("", layer{digest: fmt.Sprintf("%064x", n), archive: []byte("x")}, api.MetaNode, fmt.Sprint("x", n))
	}
	if err := s.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := s.audit.counts[DecidedRefused]; n != mostRefusals {
		t.Errorf("%d are refused, want %d", n, mostRefusals)
	}
}

func TestAnUploadGivesWayOnlyWhereThatMakesRoom(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1", PerHour: 1}} })
	old, next := newLayer(t, "old"), newLayer(t, "next")
	s.half(old, token1)
	s.ages(old, 2*takeOver)
	if code, _, _ := s.request(http.MethodPut, "/layers/"+next.digest, token1, next.archive); code != http.StatusTooManyRequests {
		t.Errorf("%d", code)
	}
	if _, known := s.book.get(old.digest); !known {
		t.Error("the upload is gone")
	}
}
