package fetch

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Authorities says whose word on https servers counts, beside those of the system or, where it has none, those that are
// linked into the program.
type Authorities struct {
	Dir  string // folder of files with PEM certificates; "": none
	File string // file with PEM certificates; "": none
}

// maxCertificates is the largest size of a file of certificates, in bytes.
const maxCertificates = 8 << 20

// pool returns the certificates; nil: those of the system alone. An error says which of them are missing: with the
// others all servers but some of https can be spoken to.
func (a Authorities) pool() (*x509.CertPool, error) {
	if a == (Authorities{}) {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("the system's certificate authorities: %w", err)
	}
	var missing []error
	if a.File != "" {
		switch found, err := appendFile(pool, a.File); {
		case err != nil:
			missing = append(missing, fmt.Errorf("X509_CERT_BUNDLE: %w", err))
		case !found:
			missing = append(missing, fmt.Errorf("X509_CERT_BUNDLE: %s has no PEM certificate", a.File))
		}
	}
	if a.Dir != "" {
		if err := appendDir(pool, a.Dir); err != nil {
			missing = append(missing, fmt.Errorf("X509_CERT_DIR: %w", err))
		}
	}
	return pool, errors.Join(missing...)
}

// appendDir takes the certificates of a folder; other files, as revocation lists, are passed over.
func appendDir(pool *x509.CertPool, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	some := false
	for _, e := range entries {
		found, err := appendFile(pool, filepath.Join(dir, e.Name()))
		if err != nil && !errors.Is(err, errNoFile) {
			return err
		}
		some = some || found
	}
	if !some {
		return fmt.Errorf("%s has no file with a PEM certificate", dir)
	}
	return nil
}

var errNoFile = errors.New("not a file of certificates")

func appendFile(pool *x509.CertPool, name string) (found bool, err error) {
	info, err := os.Stat(name) // hash-named entries are symbolic links
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxCertificates {
		return false, fmt.Errorf("%s: %w", name, errNoFile)
	}
	pem, err := os.ReadFile(name)
	if err != nil {
		return false, err
	}
	return pool.AppendCertsFromPEM(pem), nil
}
