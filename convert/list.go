package convert

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/convert/wish"
)

// Repeat calls round again and again, with a pause between two rounds, until round fails or ctx ends. The end of ctx is
// how that should end, and no error; whatever round then returns isn't looked at.
func Repeat(ctx context.Context, pause time.Duration, round func() error) error {
	for {
		if err := round(); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// ListSummary is what converting a wish list came to.
type ListSummary struct {
	Images    []*Summary `json:"images"`
	Failures  []Failure  `json:"failures"`
	Converted int        `json:"converted"`
	Unchanged int        `json:"unchanged"`
}

// Added returns how many layers were added for all images, and how many bytes that added to the storage.
func (s *ListSummary) Added() (layers int, stored int64) {
	for _, i := range s.Images {
		layers, stored = layers+i.Added, stored+i.Stats.Stored
	}
	return layers, stored
}

// Err tells how many wishes failed; nil if none did.
func (s *ListSummary) Err() error {
	if len(s.Failures) == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d images failed", len(s.Failures), len(s.Failures)+len(s.Images))
}

// Failure is a wish that couldn't be fulfilled.
type Failure struct {
	Image string `json:"image"`
	Error string `json:"error"`
}

// ConvertList converts all images of a wish list, one after the other. A wish that fails doesn't stop the others: it is
// in the summary. An error means that the list wasn't gone through.
func (c *Converter) ConvertList(ctx context.Context, list *wish.List) (*ListSummary, error) {
	if fqrn := c.Sink.FQRN(); fqrn != list.Repository {
		return nil, fmt.Errorf("the wish list is for the repository %s, the target holds %s", list.Repository, fqrn)
	}
	s := &ListSummary{Images: []*Summary{}, Failures: []Failure{}}
	seen := map[string]bool{}
	for _, w := range list.Wishes {
		images, err := c.expand(ctx, w)
		if err != nil {
			c.emit(Event{Action: ImageFailed, Image: w.String(), Err: err})
			s.fail(w, err)
		}
		for _, image := range images {
			if seen[image.String()] {
				continue
			}
			seen[image.String()] = true
			c.convertWish(ctx, image, list, s)
		}
		if ctx.Err() != nil {
			return s, fmt.Errorf("convert wish list: %w", context.Cause(ctx))
		}
	}
	return s, nil
}

func (s *ListSummary) fail(w wish.Wish, err error) {
	s.Failures = append(s.Failures, Failure{w.String(), err.Error()})
}

// expand returns the images a wish stands for: those in the registry now.
func (c *Converter) expand(ctx context.Context, w wish.Wish) ([]wish.Wish, error) {
	if !w.Pattern() {
		return []wish.Wish{w}, nil
	}
	o := c.connected(c.Input)
	o.PlainHTTP = o.PlainHTTP || w.Scheme == "http"
	tags, err := source.Tags(ctx, w.Registry+"/"+w.Repository, o)
	if err != nil {
		return nil, err
	}
	var images []wish.Wish
	for _, tag := range tags {
		if w.Matches(tag) {
			images = append(images, w.Tagged(tag))
		}
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("%w: none of the %d tags fits %s", source.ErrNoTag, len(tags), w)
	}
	return images, nil
}

func (c *Converter) convertWish(ctx context.Context, w wish.Wish, list *wish.List, s *ListSummary) {
	job, err := jobOf(w, list.Format)
	job.Record = list.Record
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var done *Summary
	if err == nil {
		done, err = c.told(ctx, job)
	}
	switch {
	case err != nil:
		s.fail(w, err)
		return
	case done.Unchanged:
		s.Unchanged++
	default:
		s.Converted++
	}
	s.Images = append(s.Images, done)
}

// jobOf is the conversion a wish asks for.
func jobOf(w wish.Wish, format string) (Job, error) {
	input, err := source.Parse(w.String(), "")
	if err != nil {
		return Job{}, err
	}
	text, err := w.Output(format)
	if err != nil {
		return Job{}, err
	}
	output, err := source.Parse(text, "")
	if err != nil {
		return Job{}, err
	}
	if output.Name == input.Name {
		return Job{}, errors.New("output_format would put the thin image in the original's place: change it")
	}
	return Job{Input: input, Output: &output, Wish: true}, nil
}

// Names reports whether a list asks for the image a state's metadata folder belongs to,
// "/.metadata/REGISTRY/REPOSITORY:TAG". What is in the registry now doesn't matter.
func names(list *wish.List, folder string) bool {
	for _, w := range list.Wishes {
		parsed, err := source.Parse(w.Tagged(patternSafe(w)).String(), "")
		if err != nil {
			continue
		}
		name, err := parsed.Parsed()
		if err != nil {
			continue
		}
		prefix := metadataFolder + "/" + name.Context().RegistryStr() + "/" + name.Context().RepositoryStr()
		rest, found := strings.CutPrefix(folder, prefix)
		switch {
		case !found:
		case strings.HasPrefix(rest, ":") && w.Digest == "" && w.Matches(rest[1:]),
			w.Digest != "" && rest == "@"+w.Digest:
			return true
		}
	}
	return false
}

// patternSafe is a tag that can be parsed, in a pattern's place.
func patternSafe(w wish.Wish) string {
	if w.Pattern() {
		return "x"
	}
	return w.Tag
}
