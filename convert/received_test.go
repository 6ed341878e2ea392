package convert

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

// received puts a layer that a node sent into a repository.
func received(t *testing.T, place sink.Sink, layout Layout, digit string, at time.Time) Received {
	t.Helper()
	r := Received{
		Digest: strings.Repeat(digit, 64), DiffID: strings.Repeat("f", 64), Size: 7, Node: "n1",
		Image: "registry.example.org/a:1", Time: at,
	}
	tx, err := place.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	archive := testutil.Tar(t, tar.Header{Name: "of " + digit, Typeflag: tar.TypeReg, Mode: 0o644})
	_, err = AddReceived(t.Context(), tx, layout, r, bytes.NewReader(archive), int64(len(archive)))
	if err == nil {
		err = tx.Commit(t.Context(), "received")
	}
	if err = errors.Join(err, tx.Abort()); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReceivedLayersAreKeptUntilTheyAreDropped(t *testing.T) {
	now := time.Now()
	for _, ducc := range []bool{false, true} {
		t.Run(fmt.Sprintf("ducc=%t", ducc), func(t *testing.T) {
			repo, _ := newRepository(t)
			c := &Converter{Sink: sink.Native(repo), Layout: Layout{DUCC: ducc}}
			old := received(t, c.Sink, c.Layout, "a", now.Add(-48*time.Hour))
			young := received(t, c.Sink, c.Layout, "b", now)
			third := received(t, c.Sink, c.Layout, "c", now.Add(-24*time.Hour))
			collect := func(o CollectOptions, kept int, removed ...Received) {
				t.Helper()
				o.Now = now
				s, err := c.Collect(t.Context(), o)
				var want []string
				for _, r := range removed {
					want = append(want, c.Layout.Path(r.Digest))
				}
				if err != nil || s.Kept != kept || !slices.Equal(s.Removed, want) {
					t.Errorf("%+v: %+v, %v, want %d kept, removed %v", o, s, err, kept, want)
				}
			}
			collect(CollectOptions{}, 3)
			collect(CollectOptions{ReceivedAge: 36 * time.Hour, DryRun: true}, 2, old)
			collect(CollectOptions{ReceivedAge: 36 * time.Hour}, 2, old)
			if _, err := c.Collect(t.Context(), CollectOptions{Dropped: []string{old.Digest}}); err == nil {
				t.Error("a layer was dropped that isn't there")
			}
			collect(CollectOptions{Dropped: []string{"sha256:" + young.Digest}}, 1, young)
			collect(CollectOptions{}, 1)
			tx, err := c.Sink.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Abort()
			if layers, err := c.Layout.Layers(t.Context(), tx); err != nil || len(layers) != 1 ||
				c.Layout.Digest(layers[0]) != third.Digest {
				t.Errorf("left: %v, %v", layers, err)
			}
		})
	}
}

func TestReceivedLayersHaveTheirInfo(t *testing.T) {
	repo, _ := newRepository(t)
	place := sink.Native(repo)
	r := received(t, place, Layout{}, "a", time.Now())
	tx, err := place.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Abort()
	b, err := tx.ReadFile(t.Context(), thin.InfoPath(Layout{}.Path(r.Digest)))
	if err != nil {
		t.Fatal(err)
	}
	i, err := thin.ParseInfo(b, r.Digest)
	if err != nil || i.DiffID != r.DiffID || i.Size != r.Size || i.Entries != 1 || i.Compression != thin.Gzip {
		t.Errorf("%+v, %v", i, err)
	}
}

// A layer may come twice, or be there of an image: it keeps who sent it first, and isn't read again.
func TestLayersThatAreThereAreNotReadAgain(t *testing.T) {
	repo, _ := newRepository(t)
	place := sink.Native(repo)
	r := received(t, place, Layout{}, "a", time.Now())
	tx, err := place.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Abort()
	r.Node = "n2"
	added, err := AddReceived(t.Context(), tx, Layout{}, r, nil, 0)
	if added || err != nil {
		t.Errorf("added %t, %v", added, err)
	}
	s, err := readState(t.Context(), tx, receivedOf(r.Digest))
	if err != nil || s.Received.Node != "n1" {
		t.Errorf("%+v, %v", s, err)
	}
}
