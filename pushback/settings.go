// Package pushback makes layers of a repository of what containers add to thin images: a node archives such a layer,
// sends it to an object store or to the service that publishes it, and waits until it is published. Package
// pushback/receive is the service.
package pushback

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"cvmfs-graphdriver/cvmfs/fqrn"
	"cvmfs-graphdriver/pushback/api"
)

// FileName is that of the settings, in the folder that the setting minio_ext_config of the plugin names.
const FileName = "config.json"

const (
	maxSettings = 64 << 10 // bytes
	defaultWait = 10 * time.Minute
	longestWait = 7 * 24 * time.Hour
)

// Settings say where layers are sent to. The first six are those of 2017.
type Settings struct {
	AccessKey        string // of the store
	AccessSecret     Secret
	Host             string // of the store, HOST[:PORT]; "": there is none, and the service takes archives itself
	CvmfsRepo        string // that layers are published in
	SSL              bool   // the store speaks TLS
	PublishStatusURL string // of the service; a layer's digest is put behind it

	Region      string // of the bucket; "": the store is asked
	Bucket      string // "": api.DefaultBucket
	Prefix      string // of the keys of this node's objects
	PathStyle   bool   // the bucket is named in paths, and not in the store's host name
	CA          string // file of authorities in PEM, trusted besides the system's
	Credentials string // file of the store's keys in the form of Amazon's tools, in place of the two above
	Token       Secret // for the service
	TokenFile   string // with the token
	PlainHTTP   bool   // the token may be sent without TLS
	Wait        Duration

	node     string
	tls      *tls.Config
	absolute []string // files that are named so
}

// Secret is text that isn't printed.
type Secret string

// String is in place of the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(secret)"
}

// GoString is in place of the secret.
func (s Secret) GoString() string { return s.String() }

// MarshalText is in place of the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Duration is a time as in "10m"; zero: the default.
type Duration time.Duration

// UnmarshalText reads "10m".
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err == nil && (v <= 0 || v > longestWait) {
		err = fmt.Errorf("want more than nothing, and at most %v", longestWait)
	}
	*d = Duration(v)
	return err
}

// Read returns the settings in a file. It is fs.ErrNotExist where there is none: layers are not pushed back then. Other
// files are named relative to its folder.
func Read(path string) (*Settings, error) {
	s, err := read(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("settings of push-back in %s: %w", path, err)
	}
	return s, err
}

func read(path string) (*Settings, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	s := &Settings{}
	d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(b, []byte("\ufeff")))) // some editors write a byte-order mark
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the settings")
	}
	wrong := s.complete(filepath.Dir(path))
	if s.AccessSecret != "" || s.Token != "" && s.TokenFile == "" {
		wrong = append(wrong, private(path))
	} else {
		wrong = append(wrong, guarded(path))
	}
	if err := faults(append(wrong, s.check()...)); err.Error() != "" {
		return nil, err
	}
	return s, nil
}

// Outside returns the files that the settings name by absolute paths, or that don't lie below their folder, symbolic
// links followed: whoever has that folder alone and under another name, as the plugin has, doesn't find them.
func (s *Settings) Outside(dir string) (files []string) {
	for _, file := range []string{s.CA, s.Credentials, s.TokenFile} {
		if file != "" && (slices.Contains(s.absolute, file) || !lies(file, dir)) {
			files = append(files, file)
		}
	}
	return files
}

// lies reports whether a file is below a folder, symbolic links followed.
func lies(file, dir string) bool {
	inside, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	if file, err = filepath.EvalSymlinks(file); err != nil {
		return false
	}
	rel, err := filepath.Rel(inside, file)
	return err == nil && filepath.IsLocal(rel)
}

var errLong = fmt.Errorf("more than %d bytes", maxSettings)

func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // of a pipe nobody may write to the other end
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is no regular file", path), err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSettings+1))
	if err == nil && len(b) > maxSettings {
		err = errLong
	}
	return b, err
}

// private refuses a file of secrets that everybody can read.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return fmt.Errorf("it holds secrets and has mode %04o: chmod 0600 %s", mode, path)
	}
	return nil
}

// guarded refuses settings that everybody can change: whoever does so has the token sent to himself.
func guarded(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o002 != 0 {
		return fmt.Errorf("everybody can change it, it has mode %04o: chmod 0644 %s", mode, path)
	}
	return nil
}

// faults are all that is wrong with settings, on one line; what is nil is nothing. They are no fs.ErrNotExist,
// whichever file is missing: the settings are there.
type faults []error

