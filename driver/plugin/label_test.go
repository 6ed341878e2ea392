package plugin

import (
	"slices"
	"strings"
	"testing"

	"cvmfs-graphdriver/driver/store"
)

// The label of a container's files as engines give it has commas. fsconfig(2) takes it as it is; in the line of mount(2) it stands
// in quotes, as overlay2 has it (label.FormatMountLabel), and SELinux takes them off.
func TestLabelReachesTheKernelWhole(t *testing.T) {
	const label = "system_u:object_r:container_file_t:s0:c17,c942"
	o := &store.Overlay{Lower: []string{"/l"}, Upper: "/u", Work: "/w", Label: label}
	if params := overlayParams(o, nil); !slices.Contains(params, param{"context", label}) {
		t.Errorf("fsconfig: %v", params)
	}
	if line := classicLine(o, nil, func(dir string) string { return dir }); !strings.HasSuffix(line, `,context="`+label+`"`) {
		t.Errorf("mount: %s", line)
	}
	o.Label = ""
	for _, p := range overlayParams(o, nil) {
		if p.key == "context" {
			t.Errorf("without a label: %v", p)
		}
	}
	if line := classicLine(o, nil, func(dir string) string { return dir }); strings.Contains(line, "context") {
		t.Errorf("without a label: %s", line)
	}
}
