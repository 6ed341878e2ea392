package receive

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
	"cvmfs-graphdriver/pushback/api"
)

// Nothing is known to be published before it is audited, and nothing is published twice for that.
func TestWhatCanNotBeAuditedWaits(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	s.puts("", l)
	if err := s.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	file := s.audit.file
	s.audit.file = "/no/such/folder/audit"
	s.round(t.Context())
	s.is(l, api.Publishing, "audit")
	if n := s.revision(); n != 0 {
		t.Errorf("revision %d has it, and no line tells of it", n)
	}
	other := newLayer(t, "other")
	s.puts("", other)
	if err := s.poll(t.Context()); err == nil || !strings.Contains(err.Error(), "audit") {
		t.Errorf("%v", err)
	}
	s.is(other, api.Unknown, "")
	s.audit.file, s.resume = file, time.Time{}
	s.turn()
	s.is(l, api.Done, "")
	s.is(other, api.Done, "")
	if got := decided(audited(t, s.c, l)); got != "received published" || s.revision() != 1 {
		t.Errorf("audit: %s, revision %d", got, s.revision())
	}
}

// The same layer may lie under several keys: each is judged once.
func TestObjectsThatFailedAreNotJudgedAgain(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.Nodes = []Node{{Name: "n1", Prefixes: []string{"one"}}, {Name: "n2", Prefixes: []string{"two"}}}
	})
	l := newLayer(t, "file")
	l.digest = strings.Repeat("1", 64)
	for range 3 {
		s.turn()
	}
	s.puts("one/", l)
	s.puts("two/", l)
	s.puts("three/", l)
	for range 5 {
		s.turn()
	}
	if got := decided(audited(t, s.c, l)); len(strings.Fields(got)) != 5 { // the third node's isn't received
		t.Errorf("audit: %s", got)
	}
	s.is(l, api.Failed, "")
}

func TestAnObjectThatChangesIsJudgedAnew(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	s.store.Objects["in/"+l.digest] = s3test.Object{Content: l.archive[:9], Modified: time.Now().Add(-time.Minute)}
	if err := s.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.puts("", l)
	s.round(t.Context())
	if r, _ := s.book.get(l.digest); r.State != Failed || !strings.Contains(r.Reason, "it has changed in the bucket") {
		t.Errorf("%+v", r)
	}
	s.turn()
	s.is(l, api.Done, "")
}

// A loss of power may take files whose records are there.
func TestLayersWhoseArchivesAreGoneComeAgain(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Approval = true })
	fetched, sent := newLayer(t, "fetched"), newLayer(t, "sent")
	s.puts("", fetched)
	s.request("PUT", "/layers/"+sent.digest, token1, sent.archive)
	s.turn()
	s.is(fetched, api.Publishing, "approval")
	s.is(sent, api.Publishing, "approval")
	for _, l := range []layer{fetched, sent} {
		if err := os.Remove(s.book.archive(l.digest)); err != nil {
			t.Fatal(err)
		}
	}
	again, err := openBook(s.c.State, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	s.book = again
	s.is(sent, api.Unknown, "")
	s.turn()
	s.is(fetched, api.Publishing, "approval")
	if _, err := os.Stat(s.book.archive(fetched.digest)); err != nil {
		t.Error(err)
	}
}

func TestWhatCanNotBeFetchedForLongHasFailed(t *testing.T) {
	s := newSite(t, func(c *Config) { c.GiveUp = time.Nanosecond })
	l := newLayer(t, "file")
	s.puts("", l)
	s.store.Cut = true
	s.turn()
	// It has failed once, which says nothing of how long: the service may have been off since it came.
	r, _ := s.book.get(l.digest)
	if r.Next = (time.Time{}); r.State != Arrived || r.Attempts != 1 {
		t.Errorf("%+v", r)
	}
	if err := s.book.put(r); err != nil {
		t.Fatal(err)
	}
	s.round(t.Context())
	s.is(l, api.Failed, "")
	if got := decided(audited(t, s.c, l)); got != "received failed" {
		t.Errorf("audit: %s", got)
	}
}

