package pushback

import (
	"context"
	"crypto/md5" //nolint:gosec // the checksum of a part, as S3 has it
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

const (
	// partSize is that of the parts in which an archive is sent to a store, bytes. A smaller one is sent whole.
	partSize = 16 << 20
	// maxParts is how many parts S3 takes.
	maxParts = 10000
	// abortWait bounds how long uploads are aborted.
	abortWait = 10 * time.Second
)

// upload is one in parts.
type upload struct {
	store       minio.Core
	bucket, key string
	content     io.ReaderAt
	size, part  int64 // bytes of all and of a part, the last one's excepted
}

// sendInParts puts content into a bucket in parts, with their checksums. It goes on with an upload of the same key
// that was broken off, that with the most parts, if the store lets us look for one: of the parts that it has, those
// with the right MD5 sum aren't sent again. Nothing is left of other uploads of the key then. Who sends the same at
// the same time may go on with this upload, or end it: the error has the code NoSuchUpload then.
func sendInParts(ctx context.Context, u upload, o minio.PutObjectOptions) error {
	begun, err := u.begun(ctx)
	found := err == nil
	id, there := "", map[int]minio.ObjectPart{}
	for _, one := range begun {
		// One that can't be read has come to its end, or isn't ours to look at.
		if parts, err := u.parts(ctx, one); err == nil && len(parts) >= len(there) {
			id, there = one, parts
		}
	}
	if id != "" {
		err = u.send(ctx, id, there, o)
		if makesNothing(err) { // nor would it the next time
			id = ""
		}
	}
	if id == "" {
		if id, err = u.store.NewMultipartUpload(ctx, u.bucket, u.key, o); err != nil {
			return err
		}
		err = u.send(ctx, id, nil, o)
	}
	if err != nil {
		if !found { // the next try wouldn't find it either
			err = errors.Join(err, u.abort(ctx, id))
		}
		return err
	}
	// One that can't be ended is the store's to remove, and harms nobody.
	_ = u.abort(ctx, slices.DeleteFunc(begun, func(other string) bool { return other == id })...)
	return nil
}

// makesNothing reports whether a store won't make an object of the parts that it says it has.
func makesNothing(err error) bool {
	return refuses(err, minio.InvalidPart, minio.InvalidPartOrder, minio.EntityTooSmall)
}

// refuses reports whether a store's error is of one of these codes.
func refuses(err error, codes ...string) bool {
	said, ok := errors.AsType[minio.ErrorResponse](err)
	return ok && slices.Contains(codes, said.Code)
}

// abort ends uploads, also after ctx, and doesn't wait for long: a container may be paused meanwhile.
func (u *upload) abort(ctx context.Context, ids ...string) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortWait)
	defer cancel()
	for _, id := range ids {
		err = errors.Join(err, u.store.AbortMultipartUpload(ctx, u.bucket, u.key, id))
	}
	return err
}

// mostPages bounds what is read of a store's lists, a thousand a page: an archive has no more parts.
const mostPages = maxParts/1000 + 1

// begun returns the uploads of the key that are neither completed nor aborted, the latest last.
func (u *upload) begun(ctx context.Context) (ids []string, err error) {
	var uploads []minio.ObjectMultipartInfo
	keyMarker, idMarker := "", ""
	for range mostPages {
		list, err := u.store.ListMultipartUploads(ctx, u.bucket, u.key, keyMarker, idMarker, "", 1000)
		if err != nil {
			return nil, err
		}
		for _, l := range list.Uploads {
			if l.Key == u.key {
				uploads = append(uploads, l)
			}
		}
		if !list.IsTruncated || list.NextKeyMarker == keyMarker && list.NextUploadIDMarker == idMarker {
			break
		}
		keyMarker, idMarker = list.NextKeyMarker, list.NextUploadIDMarker
	}
	slices.SortStableFunc(uploads, func(a, b minio.ObjectMultipartInfo) int { return a.Initiated.Compare(b.Initiated) })
	for _, l := range uploads {
		ids = append(ids, l.UploadID)
	}
	return ids, nil
}

// parts returns the parts that the store has of an upload, by their numbers.
func (u *upload) parts(ctx context.Context, id string) (map[int]minio.ObjectPart, error) {
	parts, marker := map[int]minio.ObjectPart{}, 0
	for range mostPages {
		list, err := u.store.ListObjectParts(ctx, u.bucket, u.key, id, marker, 1000)
		if err != nil {
			return nil, err
		}
		for _, p := range list.ObjectParts {
			parts[p.PartNumber] = p
		}
		if !list.IsTruncated || list.NextPartNumberMarker <= marker {
			break
		}
		marker = list.NextPartNumberMarker
	}
	return parts, nil
}

// send sends the parts that aren't there, and has the store make the object of all.
func (u *upload) send(ctx context.Context, id string, there map[int]minio.ObjectPart, o minio.PutObjectOptions) error {
	var complete []minio.CompletePart
	for n := 1; int64(n-1)*u.part < u.size; n++ {
		from := int64(n-1) * u.part
		size := min(u.part, u.size-from)
		content := io.NewSectionReader(u.content, from, size)
		sum := md5.New() //nolint:gosec // see there
		if _, err := io.Copy(sum, content); err != nil {
			return err
		}
		etag := hex.EncodeToString(sum.Sum(nil))
		if p := there[n]; p.Size != size || strings.Trim(p.ETag, `"`) != etag {
			if _, err := content.Seek(0, io.SeekStart); err != nil {
				return err
			}
			sent, err := u.store.PutObjectPart(ctx, u.bucket, u.key, id, n, content, size, minio.PutObjectPartOptions{
				Md5Base64: base64.StdEncoding.EncodeToString(sum.Sum(nil)),
			})
			if err != nil {
				return err
			}
			etag = sent.ETag
		}
		complete = append(complete, minio.CompletePart{PartNumber: n, ETag: etag})
	}
	_, err := u.store.CompleteMultipartUpload(ctx, u.bucket, u.key, id, complete, o)
	return err
}
