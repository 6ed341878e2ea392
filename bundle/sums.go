package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"aead.dev/minisign"
)

// Files of an output.
const (
	SumsName      = "SHA256SUMS" // as sha256sum(1) writes and checks it
	SignatureName = SumsName + ".minisig"
	sbomSuffix    = ".spdx.json"
)

// maxSums bounds SHA256SUMS and its signature.
const maxSums = 1 << 20

// sumLine is a line of SHA256SUMS.
var sumLine = regexp.MustCompile(`^([0-9a-f]{64}) [ *]([^\\]+)$`)

// readSums reads a SHA256SUMS: sums by name.
func readSums(file string) (map[string]string, error) {
	text, err := readFile(file, maxSums)
	if err != nil {
		return nil, err
	}
	return parseSums(file, text)
}

func parseSums(file string, text []byte) (map[string]string, error) {
	sums := map[string]string{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		m := sumLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			return nil, fmt.Errorf("read %s: line %d isn't one of sha256sum's: %.100q", file, n, line)
		}
		if _, twice := sums[m[2]]; twice {
			return nil, fmt.Errorf("read %s: line %d: %.100q is there twice", file, n, m[2])
		}
		sums[m[2]] = m[1]
	}
	return sums, nil
}

func formatSums(sums map[string]string) []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		fmt.Fprintf(&b, "%s  %s\n", sums[name], name)
	}
	return b.Bytes()
}

// staysWith reports whether the line of a file that wasn't made anew remains in the SHA256SUMS of a version: that of
// another form, of another architecture, or of what isn't ours.
func staysWith(name, version string, made []string) bool {
	top, _, _ := strings.Cut(name, "/")
	if slices.Contains(made, top) {
		return false // a file that the folder has no more
	}
	rest, ours := strings.CutPrefix(top, namePrefix)
	if !ours {
		return true
	}
	rest, same := strings.CutPrefix(rest, version)
	if !same || rest == "" {
		return same
	}
	for _, arch := range Architectures() {
		if end, ok := strings.CutPrefix(rest, "-"+arch); ok && (end == "" || end[0] == '.') {
			return true
		}
	}
	return false
}

// AddSums adds files to the SHA256SUMS of an output of a version, or replaces their lines, and with a key signs it
// anew. The files lie in the output's folder; a file that can't be read leaves everything as it was.
func AddSums(ctx context.Context, dir, version string, files []string, key *minisign.PrivateKey) error {
	if err := addSums(ctx, dir, version, files, key); err != nil {
		return fmt.Errorf("add to the %s of %s: %w", SumsName, dir, err)
	}
	return nil
}

