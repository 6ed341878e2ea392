package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/installer/policy"
)

// reloadCommand has changed configuration count.
func reloadCommand() *cli.Command {
	return &cli.Command{
		Name:  "reload",
		Usage: "have changes in the host's CernVM-FS configuration count, without a restart",
		Flags: nodeFlags(),
		Action: func(c *cli.Context) error {
			return onNode(c, func(_ *policy.Host, node *control.Client) error {
				done, err := control.Reload.Do(c.Context, node, control.None{}, nil)
				if err != nil {
					return err
				}
				if c.Bool(jsonFlag.Name) {
					return json.NewEncoder(c.App.Writer).Encode(done)
				}
				said := "no repository was in use"
				if len(done.Repositories) > 0 {
					said = strings.Join(done.Repositories, " ")
				}
				_, err = fmt.Fprintf(c.App.Writer, "read again: %s\n", said)
				return err
			})
		},
	}
}
