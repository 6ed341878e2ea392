package pushback

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"

	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
	"cvmfs-graphdriver/pushback/api"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/testutil"
)

// senderVariable makes this program one that sends a large layer: to the store and by the service that it names.
const senderVariable = "PUSHBACK_TEST_SENDER"

func TestMain(m *testing.M) {
	if text := os.Getenv(senderVariable); text != "" {
		if err := send(strings.Fields(text)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func send(args []string) error {
	p, err := New(args[2], slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	content, err := layerOf(largeContent())
	if err != nil {
		return err
	}
	published, err := p.Push(context.Background(), settingsOf(args[0], args[1]), content, "registry.example.org/x:1")
	if err != nil {
		return err
	}
	return published.Close()
}

// largeContent is sent in two parts.
func largeContent() string { return string(testutil.Sample(partSize + partSize/4)) }

// storeBehind starts a store for a rig, with its bucket and a front before it. The front answers what before returns
// false for, and the store the rest.
func storeBehind(t *testing.T, r *rig, before func(w http.ResponseWriter, q *http.Request, store http.Handler) bool) (
	client *minio.Client,
) {
	t.Helper()
	program := engine.StoreFor(t)
	address := testutil.ClosedAddress(t, "127.0.0.1")
	s3test.Start(t, program, address)
	r.service.byStore = true
	store := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if before(w, q, store) {
			store.ServeHTTP(w, q)
		}
	}))
	t.Cleanup(front.Close)
	r.settings.Host = strings.TrimPrefix(front.URL, "http://")
	client, err := r.settings.client()
	if err == nil {
		err = client.MakeBucket(t.Context(), s3test.Bucket, minio.MakeBucketOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// partOf returns the number of the part that a request sends, "" of any other.
func partOf(q *http.Request) string {
	if q.Method != http.MethodPut {
		return ""
	}
	return q.URL.Query().Get("partNumber")
}

// A sender that is killed leaves an upload in parts behind. The next one goes on with it, and nothing of it, nor of
// another one, is left then.
func TestAKilledUploadInPartsIsGoneOnWith(t *testing.T) {
	r := newRig(t, "unknown", "unknown", "done")
	var mu sync.Mutex
	var parts []string // that were sent, by their numbers
	var sender *exec.Cmd
	client := storeBehind(t, r, func(_ http.ResponseWriter, q *http.Request, _ http.Handler) bool {
		if n := partOf(q); n != "" {
			mu.Lock()
			parts = append(parts, n)
			killed := n == "2" && len(parts) == 2
			mu.Unlock()
			if killed {
				if err := sender.Process.Kill(); err != nil {
					t.Error(err)
				}
				panic(http.ErrAbortHandler) // net/http's way to close the connection without an answer
			}
		}
		return true
	})

	sender = exec.Command(os.Args[0])
	sender.Env = append(os.Environ(), senderVariable+"="+strings.Join([]string{
		r.settings.Host, r.settings.PublishStatusURL, t.TempDir(),
	}, " "))
	var said bytes.Buffer
	sender.Stdout, sender.Stderr = &said, &said
	if err := sender.Run(); err == nil || said.Len() > 0 {
		t.Fatalf("the sender ends by itself: %v: %s", err, &said)
	}
	left := func() (keys []string) {
		for l := range client.ListIncompleteUploads(t.Context(), s3test.Bucket, "", true) {
			if l.Err != nil {
				t.Fatal(l.Err)
			}
			keys = append(keys, l.Key)
		}
		return keys
	}
	broken := left()
	if len(broken) != 1 || !slices.Equal(parts, []string{"1", "2"}) {
		t.Fatalf("it has sent the parts %v, and left the uploads %v", parts, broken)
	}

	other := minio.Core{Client: client}
	if _, err := other.NewMultipartUpload(t.Context(), s3test.Bucket, broken[0], minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	parts = nil
	p, err := r.push(largeContent())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(parts, []string{"2"}) {
		t.Errorf("the next one sends the parts %v", parts)
	}
	if uploads := left(); len(uploads) > 0 {
		t.Errorf("uploads that are left: %v", uploads)
	}
	o, err := client.GetObject(t.Context(), s3test.Bucket, broken[0], minio.GetObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	sum := sha256.New()
	if n, err := io.Copy(sum, o); err != nil || n != p.Size || hex.EncodeToString(sum.Sum(nil)) != p.Digest {
		t.Errorf("the store has %d bytes, %v, want %d and the digest %s", n, err, p.Size, p.Digest)
	}
	if info, err := o.Stat(); err != nil || info.UserMetadata["Node"] != "node7" {
		t.Errorf("the object is %+v, %v", info, err)
	}
}

// failsWith answers a request as a store does that refuses it.
func failsWith(w http.ResponseWriter, status int, code string) bool {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
	return false
}

// completes reports whether a request is to make an object of an upload's parts.
func completes(q *http.Request) bool {
	return q.Method == http.MethodPost && q.URL.Query().Get("uploadId") != ""
}

// Of two that send the same layer, one completes the upload that the other one is at.
func TestAnUploadThatAnotherSenderHasCompletedIsSent(t *testing.T) {
	r := newRig(t, "unknown", "unknown", "done")
	var parts atomic.Int32
	storeBehind(t, r, func(w http.ResponseWriter, q *http.Request, store http.Handler) bool {
		if partOf(q) != "" {
			parts.Add(1)
		}
		if !completes(q) {
			return true
		}
		store.ServeHTTP(httptest.NewRecorder(), q)
		return failsWith(w, http.StatusNotFound, minio.NoSuchUpload)
	})
	if _, err := r.push(largeContent()); err != nil {
		t.Fatal(err)
	}
	if n := parts.Load(); n != 2 {
		t.Errorf("%d parts were sent", n)
	}
}

func TestListsThatDoNotEndAreReadNoFurther(t *testing.T) {
	var pages atomic.Int32
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch {
		case q.Method == http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		case q.Method == http.MethodGet && q.URL.Query().Has("uploads"):
			fmt.Fprintf(w, "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>"+
				"<NextUploadIdMarker>%d</NextUploadIdMarker></ListMultipartUploadsResult>", pages.Add(1))
		default:
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer store.Close()
	s := settingsOf(strings.TrimPrefix(store.URL, "http://"), "")
	l := api.Layer{Digest: strings.Repeat("a", 64), Size: partSize + 1}
	if err := s.store(t.Context(), l, bytes.NewReader(make([]byte, l.Size)), false, false); err == nil {
		t.Error("no error")
	}
	if n := pages.Load(); n != mostPages {
		t.Errorf("%d pages are read, want %d", n, mostPages)
	}
}

// A store may have lost of an upload what it says it has: it isn't gone on with for ever.
func TestAnUploadThatMakesNoObjectIsBegunAnew(t *testing.T) {
	r := newRig(t, "unknown", "unknown", "unknown", "done")
	var broken, parts atomic.Value // the first upload's id, and the parts sent after it
	parts.Store("")
	client := storeBehind(t, r, func(w http.ResponseWriter, q *http.Request, _ http.Handler) bool {
		if n := partOf(q); n != "" {
			parts.Store(parts.Load().(string) + n)
		}
		if !completes(q) {
			return true
		}
		id := q.URL.Query().Get("uploadId")
		if broken.CompareAndSwap(nil, id) || broken.Load() == id {
			return failsWith(w, http.StatusBadRequest, minio.InvalidPart)
		}
		return true
	})
	if _, err := r.push(largeContent()); err == nil || !strings.Contains(err.Error(), "bucket") {
		t.Fatalf("a new upload of which the store makes nothing: %v", err)
	}
	parts.Store("")
	if _, err := r.push(largeContent()); err != nil {
		t.Fatal(err)
	}
	if sent := parts.Load(); sent != "12" {
		t.Errorf("the parts %s were sent", sent)
	}
	for l := range client.ListIncompleteUploads(t.Context(), s3test.Bucket, "", true) {
		t.Errorf("an upload is left: %+v", l)
	}
}

func TestAStoreThatDoesNotEndIsReadNoFurther(t *testing.T) {
	var sent atomic.Int64
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodHead {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if !q.URL.Query().Has("uploads") || q.Method != http.MethodGet {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		io.WriteString(w, "<ListMultipartUploadsResult>")
		some := strings.Repeat("<Upload><Key>x</Key><UploadId>1</UploadId></Upload>", 1000)
		for sent.Load() < 10*maxStoreAnswer {
			if _, err := io.WriteString(w, some); err != nil {
				return
			}
			sent.Add(int64(len(some)))
		}
	}))
	defer store.Close()
	s := settingsOf(strings.TrimPrefix(store.URL, "http://"), "")
	l := api.Layer{Digest: strings.Repeat("a", 64), Size: partSize + 1}
	if err := s.store(t.Context(), l, bytes.NewReader(nil), false, false); err == nil {
		t.Error("it took the layer")
	}
	if n := sent.Load(); n == 0 || n > 4*maxStoreAnswer { // the kernel takes some
		t.Errorf("it sent %d bytes", n)
	}
}
