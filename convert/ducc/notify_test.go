package ducc

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/convert/wish"
	"cvmfs-graphdriver/test/testutil"
)

func TestAListThatFailsIsNotedFromItsBeginningToItsEnd(t *testing.T) {
	const fqrn = "layers.example.org"
	target, err := sink.Open("dir:"+t.TempDir(), sink.Options{FQRN: fqrn})
	if err != nil {
		t.Fatal(err)
	}
	registry := testutil.NewRegistry(t, "", "")
	list, err := wish.Read(strings.NewReader(fmt.Sprintf(
		"version: 1\ncvmfs_repo: %s\ninput: ['http://%s/none:1']\n", fqrn, registry.Host)))
	if err != nil {
		t.Fatal(err)
	}
	var shown []convert.Action
	c := &convert.Converter{
		Sink: target, Progress: func(e convert.Event) { shown = append(shown, e.Action) },
	}
	file := filepath.Join(t.TempDir(), "notes")
	s, err := ConvertList(t.Context(), c, list, file)
	if s == nil || err == nil || err.Error() != "1 of 1 images failed" {
		t.Errorf("summary %+v, %v", s, err)
	}
	if shown[len(shown)-1] != convert.ImageFailed {
		t.Errorf("shown: %v", shown)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var noted []string
	for line := range strings.Lines(string(b)) {
		var n struct{ Action, Status string }
		if err := json.Unmarshal([]byte(line), &n); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		noted = append(noted, n.Action+" "+n.Status)
	}
	want := []string{"start_ducc ", "end_image_conversion error", "end_ducc ok"}
	if d := cmp.Diff(want, noted); d != "" {
		t.Errorf("notes, -want +got\n%s", d)
	}
	if _, err := ConvertList(t.Context(), c, list, filepath.Join(file, "no", "folder")); err == nil ||
		!strings.Contains(err.Error(), "notification file") {
		t.Errorf("a file that can't be opened: %v", err)
	}
}
