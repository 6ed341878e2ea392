package publish_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/hash"
	. "cvmfs-graphdriver/cvmfs/publish"
	. "cvmfs-graphdriver/test/publishtest"
)

func TestMain(m *testing.M) { Main(m, nil) }

func TestLayerReadsBackEntryByEntry(t *testing.T) {
	for _, algorithm := range []string{"sha1", "shake128"} {
		for _, compression := range []string{"zlib", "none"} {
			t.Run(algorithm+" "+compression, func(t *testing.T) {
				r := New(t, Small(Settings{Algorithm: algorithm, Compression: compression}))
				tx := Begin(t, r)
				layer := Ingest(t, tx, "/layers/one", Pack(t, Everything()...))
				if diff := cmp.Diff(Leftover{}, layer.Leftover); diff != "" {
					t.Errorf("leftover (-want +got):\n%s", diff)
				}
				if s := Commit(t, tx); !s.Changed || s.Revision != 1 {
					t.Errorf("summary %+v", s)
				}
				got := ReadAll(t, Newest(t, r), "/layers/one")
				want := Expect(Everything())
				newest := Seen{
					Mode:   0o040755,
					Mtime:  At.Unix(),
					MtimeN: int32(At.Nanosecond()),
				}
				want[""] = newest
				want[".cvmfscatalog"] = Seen{
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
