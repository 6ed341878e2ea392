package check_test

import (
	"strings"
	"testing"

	"cvmfs-graphdriver/cvmfs/publish"
	. "cvmfs-graphdriver/cvmfs/publish/check"
	"cvmfs-graphdriver/cvmfs/trust"
	"cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

func TestWhatIsBesideLayersIsJudged(t *testing.T) {
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	encoded, err := (&thin.LayerInfo{Digest: a, DiffID: b}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	good := string(encoded)
	long := good + strings.Repeat(" ", thin.MaxInfoSize)
	for name, c := range map[string]struct {
		layer, file, content string
		faults, undescribed  int
	}{
		"info":                       {"/layers/" + a, "/layers/" + a + ".layer.json", good, 0, 0},
		"another's info":             {"/layers/" + b, "/layers/" + b + ".layer.json", good, 1, 0},
		"malformed info":             {"/layers/" + a, "/layers/" + a + ".layer.json", "[{", 1, 0},
		"large info":                 {"/layers/" + a, "/layers/" + a + ".layer.json", long, 1, 0},
		"no info":                    {"/layers/" + a, "/layers/note", good, 0, 1},
		"info of an older layer":     {"/layers/" + b, "/layers/" + a + ".layer.json", good, 0, 1},
		"info in a subdirectory":     {"/x/y/" + a, "/x/y/" + a + ".layer.json", "[]", 1, 0},
		"info in DUCC's layout":      {"/.layers/aa/" + a + "/layerfs", "/.layers/aa/" + a + "/.metadata/layers.json", good, 0, 0},
		"malformed in DUCC's layout": {"/.layers/aa/" + a + "/layerfs", "/.layers/aa/" + a + "/.metadata/layers.json", "", 1, 0},
		"record":                     {"/layers/" + a, "/layers/" + a + ".record.json", `{"version":1}`, 0, 1},
		"malformed record":           {"/layers/" + a, "/layers/" + a + ".record.json", `{"version":2}`, 1, 1},
		"within a layer":             {"/layers/" + a, "/layers/" + a + "/" + b + ".layer.json", "x", 0, 1},
		"a flat image":               {"/.flat/aa/" + a, "/.flat/aa/" + a + ".layer.json", "x", 0, 0},
		"what isn't of layers":       {"/layers/one", "/layers/one.layer.json", "x", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := publishtest.New(t, publishtest.Small(publish.Settings{}))
			tx := publishtest.Begin(t, r)
			publishtest.Ingest(t, tx, c.layer, publishtest.Pack(t, publishtest.File("f", "1")))
			if err := tx.WriteFile(t.Context(), c.file, []byte(c.content), 0o644); err != nil {
				t.Fatal(err)
			}
			publishtest.Commit(t, tx)
			keys, err := r.MasterKeys()
			if err != nil {
				t.Fatal(err)
			}
			problems, s := checked(t, r.Storage(), Options{FQRN: r.FQRN(), Keys: keys, Dir: t.TempDir()})
			if len(problems) != c.faults || s.Undescribed != c.undescribed {
				t.Errorf("%d layers without info instead of %d, problems %v", s.Undescribed, c.undescribed, problems)
			}
			for _, p := range problems {
				if p.Rule != RuleLayer || p.At != c.file {
					t.Errorf("problem %v", p)
				}
			}
		})
	}
}

// What the reference implementation has published has no infos, and that is no fault.
func TestLayersOfOthersAreCounted(t *testing.T) {
	const fqrn = "images.example.org"
	keys, err := trust.LoadKeys(testutil.PublicKey(t, fqrn))
	if err != nil {
		t.Fatal(err)
	}
	problems, s := checked(t, open(t, testutil.Repository(t, fqrn)), Options{FQRN: fqrn, Keys: keys, Dir: t.TempDir()})
	if len(problems) != 0 || s.Undescribed < 3 {
		t.Errorf("%d layers without info, problems %v", s.Undescribed, problems)
	}
}
