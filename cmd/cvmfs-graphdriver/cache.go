package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/installer/policy"
	"cvmfs-graphdriver/internal/program"
)

// cacheCommand looks after the object cache of the node that runs.
func cacheCommand() *cli.Command {
	return &cli.Command{
		Name:  "cache",
		Usage: "inspect, verify, fill and clean the cache of files of thin images",
		Subcommands: []*cli.Command{
			cacheStatusCommand(), cacheListCommand(), cacheVerifyCommand(), cacheCleanCommand(), cachePrewarmCommand(),
			cachePinCommand(), cacheProfileCommand(),
		},
		Action: program.OnlyCommands,
	}
}

func cacheStatusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show how much the cache holds, and may", Flags: nodeFlags(),
		Action: func(c *cli.Context) error {
			return onNodes(c, func(node policy.Node) error {
				st, err := control.CacheStatus.Ask(c.Context, node.Client, control.None{})
				if err != nil {
					return err
				}
				return show(c, st, func(w io.Writer) { writeCacheStatus(w, &st) })
			})
		},
	}
}

// show writes an answer as JSON, or as write says.
func show(c *cli.Context, answer any, write func(io.Writer)) error {
	if c.Bool(jsonFlag.Name) {
		return json.NewEncoder(c.App.Writer).Encode(answer)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 3, ' ', 0)
	write(w)
	return w.Flush()
}

// size spells bytes as the engine's storage options take them.
func size(n int64) string { return units.BytesSize(float64(n)) }

func writeCacheStatus(w io.Writer, st *control.CacheState) {
	about := ""
	if !st.Counted {
		about = "about "
	}
	fmt.Fprintf(w, "used\t%s%s of %s in %d objects, %s of it in files that are partly here\n", about, size(st.Used),
		size(st.Limit), st.Objects, size(st.Partial))
	fmt.Fprintf(w, "limit\t%s\n", st.LimitBy)
	fmt.Fprintf(w, "file system\t%s of %s free, %s stay free\n", size(st.Free), size(st.Size), size(st.Floor))
	if st.Yield > 0 {
		fmt.Fprintf(w, "\tbelow %s free it gives way to others, as kubelet removes images and pods soon\n", size(st.Yield))
	}
	fmt.Fprintf(w, "since start\t%d here when asked for, %d fetched; %d not kept for the limit, %d refused at the floor\n",
		st.Hits, st.Misses, st.Unstored, st.Refused)
	fmt.Fprintf(w, "ahead\t%s fetched before anybody asked, %s of it asked for since\n", size(st.Ahead), size(st.Wanted))
	fmt.Fprintf(w, "removed\t%d objects, %s; %d damaged ones\n", st.Evicted.Objects, size(st.Evicted.Bytes), st.Damaged)
	scrubbed := "not yet through"
	if !st.Scrub.Ended.IsZero() {
		scrubbed = fmt.Sprintf("last %s: %d objects, %d damaged", st.Scrub.Ended.Format(time.DateTime),
			st.Scrub.Last.Objects, st.Scrub.Last.Damaged)
	}
	fmt.Fprintf(w, "scrub\t%s\n", scrubbed)
}

// namedImage is an image of the cache with the names that the engine has for it.
type namedImage struct {
	control.CachedImage
	Names []string `json:"names"`
}

func cacheListCommand() *cli.Command {
	return &cli.Command{
		Name: "ls", Usage: "list thin images and how much of each is here, the one used last first", Flags: nodeFlags(),
		Action: func(c *cli.Context) error {
			return onNodes(c, func(node policy.Node) error {
				list, err := control.CacheList.Do(c.Context, node.Client, control.None{}, nil)
				if err != nil {
					return err
				}
				names, err := node.ImageNames(c.Context)
				if err != nil { // the node's own names of images are better than nothing
					fmt.Fprintf(c.App.ErrWriter, "images are without their names: %v\n", err)
				}
				named := make([]namedImage, len(list))
				for i, image := range list {
					named[i] = namedImage{image, append([]string{}, names[image.Key]...)}
				}
				return show(c, named, func(w io.Writer) { writeCacheList(w, named) })
			})
		},
	}
}

