// Package s3 keeps a repository in a bucket of an S3-compatible store, from where readers get it over HTTP.
//
// The words used here:
//
//   - An address names bucket and folder: s3://BUCKET/PREFIX, where the repository's .cvmfspublished is
//     BUCKET/PREFIX/.cvmfspublished. It may say more: ?endpoint=URL (another store than Amazon's), region=NAME,
//     acl=NAME (public-read; "none" sends none, as for buckets that a policy makes readable). It never holds
//     credentials.
//   - Credentials are an access key and its secret. They come from the environment or from a file that its owner alone
//     may read.
//
// Put is atomic as the store makes it so: a file is sent in one request, with its MD5, which the store compares.
package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"cvmfs-graphdriver/cvmfs/publish/storage"
)

// The bounds of waiting. A request that fails for a cause that may pass is tried again, so often.
const (
	attempts   = 5
	askTimeout = 2 * time.Minute // for what has no content worth the name, attempts included
	stall      = time.Minute     // without a byte
	slowest    = 64 << 10        // bytes a second a file is sent with at least
)

// What caches may keep, as the reference's publisher says it.
const (
	objectCaching  = "max-age=259200"
	mutableCaching = "max-age=61"
)

// Storage is a repository in a bucket.
type Storage struct {
	core    minio.Core
	address address
	stall   time.Duration // of what is listed
}

var _ storage.Storage = (*Storage)(nil)

// address is a parsed address.
type address struct {
	bucket, prefix string // the prefix has no slash at its ends
	endpoint       *url.URL
	region         string
	acl            string // "": none
}

// Open returns the storage at an address. It asks the store nothing.
func Open(text string, o Options) (*Storage, error) {
	s, err := open(text, o)
	if err != nil {
		return nil, fmt.Errorf("open storage %.300s: %w", redacted(text), err)
	}
	return s, nil
}

func open(text string, o Options) (*Storage, error) {
	a, err := parse(text)
	if err != nil {
		return nil, err
	}
	if a.prefix == "" {
		return nil, errors.New("want s3://BUCKET/PREFIX")
	}
	return a.open(o)
}

// open opens what lies at an address.
func (a *address) open(o Options) (_ *Storage, err error) {
	if a.endpoint == nil {
		if a.endpoint, err = parseEndpoint(o.endpoint()); err != nil {
			return nil, err
		}
	}
	if a.region == "" {
		a.region = o.region()
	}
	credentials, err := o.credentials()
	if err != nil {
		return nil, err
	}
	secure := a.endpoint.Scheme == "https"
	transport, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, err
	}
	transport.ResponseHeaderTimeout = stall
	core, err := minio.NewCore(a.endpoint.Host, &minio.Options{
		Creds: credentials, Secure: secure, Region: a.region, Transport: transport, MaxRetries: attempts,
	})
	if err != nil {
		return nil, err
	}
	return &Storage{*core, *a, stall}, nil
}

// parse reads an address.
func parse(text string) (*address, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("not an address") // the cause would show what may be a secret
	}
	prefix := strings.Trim(u.Path, "/")
	switch {
	case u.User != nil:
		return nil, errors.New("an address holds no credentials: put them into the environment or a file")
	case u.Scheme != "s3" || u.Host == "" || u.Fragment != "" || prefix != "" && path.Clean(prefix) != prefix ||
		strings.HasPrefix(prefix, ".."):
		return nil, errors.New("want s3://BUCKET/PREFIX")
	}
	a := &address{bucket: u.Host, prefix: prefix, acl: "public-read"}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("not an address")
	}
	for name, values := range query {
		if len(values) != 1 || values[0] == "" {
			return nil, fmt.Errorf("%.40q: want one value", name)
		}
		switch name {
		case "endpoint":
			if a.endpoint, err = parseEndpoint(values[0]); err != nil {
				return nil, err
			}
		case "region":
			a.region = values[0]
		case "acl":
			if a.acl = values[0]; a.acl == "none" {
				a.acl = ""
			}
		default:
			return nil, fmt.Errorf("%.40q is unknown: there are endpoint, region and acl", name)
		}
	}
	return a, nil
}

func parseEndpoint(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, errors.New("endpoint: want https://HOST[:PORT] or http://HOST[:PORT]")
	}
	return u, nil
}

// redacted is an address without what could be a password.
func redacted(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "s3://…"
	}
	return u.Redacted()
}

// String is the address.
func (s *Storage) String() string { return "s3://" + s.address.bucket + "/" + s.address.prefix }

// key is a file's name in the bucket.
func (s *Storage) key(name string) string {
	if s.address.prefix == "" {
		return name
	}
	return s.address.prefix + "/" + name
}

