package durable

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// maxRecord bounds a record, in bytes.
const maxRecord = 4 << 10

// ReadRecord reads a record, which is JSON, from an extended attribute of a file or folder; [IsNoRecord] of the error
// tells that there is none.
func ReadRecord(path, xattr string, v any) error {
	b := make([]byte, maxRecord)
	n, err := unix.Lgetxattr(path, xattr, b)
	if err == nil {
		err = json.Unmarshal(b[:n], v)
	}
	if err != nil {
		return fmt.Errorf("its record, the extended attribute %s: %w", xattr, err)
	}
	return nil
}

// IsNoRecord reports whether an error says that there is no such record, or nothing that could have one.
func IsNoRecord(err error) bool {
	return errors.Is(err, unix.ENODATA) || errors.Is(err, fs.ErrNotExist)
}

// WriteRecord puts a record in place. The kernel changes it at once. It isn't synced, and unlike a file's content it
// keeps its order with the making and renaming of folders also when power is lost.
func WriteRecord(path, xattr string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := unix.Lsetxattr(path, xattr, b, 0); err != nil {
		return fmt.Errorf("write the record %s: %w", xattr, &fs.PathError{Op: "setxattr", Path: path, Err: err})
	}
	return nil
}
