package publish

// chunker finds where a file is cut into chunks, by the rule of the CernVM-FS server (ingestion/chunk_detector.cc), so
// that both publishers' chunks of the same file are the same objects. It looks at content alone: a file that grew in
// front is cut at the same bytes behind.
type chunker struct {
	least, most int    // bytes of a chunk
	threshold   uint32 // how close the state must come to the magic number

	at    int    // bytes since the last cut
	state uint32 // of the rolling XOR, which forgets a byte after 32 others
}

const (
	chunkMagic  = 0x7FFFFFFF
	chunkWindow = 32 // bytes the state remembers
)

func newChunker(least, average, most int) *chunker {
	return &chunker{least: least, most: most, threshold: 0xFFFFFFFF / uint32(average)}
}

// next feeds bytes and gives how many of them belong to the current chunk, and whether it ends there. It is then ready
// for the next chunk.
func (c *chunker) next(b []byte) (n int, cut bool) {
	if skip := c.least - chunkWindow - c.at; skip > 0 {
		n = min(skip, len(b))
		c.at += n
	}
	for n < len(b) {
		if c.at == c.most {
			c.cut()
			return n, true
		}
		state := c.state<<1 ^ uint32(b[n])
		if c.at >= c.least && distance(state) < c.threshold {
			c.cut() // the byte begins the next chunk
			return n, true
		}
		c.state = state
		c.at++
		n++
	}
	return n, false
}

// cut begins the next chunk.
func (c *chunker) cut() { c.at, c.state = 0, 0 }

// distance is how far the state is from the magic number, going round.
func distance(state uint32) uint32 {
	d := state - chunkMagic
	return min(d, -d)
}
