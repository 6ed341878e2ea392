package receive

import (
	"archive/tar"
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
	"cvmfs-graphdriver/pushback/api"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/testutil"
)

// realStore runs a store that checks signatures, with a bucket, at an address. It tells a service of objects.
func realStore(t *testing.T, program, address, service, token string) *minio.Client {
	t.Helper()
	events := strings.Replace(service, "http://", "http://store:"+token+"@", 1) + api.EventsPath
	s3test.Start(t, program, address, "--event-webhook-url", events)
	client, err := minio.New(address, &minio.Options{
		Creds: credentials.NewStaticV4(s3test.AccessKey, s3test.SecretKey, ""),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.MakeBucket(t.Context(), api.DefaultBucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return client
}

// send puts a layer into a store as a node does; in parts where it is large.
func send(t *testing.T, client *minio.Client, key string, l layer) {
	t.Helper()
	_, err := client.PutObject(t.Context(), api.DefaultBucket, key, bytes.NewReader(l.archive), int64(len(l.archive)),
		minio.PutObjectOptions{
			ContentType: api.ContentType, PartSize: 5 << 20,
			UserMetadata: map[string]string{api.MetaNode: "n1", api.MetaImage: "a:1", api.MetaDiffID: l.diffID},
		})
	if err != nil {
		t.Fatal(err)
	}
}

func TestARealStoreTellsOfLayersAndGivesThem(t *testing.T) {
	program := engine.StoreFor(t)
	c := newConfig(t)
	c.Listen = testutil.ClosedAddress(t, "127.0.0.1")
	store := testutil.ClosedAddress(t, "127.0.0.1")
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	c.Bucket.Address, c.Bucket.Poll = "s3://"+api.DefaultBucket+"?endpoint=http://"+store, time.Hour
	_, stop := run(t, c) // first: a store tries the address that it tells of objects
	client := realStore(t, program, store, "http://"+c.Listen, token1)
	node, err := api.NewClient("http://"+c.Listen+"/status", api.Options{Token: token1})
	if err != nil {
		t.Fatal(err)
	}
	large := zipped(t, testutil.Tar(t, tar.Header{
		Name: "large", Typeflag: tar.TypeReg, Linkname: string(testutil.Sample(12 << 20)),
	}))
	small := newLayer(t, "small")
	send(t, client, "folder/deep/"+large.digest, large)
	send(t, client, small.digest, small)
	becomes(t, node, large, api.Done) // by events: the next poll is far
	becomes(t, node, small, api.Done)
	bad := newLayer(t, "bad")
	bad.digest = strings.Repeat("1", 64)
	send(t, client, bad.digest, bad)
	becomes(t, node, bad, api.Failed)
	stop()
	before := newLayer(t, "before")
	send(t, client, "folder/"+before.digest, before)
	_, stop = run(t, c)
	defer stop()
	becomes(t, node, before, api.Done) // by the first poll
	left := func() (keys []string) {
		for o := range client.ListObjects(t.Context(), api.DefaultBucket, minio.ListObjectsOptions{Recursive: true}) {
			if !strings.HasSuffix(o.Key, "/") {
				keys = append(keys, o.Key)
			}
		}
		return keys
	}
	want := []string{bad.digest}
	for end := time.Now().Add(10 * time.Second); !slices.Equal(left(), want); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left: %v, want %v", left(), want) // it is removed once it is known to be published
		}
	}
	// what a list and a look at an object say is the same: it isn't judged again
	if lines := audited(t, c, bad); decided(lines) != "received refused" {
		t.Errorf("audit: %+v", lines)
	}
	for _, l := range []layer{before, large, small} {
		lines := audited(t, c, l)
		if decided(lines) != "received published" || lines[0].Node != "n1" || lines[0].Image != "a:1" {
			t.Errorf("audit: %+v", lines)
		}
	}
}
