package preflight

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNotesOfAFileThatSeveralRepositoriesReadAreToldOnce(t *testing.T) {
	repositories := []Repository{
		{Notes: []string{"both", "a's own"}}, {Notes: []string{"both", "some"}}, {Notes: []string{"some"}}, {},
	}
	got := shared(repositories)
	if diff := cmp.Diff([]string{"both", "some"}, got); diff != "" {
		t.Error(diff)
	}
	var left []string
	for _, r := range repositories {
		left = append(left, r.Notes...)
	}
	if diff := cmp.Diff([]string{"a's own"}, left); diff != "" {
		t.Error(diff)
	}
}
