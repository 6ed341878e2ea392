package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
	"github.com/vbauerster/mpb/v8"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/internal/program"
)

// progressFlags say how long work is shown.
func progressFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print progress as JSON, one object per line"},
		&cli.IntFlag{Name: "parallel", Usage: "number of layers to read in parallel", Value: 3},
	}
}

// progress shows events: as bars on a terminal, as lines elsewhere, as JSON for programs. Its methods are called by one
// goroutine at a time.
type progress struct {
	results io.Writer // what a command has to say at its end
	show    func(convert.Event)
	finish  func()
	json    *json.Encoder
}

func newProgress(c *cli.Context) *progress {
	p := &progress{results: c.App.Writer, finish: func() {}}
	switch {
	case c.Bool("json"):
		p.json = json.NewEncoder(c.App.Writer)
		p.results = io.Discard
		p.show = convert.JSONLines(p.json)
	case program.IsTerminal(c.App.ErrWriter):
		b := newBars(c.App.ErrWriter)
		p.show, p.finish = b.show, b.finish
	default:
		p.show = func(e convert.Event) { printLine(c.App.ErrWriter, e) }
	}
	return p
}

func (p *progress) event(e convert.Event) { p.show(e) }

// close ends the bars, so that others can write.
func (p *progress) close() { p.finish() }

// short is the beginning of a digest, for people.
func short(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return hex[:min(12, len(hex))]
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// line is an event for people; "" for what is none of their business.
func line(e convert.Event) string {
	switch e.Action {
	case convert.ImageStarted:
		return fmt.Sprintf("%s: %d layers to read, %s", e.Image, e.Layers, size(e.Total))
	case convert.LayerPresent:
		return fmt.Sprintf("%s: there already", short(e.Digest))
	case convert.LayerLacking:
		return fmt.Sprintf("%s: lacks its info, for which a blob of %s must be read: add --fetch", short(e.Digest),
			size(e.Total))
	case convert.LayerStarted:
		return fmt.Sprintf("%s: reading %s", short(e.Digest), size(e.Total))
	case convert.LayerDone:
		return fmt.Sprintf("%s: done in %v: %d files, %s new of %s", short(e.Digest), e.Elapsed.Round(time.Millisecond),
			e.Stats.Files,
			size(e.Stats.Stored), size(e.Stats.Bytes))
	case convert.LayerFailed:
		return fmt.Sprintf("%s: failed", short(e.Digest))
	case convert.Publishing:
		return e.Image + ": publishing"
	case convert.Recording:
		return e.Image + ": running it, to record its start"
	case convert.ImageWritten:
		if e.Note != "" {
			return e.Image + ": " + e.Note
		}
	case convert.ImageUnchanged:
		return e.Image + ": unchanged"
	case convert.ImageFailed:
		return e.Image + ": failed" // why is told at the end, once
	}
	return ""
}

// printLine writes an event as a line. That nobody reads it is no reason to stop.
func printLine(w io.Writer, e convert.Event) {
	if text := line(e); text != "" {
		fmt.Fprintln(w, text)
	}
}

// bars shows a bar for each layer that is being read and one for the image.
type bars struct {
	out    io.Writer
	all    *program.Bars // nil between images
	total  *mpb.Bar
	layers map[string]*mpb.Bar
}

func newBars(out io.Writer) *bars { return &bars{out: out, layers: map[string]*mpb.Bar{}} }

func (b *bars) show(e convert.Event) {
	if b.all == nil {
		b.all = program.NewBars(b.out)
	}
	switch e.Action {
	case convert.ImageStarted:
		b.total = b.all.Transfer("all", e.Total, mpb.BarPriority(1<<20))
	case convert.LayerStarted:
		b.layers[e.Digest] = b.all.Transfer(short(e.Digest), e.Total, mpb.BarRemoveOnComplete())
	case convert.LayerProgress:
		for _, bar := range []*mpb.Bar{b.layers[e.Digest], b.total} {
			if bar != nil {
				bar.EwmaIncrInt64(e.Bytes, time.Millisecond)
			}
		}
		return
	case convert.LayerDone, convert.LayerFailed:
		if bar := b.layers[e.Digest]; bar != nil {
			bar.Abort(true)
		}
		delete(b.layers, e.Digest)
	case convert.ImageDone, convert.ImageFailed, convert.ImageUnchanged:
		b.finish()
	}
	switch {
	case b.all == nil:
		printLine(b.out, e)
	case line(e) != "":
		fmt.Fprintln(b.all, line(e))
	}
}

// finish ends the bars of an image; the next one gets its own.
func (b *bars) finish() {
	if b.all != nil {
		b.all.End(true)
	}
	b.all, b.total, b.layers = nil, nil, map[string]*mpb.Bar{}
}

// summary says what a conversion came to.
func (p *progress) summary(s *convert.Summary) error {
	if s.Unchanged {
		_, err := fmt.Fprintf(p.results, "%s: unchanged, %d layers\n", s.Image, s.Layers)
		return errors.Join(err, p.refreshed(s))
	}
	_, err := fmt.Fprintf(p.results, "%s\n  layers:  %d added, %d there already, %d thin ones replaced by their own\n",
		s.Image, s.Added, s.Present, s.Flattened)
	if err == nil && s.Added > 0 {
		_, err = fmt.Fprintf(p.results, "  content: %d files, %s; %d files, %s were known; %s stored\n", s.Stats.Files,
			size(s.Stats.Bytes),
			s.Stats.ReusedFiles, size(s.Stats.ReusedBytes), size(s.Stats.Stored))
	}
	if err == nil && s.Stats.LeftOut > 0 {
		_, err = fmt.Fprintf(p.results, "  left out, as where engines unpack: %d, as in %s\n", s.Stats.LeftOut,
			strings.Join(s.Stats.Notes, "; "))
	}
	if err == nil {
		err = p.refreshed(s)
	}
	if err == nil && s.Thin != "" {
		_, err = fmt.Fprintf(p.results, "  thin:    %s@%s\n", s.Thin, s.ThinDigest)
	}
	return err
}

// refreshed says what refreshing came to.
func (p *progress) refreshed(s *convert.Summary) error {
	if s.Refreshed == 0 && len(s.Lacking) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(p.results, "  infos:   %d written, %d lacking\n", s.Refreshed, len(s.Lacking))
	return err
}
