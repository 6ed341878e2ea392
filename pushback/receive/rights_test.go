package receive

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cvmfs-graphdriver/pushback/api"
)

func TestPatternsOfImages(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true},
		{"a", "a", true},
		{"a", "ab", false},
		{"*", "", true},
		{"*", "a/b:1", true},
		{"r/team/*", "r/team/a:1", true},
		{"r/team/*", "r/teams/a:1", false},
		{"a*b*c", "aXbYc", true},
		{"a*b*c", "abc", true},
		{"a*b*c", "acb", false},
		{"*ab", "aab", true},
		{"a*a", "a", false},
		{"*a*a*", "a", false},
	} {
		if got := matches(c.pattern, c.text); got != c.want {
			t.Errorf("%q fits %q: %t", c.pattern, c.text, got)
		}
	}
}

func TestNodesSendWhatTheyMay(t *testing.T) {
	c := defaults()
	c.Nodes = []Node{
		{Name: "own", Prefixes: []string{"a", "b/c"}, Archive: 100},
		{Name: "team", Images: []string{"r/team/*", "r/x:1"}, PerDay: 1000},
	}
	for _, w := range []struct{ folder, claimed, image, want string }{
		{"a", "", "", ""},
		{"a/x", "somebody", "", ""}, // whose folder it is counts, not what is claimed
		{"b/c", "own", "", ""},
		{"ab", "own", "", "doesn't lie in one"},
		{"b", "own", "", "doesn't lie in one"},
		{"", "", "", "may send no layers"},
		{"", "other", "", "may send no layers"},
		{"", "team", "r/team/x:1", ""},
		{"", "team", "r/x:1", ""},
		{"", "team", "r/x:2", "no layers of the image"},
		{"", "team", "", "isn't said which image"},
		{"", "*", "", "may send no layers"},
	} {
		node, err := c.sender(w.folder, w.claimed)
		if err == nil {
			err = c.admit(&Record{Node: node, Image: w.image, Size: 50})
		}
		if (err == nil) != (w.want == "") || err != nil && (!strings.Contains(err.Error(), w.want) ||
			!errors.Is(err, errRefused)) {
			t.Errorf("%+v: %v", w, err)
		}
	}
	for node, size := range map[string]int64{"own": 101, "team": 1001} {
		if err := c.admit(&Record{Node: node, Image: "r/x:1", Size: size}); !errors.Is(err, errRefused) {
			t.Errorf("%s sends %d bytes: %v", node, size, err)
		}
	}
	c.Nodes = append(c.Nodes, Node{Name: "*", Approval: true})
	if n, err := c.rights("anybody"); err != nil || !n.Approval {
		t.Errorf("%+v, %v", n, err)
	}
}

// The token of a store or of monitoring is in more hands than those of nodes.
func TestWhoHasAnotherTaskSendsNothing(t *testing.T) {
	for _, nodes := range [][]Node{nil, {{Name: "*"}}, {{Name: "n1"}, {Name: "*", Approval: true}}} {
		c := defaults()
		c.Nodes, c.Events, c.Metrics = nodes, "store", "monitoring"
		for _, name := range []string{"store", "monitoring"} {
			node, err := c.sender("", name) // as metadata claim
			if err == nil {
				err = c.admit(&Record{Node: node, Image: "r/x:1", Size: 50})
			}
			if !errors.Is(err, errRefused) {
				t.Errorf("%s sends a layer, with nodes %+v: %v", name, nodes, err)
			}
		}
		if _, err := c.rights("n2"); err != nil {
			t.Error(err)
		}
		c.Nodes = append(c.Nodes, Node{Name: "store"})
		if _, err := c.rights("store"); err != nil {
			t.Errorf("as a node: %v", err)
		}
	}
}

