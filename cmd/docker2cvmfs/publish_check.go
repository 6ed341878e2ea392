package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/check"
)

func publishCheckCommand() *cli.Command {
	return &cli.Command{
		Name: "check", Usage: "check the integrity of a repository", ArgsUsage: "DIR",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "content", Usage: "also read and verify every object"}, jsonFlag()},
		Action: withRepository(publishCheck),
	}
}

func publishCheck(c *cli.Context, r *publish.Repository) error {
	keys, err := r.MasterKeys()
	if err != nil {
		return err
	}
	var printed error
	s, err := check.Run(c.Context, r.Storage(), check.Options{
		FQRN: r.FQRN(), Keys: keys,
		Content: c.Bool("content"),
	}, func(p check.Problem) {
		if printed != nil {
			return
		}
		if c.Bool("json") {
			printed = printJSON(c, map[string]string{"rule": p.Rule, "at": p.At, "text": p.Text})
		} else {
			_, printed = fmt.Fprintln(c.App.Writer, p)
		}
	})
	switch {
	case err != nil:
		return err
	case printed != nil:
		return printed
	case s.Problems > 0:
		return fmt.Errorf("check %s: %d problems", r.FQRN(), s.Problems)
	case c.Bool("json"):
		return nil
	}
	if s.Undescribed > 0 {
		_, err = fmt.Fprintf(c.App.Writer, "note: %d layers have no info, as older versions converted them: "+
			"docker2cvmfs make-thin --refresh writes it\n", s.Undescribed)
		if err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s: revision %d is sound: %d revisions, %d catalogs, %d entries, %d objects\n",
		r.FQRN(), s.Revision, s.Roots, s.Catalogs, s.Entries, s.Objects)
	return err
}