func addSums(ctx context.Context, dir, version string, files []string, key *minisign.PrivateKey) error {
	out, err := openOutput(dir)
	if err != nil {
		return err
	}
	defer out.close()
	for _, name := range files {
		if out.sums[name], err = sumFile(ctx, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := out.addSums(version, key); err != nil {
		return err
	}
	_, err = out.place()
	return err
}

// sumFile returns the SHA-256 of a file, in hexadecimal digits.
func sumFile(ctx context.Context, name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(&stoppable{ctx, sum}, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// sign signs SHA256SUMS. The same text and key give the same signature.
func sign(text []byte, version string, key minisign.PrivateKey) []byte {
	return minisign.SignWithComments(key, text, SumsName+" of cvmfs-graphdriver "+version,
		fmt.Sprintf("signature by key %016X", key.ID()))
}

// ReadPrivateKey reads a key that minisign made. The password is asked for only if the key has one.
func ReadPrivateKey(name string, password func() (string, error)) (*minisign.PrivateKey, error) {
	key, err := readPrivateKey(name, password)
	if err != nil {
		return nil, fmt.Errorf("read the signing key %s: %w", name, err)
	}
	return &key, nil
}

func readPrivateKey(name string, password func() (string, error)) (key minisign.PrivateKey, err error) {
	text, err := readFile(name, maxSums)
	if err != nil {
		return key, err
	}
	if !minisign.IsEncrypted(text) {
		return key, key.UnmarshalText(text)
	}
	secret, err := password()
	if err != nil {
		return key, err
	}
	if key, err = minisign.DecryptKey(secret, text); err != nil {
		return key, fmt.Errorf("%w: is the password right?", err)
	}
	return key, nil
}

// ReadPublicKey reads the public part of a key that minisign made.
func ReadPublicKey(name string) (*minisign.PublicKey, error) {
	key, err := minisign.PublicKeyFromFile(name)
	if err != nil {
		return nil, fmt.Errorf("read the public key %s: %w", name, err)
	}
	return &key, nil
}

// Verified is a bundle that was verified, and by what.
type Verified struct {
	*Bundle
	Sums   string // path of the SHA256SUMS that lists it; "": there is none beside it
	Signer string // id of the key that SHA256SUMS is signed by; "": no key was given
}

// Verify opens a bundle and checks it: by the SHA256SUMS beside it, if there is one and it lists the bundle; and as
// [Bundle.Check] does. With a key there must be that file, a signature of it by the key, and the bundle in it.
func Verify(name string, key *minisign.PublicKey) (*Verified, error) {
	v := &Verified{}
	var sums map[string]string
	full, err := filepath.Abs(name)
	if err == nil {
		sums, err = v.readSums(filepath.Dir(full), key)
	}
	if err != nil {
		return nil, fmt.Errorf("verify plugin bundle %s: %w", name, err)
	}
	if v.Bundle, err = Open(name); err != nil {
		return nil, err
	}
	listed, err := v.checkSums(sums, filepath.Base(full))
	if err == nil && !listed {
		if key != nil {
			err = fmt.Errorf("%s doesn't list it", v.Sums)
		}
		v.Sums = ""
	}
	if err != nil {
		return nil, fmt.Errorf("verify plugin bundle %s: %w", name, err)
	}
	return v, v.Check()
}

// readSums reads the SHA256SUMS of a folder, which the key must have signed unless it is nil.
func (v *Verified) readSums(dir string, key *minisign.PublicKey) (map[string]string, error) {
	file := filepath.Join(dir, SumsName)
	text, err := readFile(file, maxSums)
	if errors.Is(err, fs.ErrNotExist) && key == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if key != nil {
		signature, err := readFile(filepath.Join(dir, SignatureName), maxSums)
		if err != nil {
			return nil, err
		}
		if err := verifySignature(*key, text, signature); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, SignatureName), err)
		}
		v.Signer = fmt.Sprintf("%016X", key.ID())
	}
	v.Sums = file
	return parseSums(file, text)
}

func verifySignature(key minisign.PublicKey, text, signature []byte) error {
	var s minisign.Signature
	if err := s.UnmarshalText(signature); err != nil {
		return err
	}
	if s.KeyID != key.ID() {
		return fmt.Errorf("is by key %016X, and not by the one given, %016X", s.KeyID, key.ID())
	}
	if !minisign.Verify(key, text, signature) {
		return fmt.Errorf("isn't a signature of %s: one of the two was changed", SumsName)
	}
	return nil
}

// checkSums compares the bundle, known under a name, with what is listed.
func (v *Verified) checkSums(sums map[string]string, name string) (listed bool, err error) {
	if v.Archive != nil {
		want, listed := sums[name]
		if listed && want != v.Archive.SHA256 {
			return true, fmt.Errorf("its SHA-256 is %s, and %s says %s: the file was changed, or is another one",
				v.Archive.SHA256, v.Sums, want)
		}
		return listed, nil
	}
	for file := range sums {
		rest, below := strings.CutPrefix(file, name+"/")
		listed = listed || below
		if e := v.entry(rest); below && (e == nil || e.Mode.IsDir()) {
			return true, fmt.Errorf("%s is missing, which %s lists", rest, v.Sums)
		}
	}
	if !listed {
		return false, nil
	}
	for _, e := range v.entries {
		if e.Mode.IsDir() {
			continue
		}
		sum := sha256.Sum256(e.Data)
		if got, want := hex.EncodeToString(sum[:]), sums[path.Join(name, e.Name)]; got != want {
			return true, fmt.Errorf("the SHA-256 of %s is %s, and %s says %q: the file was changed", e.Name, got,
				v.Sums, want)
		}
	}
	return true, nil
}
