package trust

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/test/testutil"
)

// references are the repositories a CernVM-FS server made for the tests.
var references = []string{"features.example.org", "images.example.org", "shake.example.org"}

// when is a time at which their whitelists are valid.
var when = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// served is what a server gives: the parts of a chain, to be tampered with.
type served struct {
	published, certificate, whitelist []byte
	err                               error // of fetching certificate or whitelist
}

func (s *served) Certificate(context.Context, hash.Digest) ([]byte, error) {
	return s.certificate, s.err
}

func (s *served) Whitelist(context.Context) ([]byte, error) { return s.whitelist, s.err }

func (s *served) verify(p Policy) (*Trusted, error) {
	return p.Verify(context.Background(), s.published, s)
}

func read(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reference is a reference repository's chain and the policy of a host that trusts it.
func reference(t testing.TB, fqrn string) (*served, Policy) {
	t.Helper()
	files := testutil.Reference(t, fqrn)
	s := &served{
		published: slices.Clone(files[".cvmfspublished"].Data), whitelist: slices.Clone(files[".cvmfswhitelist"].Data),
	}
	_, rest, _ := bytes.Cut(s.published, []byte("\nX"))
	name, _, _ := bytes.Cut(rest, []byte("\n"))
	d, err := hash.Parse(string(name))
	if err != nil {
		t.Fatal(err)
	}
	z, err := zlib.NewReader(bytes.NewReader(files[d.Path(hash.Certificate)].Data))
	if err != nil {
		t.Fatal(err)
	}
	if s.certificate, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	return s, Policy{FQRN: fqrn, Keys: load(t, fqrn), Now: when}
}

func load(t testing.TB, fqrns ...string) Keys {
	t.Helper()
	var paths []string
	for _, fqrn := range fqrns {
		paths = append(paths, testutil.PublicKey(t, fqrn))
	}
	keys, err := LoadKeys(paths...)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func newKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, minKeyBits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newCertificate(t testing.TB, public, private any) []byte {
	t.Helper()
	long := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC) // over since long
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: long,
		NotAfter: long,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func parseCertificate(t testing.TB, pem []byte) *Certificate {
	t.Helper()
	c, err := ParseCertificate(pem)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sealed signs a text the way sign says.
func sealed(t testing.TB, text string, a hash.Algorithm, sign func(hashText []byte) ([]byte, error)) []byte {
	t.Helper()
	hashText := []byte(a.Digest([]byte(text)).String())
	signature, err := sign(hashText)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, "%s--\n%s\n%s", text, hashText, signature)
}

// bare signs as master keys do, hashed as publishers do.
func bare(k *rsa.PrivateKey) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) { return rsa.SignPKCS1v15(nil, k, crypto.Hash(0), b) }
}

func hashed(k *rsa.PrivateKey) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) {
		sum := sha1.Sum(b)
		return rsa.SignPKCS1v15(nil, k, crypto.SHA1, sum[:])
	}
}

// made is a chain of our own for test.example.org.
type made struct {
	served
	Policy
	master, publisher *rsa.PrivateKey
}

const (
	manifestText = "C6ed3d49a5c64f21f36936ab350d49aaf57585b9a\nRd41d8cd98f00b204e9800998ecf8427e\nD240\nS5\nNtest.example.org\nX65133968f581abad1e75489c92a634e44929cbd7\nT1445428515\n"
	whitelistTop = "20290101000000\nE20310101125959\nNtest.example.org\n"
)

func newChain(t testing.TB, a hash.Algorithm) *made {
	t.Helper()
	m := &made{master: newKey(t), publisher: newKey(t)}
	m.certificate = newCertificate(t, m.publisher.Public(), m.publisher)
	m.published = sealed(t, manifestText, a, hashed(m.publisher))
	m.whitelist = sealed(t, whitelistTop+FormatFingerprint(parseCertificate(t, m.certificate).Fingerprint(a))+
		" # test\n", a, bare(m.master))
	m.Policy = Policy{FQRN: "test.example.org", Keys: Keys{&m.master.PublicKey}, Now: when}
	return m
}

func (m *made) check() (*Trusted, error) { return m.served.verify(m.Policy) }

func blacklist(t testing.TB, lines ...string) *Blacklist {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blacklist")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := LoadBlacklist(path, path+".absent")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestChainsOfAnyAlgorithmAreTrusted(t *testing.T) {
	for a := hash.SHA1; a.Valid(); a++ {
		if _, err := newChain(t, a).check(); err != nil {
			t.Errorf("%v: %v", a, err)
		}
	}
}