func TestRatesAreKept(t *testing.T) {
	c := defaults()
	c.Nodes = []Node{{Name: "hourly", PerHour: 2}, {Name: "daily", PerDay: 100}, {Name: "free"}}
	now := time.Now()
	sent := func(node string, size int64, ago ...time.Duration) (all []Record) {
		for n, d := range ago {
			all = append(all, Record{Digest: fmt.Sprint(node, n), Node: node, Size: size, Since: now.Add(-d)})
		}
		return all
	}
	minutes := func(n int) time.Duration { return time.Duration(n) * time.Minute }
	for _, w := range []struct {
		node  string
		size  int64
		taken []Record
		want  time.Duration
	}{
		{"free", 1000, sent("free", 1000, 1, 2, 3, 4), 0},
		{"hourly", 1, sent("hourly", 1, minutes(59)), 0},
		{"hourly", 1, sent("hourly", 1, minutes(50), minutes(10)), minutes(10)},
		{"hourly", 1, sent("hourly", 1, minutes(50), minutes(10), minutes(61)), minutes(10)},
		{"hourly", 1, sent("hourly", 1, minutes(50), minutes(40), minutes(10)), minutes(20)},
		{"hourly", 1, sent("daily", 1, 1, 2, 3), 0},
		{"daily", 50, sent("daily", 50, minutes(600)), 0},
		{"daily", 51, sent("daily", 50, minutes(600)), minutes(24*60 - 600)},
		{"daily", 60, sent("daily", 30, minutes(60), minutes(120), minutes(180)), minutes(24*60 - 120)},
	} {
		slices.SortFunc(w.taken, func(a, b Record) int { return a.Since.Compare(b.Since) })
		got, why := c.wait(&Record{Digest: "x", Node: w.node, Size: w.size}, sentBefore(w.taken).of(w.node), now)
		if got != w.want || (why == "") != (got == 0) {
			t.Errorf("%s sends %d bytes after %d layers: %v %q, want %v", w.node, w.size, len(w.taken), got, why, w.want)
		}
	}
}

func TestWhoMayNotSendIsToldSo(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.Nodes = []Node{{Name: "n1", Images: []string{"team/*"}, PerHour: 2}}
		c.Limits.Archive, c.Events = 1000, "n2"
	})
	l := newLayer(t, "file")
	put := func(token, image string, body []byte) (int, string, http.Header) {
		return s.request(http.MethodPut, "/layers/"+hexSum(body), token, body, api.HeaderImage, image)
	}
	for _, w := range []struct {
		token, image string
		body         []byte
		want         int
	}{
		{"", "team/a", l.archive, http.StatusUnauthorized},
		{"not-a-token-of-anybody", "team/a", l.archive, http.StatusUnauthorized},
		{token2, "team/a", l.archive, http.StatusForbidden},
		{token1, "other/a", l.archive, http.StatusForbidden},
		{token1, "team/a", make([]byte, 1001), http.StatusForbidden},
		{token1, "team/a", nil, http.StatusBadRequest},
		{token1, "team/a", l.archive, http.StatusAccepted},
	} {
		code, text, _ := put(w.token, w.image, w.body)
		if code == http.StatusUnauthorized && w.token != "" && !strings.Contains(text, "doesn't know this token") {
			t.Errorf("an unknown token is answered %q", text)
		}
		if code != w.want {
			t.Errorf("%+v: %d %s", w.want, code, text)
		}
	}
	second, third := newLayer(t, "second"), newLayer(t, "third")
	put(token1, "team/a", second.archive)
	code, text, header := put(token1, "team/a", third.archive)
	if code != http.StatusTooManyRequests || header.Get("Retry-After") == "" {
		t.Errorf("too many in an hour: %d %s", code, text)
	}
	s.puts("", third, api.MetaNode, "n1", api.MetaImage, "team/a")
	foreign := newLayer(t, "foreign")
	s.puts("", foreign, api.MetaNode, "n3")
	s.turn()
	s.has(l, second)
	s.is(third, api.Publishing, "it waits for its turn")
	s.is(foreign, api.Failed, "may send no layers")
	for path, want := range map[string]int{
		"/layers/x": http.StatusBadRequest, "/nowhere": http.StatusNotFound,
		"/layers/" + strings.ToUpper(l.digest): http.StatusBadRequest,
	} {
		if code, text, _ := s.request(http.MethodPut, path, token1, l.archive); code != want {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
}

func TestAFullQueueTakesNoMore(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Limits.Queue, c.Approval = 1, true })
	one, two, three := newLayer(t, "one"), newLayer(t, "two"), newLayer(t, "three")
	s.puts("", one)
	s.turn()
	s.puts("", two)
	s.turn()
	s.is(two, api.Publishing, "1 layers wait already")
	code, text, header := s.request(http.MethodPut, "/layers/"+three.digest, token1, three.archive)
	if code != http.StatusTooManyRequests || header.Get("Retry-After") == "" {
		t.Errorf("%d %s", code, text)
	}
	if said, err := Decide(s.c, one.digest, true, "me", ""); err != nil || !strings.Contains(said, "published") {
		t.Fatal(err)
	}
	s.turn()
	s.turn()
	s.is(one, api.Done, "")
	s.is(two, api.Publishing, "approval")
}

