package node

import (
	"context"
	"slices"
	"time"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/driver/status"
)

// pollEvery is how often the host's files are looked at: a change counts within a minute.
const pollEvery = 20 * time.Second

// later are parameters that say what an image shows, or knows. Images that there are were composed with what held then.
var later = []string{
	"CVMFS_GID_MAP", "CVMFS_REPOSITORY_DATE", "CVMFS_REPOSITORY_TAG", "CVMFS_ROOT_HASH", "CVMFS_SEND_INFO_HEADER",
	"CVMFS_UID_MAP",
}

// Reload reads the host's CernVM-FS configuration again, and asks for the newest revision of the configuration
// repository. What can be used counts from then on, for containers that run, too; what can't leaves what counted
// before.
func (n *Node) Reload(ctx context.Context) (status.Reload, error) {
	c, err := n.configured()
	if err != nil {
		return status.Reload{}, err
	}
	if err := n.limitAgain(); err != nil {
		return status.Reload{}, err
	}
	answer := status.Reload{Repositories: []status.Reloaded{}}
	if c.repositories == nil {
		return answer, nil
	}
	list, err := c.repositories.Reload(ctx, true)
	if err != nil {
		return status.Reload{}, err
	}
	for _, r := range list {
		answer.Repositories = append(answer.Repositories, reloaded(r))
	}
	return answer, nil
}

func reloaded(r client.Reloaded) status.Reloaded {
	told := status.Reloaded{FQRN: r.FQRN, Changed: r.Changed}
	if r.Err != nil {
		told.Err = r.Err.Error()
	}
	for _, name := range r.Changed {
		if slices.Contains(later, name) {
			told.Later = append(told.Later, name)
		}
	}
	return told
}

// poll has changes of the host's configuration count by themselves, until ctx ends.
func (n *Node) poll(ctx context.Context) {
	every := n.cfg.PollEvery
	if every == 0 {
		every = pollEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c, err := n.configured()
		if err != nil || c.repositories == nil {
			continue
		}
		c.repositories.Reload(ctx, false) // it tells the log
		if err := n.limitAgain(); err != nil {
			n.cfg.Log.Warn("the object cache can't be limited as is configured", "err", err)
		}
	}
}
