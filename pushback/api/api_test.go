package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestStatusIsReadAsItIsWritten(t *testing.T) {
	for _, a := range []Answer{
		{Status: Unknown, Digest: digest, Plain: true},
		{Status: Publishing, Digest: digest, Plain: true},
		{Status: Done, Digest: digest, Plain: true},
		{Status: Failed, Digest: digest, Reason: "a: b", Plain: true},
	} {
		got, err := ParseText(digest, a.Text()+"\n")
		if diff := cmp.Diff(&a, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", a.Text(), err, diff)
		}
	}
	two := Answer{Status: Failed, Reason: "one\ntwo"}
	if got := two.Text(); got != "failed: one two" {
		t.Errorf("%q", got)
	}
}

func TestAnswersThatAreNoneAreRefused(t *testing.T) {
	for _, text := range []string{"", "finished", "done: really", "<html>"} {
		if a, err := ParseText(digest, text); err == nil {
			t.Errorf("%q: %+v", text, a)
		}
	}
	for _, text := range []string{
		"", "[]", `{"status":"done"}`, `{"status":"gone","digest":"` + digest + `"}`,
		`{"status":"done","digest":"` + digest + `","diff_id":"x"}`,
	} {
		if a, err := ParseJSON(digest, []byte(text)); err == nil {
			t.Errorf("%q: %+v", text, a)
		}
	}
}

func TestStatusURLsAreJudged(t *testing.T) {
	for text, want := range map[string]string{
		"http://h:3000/status": "without TLS", "ftp://h/status": "want https", "https://u:p@h/status": "no credentials",
		"https://h/status?x": "want https", "http://[": "not an address",
	} {
		_, err := NewClient(text, Options{Token: "secret"})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	for _, text := range []string{"http://127.0.0.1:3000/status", "http://localhost/status/", "https://h/a/status"} {
		c, err := NewClient(text, Options{Token: "secret"})
		if err != nil {
			t.Fatal(err)
		}
		if c.status.JoinPath("x").Path != strings.Replace(c.layers.JoinPath("x").Path, "layers", "status", 1) {
			t.Errorf("%s: %v, %v", text, c.status, c.layers)
		}
	}
}

// service takes archives as a service does, and breaks off as it is told.
type service struct {
	t        *testing.T
	took     []byte
	total    int64
	cut      []int64 // a request ends after so many bytes
	refuse   []int   // requests with a part are answered so
	requests int
	old      bool // it is of 2017
}

func (s *service) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	s.requests++
	if q.Header.Get("Authorization") != "Bearer secret" {
		s.t.Errorf("authorization %q", q.Header.Get("Authorization"))
	}
	switch {
	case q.URL.Path == "/status/"+digest && s.old:
		io.WriteString(w, "publishing")
	case q.URL.Path == "/status/"+digest:
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		status := Unknown
		if s.total > 0 && int64(len(s.took)) == s.total {
			status = Done
		}
		fmt.Fprintf(w, `{"status":%q,"digest":%q}`, status, digest)
	case q.Method == http.MethodHead && s.took == nil:
		w.WriteHeader(http.StatusNotFound)
	case q.Method == http.MethodHead:
		w.Header().Set(HeaderOffset, strconv.Itoa(len(s.took)))
	case q.Method == http.MethodPut && q.URL.Path == "/layers/"+digest:
		s.put(w, q)
	default:
		s.t.Errorf("%s %s", q.Method, q.URL)
	}
}

