package layers

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"cvmfs-graphdriver/cvmfs/config"
)

// options are the storage options the driver takes, each with what reads its value.
var options = map[string]func(s *Settings, value string) error{
	"cvmfs.repositories": func(s *Settings, value string) error {
		s.Repositories = []string{}
		for fqrn := range strings.SplitSeq(value, ",") {
			fqrn = strings.TrimSpace(fqrn)
			if err := config.CheckFQRN(fqrn); err != nil {
				return err
			}
			s.Repositories = append(s.Repositories, fqrn)
		}
		return nil
	},
	"cvmfs.view": readView,
	// overlay2's, documented for RHEL 7: it lifts a check of the kernel's version, and this driver tries the kernel
	// instead.
	"overlay2.override_kernel_check": func(_ *Settings, value string) error {
		_, err := strconv.ParseBool(value)
		return err
	},
}

// parseOptions reads storage options.
func parseOptions(opts []string) (Settings, error) {
	var s Settings
	for _, o := range opts {
		name, value, _ := strings.Cut(o, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		read := options[name]
		if read == nil {
			return Settings{}, fmt.Errorf("unknown storage option %q: this driver takes %s", name,
				strings.Join(slices.Sorted(maps.Keys(options)), ", "))
		}
		if err := read(&s, value); err != nil {
			return Settings{}, fmt.Errorf("storage option %s=%s: %w", name, value, err)
		}
	}
	return s, nil
}
