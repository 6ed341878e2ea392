package receive

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/pushback/api"
)

// restarted ends a service, and makes one of its state, with another configuration if change isn't nil.
func (s *site) restarted(change func(c *Config)) {
	s.t.Helper()
	c := *s.c
	if change != nil {
		change(&c)
	}
	if err := s.Close(); err != nil {
		s.t.Fatal(err)
	}
	next, err := New(&c, slog.New(slog.NewTextHandler(s.t.Output(), nil)))
	if err != nil {
		s.t.Fatal(err)
	}
	s.Service, s.web.Config.Handler = next, next.handler()
}

// half sends the first half of a layer.
func (s *site) half(l layer, token string) {
	s.t.Helper()
	code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token, l.archive[:len(l.archive)/2],
		"Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(l.archive)/2-1, len(l.archive)))
	if code != http.StatusAccepted {
		s.t.Fatalf("%d %s", code, text)
	}
}

// ages makes an upload as old as if nothing had come for so long; a negative age is one of a clock that was ahead.
func (s *site) ages(l layer, by time.Duration) {
	s.t.Helper()
	at := time.Now().Add(-by)
	if err := os.Chtimes(s.book.archive(l.digest), at, at); err != nil {
		s.t.Fatal(err)
	}
}

// What waits is held against the rights of today: they are changed because somebody isn't to be trusted any more.
func TestRightsThatAreTakenAwayCountForWhatWaits(t *testing.T) {
	for name, c := range map[string]struct {
		change func(c *Config)
		want   State
	}{
		"approval of all":      {func(c *Config) { c.Approval = true }, Asking},
		"approval of the node": {func(c *Config) { c.Nodes = []Node{{Name: "n1", Approval: true}} }, Asking},
		"the node is gone":     {func(c *Config) { c.Nodes = []Node{{Name: "n2"}} }, Failed},
		"nothing":              {nil, Ready},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, nil)
			s.open = func() (sink.Sink, error) { return nil, errors.New("the whitelist has expired") }
			ready, sending := newLayer(t, "ready"), newLayer(t, "sending")
			s.puts("", ready, api.MetaNode, "n1")
			s.turn()
			s.half(sending, token1)
			s.restarted(c.change)
			if r, _ := s.book.get(ready.digest); r.State != c.want {
				t.Errorf("%s, want %s", r.State, c.want)
			}
			if r, _ := s.book.get(sending.digest); (r.State == Failed) != (c.want == Failed) {
				t.Errorf("the upload is %s", r.State)
			}
		})
	}
}

func TestTheFirstDecisionCounts(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Approval = true })
	l := newLayer(t, "file")
	s.puts("", l)
	s.turn()
	if _, err := Decide(s.c, l.digest, false, "alice", "credentials in it"); err != nil {
		t.Fatal(err)
	}
	if said, err := Decide(s.c, l.digest, true, "bob", ""); err == nil || !strings.Contains(err.Error(), "by alice already") {
		t.Errorf("%q, %v", said, err)
	}
	s.round(t.Context())
	s.is(l, api.Failed, "rejected by alice")
}

func TestADecisionIsNotedOnceHoweverOftenItIsTried(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Approval = true })
	l := newLayer(t, "file")
	s.puts("", l)
	s.turn()
	if _, err := Decide(s.c, l.digest, true, "alice", ""); err != nil {
		t.Fatal(err)
	}
	records := filepath.Join(s.c.State, layersFolder)
	if err := os.Rename(records, records+".away"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s.round(t.Context())
	}
	if err := os.Rename(records+".away", records); err != nil {
		t.Fatal(err)
	}
	s.round(t.Context())
	s.is(l, api.Done, "")
	if got := decided(audited(t, s.c, l)); got != "received approved published" {
		t.Errorf("audit: %s", got)
	}
}

// The service may end because of a layer: for want of memory, say.
func TestALayerThatEndsTheServiceHoldsUpNoOther(t *testing.T) {
	s := newSite(t, nil)
	s.open = func() (sink.Sink, error) { return nil, errors.New("locked") }
	bad, good := newLayer(t, "bad"), newLayer(t, "good")
	s.puts("", bad)
	s.puts("", good)
	s.turn()
	for n := 1; n <= mostEnds; n++ {
		r, _ := s.book.get(bad.digest)
		other, _ := s.book.get(good.digest)
		if n > 1 && (r.Attempts == 0 || other.Attempts == 0) {
			t.Errorf("%d: they are published together again: %+v %+v", n, r, other)
		}
		batch := []Record{r}
		if n == 1 {
			batch = append(batch, other)
		}
		if err := s.working(batch); err != nil { // it ends while it publishes these
			t.Fatal(err)
		}
		s.restarted(nil)
	}
	s.is(bad, api.Failed, fmt.Sprintf("ended %d times", mostEnds))
	s.round(t.Context())
	s.is(good, api.Done, "")
	s.has(good)
}

