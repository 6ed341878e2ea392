package manifest

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/test/testutil"
)

// genuine was published by a CernVM-FS server in 2015.
const genuine = `C6ed3d49a5c64f21f36936ab350d49aaf57585b9a
B14336
Rd41d8cd98f00b204e9800998ecf8427e
D900
S2
Gno
Nlegacy_aufs.cern.ch
X65133968f581abad1e75489c92a634e44929cbd7
H365d5083b27d67e2caeff6d66e5fe3f2d104a6bd
T1445428515
`

const genuineName = "legacy_aufs.cern.ch"

func digest(t *testing.T, s string) hash.Digest {
	t.Helper()
	d, err := hash.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func genuineManifest(t *testing.T) *Manifest {
	return &Manifest{
		Root:        digest(t, "6ed3d49a5c64f21f36936ab350d49aaf57585b9a"),
		RootSize:    14336,
		Revision:    2,
		TTL:         15 * time.Minute,
		FQRN:        genuineName,
		Certificate: digest(t, "65133968f581abad1e75489c92a634e44929cbd7"),
		History:     digest(t, "365d5083b27d67e2caeff6d66e5fe3f2d104a6bd"),
		Published:   time.Date(2015, 10, 21, 11, 55, 15, 0, time.UTC),
	}
}

func TestGenuineManifestIsReadCompletely(t *testing.T) {
	got, err := Parse(genuineName, []byte(genuine))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(genuineManifest(t), got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestManifestsThatAreStillGood(t *testing.T) {
	with := func(change func(*Manifest)) *Manifest {
		m := genuineManifest(t)
		change(m)
		return m
	}
	reversed := strings.Split(strings.TrimSuffix(genuine, "\n"), "\n")
	for i, j := 0, len(reversed)-1; i < j; i, j = i+1, j-1 {
		reversed[i], reversed[j] = reversed[j], reversed[i]
	}
	for name, c := range map[string]struct {
		text string
		want *Manifest
	}{
		"lines in any order":   {strings.Join(reversed, "\n") + "\n", genuineManifest(t)},
		"unknown letters":      {genuine + "Qanything\nZone\nZtwo\n\n-\n", genuineManifest(t)},
		"legacy micro catalog": {genuine + "L" + strings.Repeat("0", 40) + "\n", genuineManifest(t)},
		"the last duplicate":   {genuine + "S7\n", with(func(m *Manifest) { m.Revision = 7 })},
		"largest revision": {
			genuine + "S18446744073709551615\n",
			with(func(m *Manifest) { m.Revision = 1<<64 - 1 }),
		},
		"only yes is true": {genuine + "GYES\nA1\n", genuineManifest(t)},
		"yes": {
			genuine + "Gyes\nAyes\n",
			with(func(m *Manifest) { m.GarbageCollectable, m.AltPaths = true, true }),
		},
		"no history as zeros": {
			genuine + "H" + strings.Repeat("0", 40) + "\n",
			with(func(m *Manifest) { m.History = hash.Digest{} }),
		},
		"without a size": {
			strings.Replace(genuine, "B14336\n", "", 1),
			with(func(m *Manifest) { m.RootSize = 0 }),
		},
		"algorithms that differ": {
			genuine + "M8f445c6b4469480e886fa43a7db566650d56ee8d-shake128\n",
			with(func(m *Manifest) { m.Metainfo = digest(t, "8f445c6b4469480e886fa43a7db566650d56ee8d-shake128") }),
		},
		"digest of the object log": {
			genuine + "Y697e5f5842f98295d1e3bda842488d9c4eccfe9b\n",
			with(func(m *Manifest) { m.Reflog = digest(t, "697e5f5842f98295d1e3bda842488d9c4eccfe9b") }),
		},
	} {
		got, err := Parse(genuineName, []byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", name, diff)
		}
	}
}

func TestManifestErrorsNameTheLetter(t *testing.T) {
	for _, c := range []struct{ add, want string }{
		{"Nother.cern.ch\n", "line N names another repository, \"other.cern.ch\""},
		{"NLegacy_aufs.cern.ch\n", "line N names another"},
		{"R0123\n", "line R, the hash"},
		{"C\n", "line C: "},
		{"C6ED3D49A5C64F21F36936AB350D49AAF57585B9A\n", "line C: "},
		{"C" + strings.Repeat("0", 40) + "\n", "line C: no digest"},
		{"X" + strings.Repeat("0", 40) + "-shake128\n", "line X: no digest"},
		{"Xd41d8cd98f00b204e9800998ecf8427e\n", "line X: "},
		{"H12\n", "line H: "},
		{"S\n", "line S: "},
		{"S-1\n", "line S: "},
		{"S+1\n", "line S: "},
		{"S1_0\n", "line S: "},
		{"S18446744073709551616\n", "line S: "},
		{"D9223372037\n", "line D: "},
		{"B9223372036854775808\n", "line B: "},
		{"T253402300800\n", "line T: "},
		{"T1 \n", "line T: "},
		{"S3", "cut off"},
		{"Q" + strings.Repeat("x", MaxSize-len(genuine)), "4097 bytes, more than 4096"},
	} {
		_, err := Parse(genuineName, []byte(genuine+c.add))
		if err == nil || !strings.HasPrefix(err.Error(), "manifest of "+genuineName+": "+c.want) {
			t.Errorf("with %.40q: got %v, want %q", c.add, err, c.want)
		}
	}
	for _, letter := range required {
		var kept []string
		for line := range strings.Lines(genuine) {
			if line[0] != byte(letter) {
				kept = append(kept, line)
			}
		}
		_, err := Parse(genuineName, []byte(strings.Join(kept, "")))
		if err == nil || !strings.Contains(err.Error(), "no line "+string(letter)) {
			t.Errorf("without %c: got %v", letter, err)
		}
	}
}

func TestReferenceManifestsAreRead(t *testing.T) {
	for fqrn, algorithm := range map[string]hash.Algorithm{
		"features.example.org": hash.SHA1, "images.example.org": hash.SHA1, "shake.example.org": hash.SHAKE128,
	} {
		raw := testutil.Reference(t, fqrn)[".cvmfspublished"].Data
		text, _, _ := bytes.Cut(raw, []byte("--\n"))
		m, err := Parse(fqrn, text)
		if err != nil {
			t.Fatal(err)
		}
		if m.Root.Algorithm != algorithm || m.Certificate.IsZero() || m.History.IsZero() || m.Metainfo.IsZero() ||
			m.Reflog.IsZero() || m.RootSize == 0 || m.TTL != 4*time.Minute {
			t.Errorf("%s: %+v", fqrn, m)
		}
	}
}

func TestTextIsReadBackAsItWas(t *testing.T) {
	full := genuineManifest(t)
	full.GarbageCollectable, full.AltPaths = true, true
	full.Metainfo = digest(t, "8f445c6b4469480e886fa43a7db566650d56ee8d-shake128")
	full.Reflog = digest(t, "697e5f5842f98295d1e3bda842488d9c4eccfe9b")
	full.Revision = 1<<64 - 1
	bare := genuineManifest(t)
	bare.History, bare.Revision, bare.TTL = hash.Digest{}, 0, 0
	for _, want := range []*Manifest{genuineManifest(t), full, bare} {
		text, err := want.Text()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(genuineName, text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s\n%s", diff, text)
		}
	}
}

// A manifest the reference's server wrote is written again as it was, to the byte.
func TestTextOfReferenceManifestsIsTheirs(t *testing.T) {
	for _, fqrn := range []string{"features.example.org", "images.example.org", "shake.example.org"} {
		raw := testutil.Reference(t, fqrn)[".cvmfspublished"].Data
		want, _, _ := bytes.Cut(raw, []byte("--\n"))
		m, err := Parse(fqrn, want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Text()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", fqrn, diff)
		}
	}
}

func TestManifestsNobodyCouldReadAreNotWritten(t *testing.T) {
	for name, change := range map[string]func(*Manifest){
		"no root":                     func(m *Manifest) { m.Root = hash.Digest{} },
		"a root catalog of no bytes":  func(m *Manifest) { m.RootSize = 0 },
		"no certificate":              func(m *Manifest) { m.Certificate = hash.Digest{} },
		"no name":                     func(m *Manifest) { m.FQRN = "" },
		"a name with a line in it":    func(m *Manifest) { m.FQRN = "a\nS7" },
		"a name too long":             func(m *Manifest) { m.FQRN = strings.Repeat("x", MaxSize) },
		"a negative TTL":              func(m *Manifest) { m.TTL = -time.Second },
		"fractions of a second":       func(m *Manifest) { m.TTL = 1500 * time.Millisecond },
		"no time":                     func(m *Manifest) { m.Published = time.Time{} },
		"a time before 1970":          func(m *Manifest) { m.Published = time.Unix(-1, 0) },
		"a time beyond the year 9999": func(m *Manifest) { m.Published = time.Unix(latest+1, 0) },
	} {
		m := genuineManifest(t)
		change(m)
		if text, err := m.Text(); err == nil || !strings.HasPrefix(err.Error(), "write manifest of ") {
			t.Errorf("%s: got %q, %v", name, text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(genuine))
	f.Add([]byte(genuine + "Gyes\nAyes\nM8f445c6b4469480e886fa43a7db566650d56ee8d-shake128\n"))
	f.Add([]byte("C\nR\nD\nS\nN\nX\nT\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Parse(genuineName, text)
		if err != nil {
			return
		}
		if m.FQRN != genuineName || m.Root.IsZero() || m.Certificate.IsZero() || m.RootSize < 0 || m.TTL < 0 ||
			m.Published.Year() > 9999 {
			t.Errorf("accepted %+v", m)
		}
	})
}
