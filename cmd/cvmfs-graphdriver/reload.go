package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/installer/policy"
)

// reloadCommand has changed configuration count.
func reloadCommand() *cli.Command {
	return &cli.Command{
		Name:  "reload",
		Usage: "have changes in the host's CernVM-FS configuration count at once, without a restart",
		Description: "Files that have changed are noticed within a minute anyway. Containers that run get new servers, proxies, timeouts,\n" +
			"keys and blacklists. Files that can't be used leave in use what they said before. The exit code is 1 then.",
		Flags: nodeFlags(),
		Action: func(c *cli.Context) error {
			return onNodes(c, func(node policy.Node) error {
				done, err := control.Reload.Do(c.Context, node.Client, control.None{}, nil)
				if err != nil {
					return err
				}
				if c.Bool(jsonFlag.Name) {
					err = json.NewEncoder(c.App.Writer).Encode(done)
				} else {
					err = writeReload(c.App.Writer, done)
				}
				if err != nil {
					return err
				}
				for _, r := range done.Repositories {
					if r.Err != "" {
						return fmt.Errorf("the configuration of %s can't be used", r.FQRN)
					}
				}
				return nil
			})
		},
	}
}

// writeReload writes what came of a reload, a line for each repository.
func writeReload(w io.Writer, done status.Reload) error {
	if len(done.Repositories) == 0 {
		_, err := fmt.Fprintln(w, "no repository is in use: its configuration is read when it is asked for")
		return err
	}
	for _, r := range done.Repositories {
		said := "nothing has changed"
		switch {
		case r.Err != "":
			said = "what was read before goes on to count: " + r.Err
		case len(r.Changed) > 0:
			said = strings.Join(r.Changed, " ") + " count from now on"
		}
		if len(r.Later) > 0 {
			said += "; " + strings.Join(r.Later, " ") + " for images that are pulled from now on"
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n", r.FQRN, said); err != nil {
			return err
		}
	}
	return nil
}