// A flipped bit anywhere breaks the chain; in the certificate's PEM there are bits that don't change the certificate.
func TestReferenceRepositoriesAreTrustedAndEveryFlippedByteIsNoticed(t *testing.T) {
	for _, fqrn := range references {
		s, p := reference(t, fqrn)
		good, err := s.verify(p)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if good.Manifest.FQRN != fqrn || good.Manifest.Revision == 0 ||
			!good.Expires.Equal(time.Date(2046, 11, 18, 4, 0, 0, 0, time.UTC)) {
			t.Errorf("%s: %+v, valid until %v", fqrn, good.Manifest, good.Expires)
		}
		for name, part := range map[string][]byte{
			"published": s.published, "whitelist": s.whitelist,
			"certificate": s.certificate,
		} {
			for i := range part {
				part[i] ^= 1 << (i % 8)
				got, err := s.verify(p)
				if err == nil && (name != "certificate" || got.Certificate.String() != good.Certificate.String()) {
					t.Errorf("%s: byte %d of %s changed to %q: still trusted", fqrn, i, name, part[i])
				}
				part[i] ^= 1 << (i % 8)
			}
		}
	}
}

func TestEveryTruncationIsNoticed(t *testing.T) {
	m := newChain(t, hash.SHAKE128)
	whole := m.served
	for i := range whole.published {
		m.published = whole.published[:i]
		if _, err := m.check(); err == nil {
			t.Errorf("manifest cut to %d bytes: still trusted", i)
		}
	}
	m.published = append(bytes.Clone(whole.published), 0)
	if _, err := m.check(); !errors.Is(err, ErrSignature) {
		t.Errorf("a byte behind the signature: %v", err)
	}
	m.published = whole.published
	for i := range whole.whitelist {
		m.whitelist = whole.whitelist[:i]
		if _, err := m.check(); err == nil {
			t.Errorf("whitelist cut to %d bytes: still trusted", i)
		}
	}
}

func TestWhitelistExpiresAtTheStartOfItsHour(t *testing.T) {
	m := newChain(t, hash.SHA1) // says 2031-01-01 12:59:59
	for _, c := range []struct {
		now  time.Time
		want error
	}{
		{time.Date(2031, 1, 1, 11, 59, 59, 999, time.UTC), nil},
		{time.Date(2031, 1, 1, 12, 0, 0, 0, time.UTC), ErrExpired},
		{time.Date(2031, 1, 1, 12, 59, 58, 0, time.UTC), ErrExpired},
		{time.Date(2031, 1, 1, 11, 30, 0, 0, time.FixedZone("west", -3600)), ErrExpired},
		{time.Date(2031, 1, 1, 12, 30, 0, 0, time.FixedZone("east", 3600)), nil},
		{time.Date(2032, 1, 1, 0, 0, 0, 0, time.UTC), ErrExpired},
		{time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC), nil},
	} {
		m.Now = c.now
		if _, err := m.check(); !errors.Is(err, c.want) {
			t.Errorf("at %v: got %v, want %v", c.now, err, c.want)
		}
	}
}

