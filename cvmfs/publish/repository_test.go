package publish_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/hash"
	. "cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/publishtest"
)

func TestMain(m *testing.M) { publishtest.Main(m, nil) }

func TestLayerReadsBackEntryByEntry(t *testing.T) {
	for _, algorithm := range []string{"sha1", "shake128"} {
		for _, compression := range []string{"zlib", "none"} {
			t.Run(algorithm+" "+compression, func(t *testing.T) {
				r := publishtest.New(t, publishtest.Small(Settings{Algorithm: algorithm, Compression: compression}))
				tx := publishtest.Begin(t, r)
				layer := publishtest.Ingest(t, tx, "/layers/one", publishtest.Pack(t, publishtest.Everything()...))
				if diff := cmp.Diff(Leftover{}, layer.Leftover); diff != "" {
					t.Errorf("leftover (-want +got):\n%s", diff)
				}
				if s := publishtest.Commit(t, tx); !s.Changed || s.Revision != 1 {
					t.Errorf("summary %+v", s)
				}
				got := publishtest.ReadAll(t, publishtest.Newest(t, r), "/layers/one")
				want := publishtest.Expect(publishtest.Everything())
				newest := publishtest.Seen{
					Mode:   0o040755,
					Mtime:  publishtest.At.Unix(),
					MtimeN: int32(publishtest.At.Nanosecond()),
				}
				want[""] = newest
				want[".cvmfscatalog"] = publishtest.Seen{
					Mode: 0o100644, Mtime: newest.Mtime, MtimeN: newest.MtimeN, Nlink: 1,
					Content: hash.SHA1.Digest(nil).Hex(),
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		}
	}
}
