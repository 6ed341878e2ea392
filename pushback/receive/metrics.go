package receive

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"time"
)

// metrics writes what the service does in the text format of Prometheus. No label has a value of anybody's choice.
func (s *Service) metrics() []byte {
	states, oldest := map[State]int{}, time.Duration(0)
	for _, r := range s.book.all() {
		if states[r.State]++; r.State.Pending() {
			oldest = max(oldest, time.Since(r.Since))
		}
	}
	s.audit.mu.Lock()
	decided := maps.Clone(s.audit.counts)
	s.audit.mu.Unlock()
	s.mu.Lock()
	c, trouble := s.counts, s.trouble != ""
	s.mu.Unlock()
	spool := s.book.usage(&Record{}, s.c.origin).bytes

	var b bytes.Buffer
	family := func(name, kind, help string) func(labels string, value float64) {
		name = "docker2cvmfs_receive_" + name
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		return func(labels string, value float64) { fmt.Fprintf(&b, "%s%s %v\n", name, labels, value) }
	}
	layers := family("layers", "gauge", "Layers by how far they have got.")
	for _, state := range States {
		layers(fmt.Sprintf("{state=%q}", state), float64(states[state]))
	}
	made := family("decisions_total", "counter", "Decisions on layers.")
	for _, d := range decisions {
		made(fmt.Sprintf("{decision=%q}", d), float64(decided[d]))
	}
	family("oldest_waiting_seconds", "gauge", "How long the oldest layer waits that is to be published.")("",
		oldest.Seconds())
	family("spool_bytes", "gauge", "Archives of layers that aren't decided.")("", float64(spool))
	family("published_bytes_total", "counter", "Archives of layers that were published.")("", float64(c.published))
	transactions := family("transactions_total", "counter", "Transactions by how they ended.")
	transactions(`{result="published"}`, float64(c.transactions))
	transactions(`{result="failed"}`, float64(c.failures))
	family("publishing_fails", "gauge", "Whether the last transaction failed.")("", number(trouble))
	if !c.last.IsZero() {
		family("last_published_timestamp_seconds", "gauge", "When layers were published last.")("",
			float64(c.last.Unix()))
	}
	if s.bucket != nil {
		family("bucket_looks_total", "counter", "Looks into the bucket.")("", float64(c.polls))
		family("bucket_failures_total", "counter", "Looks into the bucket that failed.")("", float64(c.pollFailures))
	}
	return b.Bytes()
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func (s *Service) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Write(s.metrics()) // that a scraper has gone concerns nobody
}
