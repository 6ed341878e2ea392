package graphdriver

import (
	"errors"

	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/options"
)

// parseOptions reads the engine's storage options.
func parseOptions(opts []string) (node.Settings, error) {
	o, err := options.Parse(opts)
	return node.SettingsOf(o), err
}

// sizeOf returns the limit that options of a container ask for, in bytes; 0 is none.
func sizeOf(args CreateArgs) (uint64, error) {
	size, err := options.ContainerSize(args.StorageOpt)
	if err == nil && len(args.StorageOpt) > 0 && !args.Writable {
		err = errors.New("storage option size is for containers, and this is a layer of an image: leave it out")
	}
	return size, err
}