func TestOldRecordsAndUploadsAreForgotten(t *testing.T) {
	s := newSite(t, nil)
	now := time.Now()
	s.book.now = func() time.Time { return now.Add(-25 * time.Hour) }
	digests := map[State]string{}
	for i, state := range States {
		digests[state] = strings.Repeat(string(rune('a'+i%6)), 63) + string(rune('0'+i))
		if err := s.book.put(Record{Digest: digests[state], State: state}); err != nil {
			t.Fatal(err)
		}
	}
	left := func() (all []string) {
		for _, r := range s.book.all() {
			all = append(all, string(r.State))
		}
		return all
	}
	s.forget()
	if got := left(); len(got) != len(States)-1 {
		t.Errorf("left: %v", got) // the upload went
	}
	s.c.Keep = time.Hour
	s.forget()
	if got := left(); len(got) != 3 {
		t.Errorf("left: %v", got) // what is still to be published stays
	}
}

func TestDamagedRecordsAreNamed(t *testing.T) {
	s := newSite(t, nil)
	digest := strings.Repeat("a", 64)
	file := s.c.State + "/layers/" + digest + ".json"
	for _, text := range []string{"", "{}", `{"digest":"` + digest + `","state":"gone"}`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openBook(s.c.State, time.Now); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := New(s.c, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a second service of the same state")
	}
}

// A converter that works in the repository isn't told of as a fault, as long as nothing has to be published.
func TestALookThatHasToWaitIsNoFault(t *testing.T) {
	s := newSite(t, nil)
	target, err := s.open()
	if err != nil {
		t.Fatal(err)
	}
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Abort()
	s.round(t.Context())
	if s.trouble != "" || s.counts.failures != 0 || !s.seen.IsZero() {
		t.Errorf("%q, %d failures, looked at %v", s.trouble, s.counts.failures, s.seen)
	}
}

// An image that a node makes of a layer in its time of grace would lose it.
func TestALayerInItsTimeOfGraceIsKeptAgain(t *testing.T) {
	const grace = 30 * 24 * time.Hour
	s := newSite(t, nil)
	l := newLayer(t, "file")
	collect := func(o convert.CollectOptions) {
		t.Helper()
		target, err := s.open()
		if err != nil {
			t.Fatal(err)
		}
		o.KeepImages, o.Grace = true, grace
		if _, err := (&convert.Converter{Sink: target, Layout: s.c.Layout}).Collect(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		s.seen = time.Time{}
		s.round(t.Context())
	}
	send := func() {
		t.Helper()
		if code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token1, l.archive); code != http.StatusAccepted {
			t.Errorf("%d %s", code, text)
		}
		s.round(t.Context())
		s.is(l, api.Done, "")
	}
	send()
	collect(convert.CollectOptions{Dropped: []string{l.digest}})
	s.has(l)
	s.is(l, api.Unknown, "")
	send()
	s.seen = time.Time{}
	s.round(t.Context())
	s.is(l, api.Done, "")
	collect(convert.CollectOptions{Now: time.Now().Add(grace + time.Hour)})
	s.has(l)
	if got := decided(audited(t, s.c, l)); got != "received published received present" {
		t.Errorf("audit: %s", got)
	}
}

func TestAnUploadThatSomebodyGoesOnWithIsKept(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	began := time.Now().Add(-25 * time.Hour)
	s.book.now = func() time.Time { return began }
	send := func(from, to int) {
		t.Helper()
		if code, text, _ := s.request(http.MethodPut, "/layers/"+l.digest, token1, l.archive[from:to], "Content-Range",
			fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(l.archive))); code != http.StatusAccepted {
			t.Errorf("%d %s", code, text)
		}
	}
	send(0, 10)
	s.book.now = time.Now
	send(10, 20)
	s.forget()
	send(20, len(l.archive))
	s.round(t.Context())
	s.is(l, api.Done, "")
}

// What failed in the bucket stays there, and isn't judged anew because a node sends the same to the service.
func TestAnUploadMakesNoObjectComeAgain(t *testing.T) {
	s := newSite(t, nil)
	l := newLayer(t, "file")
	l.digest = strings.Repeat("1", 64)
	s.puts("", l)
	s.turn()
	s.request(http.MethodPut, "/layers/"+l.digest, token1, l.archive)
	s.turn()
	s.turn()
	if got := decided(audited(t, s.c, l)); got != "received refused received refused" {
		t.Errorf("audit: %s", got)
	}
}
