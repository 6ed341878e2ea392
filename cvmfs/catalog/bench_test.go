package catalog

import (
	"context"
	"fmt"
	"testing"

	"cvmfs-graphdriver/cvmfs/hash"
)

// BenchmarkRows streams a catalog of 100,000 files and reports the time a row takes.
func BenchmarkRows(b *testing.B) {
	const n = 100_000
	path := build(b, schema7, func(s *script) {
		s.row(row{path: "", mode: 0o040755, size: 4096, hardlinks: 2})
		for i := range n {
			s.row(row{path: fmt.Sprintf("/file%06d", i), hash: digestBytes})
		}
	})
	b.ReportAllocs()
	rows := 0
	for b.Loop() {
		c, err := Open(path)
		if err != nil {
			b.Fatal(err)
		}
		err = c.Rows(context.Background(), func(_, _ hash.PathHash, _ *Entry) error {
			rows++
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rows), "ns/row")
}
