package graphdriver

import (
	"strings"
	"testing"
)

func TestOptionsOfAContainerAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		args CreateArgs
		want string
	}{
		{CreateArgs{Writable: true, StorageOpt: map[string]string{"inodes": "7"}}, `unknown storage option "inodes"`},
		{CreateArgs{StorageOpt: map[string]string{"size": "1G"}}, "layer of an image"},
		{CreateArgs{Writable: true, StorageOpt: map[string]string{"size": "big"}}, "size=big: want a number of bytes"},
	} {
		if _, err := sizeOf(c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	size, err := sizeOf(CreateArgs{Writable: true, StorageOpt: map[string]string{"Size": "1.5m"}})
	if size != 3<<19 || err != nil {
		t.Errorf("%d, %v", size, err)
	}
}
