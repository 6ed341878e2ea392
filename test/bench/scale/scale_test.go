package scale

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// fewest is what one start has to ask for: its files, and catalogs.
var fewest = int64(startReads)

// A proxy asks the server once for what many nodes want. Which neighbours are fetched ahead depends on how long readers
// wait: they are the reason for what is allowed beyond the files that a start reads.
func TestTheServerIsAskedOnceHoweverManyNodesStart(t *testing.T) {
	s, err := NewStarts(t.Context(), t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	const nodes = 8
	for profile, most := range map[bool]int64{false: 3 * fewest, true: 2 * fewest} {
		m, err := s.Measure(t.Context(), NodesKey{nodes, profile, Own}, nodes)
		if err != nil {
			t.Fatal(err)
		}
		if m.Node.Requests < nodes*fewest || m.Node.Requests > nodes*most || m.Node.Bytes < 1024*m.Server.Requests {
			t.Errorf("with a profile %v: the nodes asked %+v, want %d to %d requests of each", profile, m.Node,
				fewest, most)
		}
		if m.Server.Requests < fewest || m.Server.Requests > most {
			t.Errorf("with a profile %v: the server was asked %+v, want %d to %d requests", profile, m.Server, fewest,
				most)
		}
	}
}

func TestComposingIsMeasured(t *testing.T) {
	for _, k := range []ComposedKey{{Files: 2000, Layers: 5}, {Files: 500, Layers: 2, Images: 3}} {
		c, err := Compose(t.Context(), t.TempDir(), k)
		if err != nil {
			t.Fatal(err)
		}
		files, images := int64(k.Files), int64(k.Number())
		if c.Took <= 0 || c.CPU <= 0 || c.Opened <= 0 || c.Held < 1<<20 || c.Memory < c.Held || c.Metadata < 64*files ||
			c.Table < 20*files || c.Catalogs.Requests < images || c.Catalogs.Bytes < images*files {
			t.Errorf("%v: %+v", k, c)
		}
	}
}
