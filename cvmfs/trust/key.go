package trust

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
)

// Sizes of RSA keys that are used: crypto/rsa refuses smaller ones, and larger ones only burn time.
const (
	minKeyBits = 1024
	maxKeyBits = 16384
)

// maxKeyFile is the most bytes of a file with a master key or a certificate.
const maxKeyFile = 64 << 10

// Keys are master keys of a repository: any one of them suffices.
type Keys []*rsa.PublicKey

// LoadKeys reads files that hold one public key each (PEM, "BEGIN PUBLIC KEY"). A single bad one is an error, as in the
// reference client: leaving it out could hide that the wrong one is in use.
func LoadKeys(paths ...string) (Keys, error) {
	if err := permitted(); err != nil {
		return nil, fmt.Errorf("master keys: %w", err)
	}
	keys := make(Keys, 0, len(paths))
	for _, path := range paths {
		b, err := readFile(path, maxKeyFile)
		if err != nil {
			return nil, fmt.Errorf("master key: %w", err)
		}
		key, err := parseKey(b)
		if err != nil {
			return nil, fmt.Errorf("master key %s: %w", path, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func parseKey(b []byte) (*rsa.PublicKey, error) {
	der, err := onlyBlock(b, "PUBLIC KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return checkKey(key)
}

// checkKey sees that a key is RSA and of a usable size.
func checkKey(key any) (*rsa.PublicKey, error) {
	k, ok := key.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: a key of type %T, where the format has RSA only", ErrInvalid, key)
	}
	if bits := k.N.BitLen(); bits < minKeyBits || bits > maxKeyBits {
		return nil, fmt.Errorf("%w: an RSA key of %d bits, where %d to %d are accepted", ErrInvalid, bits, minKeyBits,
			maxKeyBits)
	}
	return k, nil
}

// verify reports whether one of the keys signed digestText: PKCS #1 v1.5 padding (type 1) around the bare text, no
// digest of it and no DigestInfo. A key too short for the text can't have.
func (keys Keys) verify(digestText, signature []byte) bool {
	for _, k := range keys {
		if rsa.VerifyPKCS1v15(k, crypto.Hash(0), digestText, signature) == nil {
			return true
		}
	}
	return false
}

// onlyBlock returns the content of the one PEM block in b, which must be of that type.
func onlyBlock(b []byte, blockType string) ([]byte, error) {
	block, err := oneBlock(b)
	if err != nil {
		return nil, err
	}
	if block.Type != blockType {
		return nil, fmt.Errorf("%w: a PEM block %.40q, not %q", ErrInvalid, block.Type, blockType)
	}
	return block.Bytes, nil
}

// oneBlock returns the one PEM block in b. Text around it is customary.
func oneBlock(b []byte) (*pem.Block, error) {
	block, rest := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%w: no PEM block", ErrInvalid)
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, fmt.Errorf("%w: a second PEM block, %.40q", ErrInvalid, more.Type)
	}
	return block, nil
}

// readFile reads a file of the host that has no business being larger than limit.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, &os.PathError{Op: "read", Path: path, Err: errors.New("file is too large")}
	}
	return b, nil
}