// One whose layers wait for a person leaves room for the others.
func TestANodeHasItsShareOfTheQueue(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.Nodes = []Node{{Name: "n1", Queue: 1, Approval: true}, {Name: "*"}}
	})
	one, two, three := newLayer(t, "one"), newLayer(t, "two"), newLayer(t, "three")
	for _, w := range []struct {
		token string
		layer layer
		want  int
	}{
		{token1, one, http.StatusAccepted},
		{token1, two, http.StatusTooManyRequests},
		{token2, three, http.StatusAccepted},
	} {
		code, text, _ := s.request(http.MethodPut, "/layers/"+w.layer.digest, w.token, w.layer.archive)
		if code != w.want || code == http.StatusTooManyRequests && !strings.Contains(text, "1 layers of n1 wait") {
			t.Errorf("%d %s, want %d", code, text, w.want)
		}
		s.turn()
	}
	s.puts("", two, api.MetaNode, "n1")
	s.turn()
	s.is(two, api.Publishing, "1 layers of n1 wait already: it waits for its turn")
	s.has(three)
}

func TestRefusalsDoNotFillTheAuditFile(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1"}} })
	l := newLayer(t, "file")
	for range mostRefusals + 5 {
		if code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token2, l.archive); code != http.StatusForbidden {
			t.Fatalf("%d %s", code, text)
		}
	}
	if lines := len(audited(t, s.c, l)); lines != mostRefusals {
		t.Errorf("%d lines, want %d", lines, mostRefusals)
	}
	if n := s.audit.counts[DecidedRefused]; n != mostRefusals+5 {
		t.Errorf("%d refusals are counted", n)
	}
}

// A node learns before it sends anything that it is set up for another service.
func TestAServiceTellsWhatItDoesForWhom(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1"}} })
	for token, refusal := range map[string]string{token1: "", token2: "may send no layers"} {
		_, text, _ := s.request(http.MethodGet, "/status/"+strings.Repeat("0", 64), token, nil,
			"Accept", "application/json")
		a, err := api.ParseJSON(strings.Repeat("0", 64), []byte(text))
		if err != nil || a.Repository != s.FQRN() || !strings.Contains(a.Refusal, refusal) ||
			(a.Refusal == "") != (refusal == "") {
			t.Errorf("%+v %v", a, err)
		}
	}
}

