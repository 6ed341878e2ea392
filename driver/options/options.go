// Package options reads the driver's storage options: those of the engine ("storage-opts" in daemon.json) and that of a
// container (docker run --storage-opt). The driver starts by it, and the installer judges by it whether the driver
// will.
package options

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"cvmfs-graphdriver/cvmfs/fqrn"
)

// Names of the options of the engine.
const (
	Repositories = "cvmfs.repositories"
	View         = "cvmfs.view"
	CacheLimit   = "cvmfs.cache-limit"
	CacheFloor   = "cvmfs.cache-floor"
	MetricsAt    = "cvmfs.metrics"
	Isolate      = "cvmfs.isolate"
	// Lazy is for a driver of containerd alone: Docker's plugins aren't told which layer is pulled.
	Lazy = "cvmfs.lazy"
	// Override is overlay2's, documented for RHEL 7: there it lifts a check of the kernel's version. This driver tries
	// what the kernel can do instead; the installer's check of the version heeds it.
	Override = "overlay2.override_kernel_check"
)

// Views of a composed image, values of [View]. [Auto], or no option, is the best that works.
const (
	Auto  = "auto"
	EROFS = "erofs"
	FUSE  = "fuse"
)

// Options are the values of the options of an engine.
type Options struct {
	Repositories []string // the only ones that may be used; nil for all that are configured
	View         string   // EROFS or FUSE; "" for the best that works
	CacheLimit   int64    // bytes that objects may take on disk; 0 for what else decides
	CacheFloor   int64    // bytes of the file system that stay free; 0 for what else decides
	Metrics      Metrics
	Isolate      bool // images composed from now on share no object with those of other repositories
	// repositories whose layers are taken instead of downloading the same ones, in the order of preference
	Lazy     []string
	Override bool
}

// readers read the value of each option.
var readers = map[string]func(o *Options, value string) error{
	Repositories: func(o *Options, value string) (err error) {
		o.Repositories, err = fqrn.ParseList(value)
		return err
	},
	View: func(o *Options, value string) error {
		switch view := strings.TrimSpace(value); view {
		case Auto:
			o.View = ""
		case EROFS, FUSE:
			o.View = view
		default:
			return fmt.Errorf("there is %s, %s and %s", Auto, EROFS, FUSE)
		}
		return nil
	},
	CacheLimit: func(o *Options, value string) (err error) {
		o.CacheLimit, err = cacheSize(value)
		return err
	},
	CacheFloor: func(o *Options, value string) (err error) {
		o.CacheFloor, err = cacheSize(value)
		return err
	},
	Isolate: func(o *Options, value string) error {
		switch strings.TrimSpace(value) {
		case "yes", "true":
			o.Isolate = true
		case "no", "false":
			o.Isolate = false
		default:
			return errors.New("want yes or no")
		}
		return nil
	},
	MetricsAt: metricsIn(thePlugin),
	Override: func(o *Options, value string) (err error) {
		if o.Override, err = strconv.ParseBool(value); err != nil {
			return errors.New("want true or false")
		}
		return nil
	},
}

// Parse reads options, "name=value". Of one that comes twice the last counts. Options that the driver doesn't take are
// refused by name. Files and sockets are those that the plugin sees.
func Parse(opts []string) (Options, error) { return parse(opts, readers) }

// ParseHost reads options as Parse does, for containerd's driver, which sees all files of the host.
func ParseHost(opts []string) (Options, error) {
	all := maps.Clone(readers)
	all[MetricsAt] = metricsIn(theHost)
	all[Lazy] = func(o *Options, value string) (err error) {
		o.Lazy, err = fqrn.ParseList(value)
		return err
	}
	o, err := parse(opts, all)
	if err != nil {
		return Options{}, err
	}
	for _, name := range o.Lazy {
		if o.Repositories != nil && !slices.Contains(o.Repositories, name) {
			return Options{}, fmt.Errorf("storage option %s: %s may not be used: add it to %s", Lazy, name, Repositories)
		}
	}
	return o, nil
}

func parse(opts []string, readers map[string]func(*Options, string) error) (Options, error) {
	var o Options
	for _, option := range opts {
		_, value, _ := strings.Cut(option, "=")
		name := Name(option)
		read := readers[name]
		if read == nil {
			return Options{}, fmt.Errorf("unknown storage option %q: this driver takes %s", name,
				strings.Join(slices.Sorted(maps.Keys(readers)), ", "))
		}
		if err := read(&o, value); err != nil {
			return Options{}, fmt.Errorf("storage option %s=%s: %w", name, value, err)
		}
	}
	return o, nil
}

// Check returns the error for which the driver, and with it the engine, would not start with an option, "name=value".
func Check(option string) error {
	_, err := Parse([]string{option})
	return err
}

// Name returns the name in an option, "name=value". Case and white space around it don't matter.
func Name(option string) string {
	name, _, _ := strings.Cut(option, "=")
	return strings.ToLower(strings.TrimSpace(name))
}

// Ours reports whether an option, "name=value", is one for this driver by its name, if perhaps a misspelled one.
func Ours(option string) bool {
	return strings.HasPrefix(Name(option), "cvmfs.") || Name(option) == Override
}

// leastCacheSize is the least that a size of the cache may be: below it one file might be all there is room for, and
// the number is likely meant in another unit.
const leastCacheSize = 64 << 20

// cacheSize reads a limit of the cache, in bytes.
func cacheSize(value string) (int64, error) {
	n, err := size(strings.TrimSpace(value))
	if err == nil && n < leastCacheSize {
		err = fmt.Errorf("%d bytes are too few: want %s at least, with its unit, as in %q or %q", n,
			units.BytesSize(leastCacheSize), "4000M", "100G")
	}
	return n, err
}

// size reads a number of bytes as the engine does.
func size(value string) (int64, error) {
	n, err := units.RAMInBytes(value)
	switch {
	case err != nil:
		return 0, errors.New(`want a number of bytes, or of k, m, g, t or p as in "10G"`)
	case n < 0 || n == math.MaxInt64: // what a conversion makes of a number that is too large differs by processor
		return 0, errors.New("too large")
	}
	return n, nil
}

// ContainerSize reads the options of a container. It returns the size its layer is limited to, in bytes; 0 is none.
func ContainerSize(opts map[string]string) (uint64, error) {
	var limit uint64
	for name, value := range opts {
		if !strings.EqualFold(name, "size") {
			return 0, fmt.Errorf("unknown storage option %q of a container: this driver takes size", name)
		}
		n, err := size(value)
		if err != nil {
			return 0, fmt.Errorf("storage option size=%.50s: %w", value, err)
		}
		limit = uint64(n)
	}
	return limit, nil
}
