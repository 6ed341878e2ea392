package node

import (
	"context"

	"cvmfs-graphdriver/driver/status"
)

// Reload has repositories opened anew, with the configuration, keys and blacklists of that time, when they are asked
// for next. Reads that are under way end as they began.
func (n *Node) Reload(context.Context) (status.Reload, error) {
	c, err := n.configured()
	if err != nil {
		return status.Reload{}, err
	}
	if c.repositories == nil {
		return status.Reload{}, nil
	}
	return status.Reload{Repositories: c.repositories.Reload()}, nil
}
