package pushback

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"cvmfs-graphdriver/pushback/api"
)

const (
	userAgent = "cvmfs-graphdriver"
	askEvery  = time.Second
	tellEvery = 15 * time.Second
	// slowest is how many bytes a second are sent at least, besides waiting.
	slowest = 64 << 10
	// archiveEnd is how many bytes an archive with nothing in it has, at most.
	archiveEnd = 10 << 10
)

// ErrEmpty means that a layer holds nothing.
var ErrEmpty = errors.New("the layer holds nothing")

// Published is a layer that the service has published. It must be closed.
type Published struct {
	Digest string // of its archive: SHA-256 of the gzip file, hex
	DiffID string // SHA-256 of the tar file, hex
	Size   int64  // bytes of the gzip file
	URL    string // cvmfs://FQRN/PATH

	archive *os.File
}

// Archive returns the layer's archive, a tar file, from its beginning.
func (p *Published) Archive() (io.Reader, error) {
	if _, err := p.archive.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return gzip.NewReader(p.archive)
}

// Close lets go of the archive.
func (p *Published) Close() error { return p.archive.Close() }

// Pusher sends layers. It is safe for concurrent use: of equal layers one is sent.
type Pusher struct {
	dir     string // of archives on their way, which have no name
	log     *slog.Logger
	sending sync.Map // digests of layers that are being sent, with channels that are closed when they have been

	tellEvery time.Duration // what a layer is waited for
}

// New makes a pusher that keeps archives on their way in a folder, which it makes. What lies there was left behind, by
// a kill or by an older version, and goes.
func New(dir string, log *slog.Logger) (*Pusher, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	return &Pusher{dir: dir, log: log, tellEvery: tellEvery}, nil
}

// Push archives a layer, an uncompressed tar archive that stands on an image of that origin, sends it to where the
// settings say, and waits until it is published. A layer that is published already is neither sent nor waited for. It
// is ErrEmpty for an archive without entries.
//
// Nothing is left of the archive after a failure, or a kill: equal layers have equal archives, so that the next try
// goes on where the service or the store has got to.
func (p *Pusher) Push(ctx context.Context, s *Settings, layer io.Reader, origin string) (_ *Published, err error) {
	l, archive, err := p.spool(layer)
	if err != nil {
		return nil, err
	}
	published := &Published{Digest: l.Digest, DiffID: l.DiffID, Size: l.Size, archive: archive}
	defer func() {
		if err != nil {
			err = errors.Join(err, archive.Close())
		}
	}()
	limit := time.Duration(s.Wait) + time.Duration(l.Size/slowest)*time.Second
	waiting, stop := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it isn't published after %v", limit))
	defer stop()
	sent, err := p.begin(waiting, l.Digest)
	if err != nil {
		return nil, fmt.Errorf("layer %s isn't published in %s: %w", l.Digest, s.CvmfsRepo, err)
	}
	defer sent()
	l.Node, l.Image = s.node, printable(origin)
	answer, err := p.publish(waiting, s, l, archive)
	if err != nil {
		if temporary(err) {
			err = fmt.Errorf("%w (try again to go on)", err)
		}
		return nil, s.redact(fmt.Errorf("layer %s isn't published in %s: %w", l.Digest, s.CvmfsRepo, err))
	}
	published.URL = answer.URL
	if published.URL == "" { // a service of 2017
		published.URL = "cvmfs://" + s.CvmfsRepo + "/layers/" + l.Digest
	}
	if !strings.HasPrefix(published.URL, "cvmfs://"+s.CvmfsRepo+"/") {
		return nil, s.redact(fmt.Errorf("the service says that layer %s is at %.300q, which isn't in CvmfsRepo, %s",
			l.Digest, published.URL, s.CvmfsRepo))
	}
	return published, nil
}

// begin waits until no equal layer is being sent, and returns what is called when this one has been.
func (p *Pusher) begin(ctx context.Context, digest string) (sent func(), err error) {
	ours := make(chan struct{})
	for {
		other, busy := p.sending.LoadOrStore(digest, ours)
		if !busy {
			return func() {
				p.sending.Delete(digest)
				close(ours)
			}, nil
		}
		select {
		case <-other.(chan struct{}):
		case <-ctx.Done():
			return nil, fmt.Errorf("layer %s is being sent for another commit: %w", digest, context.Cause(ctx))
		}
	}
}

// printable is as much of a text as can be a header of a request.
func printable(text string) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
	return clean[:min(len(clean), 1024)]
}

// spool writes the archive to a file without a name. Equal layers give equal archives.
func (p *Pusher) spool(layer io.Reader) (l api.Layer, archive *os.File, err error) {
	f, err := os.CreateTemp(p.dir, "new-")
	if err != nil {
		return l, nil, fmt.Errorf("archive the layer: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return l, nil, fmt.Errorf("archive the layer: %w", err)
	}
	stored, plain := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(f, stored))
	size, err := io.Copy(io.MultiWriter(z, plain), layer)
	if err = errors.Join(err, z.Close()); err != nil {
		return l, nil, fmt.Errorf("archive the layer in %s: %w", p.dir, err)
	}
	if size <= archiveEnd && isEmpty(f, size) {
		return l, nil, ErrEmpty
	}
	info, err := f.Stat()
	if err != nil {
		return l, nil, fmt.Errorf("archive the layer: %w", err)
	}
	return api.Layer{
		Digest: hex.EncodeToString(stored.Sum(nil)), DiffID: hex.EncodeToString(plain.Sum(nil)), Size: info.Size(),
	}, f, nil
}

