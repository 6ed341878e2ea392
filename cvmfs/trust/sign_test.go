package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/test/testutil"
)

func newSigned(t testing.TB, a hash.Algorithm) *made {
	t.Helper()
	m := &made{master: newKey(t), publisher: newKey(t)}
	var err error
	if m.certificate, err = NewCertificate("test.example.org", m.publisher, when); err != nil {
		t.Fatal(err)
	}
	if m.published, err = SignManifest([]byte(manifestText), a, m.publisher); err != nil {
		t.Fatal(err)
	}
	list := &WhitelistText{
		FQRN: "test.example.org", Created: when, Expires: when.AddDate(0, 0, 30),
		Certificates: []*Certificate{parseCertificate(t, m.certificate)},
	}
	if m.whitelist, err = SignWhitelist(list, a, m.master); err != nil {
		t.Fatal(err)
	}
	m.Policy = Policy{FQRN: "test.example.org", Keys: Keys{&m.master.PublicKey}, Now: when}
	return m
}

func TestWhatIsSignedIsTrusted(t *testing.T) {
	for a := hash.SHA1; a.Valid(); a++ {
		m := newSigned(t, a)
		got, err := m.check()
		if err != nil {
			t.Errorf("%v: %v", a, err)
			continue
		}
		if want := when.AddDate(0, 0, 30).Truncate(time.Hour); !got.Expires.Equal(want) || got.Manifest.Revision != 5 {
			t.Errorf("%v: revision %d until %v, want 5 until %v", a, got.Manifest.Revision, got.Expires, want)
		}
		m.Now = when.AddDate(0, 0, 30)
		if _, err := m.check(); !errors.Is(err, ErrExpired) {
			t.Errorf("%v: after 30 days: %v", a, err)
		}
	}
}

func TestRenewedWhitelistKeepsFingerprintsOfAnyAlgorithm(t *testing.T) {
	m := newSigned(t, hash.SHAKE128)
	other := hash.SHA1.Digest([]byte("another publisher's"))
	w, err := VerifyWhitelist(m.FQRN, m.whitelist, m.Keys, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	list := &WhitelistText{
		FQRN: m.FQRN, Created: when, Expires: when.AddDate(0, 0, 60),
		Certificates: []*Certificate{parseCertificate(t, m.certificate)}, Fingerprints: append(w.Fingerprints(), other),
	}
	if m.whitelist, err = SignWhitelist(list, hash.SHAKE128, m.master); err != nil {
		t.Fatal(err)
	}
	m.Now = when.AddDate(0, 0, 59)
	if _, err := m.check(); err != nil {
		t.Error(err)
	}
	w, err = VerifyWhitelist(m.FQRN, m.whitelist, m.Keys, m.Now)
	if err != nil {
		t.Fatal(err)
	}
	want := []hash.Digest{parseCertificate(t, m.certificate).Fingerprint(hash.SHAKE128), other}
	if got := w.Fingerprints(); !slices.Equal(got, want) {
		t.Errorf("fingerprints %v, want %v", got, want)
	}
}

// What servers of the reference sign and what is signed here differ in the bytes of the keys alone.
func TestReferenceLettersHaveTheFormSignedHere(t *testing.T) {
	for _, fqrn := range references {
		s, _ := reference(t, fqrn)
		l, err := parseLetter(s.published)
		if err != nil {
			t.Fatal(err)
		}
		d, err := hash.Parse(string(l.hashText))
		if err != nil {
			t.Fatal(err)
		}
		key, err := GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		again, err := SignManifest(l.text, d.Algorithm, key)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(again) - len(l.signature); len(again) != len(s.published) ||
			!bytes.Equal(again[:n], s.published[:n]) {
			t.Errorf("%s: signed again it is\n%q, was\n%q", fqrn, again, s.published)
		}
	}
}

func TestTextsNobodyCouldReadAreNotSigned(t *testing.T) {
	key := newKey(t)
	for name, text := range map[string]string{
		"a line of dashes":         "a\n--\nb\n",
		"nothing":                  "",
		"no newline at end":        "a",
		"more than a reader takes": strings.Repeat("a\n", manifest.MaxSize/2),
	} {
		if letter, err := SignManifest([]byte(text), hash.SHA1, key); !errors.Is(err, ErrInvalid) &&
			!errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %q, %v", name, letter, err)
		}
	}
	if _, err := SignManifest([]byte(manifestText), 0, key); !errors.Is(err, ErrInvalid) {
		t.Errorf("no algorithm: %v", err)
	}
	for name, change := range map[string]func(*WhitelistText){
		"no name":                    func(w *WhitelistText) { w.FQRN = "" },
		"a line in the name":         func(w *WhitelistText) { w.FQRN = "a\nb" },
		"over before it begins":      func(w *WhitelistText) { w.Expires = w.Created.Add(-time.Hour) },
		"over within its hour":       func(w *WhitelistText) { w.Expires = w.Created.Truncate(time.Hour).Add(59 * time.Minute) },
		"no time":                    func(w *WhitelistText) { w.Created = time.Time{} },
		"a year of five digits":      func(w *WhitelistText) { w.Expires = w.Expires.AddDate(10000, 0, 0) },
		"more than a thousand lines": func(w *WhitelistText) { w.Fingerprints = manyDigests(1200) },
	} {
		w := &WhitelistText{FQRN: "test.example.org", Created: when, Expires: when.AddDate(0, 0, 30)}
		change(w)
		if letter, err := SignWhitelist(w, hash.SHA1, key); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %q, %v", name, letter, err)
		}
	}
}

