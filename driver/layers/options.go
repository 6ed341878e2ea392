package layers

import "cvmfs-graphdriver/driver/options"

// parseOptions reads the engine's storage options.
func parseOptions(opts []string) (Settings, error) {
	o, err := options.Parse(opts)
	return Settings{Repositories: o.Repositories, View: View(o.View)}, err
}