func writeCacheList(w io.Writer, list []namedImage) {
	fmt.Fprintln(w, "IMAGE\tSIZE\tLOCAL\t\tLAST USE\t")
	for _, i := range list {
		name := strings.Join(i.Names, ", ")
		if name == "" {
			name = i.Key[:min(12, len(i.Key))]
			if len(i.Layers) > 0 {
				top := i.Layers[len(i.Layers)-1]
				path := strconv.Quote(top.Path) // which whoever made the image may fill with a terminal's commands
				name += " (cvmfs://" + top.FQRN + path[1:len(path)-1] + ")"
			}
		}
		state := ""
		switch {
		case i.Err != "":
			state = i.Err
		case i.Mounted && i.Pinned:
			state = "in use, pinned"
		case i.Mounted:
			state = "in use"
		case i.Pinned:
			state = "pinned"
		}
		about := ""
		if i.Local.Estimated {
			about = "about "
		}
		fmt.Fprintf(w, "%s\t%s\t%s%s\t%d%%\t%s ago\t%s\n", name, size(i.Local.OfBytes), about, size(i.Local.Bytes),
			100*i.Local.Bytes/max(1, i.Local.OfBytes), strings.ToLower(units.HumanDuration(time.Since(i.Used))), state)
	}
}

// onImageArg is onImage for the image that the command's only argument names.
func onImageArg(c *cli.Context, do func(n policy.Node, key string) error) error {
	if c.NArg() != 1 {
		return program.Usagef(c, "want one image, by its name or id")
	}
	return onImage(c, c.Args().First(), do)
}

// progress shows how far a task is, on a terminal only: elsewhere its end is told.
type progress struct {
	out io.Writer // nil where it isn't shown
}

func newProgress(c *cli.Context) progress {
	if program.IsTerminal(c.App.ErrWriter) {
		return progress{c.App.ErrWriter}
	}
	return progress{}
}

func (p progress) tell(format string, args ...any) {
	if p.out != nil {
		fmt.Fprintf(p.out, "\r\x1b[K"+format, args...)
	}
}

func (p progress) end() { p.tell("") }

var errDamage = errors.New("damaged objects were removed; they are fetched again when they are used, and containers " +
	"that have them open must be started again. If there are more of them later, look at the disk")

func cacheVerifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", ArgsUsage: "[IMAGE]", Flags: nodeFlags(),
		Usage: "hold what is here against what was recorded when it was fetched, and remove what is damaged",
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return onImageArg(c, func(node policy.Node, key string) error { return verifyCache(c, node, key) })
			}
			return onNodes(c, func(node policy.Node) error { return verifyCache(c, node, "") })
		},
	}
}

// verifyCache verifies the objects of an image, or with "" all of them.
func verifyCache(c *cli.Context, node policy.Node, key string) error {
	p := newProgress(c)
	v, err := control.CacheVerify.Do(c.Context, node.Client, control.CacheImage{Key: key}, func(v objects.Verified) {
		p.tell("%d objects, %s, %d damaged", v.Objects, size(v.Bytes), v.Damaged)
	})
	p.end()
	if err != nil {
		return err
	}
	if err := show(c, v, func(w io.Writer) { writeVerified(w, &v) }); err != nil {
		return err
	}
	switch {
	case v.Damaged > 0:
		return errDamage
	case v.Unreadable > 0:
		return fmt.Errorf("%d objects could not be read or removed: the node's log says why", v.Unreadable)
	}
	return nil
}

func writeVerified(w io.Writer, v *objects.Verified) {
	fmt.Fprintf(w, "verified\t%d objects, %s\n", v.Objects, size(v.Bytes))
	if v.Unrecorded > 0 {
		fmt.Fprintf(w, "by size alone\t%d, of which nothing was recorded\n", v.Unrecorded)
	}
	fmt.Fprintf(w, "damaged\t%d\n", v.Damaged)
	for _, name := range v.Names {
		fmt.Fprintf(w, "\t%s\n", name)
	}
}