// isEmpty reports whether an archive of so many plain bytes has no entry: it is zeros alone.
func isEmpty(f *os.File, size int64) bool {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return false
	}
	b := make([]byte, size)
	_, err = io.ReadFull(z, b)
	return err == nil && strings.Trim(string(b), "\x00") == ""
}

// publish has the service publish an archive, and returns what it says in the end.
func (p *Pusher) publish(ctx context.Context, s *Settings, l api.Layer, archive io.ReaderAt) (*api.Answer, error) {
	service, err := s.service()
	if err != nil {
		return nil, err
	}
	log := p.log.With("layer", l.Digest, "repository", s.CvmfsRepo, "bytes", l.Size)
	answer, err := service.Status(ctx, l.Digest)
	if err == nil {
		if err := s.suits(answer); err != nil {
			return nil, err
		}
	}
	if err == nil && answer.Status == api.Done {
		log.Info("the layer is published already")
		return answer, nil
	}
	if err == nil && answer.Status == api.Failed && strings.HasPrefix(answer.Reason, api.RejectedBy) {
		return nil, fmt.Errorf("the service refuses it: %s", answer.Reason)
	}
	if err != nil && !temporary(err) {
		return nil, err
	}
	log.Info("the layer of a commit is sent")
	var former *api.Answer
	if s.Host != "" {
		if answer != nil && answer.Status == api.Failed {
			former = answer
		}
		// A service of 2017 that doesn't know what is in the bucket has missed the event, and looks for nothing itself.
		missed := answer != nil && answer.Status == api.Unknown && answer.Plain
		err = s.store(ctx, l, archive, former != nil, missed)
	} else {
		_, err = service.Upload(ctx, l, archive)
	}
	if err != nil {
		return nil, said(ctx, err)
	}
	// What sending was given more isn't waited for once all is sent.
	ctx, stop := context.WithTimeoutCause(ctx, time.Duration(s.Wait),
		fmt.Errorf("it isn't published after %v", time.Duration(s.Wait)))
	defer stop()
	answer, err = p.wait(ctx, s, service, l.Digest, former, log)
	if !errors.Is(err, errForgotten) {
		return answer, err
	}
	// It had the layer when it was to be sent, and has found that somebody has removed it since. Once is enough.
	if _, err := service.Upload(ctx, l, archive); err != nil {
		return nil, said(ctx, err)
	}
	return p.wait(ctx, s, service, l.Digest, former, log)
}

// errForgotten says that a service doesn't know a layer that it has taken.
var errForgotten = errors.New("the service doesn't know the layer any more")

// suits refuses a service that can't do what the settings want of it, by what it says of itself.
func (s *Settings) suits(a *api.Answer) error {
	if a.Repository != "" && a.Repository != s.CvmfsRepo {
		return fmt.Errorf("the service publishes in %.255q, and CvmfsRepo is %s: correct CvmfsRepo, or PublishStatusURL",
			a.Repository, s.CvmfsRepo)
	}
	if a.Refusal != "" && s.Host == "" {
		return fmt.Errorf("the service takes no layers from this node: %s", a.Refusal)
	}
	return nil
}

// temporary reports whether a service that couldn't be asked may answer later.
func temporary(err error) bool {
	refused, ok := errors.AsType[*api.Error](err)
	return !ok || refused.Temporary()
}

// said returns why the time is over where that is why something failed.
func said(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// wait asks for the status of a layer that was sent until that is final. A service that doesn't know it yet may be told
// of it later, by the store; until then it says of a layer that it refused before what it said then, former.
func (p *Pusher) wait(ctx context.Context, s *Settings, service *api.Client, digest string, former *api.Answer,
	log *slog.Logger,
) (*api.Answer, error) {
	began, told := time.Now(), time.Now()
	state := "nothing"
	for {
		answer, err := service.Status(ctx, digest)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, said(ctx, fmt.Errorf("the service says: %s", state))
		case err != nil && !temporary(err):
			return nil, err
		case err != nil:
			state = err.Error()
		case answer.Status == api.Done:
			log.Info("the layer is published", "after", time.Since(began).Round(time.Millisecond))
			return answer, nil
		case answer.Status == api.Failed && (former == nil || answer.Reason != former.Reason ||
			!answer.Since.Equal(former.Since)):
			return nil, fmt.Errorf("the service refuses it: %s", answer.Reason)
		case answer.Status == api.Unknown && s.Host == "" && !answer.Plain:
			return nil, errForgotten
		default:
			if answer.Status != api.Failed {
				former = nil // it has seen the new one
			}
			state = strings.TrimRight(fmt.Sprintf("%s: %s", answer.Status, answer.Reason), ": ")
		}
		if time.Since(told) >= p.tellEvery {
			told = time.Now()
			log.Info("the layer of a commit waits to be published", "service", s.hide(state), "for",
				time.Since(began).Round(time.Second))
		}
		select {
		case <-ctx.Done():
			return nil, said(ctx, fmt.Errorf("the service says: %s", state))
		case <-time.After(askEvery):
		}
	}
}

