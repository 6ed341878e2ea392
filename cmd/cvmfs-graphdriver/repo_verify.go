package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/listing"
	"cvmfs-graphdriver/cvmfs/verify"
	"cvmfs-graphdriver/internal/program"
)

// repoVerifyCommand fetches all there is.
func repoVerifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "fetch and verify all catalogs and objects of the newest revision, or of a folder in it",
		ArgsUsage: "FQRN [PATH]",
		Description: `Fetches everything as a host would and keeps nothing. Prints a line for each path with something bad: a catalog
that can't be read (what is below it is not verified), or an object that no server has as the catalog says. The line
names the requests and why each failed. It goes on to the end; the exit code is then 1. It ends early only if no server
can be reached any more.

What one server lacks and another has is not bad; the number of failed requests is in the last line. To verify one
server, name it by --server-url, and --proxy DIRECT to leave out caches.

With --json, prints an object for each path with something bad (kind, path, hash, error), and at last one that counts:
fqrn, revision, path, catalogs, entries, files, objects, bytes, external, bind_mounts, bad, failures, complete.`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per line"},
			&cli.IntFlag{Name: "parallel", Usage: "fetch so `MANY` objects at once", Value: 32},
			&cli.BoolFlag{Name: "progress", Usage: "write each second to stderr how far it is, also where that is no terminal"},
		}, repoFlags()...),
		Action: repoVerify,
	}
}

func repoVerify(c *cli.Context) (err error) {
	fqrn, path, err := placeArgs(c)
	if err != nil {
		return err
	}
	r, v, closeAll, err := newest(c, fqrn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	ctx, cancel := context.WithCancelCause(c.Context)
	defer cancel(nil)
	p := verifyPrinter{c: c, failed: cancel}
	o := verify.Options{Readers: c.Int("parallel"), Problem: p.problem, Progress: p.progress()}
	s, err := verify.Run(ctx, r, v, path, o)
	p.erase()
	if cause := context.Cause(ctx); c.Context.Err() == nil && cause != nil {
		return cause // it could not be printed
	}
	if printed := p.summary(s, v.FQRN, v.Number, path, err == nil); printed != nil {
		return printed
	}
	if err == nil && s.Bad > 0 {
		err = fmt.Errorf("verify %s: %d are bad", fqrn, s.Bad)
	}
	return err
}

// verifyPrinter prints what is found. On a terminal a line says how far it is.
type verifyPrinter struct {
	c      *cli.Context
	failed func(error)
	live   bool // the line is there, and can be erased
}

func (p *verifyPrinter) problem(found verify.Problem) {
	p.erase()
	var err error
	if p.c.Bool("json") {
		texts := map[string]string{"kind": string(found.Kind), "path": found.Path, "error": found.Err.Error()}
		if found.Hash != "" {
			texts["hash"] = found.Hash
		}
		err = listing.WriteTexts(p.c.App.Writer, texts)
	} else {
		_, err = fmt.Fprintln(p.c.App.Writer, found)
	}
	if err != nil {
		p.failed(err)
	}
}

// progress returns what shows how far it is; nil if nobody wants to see that.
func (p *verifyPrinter) progress() func(verify.Summary) {
	terminal := program.IsTerminal(p.c.App.ErrWriter)
	if !terminal && !p.c.Bool("progress") {
		return nil
	}
	return func(s verify.Summary) {
		p.erase()
		end := "\n"
		if p.live = terminal; terminal {
			end = ""
		}
		fmt.Fprintf(p.c.App.ErrWriter, "%d catalogs, %d objects, %s, %d bad%s", s.Catalogs, s.Objects,
			humanize.Bytes(uint64(s.Bytes)), s.Bad, end)
	}
}

func (p *verifyPrinter) erase() {
	if p.live {
		fmt.Fprint(p.c.App.ErrWriter, "\r\x1b[K")
		p.live = false
	}
}

func (p *verifyPrinter) summary(s verify.Summary, fqrn string, revision uint64, path string, complete bool) error {
	if path == "" {
		path = "/"
	}
	if p.c.Bool("json") {
		return json.NewEncoder(p.c.App.Writer).Encode(struct {
			FQRN     string `json:"fqrn"`
			Revision uint64 `json:"revision"`
			Path     string `json:"path"`
			verify.Summary
			Complete bool `json:"complete"`
		}{fqrn, revision, path, s, complete})
	}
	state := "complete"
	if !complete {
		state = "NOT complete"
	}
	_, err := fmt.Fprintf(p.c.App.Writer,
		"%s, revision %d, %q: %s: %d catalogs, %d entries, %d files, %d objects of %s, %d bad; %d requests failed\n",
		fqrn, revision, path, state, s.Catalogs, s.Entries, s.Files, s.Objects, humanize.Bytes(uint64(s.Bytes)), s.Bad,
		s.Failures)
	return err
}
