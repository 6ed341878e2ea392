package testutil

// Sample returns n bytes that look random and are always the same: those by which the reference's cuts of chunks are
// known.
func Sample(n int) []byte {
	b := make([]byte, n)
	s := uint32(1)
	for i := range b {
		s = s*1664525 + 1013904223
		b[i] = byte(s >> 24)
	}
	return b
}
