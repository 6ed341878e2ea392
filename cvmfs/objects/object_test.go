package objects

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// digest is some digest.
func digest(text string) hash.Digest { return hash.SHA1.Digest([]byte(text)) }

func TestNamesAreMadeFromContentAlone(t *testing.T) {
	chunks := []catalog.Chunk{{Offset: 0, Size: 6, Digest: digest("a")}, {Offset: 6, Size: 4, Digest: digest("b")}}
	for _, c := range []struct {
		o    Object
		want string
	}{
		{Object{Digest: digest("a"), Size: 5}, "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8.z.5"},
		{Object{Digest: digest("a"), Size: 5, Compression: hash.None}, "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8.r.5"},
		{
			Object{Digest: hash.SHAKE128.Digest([]byte("a")), Size: 0},
			"85c8de88d28866bf0868090b3961162bf82392f6-shake128.z.0",
		},
		{
			Object{Digest: hash.RIPEMD160.Digest([]byte("a")), Size: 1 << 40},
			"0bdc9d2d256b3ee9daae347be6f4dc835a467ffe-rmd160.z.1099511627776",
		},
		// Names are on disk in composed images: the recipe must not change.
		{Object{Chunks: chunks, Size: 10}, "57049d3d4f9f187f69166aa55a8553532678fb2b.zc.10"},
		{Object{Chunks: chunks, Size: 10, Compression: hash.None}, "57049d3d4f9f187f69166aa55a8553532678fb2b.rc.10"},
	} {
		if got := c.o.Name(); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
		if got := c.o.Path(); got != c.want[:2]+"/"+c.want {
			t.Errorf("path of %s is %s", c.want, got)
		}
		n, err := ParseName(c.want)
		if err != nil || n.Size != c.o.Size || n.Chunked != (c.o.Chunks != nil) || n.String() != c.want {
			t.Errorf("ParseName(%s) = %+v, %v", c.want, n, err)
		}
	}
}

func TestRecipesThatDifferHaveNamesThatDiffer(t *testing.T) {
	names := map[string]bool{}
	for _, chunks := range [][]catalog.Chunk{
		{{Size: 10, Digest: digest("a")}},
		{{Size: 10, Digest: digest("b")}},
		{{Size: 10, Digest: hash.SHAKE128.Digest([]byte("a"))}},
		{{Size: 4, Digest: digest("a")}, {Offset: 4, Size: 6, Digest: digest("b")}},
		{{Size: 6, Digest: digest("a")}, {Offset: 6, Size: 4, Digest: digest("b")}},
		{{Size: 6, Digest: digest("b")}, {Offset: 6, Size: 4, Digest: digest("a")}},
	} {
		o := Object{Size: 10, Chunks: chunks}
		names[o.Name()] = true
	}
	if len(names) != 6 {
		t.Errorf("%d names for 6 recipes", len(names))
	}
}

