package objects

import (
	"slices"
	"testing"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// recipe is an object of so many bytes, in chunks that end there, or whole.
func recipe(size int64, ends ...int64) *Object {
	o := &Object{Digest: digestOf(size), Compression: hash.Zlib, Size: size}
	start := int64(0)
	for _, end := range ends {
		o.Digest = hash.Digest{}
		o.Chunks = append(o.Chunks, catalog.Chunk{Offset: start, Size: end - start, Digest: digestOf(end)})
		start = end
	}
	return o
}

func digestOf(n int64) hash.Digest {
	h := hash.SHA1.New()
	h.Write([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
	return hash.Of(hash.SHA1, h)
}

func TestObjectsAreCutWhereTheirReadsBeginAndEnd(t *testing.T) {
	t.Parallel()
	const k, m = 1 << 10, 1 << 20
	for name, c := range map[string]struct {
		object *Object
		reads  [][2]int // of pages
		want   []int64
	}{
		"small":                {recipe(64 * k), [][2]int{{0, 0}}, nil},
		"all of it":            {recipe(100 * k), [][2]int{{0, 24}}, nil},
		"most of it":           {recipe(400 * k), [][2]int{{0, 91}}, nil},
		"the beginning":        {recipe(100 * k), [][2]int{{0, 4}}, []int64{20 * k, 100 * k}},
		"the end":              {recipe(100 * k), [][2]int{{20, 24}}, []int64{80 * k, 100 * k}},
		"in the middle":        {recipe(200 * k), [][2]int{{20, 24}}, []int64{80 * k, 100 * k, 200 * k}},
		"near each other":      {recipe(200 * k), [][2]int{{0, 0}, {7, 9}}, []int64{40 * k, 200 * k}},
		"far from each other":  {recipe(200 * k), [][2]int{{0, 4}, {14, 15}}, []int64{20 * k, 56 * k, 64 * k, 200 * k}},
		"in any order":         {recipe(200 * k), [][2]int{{14, 15}, {0, 4}, {0, 1}}, []int64{20 * k, 56 * k, 64 * k, 200 * k}},
		"much":                 {recipe(m), [][2]int{{0, 79}}, []int64{320 * k / 3, 640 * k / 3, 320 * k, 320*k + 704*k/6, 320*k + 704*k*2/6, 320*k + 704*k*3/6, 320*k + 704*k*4/6, 320*k + 704*k*5/6, m}},
		"near the beginning":   {recipe(200 * k), [][2]int{{2, 9}}, []int64{40 * k, 200 * k}},
		"chunks stay":          {recipe(3*m, m, 2*m, 3*m), [][2]int{{256, 511}}, nil},
		"a chunk is cut":       {recipe(3*m, m, 2*m, 2*m+100*k, 3*m), [][2]int{{512, 514}}, []int64{m, 2 * m, 2*m + 12*k, 2*m + 100*k, 3 * m}},
		"across chunks":        {recipe(300*k, 100*k, 200*k, 300*k), [][2]int{{20, 54}}, []int64{80 * k, 100 * k, 200 * k, 220 * k, 300 * k}},
		"reads of another one": {recipe(100*k + 1), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := Profile{{Name: recipe(70 * k).id()}}
			for _, r := range c.reads {
				p = append(p, Read{c.object.id(), Pages, r[0], r[1]})
			}
			got := p.Cuts().Of(c.object)
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestObjectsThatAreReadAsAWholeTooAreNotCut(t *testing.T) {
	t.Parallel()
	o := recipe(100 << 10)
	part := Read{o.id(), Pages, 0, 4}
	for _, also := range []Read{{Name: o.id()}, {o.id(), Chunks, 0, 0}} {
		if ends := (Profile{part, also}).Cuts().Of(o); ends != nil {
			t.Errorf("with %+v, it is cut at %v", also, ends)
		}
	}
}

func FuzzCutsMakeUpTheObject(f *testing.F) {
	f.Add(int64(1<<20), 3, 9, 100, 120, int64(0))
	f.Add(int64(3<<20+7), 300, 310, 20, 700, int64(1<<20))
	f.Fuzz(func(t *testing.T, size int64, a, b, c, d int, chunk int64) {
		if size < 1 || size > 1<<28 {
			t.Skip()
		}
		o := recipe(size)
		if chunk >= 1<<12 && chunk < size {
			var ends []int64
			for end := chunk; end < size; end += chunk {
				ends = append(ends, end)
			}
			o = recipe(size, append(ends, size)...)
		}
		p := Profile{}
		for _, r := range [][2]int{{a, b}, {c, d}} {
			if r[0] >= 0 && r[1] >= r[0] && int64(r[1]) < pagesOf(size) {
				p = append(p, Read{o.id(), Pages, r[0], r[1]})
			}
		}
		ends := p.Cuts().Of(o)
		if ends == nil {
			return
		}
		if ends[0] < 1 || ends[len(ends)-1] != size {
			t.Fatalf("%d bytes are cut at %v", size, ends)
		}
		for i := range ends[1:] {
			if ends[i+1] <= ends[i] {
				t.Fatalf("%d bytes are cut at %v", size, ends)
			}
		}
		for _, chunk := range o.Chunks {
			if !slices.Contains(ends, chunk.Offset+chunk.Size) {
				t.Fatalf("no chunk ends at %d", chunk.Offset+chunk.Size)
			}
		}
	})
}
