package images

import (
	"path/filepath"
	"testing"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
)

// A composed image knows where its external files are, and of others the paths where servers are to be told.
func TestComposedImagesKnowWhereExternalFilesAre(t *testing.T) {
	for _, tells := range []bool{false, true} {
		f := &folder{path: "/layers/l", fqrn: "r.example.org", tells: tells, ids: idMaps{repository: &config.Config{}}}
		w := newFolderWalk(f, &record{})
		w.builder.add("", must(f.inode(&client.Node{Path: f.path, Entry: &catalog.Entry{Mode: typeDir | 0o755}}))(t))
		for _, e := range []*catalog.Entry{
			{
				Name: "e", Mode: 0o100644, Size: 3, Flags: catalog.External, Compression: hash.None,
				Digest: hash.SHA1.Digest([]byte("e")),
			},
			{Name: "o", Mode: 0o100644, Size: 3, Digest: hash.SHA1.Digest([]byte("o"))},
		} {
			w.builder.add("/"+e.Name, must(f.inode(&client.Node{Path: f.path + "/" + e.Name, Entry: e}))(t))
		}
		dir := t.TempDir()
		if err := flatten(w.builder.root, nil).write(dir, &Image{Key: "0123456789abcdef0123456789abcdef"}); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "*", tableFile))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		table, err := objects.OpenTable(files[0])
		if err != nil || table.Len() != 2 {
			t.Fatal(table, err)
		}
		ordinary := ""
		if tells {
			ordinary = "/layers/l/o"
		}
		e, _ := table.At(0)
		o, _ := table.At(1)
		if !e.External || e.File != "/layers/l/e" || o.External || o.File != ordinary {
			t.Errorf("tells=%t: %+v, %+v", tells, e, o)
		}
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
