package s3

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/minio/minio-go/v7"
)

// Bucket is a bucket, or what lies below a prefix in one, of which others fill objects.
type Bucket struct{ s *Storage }

// Object is an object in a bucket.
type Object struct {
	Key      string            // below the bucket's prefix
	Size     int64             // bytes
	Version  string            // differs where the object has been replaced
	Metadata map[string]string // of whoever put it, by names in lower case; List doesn't tell it
}

// OpenBucket returns the bucket at an address, which is that of a repository but for the prefix, which may be missing.
// It asks the store nothing.
func OpenBucket(text string, o Options) (*Bucket, error) {
	a, err := parse(text)
	if err == nil {
		var s *Storage
		if s, err = a.open(o); err == nil {
			return &Bucket{s}, nil
		}
	}
	return nil, fmt.Errorf("open bucket %.300s: %w", redacted(text), err)
}

// Name is the bucket's own, without the prefix.
func (b *Bucket) Name() string { return b.s.address.bucket }

// String is the address.
func (b *Bucket) String() string { return strings.TrimSuffix(b.s.String(), "/") }

// Below returns an object's key below the prefix; false if it lies elsewhere in the bucket.
func (b *Bucket) Below(key string) (string, bool) { return strings.CutPrefix(key, b.s.key("")) }

// List calls fn for each object.
func (b *Bucket) List(ctx context.Context, fn func(Object) error) error {
	err := b.s.list(ctx, "", func(key string, o minio.ObjectInfo) error {
		return fn(Object{Key: key, Size: o.Size, Version: version(o)})
	})
	if err != nil {
		return fmt.Errorf("list %v: %w", b, err)
	}
	return nil
}

// version names an object by what a list and a look at it tell alike: times to the second.
func version(o minio.ObjectInfo) string { return fmt.Sprintf("%s %d", o.ETag, o.LastModified.Unix()) }

// Stat returns an object; the error is fs.ErrNotExist if there is none.
func (b *Bucket) Stat(ctx context.Context, key string) (*Object, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	o, err := b.s.core.StatObject(ctx, b.Name(), b.s.key(key), minio.StatObjectOptions{})
	if err != nil {
		return nil, fmt.Errorf("look for %s in %v: %w", key, b, known(err))
	}
	metadata := map[string]string{}
	for name, value := range o.UserMetadata {
		metadata[strings.ToLower(name)] = value
	}
	return &Object{Key: key, Size: o.Size, Version: version(o), Metadata: metadata}, nil
}

// Get opens an object. A server that sends nothing for a while ends it.
func (b *Bucket) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	return b.s.Get(ctx, key)
}

// Remove removes an object; one that isn't there is no error.
func (b *Bucket) Remove(ctx context.Context, key string) error { return b.s.Remove(ctx, key) }
