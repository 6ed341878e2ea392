package client

import (
	"bytes"
	"compress/zlib"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/trust"
)

// forge is a publisher that signs whatever it is told to: what a stolen key could do.
type forge struct {
	t           testing.TB
	fqrn        string
	files       map[string][]byte // served
	master      *rsa.PrivateKey
	key         *rsa.PrivateKey
	certificate hash.Digest
}

const forgedFQRN = "forged.example.org"

func newForge(t testing.TB) *forge {
	t.Helper()
	f := &forge{t: t, fqrn: forgedFQRN, files: map[string][]byte{}}
	keys := forgedKeys()
	f.master, f.key = keys[0], keys[1]
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: f.fqrn},
		NotAfter: time.Unix(1<<32, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, f.key.Public(), f.key)
	f.check(err)
	f.certificate = f.object(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), hash.Certificate)
	fingerprint := trust.FormatFingerprint(hash.SHA1.Digest(der))
	text := fmt.Sprintf("20200101000000\nE20400101000000\nN%s\n%s\n", f.fqrn, fingerprint)
	f.letter(".cvmfswhitelist", text, func(sum []byte) ([]byte, error) {
		return rsa.SignPKCS1v15(nil, f.master, crypto.Hash(0), sum)
	})
	return f
}

func (f *forge) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// forgedKeys are a master key and a publisher's.
var forgedKeys = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
	for i := range keys {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = key
	}
	return keys
})

// letter writes a signed text.
func (f *forge) letter(name, text string, sign func(hashText []byte) ([]byte, error)) {
	f.t.Helper()
	sum := []byte(hash.SHA1.Digest([]byte(text)).String())
	signature, err := sign(sum)
	f.check(err)
	f.write(name, []byte(text+"--\n"+string(sum)+"\n"+string(signature)))
}

func (f *forge) write(name string, b []byte) { f.files[name] = b }

// serve serves what was published so far.
func (f *forge) serve() string { return newSite(f.t, f.files).url }

// object stores plain bytes.
func (f *forge) object(plain []byte, s hash.Suffix) hash.Digest {
	f.t.Helper()
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	_, err := z.Write(plain)
	f.check(err)
	f.check(z.Close())
	d := hash.SHA1.Digest(b.Bytes())
	f.write(d.Path(s), b.Bytes())
	return d
}

// publish signs a manifest.
func (f *forge) publish(root forged, revision uint64, at time.Time) {
	f.t.Helper()
	text := fmt.Sprintf("C%v\nB%d\nRd41d8cd98f00b204e9800998ecf8427e\nD240\nS%d\nGno\nN%s\nX%v\nT%d\n",
		root.digest, root.size, revision, f.fqrn, f.certificate, at.Unix())
	f.letter(".cvmfspublished", text, func(sum []byte) ([]byte, error) {
		digest := sha1.Sum(sum)
		return rsa.SignPKCS1v15(nil, f.key, crypto.SHA1, digest[:])
	})
}

// config is that of a client which believes the forge.
func (f *forge) config() sources {
	return sources{FQRN: f.fqrn, Keys: trust.Keys{&f.master.PublicKey}, Dir: f.t.TempDir()}
}

// forged is a stored catalog.
type forged struct {
	path   string
	digest hash.Digest
	size   int64
}

// entry is a row of a forged catalog; the zero mode is a folder's.
type entry struct {
	path   string
	at     string // the path the row is entered under, if not its own
	mode   uint32
	size   int64
	links  int64 // group<<32 | count
	flags  catalog.Flags
	digest hash.Digest
	target string
}

const file = 0o100644

const schema = `
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, hardlinks INTEGER, hash BLOB,
  size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER, flags INTEGER, name TEXT, symlink TEXT, uid INTEGER, gid INTEGER,
  xattr BLOB, CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);
CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB,
  CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
INSERT INTO properties VALUES ('schema', '2.5'), ('schema_revision', '7'), ('TTL', '600');
`

// catalog stores a catalog of revision 1 whose root is prefix.
func (f *forge) catalog(prefix string, entries []entry, nested ...forged) forged {
	f.t.Helper()
	path := filepath.Join(f.t.TempDir(), "catalog")
	db, err := sql.Open("sqlite", path)
	f.check(err)
	db.SetMaxOpenConns(1)
	exec := func(q string, args ...any) {
		f.t.Helper()
		_, err := db.Exec(q, args...)
		f.check(err)
	}
	exec(schema)
	exec("BEGIN")
	exec("INSERT INTO properties VALUES ('revision', '1')")
	if prefix != "" {
		exec("INSERT INTO properties VALUES ('root_prefix', ?)", prefix)
	}
	for _, e := range entries {
		f.row(exec, e)
	}
	for _, n := range nested {
		exec("INSERT INTO nested_catalogs VALUES (?, ?, ?)", n.path, n.digest.String(), n.size)
	}
	exec("COMMIT")
	f.check(db.Close())
	plain, err := os.ReadFile(path)
	f.check(err)
	return forged{path: prefix, digest: f.object(plain, hash.Catalog), size: int64(len(plain))}
}

func (f *forge) row(exec func(q string, args ...any), e entry) {
	if e.at == "" {
		e.at = e.path
	}
	cut := strings.LastIndexByte(e.at, '/')
	path, parent := hash.OfPath(e.at), hash.PathHash{}
	if cut >= 0 {
		parent = hash.OfPath(e.at[:cut])
	}
	if e.mode == 0 {
		e.mode = 0o040755
	}
	var digest any
	if !e.digest.IsZero() {
		digest = e.digest.Sum[:]
	}
	exec("INSERT INTO catalog VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1700000000, NULL, ?, ?, ?, 0, 0, NULL)", path.P1, path.P2,
		parent.P1, parent.P2, max(e.links, 1), digest, e.size, e.mode, uint32(e.flags),
		e.path[strings.LastIndexByte(e.path, '/')+1:], e.target)
}