func TestAClockThatWasAheadHoldsUpNothing(t *testing.T) {
	year := 365 * 24 * time.Hour
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1", PerHour: 1}, {Name: "n2"}} })
	tried, upload, next := newLayer(t, "tried"), newLayer(t, "upload"), newLayer(t, "next")
	s.puts("", tried, api.MetaNode, "n1")
	if err := s.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, _ := s.book.get(tried.digest)
	r.Next, r.Since, r.Attempts = time.Now().Add(year), time.Now().Add(year), 1
	if err := s.book.put(r); err != nil {
		t.Fatal(err)
	}
	s.half(upload, token2)
	s.ages(upload, -year)
	s.restarted(nil)
	s.round(t.Context())
	s.is(tried, api.Done, "")
	s.c.Nodes[0].PerHour = 0
	if code, text, _ := s.request(http.MethodPut, "/layers/"+upload.digest, token1, upload.archive); code != http.StatusAccepted {
		t.Errorf("an upload that nobody goes on with: %d %s", code, text)
	}
	s.c.Nodes[0].PerHour = 1
	_, _, header := s.request(http.MethodPut, "/layers/"+next.digest, token1, next.archive)
	if after := header.Get("Retry-After"); len(after) == 0 || len(after) > len("3600") {
		t.Errorf("Retry-After: %s s", after)
	}
}

// Otherwise the image would name a layer that goes when the time of grace is over.
func TestALayerThatWasDroppedIsNotDone(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	s.puts("", l)
	s.turn()
	s.is(l, api.Done, "")
	s.seen = s.seen.Add(-time.Hour)
	s.ask = false
	for path := range s.store.Objects {
		t.Errorf("%s is left in the bucket", path)
	}
	s.puts("", l) // a node commits the same again
	if err := s.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(s.store.Objects) != 1 {
		t.Error("the object was removed before it was known whether the repository still has it")
	}
	open := s.open
	s.open = func() (sink.Sink, error) { return nil, errors.New("locked by somebody") }
	s.round(t.Context())
	s.is(l, api.Done, "") // who works there now isn't waited for
	s.open, s.resume = open, time.Time{}
	s.round(t.Context())
	s.is(l, api.Done, "")
}

func TestAnAuditFileThatCanNotBeMadeEndsTheStart(t *testing.T) {
	c := newConfig(t)
	c.Audit = filepath.Join(t.TempDir(), "log", "audit.jsonl")
	if err := Check(t.Context(), c); err == nil || !strings.Contains(err.Error(), "audit: ") {
		t.Error(err)
	}
	if _, err := New(c, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "audit: ") {
		t.Error(err)
	}
}

// What is known of the repository ages, but not while nobody else can change it, and it counts while nobody can look.
func TestPublishedLayersAreDoneWhileTheRepositoryIsBusy(t *testing.T) {
	s := newSite(t, nil)
	old, l := newLayer(t, "old"), newLayer(t, "file")
	s.puts("", old)
	s.turn()
	ages := func() {
		s.mu.Lock()
		s.seen = s.seen.Add(-2 * lookAge)
		s.mu.Unlock()
	}
	asked := false
	s.step = func(name string) {
		if name == "added" {
			asked = true
			ages() // as by a long transaction
			s.is(old, api.Done, "")
		}
	}
	s.puts("", l)
	s.turn()
	s.open = func() (sink.Sink, error) { return nil, errors.New("somebody else works in it") }
	s.is(l, api.Done, "")
	ages()
	s.round(t.Context())
	if s.answer(l.digest); !asked {
		t.Error("nobody asked during the transaction")
	}
	s.round(t.Context())
	s.is(l, api.Done, "")
}

func TestWhatWaitsIsJudgedAsAtTheDoor(t *testing.T) {
	for name, c := range map[string]struct {
		folder, claimed string
		nodes           []Node
		want            State
	}{
		"without a name":             {"", "", []Node{{Name: "*"}}, Ready},
		"in the node's folder":       {"n7/", "host7.example.org", []Node{{Name: "n7", Prefixes: []string{"n7"}}}, Ready},
		"under another node's name":  {"evil/", "n7", []Node{{Name: "n7", Prefixes: []string{"n7"}}}, Failed},
		"of nobody who may send any": {"", "n1", []Node{{Name: "n2"}}, Failed},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, nil)
			s.open = func() (sink.Sink, error) { return nil, errors.New("locked") }
			l := newLayer(t, "file")
			s.puts(c.folder, l, api.MetaNode, c.claimed)
			s.turn()
			s.restarted(func(cfg *Config) { cfg.Nodes = c.nodes })
			if r, _ := s.book.get(l.digest); r.State != c.want {
				t.Errorf("%s (%s), want %s", r.State, r.Reason, c.want)
			}
			// Where that was a slip, the object is taken once it is corrected.
			s.restarted(func(cfg *Config) { cfg.Nodes = nil })
			s.turn()
			s.is(l, api.Done, "")
		})
	}
}