// Put stores a file. Content that can't be read twice is held in memory.
func (s *Storage) Put(ctx context.Context, name string, content io.Reader, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout+time.Duration(size/slowest)*time.Second)
	defer cancel()
	caching, kind := mutableCaching, "application/x-cvmfs"
	if strings.HasPrefix(name, "data/") {
		caching, kind = objectCaching, "application/octet-stream"
	}
	o := minio.PutObjectOptions{
		CacheControl: caching, ContentType: kind, SendContentMd5: true, DisableContentSha256: true,
		DisableMultipart: true,
	}
	if s.address.acl != "" {
		o.UserMetadata = map[string]string{"x-amz-acl": s.address.acl}
	}
	if _, err := s.core.Client.PutObject(ctx, s.address.bucket, s.key(name), content, size, o); err != nil {
		return fmt.Errorf("store %s in %v: %w", name, s, known(err))
	}
	return nil
}

// Get opens a file. A server that sends nothing for a while ends it.
func (s *Storage) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	body, _, _, err := s.core.GetObject(ctx, s.address.bucket, s.key(name), minio.GetObjectOptions{})
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("get %s from %v: %w", name, s, known(err))
	}
	timer := time.AfterFunc(stall, func() { cancel(fmt.Errorf("%s from %v: nothing came for %v", name, s, stall)) })
	timer.Stop() // it runs while something is read
	return &content{body: body, cancel: cancel, timer: timer, cause: func() error { return context.Cause(ctx) }}, nil
}

// content is a file that is being read.
type content struct {
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	timer  *time.Timer
	cause  func() error
}

func (c *content) Read(p []byte) (int, error) {
	c.timer.Reset(stall)
	n, err := c.body.Read(p)
	c.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) && c.cause() != nil {
		err = c.cause()
	}
	return n, err
}

func (c *content) Close() error {
	c.timer.Stop()
	err := c.body.Close()
	c.cancel(nil)
	return err
}

// Stat returns a file's size.
func (s *Storage) Stat(ctx context.Context, name string) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	info, err := s.core.StatObject(ctx, s.address.bucket, s.key(name), minio.StatObjectOptions{})
	if err != nil {
		return 0, fmt.Errorf("look for %s in %v: %w", name, s, known(err))
	}
	return info.Size, nil
}

// removedAtOnce is how many files one request removes, the most a store takes.
const removedAtOnce = 1000

// Remove removes files.
func (s *Storage) Remove(ctx context.Context, names ...string) error {
	for len(names) > 0 {
		n := min(len(names), removedAtOnce)
		if err := s.remove(ctx, names[:n]); err != nil {
			return fmt.Errorf("remove from %v: %w", s, err)
		}
		names = names[n:]
	}
	return nil
}

func (s *Storage) remove(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	keys := make(chan minio.ObjectInfo, len(names))
	for _, name := range names {
		keys <- minio.ObjectInfo{Key: s.key(name)}
	}
	close(keys)
	var failed error
	for e := range s.core.RemoveObjects(ctx, s.address.bucket, keys, minio.RemoveObjectsOptions{}) {
		if err := known(e.Err); failed == nil && !errors.Is(err, fs.ErrNotExist) {
			failed = fmt.Errorf("%s: %w", e.ObjectName, err)
		}
	}
	if failed == nil {
		failed = context.Cause(ctx)
	}
	return failed
}

// List calls fn for each file whose name begins with prefix.
func (s *Storage) List(ctx context.Context, prefix string, fn func(storage.File) error) error {
	err := s.list(ctx, prefix, func(name string, o minio.ObjectInfo) error {
		return fn(storage.File{Name: name, Size: o.Size, Modified: o.LastModified})
	})
	if err != nil {
		return fmt.Errorf("list %s in %v: %w", prefix, s, err)
	}
	return nil
}

// list calls fn for each object whose key begins with prefix, with its name. A server that sends nothing for a while
// ends it.
func (s *Storage) list(ctx context.Context, prefix string, fn func(name string, o minio.ObjectInfo) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(s.stall, func() { cancel(fmt.Errorf("nothing came for %v", s.stall)) })
	defer timer.Stop()
	for o := range s.core.Client.ListObjects(ctx, s.address.bucket,
		minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true}) {
		timer.Stop() // what fn does takes its own time
		err := known(o.Err)
		if name, ok := strings.CutPrefix(o.Key, s.key("")); err == nil && !ok {
			err = fmt.Errorf("%.200q is not what was asked for", o.Key)
		} else if err == nil {
			err = fn(name, o)
		}
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		timer.Reset(s.stall)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// Sync does nothing: what a store has confirmed is as safe as it gets.
func (s *Storage) Sync(context.Context) error { return nil }

// known tells in the words of callers what a store's error means. A bucket that isn't there is no file that isn't
// there.
func known(err error) error {
	var answer minio.ErrorResponse
	switch {
	case !errors.As(err, &answer):
		return err
	case answer.Code == minio.NoSuchBucket:
		return fmt.Errorf("%w: make the bucket first", err)
	case answer.Code == minio.NoSuchKey || answer.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: %s", fs.ErrNotExist, answer.Message)
	case answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%w (%s): give credentials that may read, write, list and remove there", fs.ErrPermission,
			answer.Code)
	}
	return err
}