func (s *service) put(w http.ResponseWriter, q *http.Request) {
	var from, to int64
	if _, err := fmt.Sscanf(q.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &s.total); err != nil {
		s.t.Error(err)
	}
	if len(s.refuse) > 0 {
		w.WriteHeader(s.refuse[0])
		io.WriteString(w, "the reason")
		s.refuse = s.refuse[1:]
		return
	}
	if from != int64(len(s.took)) {
		w.WriteHeader(http.StatusConflict)
		return
	}
	if len(s.cut) > 0 {
		part, err := io.ReadAll(io.LimitReader(q.Body, s.cut[0]))
		s.took, s.cut = append(s.took, part...), s.cut[1:]
		if err != nil {
			s.t.Error(err)
		}
		panic(http.ErrAbortHandler)
	}
	part, err := io.ReadAll(q.Body)
	if err != nil {
		s.t.Error(err)
	}
	s.took = append(s.took, part...)
	fmt.Fprintf(w, `{"status":"publishing","digest":%q}`, digest)
}

func start(t *testing.T, s *service) *Client {
	t.Helper()
	s.t = t
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	c, err := NewClient(server.URL+"/status", Options{Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestUploadGoesOnWhereItBrokeOff(t *testing.T) {
	archive := bytes.Repeat([]byte("0123456789"), 100_000)
	s := &service{cut: []int64{0, 300_000, 1, 500_000}}
	c := start(t, s)
	l := Layer{Digest: digest, DiffID: digest, Size: int64(len(archive)), Node: "node", Image: "image"}
	a, err := c.Upload(t.Context(), l, bytes.NewReader(archive))
	if err != nil || a.Status != Publishing || !bytes.Equal(s.took, archive) {
		t.Fatalf("%+v, %v, %d bytes", a, err, len(s.took))
	}
	before := s.requests
	a, err = c.Upload(t.Context(), l, bytes.NewReader(archive))
	if err != nil || a.Status != Done || s.requests != before+1 {
		t.Errorf("%+v, %v after %d requests", a, err, s.requests-before)
	}
}

func TestFinalRefusalsAreNotAskedAgain(t *testing.T) {
	s := &service{refuse: []int{http.StatusServiceUnavailable, http.StatusForbidden}}
	c := start(t, s)
	_, err := c.Upload(t.Context(), Layer{Digest: digest, Size: 3}, strings.NewReader("abc"))
	refused, ok := errors.AsType[*Error](err)
	if !ok || refused.Code != http.StatusForbidden || refused.Reason != "the reason" || len(s.refuse) != 0 {
		t.Errorf("%v, left %v", err, s.refuse)
	}
}

// A node whose rate is used up for hours says so instead of waiting.
func TestARefusalForLongIsFinal(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.Header().Set("Retry-After", "3600")
		http.Error(w, "too many layers", http.StatusTooManyRequests)
	}))
	defer server.Close()
	c, err := NewClient(server.URL+"/status", Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Upload(t.Context(), Layer{Digest: digest, Size: 3}, strings.NewReader("abc"))
	refused, ok := errors.AsType[*Error](err)
	if !ok || refused.After != time.Hour || asked != 1 {
		t.Errorf("%v after %d requests", err, asked)
	}
}

func TestAServiceThatTakesNothingIsGivenUp(t *testing.T) {
	done := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-done }))
	defer server.Close()
	defer close(done)
	c, err := NewClient(server.URL+"/status", Options{})
	if err != nil {
		t.Fatal(err)
	}
	c.stall = 50 * time.Millisecond
	_, err = c.put(t.Context(), Layer{Digest: digest, Size: 3}, strings.NewReader("abc"), 0)
	if !errors.Is(err, errStall) {
		t.Error(err)
	}
}

func TestServicesOf2017AreUnderstood(t *testing.T) {
	c := start(t, &service{old: true})
	a, err := c.Status(t.Context(), digest)
	if diff := cmp.Diff(&Answer{Status: Publishing, Digest: digest, Plain: true}, a); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestNothingIsSentElsewhere(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked") }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL+"/x", http.StatusFound))
	defer server.Close()
	c, err := NewClient(server.URL+"/status", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.Status(t.Context(), digest); err == nil || !strings.Contains(err.Error(), elsewhere.URL+"/x") {
		t.Error(err)
	}
}
