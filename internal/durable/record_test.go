package durable

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRecordsAreReadAsWritten(t *testing.T) {
	const name = "user.record"
	dir := t.TempDir()
	var got map[string]string
	if err := ReadRecord(dir, name, &got); err == nil || !IsNoRecord(err) {
		if errors.Is(err, unix.ENOTSUP) {
			t.Skip("the file system of the temporary folder has no extended attributes")
		}
		t.Errorf("without a record: %v", err)
	}
	if err := ReadRecord(filepath.Join(dir, "missing"), name, &got); err == nil || !IsNoRecord(err) {
		t.Errorf("without a folder: %v", err)
	}
	must(t, WriteRecord(dir, name, map[string]string{"a": "b"}))
	must(t, ReadRecord(dir, name, &got))
	if got["a"] != "b" {
		t.Errorf("read %v", got)
	}
	must(t, unix.Setxattr(dir, name, []byte("{"), 0))
	if err := ReadRecord(dir, name, &got); err == nil || IsNoRecord(err) || !strings.Contains(err.Error(), name) {
		t.Errorf("a damaged record: %v", err)
	}
}
