package node

import (
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"testing"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/thin"
)

func TestMain(m *testing.M) { publishtest.Main(m, nil) }

// A layer is where the repository says its diffID. What can't be made out is the fault of that layer alone: an error
// would have the whole repository left alone, and with it all other layers.
func TestPublishedLayersAreThoseWithADiffID(t *testing.T) {
	digest := func(digit string) string { return strings.Repeat(digit, 64) }
	info := func(digit string) string {
		b, err := (&thin.LayerInfo{Digest: digest(digit), DiffID: digest("f")}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	ours := func(digit string) string { return "/layers/" + digest(digit) }
	ducc := func(digit string) string { return "/.layers/" + digit + digit + "/" + digest(digit) + "/layerfs" }
	r := publishtest.New(t, publishtest.Small(publish.Settings{}))
	tx := publishtest.Begin(t, r)
	want := map[string]string{}
	for _, c := range []struct{ digit, at, info, taken string }{
		{"0", ours("0"), info("0"), ours("0")},
		{"1", ours("1"), "", ""},
		{"2", ours("2"), "[{", ""},
		{"3", ours("3"), info("0"), ""}, // another layer's
		{"4", ours("4"), info("4") + strings.Repeat(" ", thin.MaxInfoSize), ""},
		{"5", ducc("5"), info("5"), ducc("5")},
		{"6", ours("6"), "[]", ducc("6")},
		{"6", ducc("6"), info("6"), ducc("6")},
	} {
		publishtest.Ingest(t, tx, c.at, publishtest.Pack(t, publishtest.File("f", "1")))
		if c.info != "" {
			if err := tx.WriteFile(t.Context(), thin.InfoPath(c.at), []byte(c.info), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want[c.digit] = c.taken
	}
	if err := tx.WriteFile(t.Context(), ours("7"), []byte("no folder"), 0o644); err != nil {
		t.Fatal(err)
	}
	want["7"], want["8"] = "", ""
	publishtest.Commit(t, tx)
	v := publishtest.Newest(t, r)
	n := &Node{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	for digit, path := range want {
		l, err := n.published(t.Context(), v, digest(digit))
		if l.Path != path || (err == nil) != (path != "") || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("layer %s: %+v, %v", digit, l, err)
		}
	}
}
