// Package s3test is a small S3 store for tests: it speaks the protocol over HTTP on loopback, and fails as it is told.
package s3test

import (
	"bufio"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The one Bucket, and who may use it.
const (
	Bucket    = "layers"
	AccessKey = "AKIDEXAMPLE"
	SecretKey = "the-secret-that-is-never-printed"
)

// Store is a store with one Bucket.
type Store struct {
	*httptest.Server
	t testing.TB

	mu sync.Mutex // held while a request is answered

	// To be looked at and changed while no request is under way.
	Objects map[string]Object // by key
	Fail    int               // so many requests are answered with 503
	Cut     bool              // content breaks off halfway
	Lists   int               // pages of names given
}

// Object is what is stored under a key: its content, the headers it was put with, and when that was.
type Object struct {
	Content  []byte
	Header   http.Header
	Modified time.Time
}

func (o Object) etag() string {
	sum := md5.Sum(o.Content)
	return strconv.Quote(hex.EncodeToString(sum[:]))
}

// NewStore makes a store that lives as long as the test.
func NewStore(t testing.TB) *Store {
	t.Helper()
	s := &Store{t: t, Objects: map[string]Object{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// Address is that of a repository in the store.
func (s *Store) Address() string { return "s3://" + Bucket + "/cvmfs/repo?endpoint=" + s.URL }

// Set puts an object into the store, also while requests are under way.
func (s *Store) Set(key string, content []byte, header http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Objects[key] = Object{content, header, time.Now()}
}

// Keys returns those of all objects, sorted, also while requests are under way.
func (s *Store) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.Objects))
}

// Env is an environment with the store's credentials.
func Env(name string) string {
	return map[string]string{"AWS_ACCESS_KEY_ID": AccessKey, "AWS_SECRET_ACCESS_KEY": SecretKey}[name]
}

type errorReply struct {
	XMLName xml.Name `xml:"Error"`
	Code    string
	Message string
}

func reply(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if value != nil {
		xml.NewEncoder(w).Encode(value) // a client that went away is the test's matter
	}
}

// ServeHTTP answers a request.
func (s *Store) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Fail > 0 {
		s.Fail--
		reply(w, http.StatusServiceUnavailable, errorReply{Code: "SlowDown", Message: "later"})
		return
	}
	signature := q.Header.Get("Authorization")
	if !strings.HasPrefix(signature, "AWS4-HMAC-SHA256 Credential="+AccessKey+"/") ||
		!strings.Contains(signature, "Signature=") {
		reply(w, http.StatusForbidden, errorReply{Code: "AccessDenied", Message: "no signature"})
		return
	}
	name, key, _ := strings.Cut(strings.TrimPrefix(q.URL.Path, "/"), "/")
	switch {
	case name != Bucket:
		reply(w, http.StatusNotFound, errorReply{Code: "NoSuchBucket", Message: "no such bucket"})
	case q.Method == http.MethodPut:
		s.put(w, q, key)
	case q.Method == http.MethodPost && q.URL.Query().Has("delete"):
		s.remove(w, q)
	case q.Method == http.MethodGet && key == "":
		s.list(w, q)
	case q.Method == http.MethodGet || q.Method == http.MethodHead:
		s.get(w, q, key)
	default:
		s.t.Errorf("unexpected request %s %s", q.Method, q.URL)
		reply(w, http.StatusNotImplemented, errorReply{Code: "NotImplemented"})
	}
}

func (s *Store) put(w http.ResponseWriter, q *http.Request, key string) {
	body := io.Reader(q.Body)
	if strings.HasPrefix(q.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		body = &chunked{in: bufio.NewReader(q.Body)}
	}
	content, err := io.ReadAll(body)
	if err != nil {
		return // the client gave up: nothing is stored
	}
	sum := md5.Sum(content)
	if q.Header.Get("Content-MD5") != base64.StdEncoding.EncodeToString(sum[:]) {
		reply(w, http.StatusBadRequest, errorReply{Code: "BadDigest", Message: "Content-MD5 doesn't match"})
		return
	}
	s.Objects[key] = Object{content, q.Header.Clone(), time.Now()}
	w.Header().Set("ETag", s.Objects[key].etag())
}

// chunked reads what a client has signed in pieces: "SIZE;chunk-signature=…", and the piece; the last one is empty.
type chunked struct {
	in   *bufio.Reader
	left int64
}

func (c *chunked) Read(p []byte) (int, error) {
	if c.left == 0 {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return 0, io.ErrUnexpectedEOF
		}
		if _, err := fmt.Sscanf(line, "%x;", &c.left); err != nil {
			return 0, err
		}
		if c.left == 0 {
			return 0, io.EOF
		}
	}
	n, err := c.in.Read(p[:min(int64(len(p)), c.left)])
	if c.left -= int64(n); c.left == 0 && err == nil {
		_, err = c.in.Discard(len("\r\n"))
	}
	return n, err
}

func (s *Store) get(w http.ResponseWriter, q *http.Request, key string) {
	o, ok := s.Objects[key]
	if !ok {
		reply(w, http.StatusNotFound, errorReply{Code: "NoSuchKey", Message: "no such key"})
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(o.Content)))
	w.Header().Set("Last-Modified", o.Modified.UTC().Format(http.TimeFormat))
	w.Header().Set("ETag", o.etag())
	for name, values := range o.Header {
		if strings.HasPrefix(name, "X-Amz-Meta-") {
			w.Header()[name] = values
		}
	}
	content := o.Content
	if s.Cut {
		content = content[:len(content)/2]
	}
	if q.Method == http.MethodGet {
		w.Write(content)
	}
}

// mostRemoved is how many objects one request may remove, in S3 as here.
const mostRemoved = 1000

func (s *Store) remove(w http.ResponseWriter, q *http.Request) {
	var request struct {
		Object []struct{ Key string }
	}
	if err := xml.NewDecoder(q.Body).Decode(&request); err != nil || len(request.Object) > mostRemoved {
		reply(w, http.StatusBadRequest, errorReply{Code: "MalformedXML"})
		return
	}
	for _, o := range request.Object {
		delete(s.Objects, o.Key)
	}
	reply(w, http.StatusOK, struct {
		XMLName xml.Name `xml:"DeleteResult"`
	}{})
}

type listed struct {
	Key          string
	Size         int
	LastModified string
	ETag         string
}

// list returns two names a page.
func (s *Store) list(w http.ResponseWriter, q *http.Request) {
	s.Lists++
	prefix, after := q.URL.Query().Get("prefix"), q.URL.Query().Get("continuation-token")
	var keys []string
	for key := range s.Objects {
		if strings.HasPrefix(key, prefix) && key > after {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	answer := struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		Name                  string
		IsTruncated           bool
		NextContinuationToken string
		Contents              []listed
	}{Name: Bucket, IsTruncated: len(keys) > 2}
	if answer.IsTruncated {
		keys = keys[:2]
		answer.NextContinuationToken = keys[1]
	}
	for _, key := range keys {
		answer.Contents = append(answer.Contents, listed{
			key, len(s.Objects[key].Content),
			s.Objects[key].Modified.UTC().Format(time.RFC3339), s.Objects[key].etag(),
		})
	}
	reply(w, http.StatusOK, answer)
}
