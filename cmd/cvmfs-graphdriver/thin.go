package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/installer/policy"
	"cvmfs-graphdriver/internal/program"
)

// thinCommand makes thin images of those that were built or committed on thin ones.
func thinCommand() *cli.Command {
	tag := &cli.StringFlag{
		Name: "tag", Usage: "name of the thin `IMAGE`; without it that of the original and " + policy.ThinSuffix,
	}
	return &cli.Command{
		Name: "thin", ArgsUsage: "IMAGE", Flags: append(nodeFlags(), tag),
		Usage: "make a thin image of one that was built or committed on a thin image",
		Description: "The node that runs has each ordinary layer on top of the thin one published, as a commit with" +
			" push-back does, and waits for it. The image is left as it is; a thin one is made beside it. Push-back must" +
			" be set up on this host.",
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return program.Usagef(c, "want one image, by its name or id")
			}
			return findWith(c, func(h *policy.Host) error {
				return makeThin(c, h, c.Args().First(), c.String(tag.Name))
			})
		},
	}
}

func makeThin(c *cli.Context, h *policy.Host, image, as string) error {
	nodes, err := h.Nodes(c.Context)
	if err != nil {
		return err
	}
	var on *policy.Node
	var found *policy.Image
	var unknown error
	for _, n := range nodes {
		is, err := n.ImageToThin(c.Context, image, as)
		switch {
		case errors.As(err, new(policy.UsageError)):
			return program.Usagef(c, "%v", err)
		case err != nil:
			unknown = errors.Join(unknown, err)
		case found != nil:
			return program.Usagef(c, "%s and %s have an image %s: name the one that is meant by --%s", on.Title, n.Title,
				image, socketFlag.Name)
		default:
			on, found = &n, is
		}
	}
	if found == nil {
		return unknown
	}
	made, err := thinOn(c, h, on, found)
	if err != nil {
		return err
	}
	return show(c, made, func(w io.Writer) {
		fmt.Fprintf(w, "image\t%s\nid\t%s\n", made.Name, made.ID)
		for _, layer := range made.Layers {
			fmt.Fprintf(w, "published\t%s\n", layer)
		}
	})
}

// thinOn has a node make a thin image, or have its layers published for the engine to make it.
func thinOn(c *cli.Context, h *policy.Host, n *policy.Node, image *policy.Image) (*control.ThinImage, error) {
	p := newProgress(c)
	defer p.end()
	tell := func(done control.ThinProgress) { p.tell("%d of %d layers published", done.Published, done.Of) }
	if image.InContainerd {
		made, err := control.ThinImageOf.Do(c.Context, n.Client, image.Of, tell)
		return &made, err
	}
	layer, err := control.ThinLayerOf.Do(c.Context, n.Client, control.LayerID{Layer: image.Layer}, tell)
	if err != nil {
		return nil, err
	}
	return h.Engine.MakeThin(c.Context, image.ID, image.Name, &layer)
}