func (f faults) Error() string {
	var texts []string
	for _, err := range f {
		if err != nil {
			texts = append(texts, err.Error())
		}
	}
	return strings.Join(texts, "; ")
}

// complete reads the files that are named, fills in what isn't said, and returns what is wrong.
func (s *Settings) complete(dir string) (wrong []error) {
	for _, file := range []*string{&s.CA, &s.Credentials, &s.TokenFile} {
		if filepath.IsAbs(*file) {
			s.absolute = append(s.absolute, *file)
		} else if *file != "" {
			*file = filepath.Join(dir, *file)
		}
	}
	s.Prefix = strings.Trim(s.Prefix, "/") // the service has folders without slashes at their ends, too
	if s.Bucket == "" {
		s.Bucket = api.DefaultBucket
	}
	if s.Wait == 0 {
		s.Wait = Duration(defaultWait)
	}
	var err error
	if s.node, err = os.Hostname(); err != nil {
		wrong = append(wrong, err)
	}
	if err := s.readToken(); err != nil {
		wrong = append(wrong, err)
	}
	if err := s.readAuthority(); err != nil {
		wrong = append(wrong, fmt.Errorf("CA: %w", err))
	}
	return wrong
}

func (s *Settings) readToken() error {
	if s.TokenFile != "" {
		if s.Token != "" {
			return errors.New("both Token and TokenFile are given")
		}
		b, err := readFile(s.TokenFile)
		if err == nil {
			err = private(s.TokenFile)
		}
		if err != nil {
			return fmt.Errorf("TokenFile: %w", err)
		}
		if s.Token = Secret(strings.TrimSpace(string(b))); s.Token == "" {
			return fmt.Errorf("TokenFile: %s is empty", s.TokenFile)
		}
	}
	if t := string(s.Token); strings.ContainsFunc(t, func(r rune) bool { return r < ' ' || r > '~' }) {
		return errors.New("the token: want one line of printable ASCII characters")
	}
	return nil
}

func (s *Settings) readAuthority() error {
	if s.CA == "" {
		return nil
	}
	if err := guarded(s.CA); err != nil {
		return err
	}
	b, err := readFile(s.CA)
	if errors.Is(err, errLong) {
		return fmt.Errorf("%w: give the site's own authority alone, the system's are trusted anyway", err)
	}
	if err != nil {
		return err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(b) {
		return fmt.Errorf("%s has no certificate in PEM", s.CA)
	}
	s.tls = &tls.Config{RootCAs: pool}
	return nil
}

// check returns what doesn't go together.
func (s *Settings) check() (wrong []error) {
	if err := fqrn.Check(s.CvmfsRepo); err != nil {
		wrong = append(wrong, fmt.Errorf("CvmfsRepo: %w", err))
	}
	if _, err := s.service(); err != nil {
		wrong = append(wrong, fmt.Errorf("PublishStatusURL: %w", err))
	}
	if s.Host == "" {
		if s.AccessKey != "" || s.AccessSecret != "" || s.Credentials != "" {
			wrong = append(wrong, errors.New("keys are given, and no Host of the store that they are for"))
		}
		return wrong
	}
	if u, err := url.Parse("x://" + s.Host); err != nil || u.Host != s.Host || u.Path != "" {
		wrong = append(wrong, errors.New("the store (Host): want HOST or HOST:PORT")) // it may hold a secret
	}
	if (s.AccessKey == "" || s.AccessSecret == "") == (s.Credentials == "") {
		return append(wrong, errors.New("the store wants AccessKey and AccessSecret, or Credentials"))
	}
	if s.Credentials != "" {
		wrong = append(wrong, private(s.Credentials))
	}
	return wrong
}

// redact returns an error without secrets of the settings: what others answer is part of it, and may repeat what they
// were sent.
func (s *Settings) redact(err error) error { return &redacted{s.hide(err.Error()), err} }

// hide returns a text without secrets of the settings.
func (s *Settings) hide(text string) string {
	for _, secret := range []Secret{s.Token, s.AccessSecret} {
		if secret != "" {
			text = strings.ReplaceAll(text, string(secret), secret.String())
		}
	}
	return text
}

// redacted is an error that says something else.
type redacted struct {
	text string
	error
}

func (r *redacted) Error() string { return r.text }
func (r *redacted) Unwrap() error { return r.error }

// service returns the client of the service.
func (s *Settings) service() (*api.Client, error) {
	return api.NewClient(s.PublishStatusURL, api.Options{
		Token: string(s.Token), TLS: s.tls, PlainHTTP: s.PlainHTTP, UserAgent: userAgent, Folder: s.Prefix,
	})
}
