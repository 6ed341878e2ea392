package publish_test

import (
	"fmt"
	"testing"

	. "cvmfs-graphdriver/cvmfs/publish"
	. "cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
)

// chunksOf publishes a file of so many bytes and returns the sizes of its chunks, which hold all of it; none where it
// is one object.
func chunksOf(t *testing.T, r *Repository, size int) (sizes []int64) {
	t.Helper()
	path := fmt.Sprintf("/layer%d", size)
	tx := Begin(t, r)
	Ingest(t, tx, path, Pack(t, File("file", string(testutil.Sample(size)))))
	Commit(t, tx)
	sum := int64(0)
	for _, c := range Chunks(t, Newest(t, r), path+"/file") {
		sizes = append(sizes, c.Size)
		sum += c.Size
	}
	if len(sizes) > 0 && sum != int64(size) {
		t.Errorf("%d bytes in chunks of %d in all", size, sum)
	}
	return sizes
}

func mustBeBetween(t *testing.T, sizes []int64, least, most int64) {
	t.Helper()
	if len(sizes) < 2 {
		t.Fatalf("chunks %v: want several", sizes)
	}
	for _, size := range sizes[:len(sizes)-1] { // the last is what is left
		if size < least || size > most {
			t.Errorf("a chunk of %d bytes: want %d to %d", size, least, most)
		}
	}
}

func TestLargeFilesAreCutSoThatAPageCostsAChunk(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN})
	if sizes := chunksOf(t, r, 1<<20); sizes != nil {
		t.Errorf("a file that nodes fetch whole is cut: %v", sizes)
	}
	mustBeBetween(t, chunksOf(t, r, 6<<20), 64<<10, 256<<10)
}

func TestASizeOfChunksHoldsAgainstTheFoldersSettings(t *testing.T) {
	made := New(t, Settings{FQRN: FQRN, MinChunk: 4 << 20, AvgChunk: 8 << 20, MaxChunk: 16 << 20})
	if sizes := chunksOf(t, made, 3<<20); sizes != nil {
		t.Errorf("cut, in spite of its settings: %v", sizes)
	}
	r, err := Open(made.Dir(), Options{Chunk: 512 << 10})
	if err != nil {
		t.Fatal(err)
	}
	mustBeBetween(t, chunksOf(t, r, 3<<20+1), 256<<10, 1<<20)
	MustBeSound(t, r)
	for _, chunk := range []int{1, 1 << 30, -1} {
		if _, err := Open(made.Dir(), Options{Chunk: chunk}); err == nil {
			t.Errorf("chunks of %d bytes are taken", chunk)
		}
	}
}

func TestAFileMayBeWholeThatIsLargerThanAChunk(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN, AvgChunk: 8 << 10, WholeFile: 300_000})
	if sizes := chunksOf(t, r, 300_000); sizes != nil {
		t.Errorf("cut: %v", sizes)
	}
	mustBeBetween(t, chunksOf(t, r, 300_001), 4<<10, 16<<10)
	MustBeSound(t, r)
}
