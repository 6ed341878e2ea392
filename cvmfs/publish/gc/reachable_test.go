package gc

import (
	"strings"
	"testing"

	"cvmfs-graphdriver/cvmfs/hash"
)

func TestNamesOfObjectsAreReadBack(t *testing.T) {
	for a := hash.SHA1; a.Valid(); a++ {
		for _, suffix := range []hash.Suffix{
			hash.File, hash.Chunk, hash.Catalog, hash.History, hash.Certificate,
			hash.Metainfo,
		} {
			d := a.Digest([]byte(suffix))
			if got, ok := parseObject(d.Path(suffix)); !ok || got != objectNamed(d, suffix) {
				t.Errorf("%s is %+v, %t", d.Path(suffix), got, ok)
			}
		}
	}
	d := hash.SHA1.Digest(nil)
	for _, name := range []string{
		"", "data/", "data/ab", "data/ab/", "data/txn/1.2", d.Path("L"), "x" + d.Path(""), d.Path("") + "/x",
		strings.ToUpper(d.Path("")),
		"data/" + d.Hex(), "data/" + d.Hex()[:1] + "/" + d.Hex()[1:], d.Path("CC"),
	} {
		if got, ok := parseObject(name); ok {
			t.Errorf("%q is %+v", name, got)
		}
	}
}