func TestStatusIsToldToWhoMayKnowIt(t *testing.T) {
	closed, open := newSite(t, nil), newSite(t, func(c *Config) { c.OpenStatus = true })
	l := newLayer(t, "file")
	open.seen = time.Now()
	if code, _, _ := closed.request(http.MethodGet, "/status/"+l.digest, "", nil); code != http.StatusUnauthorized {
		t.Errorf("without a token: %d", code)
	}
	for state, want := range map[State]string{
		"": "unknown", Ready: "publishing", Published: "done", Failed: "failed: no good",
	} {
		if state != "" {
			if err := open.book.put(Record{Digest: l.digest, State: state, Reason: "no good"}); err != nil {
				t.Fatal(err)
			}
		}
		open.present[l.digest] = state == Published
		code, text, header := open.request(http.MethodGet, "/status/"+l.digest, "", nil)
		if code != http.StatusOK || text != want || !strings.HasPrefix(header.Get("Content-Type"), "text/plain") {
			t.Errorf("%s: %d %q", state, code, text)
		}
		if err := open.book.drop(l.digest); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]int{"/metrics": http.StatusUnauthorized, "/events": http.StatusMethodNotAllowed} {
		if code, _, _ := open.request(http.MethodGet, path, "", nil); code != want {
			t.Errorf("%s: %d", path, code)
		}
	}
	code, text, _ := open.request(http.MethodGet, "/metrics", token1, nil)
	if code != http.StatusOK || !strings.Contains(text, `docker2cvmfs_receive_layers{state="ready"} 0`) {
		t.Errorf("%d %s", code, text)
	}
}

// Tokens are changed while the service runs; a file that others may read stops all.
func TestTokensAreReadAnew(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	if err := os.WriteFile(s.c.Tokens, []byte("n1 a-wholly-new-token-of-this-node\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := s.request(http.MethodGet, "/status/"+l.digest, token1, nil); code != http.StatusUnauthorized {
		t.Errorf("the former token: %d", code)
	}
	if err := os.Chmod(s.c.Tokens, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.c.Tokens, []byte("n1 "+token1+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := s.request(http.MethodGet, "/status/"+l.digest, token1, nil); code != http.StatusServiceUnavailable {
		t.Errorf("a file that others may read: %d", code)
	}
}

// The token that a store has tells of objects, and isn't a node's.
func TestWhoTellsOfObjectsMaySendNone(t *testing.T) {
	for name, nodes := range map[string][]Node{"no nodes": nil, "all nodes": {{Name: "*"}}} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, func(c *Config) { c.Events, c.Nodes = "n2", nodes })
			l := newLayer(t, "file")
			code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token2, l.archive)
			if code != http.StatusForbidden || !strings.Contains(text, "only tell of new objects") {
				t.Errorf("%d %s", code, text)
			}
			s.puts("", l, api.MetaNode, "n2")
			s.turn()
			s.is(l, api.Failed, "only tell of new objects")
			s.has()
			if code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token1, l.archive); code != http.StatusAccepted {
				t.Errorf("a node: %d %s", code, text)
			}
		})
	}
	c := &Config{Events: "n2", Nodes: []Node{{Name: "n2", PerHour: 1}}}
	if n, err := c.rights("n2"); err != nil || n.PerHour != 1 {
		t.Errorf("one with an entry: %+v, %v", n, err)
	}
}

// A store's policy compares keys as texts: whoever may write below one/ may write one/../two/DIGEST.
func TestAKeyThatLeadsOutOfAFolderIsOfThatFolder(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.Nodes = []Node{{Name: "n1", Prefixes: []string{"one"}, Approval: true}, {Name: "n2", Prefixes: []string{"two"}}}
	})
	l := newLayer(t, "file")
	s.puts("one/../two/", l)
	s.turn()
	s.is(l, api.Publishing, "approval")
	if lines := audited(t, s.c, l); decided(lines) != "received" || lines[0].Node != "n1" {
		t.Errorf("audit: %+v", lines)
	}
	for key, want := range map[string]string{
		"x": "", "a/x": "a", "a/b/x": "a/b", "./x": ".", "a//x": "a/", "a/./x": "a/.", "/x": "",
	} {
		if got := folderOf(key); got != want {
			t.Errorf("%q lies in %q, want %q", key, got, want)
		}
	}
}

