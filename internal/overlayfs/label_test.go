package overlayfs

import (
	"slices"
	"strings"
	"testing"
)

// The label of a container's files as engines give it has commas. fsconfig(2) takes it as it is; in the line of
// mount(2) it stands in quotes, as overlay2 has it (label.FormatMountLabel), and SELinux takes them off.
func TestLabelReachesTheKernelWhole(t *testing.T) {
	const label = "system_u:object_r:container_file_t:s0:c17,c942"
	s := &Spec{Lower: []string{"/l"}, Upper: "/u", Work: "/w", Label: label}
	if params := layerParams(s, nil); !slices.Contains(params, param{"context", label}) {
		t.Errorf("fsconfig: %v", params)
	}
	if line := classicLine(s, nil); !strings.HasSuffix(line, `,context="`+label+`"`) {
		t.Errorf("mount: %s", line)
	}
	s.Label = ""
	for _, p := range layerParams(s, nil) {
		if p.key == "context" {
			t.Errorf("without a label: %v", p)
		}
	}
	if line := classicLine(s, nil); strings.Contains(line, "context") {
		t.Errorf("without a label: %s", line)
	}
}