func TestChainIsRefused(t *testing.T) {
	stranger := newKey(t)
	strange := newCertificate(t, stranger.Public(), stranger)
	fingerprint := func(m *made) string {
		return FormatFingerprint(parseCertificate(t, m.certificate).Fingerprint(hash.SHA1))
	}
	for name, c := range map[string]struct {
		change func(m *made)
		want   error
	}{
		"no keys":            {func(m *made) { m.Keys = nil }, ErrSignature},
		"another master key": {func(m *made) { m.Keys = Keys{&stranger.PublicKey} }, ErrSignature},
		"another repository": {func(m *made) { m.FQRN = "other.example.org" }, ErrInvalid},
		"a certificate that isn't listed": {func(m *made) {
			m.certificate = strange
			m.published = sealed(t, manifestText, hash.SHA1, hashed(stranger))
		}, ErrNotWhitelisted},
		"an exchanged certificate": {func(m *made) { m.certificate = strange }, ErrNotWhitelisted},
		"a manifest signed with another key": {func(m *made) {
			m.published = sealed(t, manifestText, hash.SHA1,
				hashed(stranger))
		}, ErrSignature},
		"a manifest signed by the master key": {func(m *made) {
			m.published = sealed(t, manifestText, hash.SHA1,
				bare(m.master))
		}, ErrSignature},
		"a manifest signed without a digest": {func(m *made) {
			m.published = sealed(t, manifestText, hash.SHA1,
				bare(m.publisher))
		}, ErrSignature},
		"a manifest without a signature": {func(m *made) { m.published = m.published[:len(m.published)-minKeyBits/8] }, ErrSignature},
		"a manifest signed with SHA-256": {func(m *made) {
			m.published = sealed(t, manifestText, hash.SHA1,
				sha256Signed(m.publisher))
		}, ErrSignature},
		"a whitelist signed with a digest": {func(m *made) {
			m.whitelist = sealed(t,
				whitelistTop+fingerprint(m)+"\n", hash.SHA1, hashed(m.master))
		}, ErrSignature},
		"a whitelist signed by the publisher": {func(m *made) {
			m.whitelist = sealed(t,
				whitelistTop+fingerprint(m)+"\n", hash.SHA1, bare(m.publisher))
		}, ErrSignature},
		"another repository's whitelist": {func(m *made) {
			m.whitelist = signedList(t, m, "20290101000000\nE20310101125959\nNother.example.org\n"+fingerprint(m)+"\n")
		}, ErrInvalid},
		"a whitelist without certificates": {
			func(m *made) { m.whitelist = signedList(t, m, whitelistTop) },
			ErrNotWhitelisted,
		},
		"a commented-out fingerprint": {func(m *made) {
			m.whitelist = signedList(t, m,
				whitelistTop+"#"+fingerprint(m)+"\n")
		}, ErrNotWhitelisted},
		"a fingerprint of another algorithm": {func(m *made) {
			m.whitelist = signedList(t, m,
				whitelistTop+fingerprint(m)+"-SHAKE128\n")
		}, ErrNotWhitelisted},
		"Vpkcs7": {func(m *made) {
			m.whitelist = signedList(t, m,
				whitelistTop+"Vpkcs7\n"+fingerprint(m)+"\n")
		}, ErrInvalid},
		"Wcachain": {func(m *made) {
			m.whitelist = signedList(t, m,
				whitelistTop+"Wcachain\n"+fingerprint(m)+"\n")
		}, ErrInvalid},
		"both flags": {func(m *made) {
			m.whitelist = signedList(t, m,
				whitelistTop+"Vpkcs7\nWcachain\n"+fingerprint(m)+"\n")
		}, ErrInvalid},
		"a long first line": {func(m *made) {
			m.whitelist = signedList(t, m,
				"0"+whitelistTop+fingerprint(m)+"\n")
		}, ErrInvalid},
		"expiry in the first line": {func(m *made) {
			m.whitelist = signedList(t, m, "E20310101125959\n20290101000000\nNtest.example.org\n"+fingerprint(m)+"\n")
		}, ErrInvalid},
		"an impossible date": {func(m *made) {
			m.whitelist = signedList(t, m, "20290101000000\nE20311301125959\nNtest.example.org\n"+fingerprint(m)+"\n")
		}, ErrInvalid},
		"fractions of a second": {func(m *made) {
			m.whitelist = signedList(t, m, "20290101000000\nE20310101125959.5\nNtest.example.org\n"+fingerprint(m)+"\n")
		}, ErrInvalid},
		"the name in the fourth line": {func(m *made) {
			m.whitelist = signedList(t, m, "20290101000000\nE20310101125959\n\nNtest.example.org\n"+fingerprint(m)+"\n")
		}, ErrInvalid},
		"a blacklisted certificate": {func(m *made) { m.Blacklist = blacklist(t, fingerprint(m)) }, ErrBlacklisted},
		"blacklisted by another algorithm": {func(m *made) {
			m.Blacklist = blacklist(t, strings.Fields(parseCertificate(t, m.certificate).String())[2]+"\t# stolen")
		}, ErrBlacklisted},
		"a blacklisted one that isn't listed": {func(m *made) {
			m.whitelist = signedList(t, m, whitelistTop)
			m.Blacklist = blacklist(t, fingerprint(m))
		}, ErrBlacklisted},
		"a blacklisted revision": {
			func(m *made) { m.Blacklist = blacklist(t, "<test.example.org 6") },
			ErrBlacklisted,
		},
		"a manifest that isn't a letter": {func(m *made) { m.published = []byte(manifestText) }, ErrInvalid},
		"a manifest that is a page":      {func(m *made) { m.published = []byte("<html>404</html>") }, ErrInvalid},
		"a manifest without end": {
			func(m *made) { m.published = bytes.Repeat([]byte("C\n"), MaxLetter) },
			ErrInvalid,
		},
		"a signed text that isn't a manifest": {func(m *made) {
			m.published = sealed(t, whitelistTop, hash.SHA1,
				hashed(m.publisher))
		}, ErrInvalid},
		"a certificate that is DER": {func(m *made) {
			b,
				_ := pem.Decode(m.certificate)
			m.certificate = b.Bytes
		}, ErrInvalid},
		"two certificates": {
			func(m *made) { m.certificate = append(m.certificate, strange...) },
			ErrInvalid,
		},
		"a certificate behind a key": {func(m *made) {
			m.certificate = append(read(t,
				testutil.PublicKey(t, references[0])), m.certificate...)
		}, ErrInvalid},
		"a certificate without RSA key": {func(m *made) { m.certificate = ellipticCertificate(t) }, ErrInvalid},
		"a certificate that is too large": {func(m *made) {
			m.certificate = append(bytes.Repeat([]byte("\n"),
				maxKeyFile), m.certificate...)
		}, ErrInvalid},
		"no certificate":                  {func(m *made) { m.certificate = nil }, ErrInvalid},
		"nothing to be had of the server": {func(m *made) { m.err = fs.ErrNotExist }, fs.ErrNotExist},
	} {
		m := newChain(t, hash.SHA1)
		if _, err := m.check(); err != nil {
			t.Fatal(err)
		}
		c.change(m)
		got, err := m.check()
		if got != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		} else if prefix := "verify manifest of " + m.FQRN + ": "; !strings.HasPrefix(err.Error(), prefix) {
			t.Errorf("%s: %q doesn't begin with %q", name, err, prefix)
		}
	}
}

