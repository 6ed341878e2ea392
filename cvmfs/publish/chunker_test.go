package publish

import (
	"testing"

	"cvmfs-graphdriver/test/testutil"

	"github.com/google/go-cmp/cmp"
)

// cuts feeds pieces of the given length.
func cuts(c *chunker, b []byte, piece int) (at []int) {
	for done := 0; done < len(b); {
		n, cut := c.next(b[done:min(done+piece, len(b))])
		done += n
		if cut {
			at = append(at, done)
		}
	}
	return at
}

func TestCutsAreThoseOfTheReference(t *testing.T) {
	for _, v := range []struct {
		least, average, most, size int
		want                       []int
	}{
		{4096, 8192, 16384, 100_000, []int{
			6177, 17952, 23571, 30121, 35285, 39763, 47876, 59614, 67257, 77005, 85604,
			95273,
		}},
		{4 << 20, 8 << 20, 16 << 20, 41_943_040, []int{8059046, 13774758, 28421577, 33356038, 39016113}},
	} {
		b := testutil.Sample(v.size)
		for _, piece := range []int{len(b), 4096, 1000, 7} {
			got := cuts(newChunker(v.least, v.average, v.most), b, piece)
			if diff := cmp.Diff(v.want, got); diff != "" {
				t.Errorf("%d bytes fed by %d (-want +got):\n%s", v.size, piece, diff)
			}
		}
	}
}

func TestBytesThatAreAllTheSameAreCutAtTheLargestSize(t *testing.T) {
	got := cuts(newChunker(4096, 8192, 16384), make([]byte, 40_000), 1<<20)
	if diff := cmp.Diff([]int{16384, 32768}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
