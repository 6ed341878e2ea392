package pack

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestWhatIsAppendedIsRead(t *testing.T) {
	content := map[string]string{"data/00/11": "", "data/00/22P": "\n\n", "data/33/44-rmd160": strings.Repeat("x", 100_000)}
	order := []string{"data/00/22P", "data/00/11", "data/33/44-rmd160"}
	var b []byte
	for _, path := range order {
		b = Append(b, path, []byte(content[path]))
	}
	for name, read := range map[string]func(*Reader) (string, error){
		"all":     func(r *Reader) (string, error) { b, err := io.ReadAll(r); return string(b), err },
		"a part":  func(r *Reader) (string, error) { n, err := r.Read(make([]byte, 1)); return "", ignore(n, err) },
		"nothing": func(*Reader) (string, error) { return "", nil },
	} {
		r := NewReader(bufio.NewReaderSize(iotest.OneByteReader(bytes.NewReader(b)), 16))
		for _, want := range order {
			path, size, err := r.Next()
			if err != nil || path != want || size != int64(len(content[path])) {
				t.Fatalf("%s: %q of %d bytes, %v, want %q of %d", name, path, size, err, want, len(content[want]))
			}
			got, err := read(r)
			if err != nil || name == "all" && got != content[path] {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
		if path, _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %q, %v behind the last", name, path, err)
		}
	}
}

// ignore takes the end of an empty object for no error.
func ignore(n int, err error) error {
	if n == 0 && errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func TestWhatIsNoPackIsRefused(t *testing.T) {
	for text, want := range map[string]error{
		"data/00/11\n":                      ErrFormat,
		"data/00/11 -1\n":                   ErrFormat,
		"data/00/11 1x\n":                   ErrFormat,
		"\n":                                ErrFormat,
		"<html>" + strings.Repeat(" ", 200): ErrFormat,
		"data/00/11 5":                      io.ErrUnexpectedEOF,
		"data/00/11 5\nabcd":                io.ErrUnexpectedEOF,
		"data/00/11 99999999999999999999\n": ErrFormat,
	} {
		r := NewReader(bufio.NewReader(strings.NewReader(text)))
		var err error
		for err == nil {
			_, _, err = r.Next()
		}
		if !errors.Is(err, want) {
			t.Errorf("%.40q: %v, want %v", text, err, want)
		}
	}
}

func TestNumbersOfNames(t *testing.T) {
	for _, n := range []int{0, 7, 123456} {
		if got, ok := Number(Name(n)); !ok || got != n {
			t.Errorf("%d became %d, %v", n, got, ok)
		}
	}
	for _, name := range []string{"", "pack-", "pack-01", "pack--1", "pack-1 ", "5798.z.6", "pack-99999999999999999999"} {
		if n, ok := Number(name); ok {
			t.Errorf("%q is %d", name, n)
		}
	}
}