func TestFromEntry(t *testing.T) {
	a, b := digest("a"), digest("b")
	const regular = 0o100644
	chunk := func(off, size int64) catalog.Chunk { return catalog.Chunk{Offset: off, Size: size, Digest: a} }
	for _, c := range []struct {
		name  string
		entry catalog.Entry
		want  Object
		bad   string // part of the error
	}{
		{
			"whole",
			catalog.Entry{Mode: regular, Size: 3, Digest: a, Compression: hash.None},
			Object{Digest: a, Size: 3, Compression: hash.None},
			"",
		},
		{"empty", catalog.Entry{Mode: regular, Digest: a}, Object{Digest: a}, ""},
		{
			"chunks",
			catalog.Entry{
				Mode: regular, Size: 5, Flags: catalog.Chunked,
				Chunks: []catalog.Chunk{chunk(0, 2), chunk(2, 3)},
			},
			Object{Size: 5, Chunks: []catalog.Chunk{chunk(0, 2), chunk(2, 3)}},
			"",
		},
		{"chunks beside a copy", catalog.Entry{
			Mode: regular, Size: 2, Digest: b, Flags: catalog.Chunked,
			Chunks: []catalog.Chunk{chunk(0, 2)},
		}, Object{Size: 2, Chunks: []catalog.Chunk{chunk(0, 2)}}, ""},
		{"folder", catalog.Entry{Mode: 0o040755}, Object{}, "not a regular file"},
		{"link", catalog.Entry{Mode: 0o120777, Target: "x"}, Object{}, "not a regular file"},
		{
			"external",
			catalog.Entry{Mode: regular, Digest: a, Flags: catalog.External, Compression: hash.None},
			Object{Digest: a, Compression: hash.None, External: true, File: "/a/b"},
			"",
		},
		{
			"external, compressed",
			catalog.Entry{Mode: regular, Digest: a, Flags: catalog.External},
			Object{Digest: a, External: true, File: "/a/b"},
			"",
		},
		{
			"external, compressed, in chunks",
			catalog.Entry{
				Mode: regular, Flags: catalog.External | catalog.Chunked, Size: 5, Chunks: []catalog.Chunk{chunk(0, 5)},
			},
			Object{},
			"external, compressed and in chunks",
		},
		{"no digest", catalog.Entry{Mode: regular, Size: 3}, Object{}, "no digest"},
		{"negative size", catalog.Entry{Mode: regular, Size: -1, Digest: a}, Object{}, "size -1"},
		{
			"unknown compression",
			catalog.Entry{Mode: regular, Size: 1, Digest: a, Compression: 7},
			Object{},
			"compression 7",
		},
		{
			"unknown algorithm",
			catalog.Entry{Mode: regular, Size: 1, Digest: hash.Digest{Algorithm: 9}},
			Object{},
			"no digest",
		},
		{"no chunks", catalog.Entry{Mode: regular, Size: 3, Digest: a, Flags: catalog.Chunked}, Object{}, "no chunks"},
		{
			"a gap",
			catalog.Entry{Mode: regular, Size: 5, Chunks: []catalog.Chunk{chunk(0, 2), chunk(3, 2)}},
			Object{},
			"chunk 1 of 2",
		},
		{
			"an overlap",
			catalog.Entry{Mode: regular, Size: 5, Chunks: []catalog.Chunk{chunk(0, 3), chunk(2, 3)}},
			Object{},
			"chunk 1 of 2",
		},
		{
			"not from the start",
			catalog.Entry{Mode: regular, Size: 5, Chunks: []catalog.Chunk{chunk(1, 4)}},
			Object{},
			"chunk 0 of 1",
		},
		{
			"too short",
			catalog.Entry{Mode: regular, Size: 5, Chunks: []catalog.Chunk{chunk(0, 4)}},
			Object{},
			"end at 4",
		},
		{
			"too long",
			catalog.Entry{Mode: regular, Size: 5, Chunks: []catalog.Chunk{chunk(0, 6)}},
			Object{},
			"chunk 0 of 1",
		},
		{
			"overflow",
			catalog.Entry{Mode: regular, Size: 5, Chunks: []catalog.Chunk{chunk(0, 4), chunk(4, 1<<63-1)}},
			Object{},
			"chunk 1 of 2",
		},
		{
			"empty chunk",
			catalog.Entry{Mode: regular, Size: 5, Chunks: []catalog.Chunk{chunk(0, 5), chunk(5, 0)}},
			Object{},
			"chunk 1 of 2",
		},
		{
			"chunk without digest",
			catalog.Entry{Mode: regular, Size: 5, Chunks: []catalog.Chunk{{Size: 5}}},
			Object{},
			"no digest",
		},
	} {
		got, err := FromEntry(&c.entry, "/a/b")
		if (err != nil) != (c.bad != "") || err != nil && !strings.Contains(err.Error(), c.bad) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.bad)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestParseNameRefuses(t *testing.T) {
	hex := strings.Repeat("0a", 20)
	for _, s := range []string{
		"", ".", "..", hex, hex + ".z", hex + ".z.", hex + ".z.-1", hex + ".z.+1", hex + ".z.01", hex + ".z.1 ",
		hex + ".z.1.2", hex + ".x.1",
		hex[1:] + ".z.1", strings.ToUpper(hex) + ".z.1", hex + "-md5.z.1", hex + "-shake128.zc.1",
		hex + ".z.9223372036854775808", "/" + hex[1:] + ".z.1",
	} {
		if n, err := ParseName(s); err == nil {
			t.Errorf("ParseName(%q) = %+v", s, n)
		}
	}
}

func FuzzParseName(f *testing.F) {
	hex := strings.Repeat("0a", 20)
	for _, s := range []string{hex + ".z.1", hex + ".rc.0", hex + "-rmd160.r.77", hex + "-shake128.zc.1", hex + ".z.1." + strings.Repeat("3", 16), "../" + hex} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err == nil && (n.String() != s || strings.ContainsAny(s, "/\x00") || len(s) > 100) {
			t.Errorf("ParseName(%q) = %+v, which is %s", s, n, n)
		}
	})
}