func manyDigests(n int) []hash.Digest {
	all := make([]hash.Digest, n)
	for i := range all {
		all[i] = hash.SHA1.Digest([]byte{byte(i), byte(i >> 8)})
	}
	return all
}

func TestPrivateKeysAreKeptToTheirOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	key := newKey(t)
	if err := SavePrivateKey(path, key); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("saved with %v, %v", info.Mode(), err)
	}
	got, err := LoadPrivateKey(path)
	if err != nil || !got.Equal(key) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := SavePrivateKey(path, newKey(t)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another key: %v", err)
	}
	if got, err := LoadPrivateKey(path); err != nil || !got.Equal(key) {
		t.Errorf("after the refusal: %v, %v", got, err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o644, 0o610} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadPrivateKey(path); !errors.Is(err, ErrExposed) ||
			!strings.Contains(err.Error(), "chmod 0600 "+path) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
}

func TestPublicKeysAreSavedAsHostsWantThem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pub")
	key := newKey(t)
	if err := SavePublicKey(path, &key.PublicKey); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("saved with %v, %v", info.Mode(), err)
	}
	keys, err := LoadKeys(path)
	if err != nil || len(keys) != 1 || !keys[0].Equal(&key.PublicKey) {
		t.Errorf("got %v, %v", keys, err)
	}
}

