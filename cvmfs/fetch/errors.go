package fetch

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

var (
	// ErrBadData is what a sink wraps to refuse a body: it is not what was asked for, another server may have the right
	// one.
	ErrBadData = errors.New("bad data")

	// ErrUnavailable says that servers could not be asked: there is no way to them, or they didn't answer shortly
	// before.
	ErrUnavailable = errors.New("servers unavailable")
)

// Reasons of failed attempts.
var (
	errMissing = errors.New("not found")
	errSlow    = errors.New("too slow")
	errShort   = fmt.Errorf("%w: the body ends early", ErrBadData)
)

// Error is a failed attempt.
type Error struct {
	URL    string // without credentials
	Proxy  string // without credentials; "" where there was none
	Status int    // of the answer; 0 where there was none
	Err    error
}

// Error names the route, the status and the cause.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("get " + e.URL)
	if e.Proxy != "" {
		b.WriteString(" through " + e.Proxy)
	}
	if e.Status != 0 {
		fmt.Fprintf(&b, ": status %d", e.Status)
	}
	return b.String() + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// failures are the errors of one walk, on one line.
type failures []error

func (f failures) Error() string {
	text := make([]string, len(f))
	for i, err := range f {
		text[i] = err.Error()
	}
	return strings.Join(text, "; ")
}

func (f failures) Unwrap() []error { return f }

// redact is the URL without user name and password: either may be a secret.
func redact(u *url.URL) string {
	if u.User == nil {
		return u.String()
	}
	c := *u
	c.User = url.User("xxxxx")
	return c.String()
}

// hideCredentials does the same to a text that is not a URL.
func hideCredentials(s string) string {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		return fmt.Sprintf("%q", "xxxxx"+s[i:])
	}
	return fmt.Sprintf("%q", s)
}

// cause strips the layer that repeats the URL, credentials included.
func cause(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}