func cacheCleanCommand() *cli.Command {
	imageFlag := &cli.StringFlag{Name: "image", Usage: "remove only what this `IMAGE` alone needs"}
	toFlag := &cli.StringFlag{Name: "to", Usage: "remove only until `SIZE` is used, what was used longest ago first"}
	return &cli.Command{
		Name: "clean", Flags: append(nodeFlags(), imageFlag, toFlag),
		Usage: "remove what no container in use and no pinned image needs; it is fetched again when it is used",
		Action: func(c *cli.Context) error {
			var to int64
			if c.IsSet(toFlag.Name) {
				var err error
				if to, err = units.RAMInBytes(c.String(toFlag.Name)); err != nil || to <= 0 {
					return program.Usagef(c, "--%s=%s: want a size, as in 10G", toFlag.Name, c.String(toFlag.Name))
				}
			}
			switch {
			case c.IsSet(imageFlag.Name) && c.IsSet(toFlag.Name):
				return program.Usagef(c, "either --%s or --%s", imageFlag.Name, toFlag.Name)
			case c.IsSet(imageFlag.Name) && c.NArg() == 0:
				return onImage(c, c.String(imageFlag.Name), func(node policy.Node, key string) error {
					return cleanCache(c, node, objects.CleanOptions{Image: key})
				})
			}
			return onNodes(c, func(node policy.Node) error { return cleanCache(c, node, objects.CleanOptions{To: to}) })
		},
	}
}

func cleanCache(c *cli.Context, node policy.Node, o objects.CleanOptions) error {
	removed, err := control.CacheClean.Do(c.Context, node.Client, o, nil)
	if err != nil {
		return err
	}
	return show(c, removed, func(w io.Writer) {
		fmt.Fprintf(w, "removed\t%d objects, %s\n", removed.Objects, size(removed.Bytes))
	})
}

func cachePrewarmCommand() *cli.Command {
	return &cli.Command{
		Name: "prewarm", ArgsUsage: "IMAGE", Usage: "fetch all of an image that is not here", Flags: nodeFlags(),
		Action: func(c *cli.Context) error {
			return onImageArg(c, func(node policy.Node, key string) error {
				p := newProgress(c)
				done, err := control.CachePrewarm.Do(c.Context, node.Client, control.CacheImage{Key: key},
					func(done objects.Completion) {
						p.tell("%d of %d objects, %s fetched", done.Here+done.Fetched+done.Failed, done.Of, size(done.Bytes))
					})
				p.end()
				if err != nil {
					return err
				}
				err = show(c, done, func(w io.Writer) {
					fmt.Fprintf(w, "fetched\t%d objects, %s\nwere here\t%d\n", done.Fetched, size(done.Bytes), done.Here)
				})
				if err == nil && done.Failed > 0 {
					err = fmt.Errorf("%d objects could not be had: the node's log says why, at level debug", done.Failed)
				}
				return err
			})
		},
	}
}

func cacheProfileCommand() *cli.Command {
	return &cli.Command{
		Name: "profile", ArgsUsage: "IMAGE", Flags: nodeFlags(),
		Usage: "print the start profile that was recorded of an image here, for docker2cvmfs make-thin --profile",
		Action: func(c *cli.Context) error {
			return onImageArg(c, func(node policy.Node, key string) error {
				p, err := control.CacheProfile.Do(c.Context, node.Client, control.CacheImage{Key: key}, nil)
				if err != nil {
					return err
				}
				_, err = io.WriteString(c.App.Writer, p)
				return err
			})
		},
	}
}

func cachePinCommand() *cli.Command {
	undo := &cli.BoolFlag{Name: "remove", Usage: "keep it no longer"}
	return &cli.Command{
		Name: "pin", ArgsUsage: "IMAGE", Flags: append(nodeFlags(), undo),
		Usage: "keep what is here of an image, and what comes, until it is unpinned or removed",
		Action: func(c *cli.Context) error {
			return onImageArg(c, func(node policy.Node, key string) error {
				q := control.CachePinned{Key: key, Pinned: !c.Bool(undo.Name)}
				if _, err := control.CachePin.Do(c.Context, node.Client, q, nil); err != nil {
					return err
				}
				return show(c, q, func(io.Writer) {})
			})
		},
	}
}
