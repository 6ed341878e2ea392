package trust

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"cvmfs-graphdriver/internal/durable"
)

// newKeyBits is the size of new keys, the customary one.
const newKeyBits = 2048

// ErrExposed is the refusal of a private key that others than its owner may read or write.
var ErrExposed = errors.New("a private key open to others")

// GenerateKey makes a new RSA key, for a master or for a publisher.
func GenerateKey() (*rsa.PrivateKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, newKeyBits)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

// LoadPrivateKey reads a file with one private key (PEM, "RSA PRIVATE KEY" or "PRIVATE KEY"), which must be its owner's
// alone.
func LoadPrivateKey(path string) (*rsa.PrivateKey, error) {
	key, err := loadPrivateKey(path)
	if err != nil {
		return nil, fmt.Errorf("private key %s: %w", path, err)
	}
	return key, nil
}

func loadPrivateKey(path string) (*rsa.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: not a regular file", ErrInvalid)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%w (mode %04o): chmod 0600 %s", ErrExposed, info.Mode().Perm(), path)
	case info.Size() > maxKeyFile:
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrInvalid, info.Size(), maxKeyFile)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, err
	}
	return parsePrivateKey(b)
}

func parsePrivateKey(b []byte) (*rsa.PrivateKey, error) {
	block, err := oneBlock(b)
	if err != nil {
		return nil, err
	}
	if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
		return nil, fmt.Errorf("%w: it has a passphrase: take it off with `openssl rsa -in KEY -out PLAIN`", ErrInvalid)
	}
	var key any
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("%w: a PEM block %.40q, not a private key", ErrInvalid, block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	private, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: a key of type %T, where the format has RSA only", ErrInvalid, key)
	}
	if _, err := checkKey(&private.PublicKey); err != nil {
		return nil, err
	}
	return private, nil
}

// SavePrivateKey writes a key to a file of mode 0600 that must not exist yet: fs.ErrExist if it does. When it returns,
// the file is on the disk, whole.
func SavePrivateKey(path string, key *rsa.PrivateKey) error {
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	if err := durable.New(path, 0o600, pem.EncodeToMemory(block)); err != nil {
		return fmt.Errorf("save private key: %w", err)
	}
	return nil
}

// SavePublicKey writes a public key as LoadKeys reads it, to a file of mode 0644 that must not exist yet.
func SavePublicKey(path string, key *rsa.PublicKey) error {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err == nil {
		err = durable.New(path, 0o644, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	if err != nil {
		return fmt.Errorf("save public key: %w", err)
	}
	return nil
}