// chmod changes neither a file's size nor its time.
func TestTokensAreReadOnceTheirModeIsMended(t *testing.T) {
	s := newSite(t, nil)
	nobodys := "/status/" + strings.Repeat("a", 64)
	later := time.Now().Add(time.Hour)
	if err := errors.Join(os.Chmod(s.c.Tokens, 0o644), os.Chtimes(s.c.Tokens, later, later)); err != nil {
		t.Fatal(err)
	}
	if code, text, _ := s.request(http.MethodGet, nobodys, token1, nil); code != http.StatusServiceUnavailable {
		t.Errorf("everybody can read the tokens: %d %s", code, text)
	}
	if err := os.Chmod(s.c.Tokens, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, text, _ := s.request(http.MethodGet, nobodys, token1, nil); code != http.StatusOK {
		t.Errorf("the mode is mended: %d %s", code, text)
	}
}

// It would wait for a place that it never gets, and its node with it.
func TestAnObjectAboveTheSpoolIsRefused(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Limits.Archive, c.Limits.Spool = 100, 120 })
	l := newLayer(t, "file")
	if len(l.archive) <= 120 {
		t.Fatalf("an archive of %d bytes", len(l.archive))
	}
	s.puts("", l)
	s.turn()
	s.is(l, api.Failed, "the limit is 100")
}

func TestRatesAreKeptByUploadsAtOnce(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1", PerHour: 1}} })
	var sending sync.WaitGroup
	var taken atomic.Int32
	for n := range 12 {
		l := newLayer(t, fmt.Sprint("file", n))
		sending.Go(func() {
			q, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.web.URL+"/layers/"+l.digest,
				bytes.NewReader(l.archive))
			if err != nil {
				t.Error(err)
				return
			}
			q.Header.Set("Authorization", "Bearer "+token1)
			answer, err := http.DefaultClient.Do(q)
			if err != nil {
				t.Error(err)
				return
			}
			answer.Body.Close()
			if answer.StatusCode == http.StatusAccepted {
				taken.Add(1)
			}
		})
	}
	sending.Wait()
	if taken.Load() != 1 {
		t.Errorf("%d layers were taken, of one in an hour", taken.Load())
	}
}

func TestWhoHasSentNothingForADayIsForgotten(t *testing.T) {
	now := time.Now()
	s := sentBefore([]Record{
		{Node: "old", Since: now.Add(-sentFor)}, {Node: "both", Since: now.Add(-sentFor)}, {Node: "both", Since: now},
	})
	s.forget(now)
	if len(s) != 1 || len(s.of("both")) != 1 {
		t.Errorf("%+v", s)
	}
}

// A layer that fails may come again at once, and costs as much each time.
func TestRatesCountALayerThatComesAgain(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1", PerHour: 2}} })
	l := newLayer(t, "file")
	l.digest = strings.Repeat("1", 64)
	for _, want := range []int{http.StatusAccepted, http.StatusAccepted, http.StatusTooManyRequests} {
		if code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token1, l.archive); code != want {
			t.Errorf("%d %s, want %d", code, text, want)
		}
		s.round(t.Context())
	}
}

func TestObjectsThatFailedAreJudgedOnceHoweverMany(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	l.digest = strings.Repeat("1", 64)
	const objects = 20
	for n := range objects {
		s.puts(fmt.Sprint(n, "/"), l)
	}
	for range 2 * objects {
		s.turn()
	}
	if n := len(audited(t, s.c, l)); n != 2*objects { // received and refused
		t.Errorf("%d decisions on %d objects", n, objects)
	}
}

// Whoever knows a digest could hold up the layer for as long as uploads are kept.
func TestAnUploadThatNobodyGoesOnWithHoldsUpNoObject(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1", Prefixes: []string{"one"}}, {Name: "n2"}} })
	l := newLayer(t, "file")
	if code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token2, l.archive[:1], "Content-Range",
		fmt.Sprintf("bytes 0-0/%d", len(l.archive))); code != http.StatusAccepted {
		t.Fatal(code, text)
	}
	s.puts("one/", l)
	s.turn()
	s.is(l, api.Unknown, "isn't complete") // it may be gone on with
	old := time.Now().Add(-takeOver)
	if err := os.Chtimes(s.book.archive(l.digest), old, old); err != nil {
		t.Fatal(err)
	}
	s.turn()
	s.is(l, api.Done, "")
}