func signedList(t testing.TB, m *made, text string) []byte {
	t.Helper()
	return sealed(t, text, hash.SHA1, bare(m.master))
}

func sha256Signed(k *rsa.PrivateKey) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) {
		sum := sha256.Sum256(b)
		return rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum[:])
	}
}

func ellipticCertificate(t testing.TB) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newCertificate(t, k.Public(), k)
}

func TestChainsThatAreStillGood(t *testing.T) {
	for name, change := range map[string]func(m *made){
		"one of several keys": func(m *made) { m.Keys = append(load(t, references...), m.Keys...) },
		"several certificates, junk between": func(m *made) {
			c := parseCertificate(t, m.certificate)
			m.whitelist = signedList(t, m, whitelistTop+"junk\n\n"+strings.Repeat("00:", 19)+"00 # gone\n"+
				FormatFingerprint(c.Fingerprint(hash.RIPEMD160))+"#next\n")
		},
		"a whitelist by another algorithm": func(m *made) {
			m.whitelist = sealed(t, whitelistTop+strings.Fields(parseCertificate(t, m.certificate).String())[2]+"\n",
				hash.RIPEMD160, bare(m.master))
		},
		"dashes within the text": func(m *made) {
			m.published = sealed(t, manifestText+"Z--\nZ\n---\n", hash.SHA1, hashed(m.publisher))
		},
		"text around the certificate": func(m *made) {
			m.certificate = append([]byte("Certificate:\n    Data:\n"), append(m.certificate, "\nend\n"...)...)
		},
		"the least revision that isn't blacklisted": func(m *made) {
			m.Blacklist = blacklist(t, "<test.example.org 5",
				"<other.example.org 100")
		},
		"another blacklisted certificate": func(m *made) {
			m.Blacklist = blacklist(t,
				strings.Repeat("00:", 19)+"00")
		},
	} {
		m := newChain(t, hash.SHA1)
		change(m)
		if _, err := m.check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLetterEndsItsTextAtTheFirstLineOfDashes(t *testing.T) {
	const signature = "\x00--\n\n--\nmore\n"
	l, err := parseLetter(sealed(t, "a--\n-- b\n", hash.SHA1,
		func([]byte) ([]byte, error) { return []byte(signature), nil }))
	if err != nil {
		t.Fatal(err)
	}
	if string(l.text) != "a--\n-- b\n" || string(l.signature) != signature {
		t.Errorf("got %q, %q, %q", l.text, l.hashText, l.signature)
	}
}

func TestBlacklistLines(t *testing.T) {
	c := parseCertificate(t, newChain(t, hash.SHA1).certificate)
	b := blacklist(t, "# bad ones", "", "<a.example.org 7", "<a.example.org\t \t9", "<a.example.org 8",
		"<b.example.org 7 # comment", "< c.example.org 7", "<d.example.org", "<e.example.org -1", "<f.example.org 7 ",
		"nonsense",
		FormatFingerprint(c.Fingerprint(hash.RIPEMD160))+" # stolen")
	for fqrn, want := range map[string]uint64{
		"a.example.org": 9, "b.example.org": 0, "c.example.org": 0,
		"d.example.org": 0, "e.example.org": 0, "f.example.org": 0,
	} {
		if got := b.MinRevision(fqrn); got != want {
			t.Errorf("%s: got %d, want %d", fqrn, got, want)
		}
	}
	if got := len(b.Ignored()); got != 6 {
		t.Errorf("%d lines without effect: %q", got, b.Ignored())
	}
	if !b.Certificate(c) || !b.Fingerprints(c.String()) || b.Fingerprints("nonsense") {
		t.Errorf("the certificate %v isn't found by its fingerprint", c)
	}
	var none *Blacklist
	if none.Certificate(c) || none.MinRevision("a.example.org") != 0 || none.Ignored() != nil {
		t.Error("no blacklist lists something")
	}
	if _, err := LoadBlacklist(t.TempDir()); err == nil {
		t.Error("a blacklist that can't be read is taken for an empty one")
	}
}

func TestEveryMasterKeyMustBeReadable(t *testing.T) {
	good := testutil.PublicKey(t, references[0])
	small, err := rsa.GenerateKey(rand.Reader, minKeyBits)
	if err != nil {
		t.Fatal(err)
	}
	small.N.Rsh(small.N, 8)
	spki := func(key any) []byte {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"empty":       nil,
		"cut off":     read(t, good)[:200],
		"two keys":    append(read(t, good), read(t, good)...),
		"certificate": newCertificate(t, small.Public(), newKey(t)),
		"elliptic":    spki(k.Public()),
		"short":       spki(small.Public()),
		"too large":   append(bytes.Repeat([]byte("\n"), maxKeyFile), read(t, good)...),
	} {
		path := filepath.Join(t.TempDir(), "key.pub")
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKeys(good, path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := LoadKeys(good, "/nonexistent/key.pub"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: got %v", err)
	}
}

// The standard library panics on SHA-1 under this setting.
func TestStrictFIPSModeIsAnErrorNotAPanic(t *testing.T) {
	if os.Getenv("GODEBUG") != "fips140=only" {
		c := exec.Command(os.Args[0], "-test.run=^TestStrictFIPSModeIsAnErrorNotAPanic$", "-test.v")
		c.Env = append(os.Environ(), "GODEBUG=fips140=only")
		if out, err := c.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if _, err := LoadKeys(testutil.PublicKey(t, references[0])); err == nil ||
		!strings.Contains(err.Error(), "fips140") {
		t.Errorf("keys: got %v", err)
	}
	if _, err := parseLetter([]byte("a\n--\n" + strings.Repeat("0", 40) + "\n")); err == nil ||
		!strings.Contains(err.Error(), "fips140") {
		t.Errorf("manifest: got %v", err)
	}
}

func FuzzParseLetter(f *testing.F) {
	f.Add([]byte("a\n--\n" + hash.SHA1.Digest([]byte("a\n")).String() + "\nsignature"))
	f.Add([]byte("\n--\n" + hash.SHAKE128.Digest([]byte("\n")).String() + "\n\n--\n"))
	f.Add([]byte("--\n--\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseLetter(b)
		if err != nil {
			return
		}
		if back := fmt.Appendf(nil, "%s--\n%s\n%s", l.text, l.hashText, l.signature); !bytes.Equal(back, b) {
			t.Errorf("%q was taken apart to %q", b, back)
		}
		if d, err := hash.Parse(string(l.hashText)); err != nil || d.Algorithm.Digest(l.text) != d {
			t.Errorf("accepted a text with another digest: %q", b)
		}
	})
}

func FuzzWhitelistText(f *testing.F) {
	f.Add("20151021115513\nE20151120115513\nNlegacy_aufs.cern.ch\n93:AB:A3:C4:89:BE:F9:B7:3E:90:8F:42:C1:8A:EF:12:BB:05:C4:15\n")
	f.Add(whitelistTop + "Vpkcs7\nWcachain\n")
	f.Add(whitelistTop + "E7:50:A2:5F:4A:2E:21:33:6E:AD:FE:1D:9C:13:88:A8:2B:5E:71:CE-SHAKE128 # comment\n")
	f.Fuzz(func(t *testing.T, text string) {
		w, err := parseWhitelist(text)
		if err != nil {
			return
		}
		if w.Expires.Minute() != 0 || w.Expires.Second() != 0 {
			t.Errorf("expires within an hour: %v", w.Expires)
		}
		for _, d := range w.fingerprints {
			if back, ok := parseFingerprint(FormatFingerprint(d)); !ok || back != d {
				t.Errorf("fingerprint %v is written as %s", d, FormatFingerprint(d))
			}
		}
	})
}
