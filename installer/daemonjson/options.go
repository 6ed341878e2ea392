package daemonjson

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cvmfs-graphdriver/cvmfs/config"
)

// OverrideOption is overlay2's, by which RHEL 7 is allowed its old kernel.
const OverrideOption = "overlay2.override_kernel_check"

// options are the storage options the driver takes (docs/guide.md), each with what judges its value as the driver does.
var options = []struct {
	name  string
	judge func(value string) error
}{
	{"cvmfs.repositories", func(value string) error {
		for fqrn := range strings.SplitSeq(value, ",") {
			if err := config.CheckFQRN(strings.TrimSpace(fqrn)); err != nil {
				return err
			}
		}
		return nil
	}},
	{"cvmfs.view", func(value string) error {
		if views := []string{"auto", "erofs", "fuse"}; !slices.Contains(views, strings.TrimSpace(value)) {
			return fmt.Errorf("want one of %s", strings.Join(views, ", "))
		}
		return nil
	}},
	{OverrideOption, func(value string) error {
		if _, err := strconv.ParseBool(value); err != nil {
			return errors.New("want true or false")
		}
		return nil
	}},
}

// OptionName is the name in a storage option, as the driver reads it.
func OptionName(option string) string {
	name, _, _ := strings.Cut(option, "=")
	return strings.ToLower(strings.TrimSpace(name))
}

// OptionNames are the names of the storage options the driver takes.
func OptionNames() (names []string) {
	for _, o := range options {
		names = append(names, o.name)
	}
	return names
}

// CheckOption tells why the driver, and with it the engine, would not start with a storage option, "name=value".
func CheckOption(option string) error {
	_, value, _ := strings.Cut(option, "=")
	for _, o := range options {
		if o.name != OptionName(option) {
			continue
		}
		if err := o.judge(value); err != nil {
			return fmt.Errorf("storage option %s: %w", option, err)
		}
		return nil
	}
	return fmt.Errorf("unknown storage option %q", OptionName(option))
}

// TakesBack tells a wish that takes an option away: it has no value.
func TakesBack(wish string) bool { return strings.HasSuffix(wish, "=") }

// DriverOptions returns the options for the plugin's driver: of those present what it knows by name, and in place of
// those with the same name, or after them, what is wished. A wish without a value takes an option away.
func DriverOptions(present, wished []string) []string {
	var kept []string
	for _, p := range present {
		taken := strings.HasPrefix(OptionName(p), "cvmfs.") || OptionName(p) == OverrideOption
		if taken && !slices.ContainsFunc(wished, func(w string) bool { return OptionName(w) == OptionName(p) }) {
			kept = append(kept, p)
		}
	}
	return append(kept, slices.DeleteFunc(slices.Clone(wished), TakesBack)...)
}