func TestPrivateKeysInOtherForms(t *testing.T) {
	key := newKey(t)
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	eight, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	elliptic8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	one := x509.MarshalPKCS1PrivateKey(key)
	for name, c := range map[string]struct {
		content []byte
		good    bool
	}{
		"PKCS 1": {block("RSA PRIVATE KEY", one), true},
		"PKCS 8": {block("PRIVATE KEY", eight), true},
		"text around it": {
			append([]byte("my key\n"), append(block("RSA PRIVATE KEY", one), "\nend\n"...)...),
			true,
		},
		"empty":             {nil, false},
		"DER":               {one, false},
		"cut off":           {block("RSA PRIVATE KEY", one[:100]), false},
		"two of them":       {append(block("RSA PRIVATE KEY", one), block("PRIVATE KEY", eight)...), false},
		"elliptic":          {block("PRIVATE KEY", elliptic8), false},
		"a public key":      {read(t, testutil.PublicKey(t, references[0])), false},
		"with a passphrase": {block("ENCRYPTED PRIVATE KEY", eight), false},
		"an old passphrase": {pem.EncodeToMemory(&pem.Block{
			Type:    "RSA PRIVATE KEY",
			Headers: map[string]string{"DEK-Info": "AES"}, Bytes: one,
		}), false},
		"more than a key has": {
			append(bytes.Repeat([]byte("\n"), maxKeyFile), block("RSA PRIVATE KEY", one)...),
			false,
		},
		"broken inside": {block("RSA PRIVATE KEY", flipped(one)), false},
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := LoadPrivateKey(path)
		if c.good && (err != nil || !got.Equal(key)) {
			t.Errorf("%s: %v", name, err)
		}
		if !c.good && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := LoadPrivateKey(t.TempDir()); !errors.Is(err, ErrInvalid) {
		t.Errorf("a folder: %v", err)
	}
}

func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

func TestCertificateIsItsKeysAndNamesTheRepository(t *testing.T) {
	for _, fqrn := range []string{"test.example.org", strings.Repeat("x", 60)} {
		key := newKey(t)
		text, err := NewCertificate(fqrn, key, when)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(c.Subject.CommonName, fqrn) || len(c.Subject.CommonName) > 64 ||
			c.SerialNumber.Sign() <= 0 ||
			!c.NotBefore.Equal(when) || !c.NotAfter.Equal(when.Add(365*24*time.Hour)) {
			t.Errorf("%q, number %v, %v to %v", c.Subject.CommonName, c.SerialNumber, c.NotBefore, c.NotAfter)
		}
		if err := c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
			t.Error(err)
		}
		if p := parseCertificate(t, text); !p.Holds(key) || p.Holds(newKey(t)) {
			t.Error("the certificate doesn't know its key")
		}
	}
}

// openssl runs the command, whose opinion is the reference's: its servers and clients are built on the same library.
func openssl(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func TestOpenSSLAgreesWithWhatIsSigned(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("no openssl to ask")
	}
	for a := hash.SHA1; a.Valid(); a++ {
		m := newSigned(t, a)
		dir := t.TempDir()
		write := func(name string, content []byte) string {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		public := filepath.Join(dir, "master.pub")
		if err := SavePublicKey(public, &m.master.PublicKey); err != nil {
			t.Fatal(err)
		}
		list, err := parseLetter(m.whitelist)
		if err != nil {
			t.Fatal(err)
		}
		got := openssl(t, "pkeyutl", "-verifyrecover", "-pubin", "-inkey", public, "-in",
			write("list.sig", list.signature), "-pkeyopt", "rsa_padding_mode:pkcs1")
		if !bytes.Equal(got, list.hashText) {
			t.Errorf("%v: the master key signed %q, want %q", a, got, list.hashText)
		}
		letter, err := parseLetter(m.published)
		if err != nil {
			t.Fatal(err)
		}
		certificate := write("certificate", m.certificate)
		key := write("publisher.pub", openssl(t, "x509", "-in", certificate, "-noout", "-pubkey"))
		openssl(t, "dgst", "-sha1", "-verify", key, "-signature", write("manifest.sig", letter.signature),
			write("text", letter.hashText))
		fingerprint := openssl(t, "x509", "-in", certificate, "-noout", "-fingerprint", "-sha1")
		if want := FormatFingerprint(parseCertificate(t,
			m.certificate).Fingerprint(hash.SHA1)); !bytes.Contains(fingerprint, []byte(want)) {
			t.Errorf("fingerprint %s, want %s", fingerprint, want)
		}
	}
}

func TestKeysOfOpenSSLAreRead(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("no openssl to ask")
	}
	for _, form := range []string{"-traditional", "-quiet"} {
		path := filepath.Join(t.TempDir(), "key")
		args := []string{"genrsa", "-out", path}
		if form == "-traditional" {
			args = append(args, form)
		}
		openssl(t, append(args, "2048")...)
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadPrivateKey(path); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
}

func FuzzPrivateKey(f *testing.F) {
	key, err := rsa.GenerateKey(rand.Reader, minKeyBits)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := parsePrivateKey(b)
		if err == nil && key.Validate() != nil {
			t.Errorf("accepted a key that isn't one: %q", b)
		}
	})
}