// client returns the client of the store.
func (s *Settings) client() (*minio.Client, error) {
	keys := credentials.NewStaticV4(s.AccessKey, string(s.AccessSecret), "")
	if s.Credentials != "" {
		keys = credentials.NewFileAWSCredentials(s.Credentials, "")
		v, err := keys.GetWithContext(nil)
		if err != nil || v.AccessKeyID == "" || v.SecretAccessKey == "" {
			// the cause may quote the file
			return nil, fmt.Errorf("credentials %s: no access key and secret for the profile in it", s.Credentials)
		}
	}
	lookup := minio.BucketLookupAuto
	if s.PathStyle {
		lookup = minio.BucketLookupPath
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = s.tls.Clone() // transports change theirs
	return minio.New(s.Host, &minio.Options{
		Creds: keys, Secure: s.SSL, Region: s.Region, BucketLookup: lookup, Transport: brief{transport},
	})
}

// maxStoreAnswer bounds an answer of the store, bytes. The longest are lists of a thousand uploads or parts.
const maxStoreAnswer = 8 << 20

// brief is a transport whose answers end where they become too long: who reads them keeps them in memory. An object,
// which is what a query isn't needed for, has any length.
type brief struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b brief) RoundTrip(q *http.Request) (*http.Response, error) {
	answer, err := b.RoundTripper.RoundTrip(q)
	if err == nil && (q.Method != http.MethodGet || q.URL.RawQuery != "" || answer.StatusCode >= 300) {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(answer.Body, maxStoreAnswer), answer.Body}
	}
	return answer, err
}

// key is that of an archive's object.
func (s *Settings) key(digest string) string { return path.Join(s.Prefix, digest) }

// store puts an archive into the bucket, in parts and with their checksums where it is large, unless it is there. Its
// key is its digest: what has the size is the same, or the service finds that it isn't, and it is to be put there
// again. It is also put there again, for the store to tell of it, if the service has missed it.
func (s *Settings) store(ctx context.Context, l api.Layer, archive io.ReaderAt, again, missed bool) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	failed := func(err error) error {
		return fmt.Errorf("send it to the bucket %s of %s: %w", s.Bucket, s.Host, err)
	}
	there, err := client.StatObject(ctx, s.Bucket, s.key(l.Digest), minio.StatObjectOptions{})
	if err == nil && there.Size == l.Size && !again && !missed {
		return nil
	}
	if code := minio.ToErrorResponse(err).Code; err != nil && code != minio.NoSuchKey && code != minio.AccessDenied {
		return failed(err) // who may write need not be allowed to read
	}
	o := minio.PutObjectOptions{
		ContentType: api.ContentType, SendContentMd5: true,
		UserMetadata: map[string]string{
			api.MetaNode: l.Node, api.MetaImage: l.Image, api.MetaDiffID: l.DiffID,
		},
	}
	if l.Size <= partSize {
		_, err = client.PutObject(ctx, s.Bucket, s.key(l.Digest), io.NewSectionReader(archive, 0, l.Size), l.Size, o)
	} else {
		u := upload{
			minio.Core{Client: client}, s.Bucket, s.key(l.Digest), archive, l.Size, max(partSize, l.Size/maxParts+1),
		}
		err = sendInParts(ctx, u, o)
		if refuses(err, minio.NoSuchUpload) {
			// Another sender of the same layer has completed it, or this one without having heard of it.
			there, failed := client.StatObject(ctx, s.Bucket, s.key(l.Digest), minio.StatObjectOptions{})
			if !again && failed == nil && there.Size == l.Size {
				return nil
			}
			err = sendInParts(ctx, u, o)
		}
	}
	if err != nil {
		return failed(err)
	}
	return nil
}

// Try asks the service and the store whether they answer this node, the service whether it publishes in the repository
// of the settings and may be sent layers, and the store whether there is the bucket. It sends nothing. Whether the
// store takes an object isn't known before it is sent one: who may write need not be allowed to look.
func (s *Settings) Try(ctx context.Context) error {
	nobodys := strings.Repeat("0", sha256.Size*2)
	service, err := s.service()
	if err != nil {
		return err
	}
	answer, err := service.Status(ctx, nobodys)
	if err == nil {
		err = s.suits(answer)
	}
	if err != nil || s.Host == "" {
		return err
	}
	client, err := s.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first := <-client.ListObjects(ctx, s.Bucket, minio.ListObjectsOptions{Prefix: s.Prefix, MaxKeys: 1})
	if first.Err != nil && minio.ToErrorResponse(first.Err).Code != minio.AccessDenied {
		return fmt.Errorf("ask the bucket %s of %s: %w", s.Bucket, s.Host, first.Err)
	}
	return nil
}
