package images_test

import (
	"os"
	"path/filepath"
	"testing"

	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/test/testutil"
)

// A nested image is another one than that of the same chain whose files are in its root.
func TestNestedImagesHaveTheirFilesBelowAFolder(t *testing.T) {
	testutil.NeedRoot(t)
	chain := []images.Layer{{Thin: tiny(t)}}
	dirs, keys := map[bool]string{}, map[bool]string{}
	for _, nested := range []bool{false, true} {
		c, _ := composer(t, images.Config{Repositories: repositories(t, imagesFQRN), Nested: nested})
		image, err := c.Compose(t.Context(), chain)
		if err != nil {
			t.Fatal(err)
		}
		dirs[nested], keys[nested] = mount(t, image), image.Key
	}
	if keys[false] == keys[true] {
		t.Error("both have the same key")
	}
	entries, err := os.ReadDir(dirs[true])
	if err != nil || len(entries) != 1 || entries[0].Name() != images.Folder {
		t.Fatalf("%v, %v", entries, err)
	}
	plain, _ := show(t, dirs[false])
	nested, _ := show(t, filepath.Join(dirs[true], images.Folder))
	if len(plain) < 20 || len(plain) != len(nested) {
		t.Errorf("%d files, nested %d", len(plain), len(nested))
	}
}
