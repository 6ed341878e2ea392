package receive

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// shortestToken is how many characters a token has at least: no guessing finds one.
const shortestToken = 16

// tokens are those of a file, each of whose lines has a name and its token; empty lines and those that begin with #
// say nothing. A name may have several tokens, so that they can be changed one after the other.
type tokens struct {
	file string

	mu       sync.Mutex
	modified time.Time
	size     int64
	names    map[[sha256.Size]byte]string // by the tokens' sums, so that comparing tells nothing of one; nil: not read
}

// read reads the file where it has changed, or couldn't be read before: its mode may have been mended since.
func (t *tokens) read() (map[[sha256.Size]byte]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := os.Stat(t.file)
	if err != nil {
		return nil, err
	}
	if t.names == nil || !info.ModTime().Equal(t.modified) || info.Size() != t.size {
		t.modified, t.size = info.ModTime(), info.Size()
		if t.names, err = readTokens(t.file, info); err != nil {
			t.names = nil
		}
	}
	return t.names, err
}

func readTokens(file string, info os.FileInfo) (map[[sha256.Size]byte]string, error) {
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("tokens %s: others than the owner may use it (mode %04o): chmod 0600 it", file,
			info.Mode().Perm())
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names := map[[sha256.Size]byte]string{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0 || strings.HasPrefix(fields[0], "#"):
			continue
		case len(fields) != 2:
			return nil, fmt.Errorf("tokens %s: line %d: want a name and a token", file, n)
		case len(fields[1]) < shortestToken:
			return nil, fmt.Errorf("tokens %s: line %d: the token of %s is shorter than %d characters", file, n, fields[0],
				shortestToken)
		}
		sum := sha256.Sum256([]byte(fields[1]))
		if other := names[sum]; other != "" && other != fields[0] {
			return nil, fmt.Errorf("tokens %s: line %d: %s and %s have the same token", file, n, other, fields[0])
		}
		names[sum] = fields[0]
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("tokens %s: %w", file, err)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("tokens %s: it has none", file)
	}
	return names, nil
}

var (
	errNoToken      = errors.New("a token is needed: Authorization: Bearer TOKEN")
	errUnknownToken = errors.New("the service doesn't know this token")
)

// identify returns whose token a request has. What can't send a bearer token may have it as the password of basic
// authentication.
func (t *tokens) identify(q *http.Request) (string, error) {
	names, err := t.read()
	if err != nil {
		return "", err
	}
	token, ok := strings.CutPrefix(q.Header.Get("Authorization"), "Bearer ")
	if !ok {
		_, token, ok = q.BasicAuth()
	}
	if !ok || token == "" {
		return "", errNoToken
	}
	if name := names[sha256.Sum256([]byte(token))]; name != "" {
		return name, nil
	}
	return "", errUnknownToken
}
