package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/system"

	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/installer"
)

// Form is what an image is like.
type Form string

// The forms there are.
const (
	Ordinary Form = "ordinary"
	Thin     Form = "thin"
)

// Node is the node that keeps the engine's images.
type Node interface {
	// ImageKey returns the key of a thin image, by its name; an error for any other image.
	ImageKey(ctx context.Context, image string) (string, error)
	// State tells what the node has and has fetched.
	State(ctx context.Context) (status.Node, error)
}

// Config says what is compared, and how.
type Config struct {
	Engine *installer.Engine
	Node   Node

	Ordinary, Thin string // names of the images
	Rounds         int    // cold starts of each
	Start          Start
	Tell           func(what string) // told of each step as it begins
}

// warmRuns is how often a start is repeated; the median counts.
const warmRuns = 3

// ErrInterrupted means that a comparison was ended before it was through. All that it had made is removed.
var ErrInterrupted = errors.New("interrupted: what was made for the comparison is removed")

// bench is a comparison.
type bench struct {
	Config
	info    system.Info
	result  *Result
	fetched map[string]status.Fetch // by repository, as last seen
	server  int                     // the PID of the node's server, with whose life its counters begin; 0 at first
	ids     map[string]string       // by the names of the images
	// images that are here because of the comparison, or may be, by their names: the IDs of those that were here before
	pulled map[string]map[string]bool
}

// Run compares two images. What it has pulled is removed, however it ends.
func Run(ctx context.Context, c Config) (_ *Result, err error) {
	b := &bench{
		Config: c, fetched: map[string]status.Fetch{}, ids: map[string]string{}, pulled: map[string]map[string]bool{},
	}
	names := map[Form]*string{Ordinary: &b.Ordinary, Thin: &b.Thin}
	for form, name := range names {
		if *name, err = full(*name); err != nil {
			return nil, fmt.Errorf("the %s image: %w", form, err)
		}
	}
	if b.Ordinary == b.Thin {
		return nil, fmt.Errorf("%s can't be compared with itself: name the ordinary image and its thin one", b.Thin)
	}
	if b.info, err = b.Engine.Client().Info(ctx); err != nil {
		return nil, fmt.Errorf("ask the engine what it runs on: %w", err)
	}
	if err := errors.Join(b.absent(ctx, b.Ordinary), b.absent(ctx, b.Thin)); err != nil {
		return nil, err
	}
	b.result = &Result{
		Engine: b.info.ServerVersion, Driver: b.info.Driver, Time: time.Now().UTC().Truncate(time.Second),
		Images: map[Form]Image{},
	}
	defer func() { err = b.end(ctx, err) }()
	return b.result, b.compare(ctx)
}

// full returns an image's name with its tag or digest, as the engine shows it.
func full(name string) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", fmt.Errorf("%.300q is no name of an image in a registry: %w", name, err)
	}
	return reference.FamiliarString(reference.TagNameOnly(named)), nil
}

// absent refuses an image that the engine has.
func (b *bench) absent(ctx context.Context, name string) error {
	_, err := b.Engine.Client().ImageInspect(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask the engine for image %s: %w", name, err)
	}
	users, err := b.Engine.Client().ContainerList(ctx, container.ListOptions{
		All: true, Filters: filters.NewArgs(filters.Arg("ancestor", name)),
	})
	if err != nil {
		return fmt.Errorf("ask the engine for containers of image %s: %w", name, err)
	}
	if len(users) > 0 {
		var names []string
		for _, u := range users {
			names = append(names, strings.TrimPrefix(slices.Concat(u.Names, []string{u.ID})[0], "/"))
		}
		return fmt.Errorf("image %s is in use by containers (%s): it can't be started from cold here. Measure on a "+
			"host that doesn't use it", name, strings.Join(names, ", "))
	}
	return fmt.Errorf("image %[1]s is on this host, so it can't be started from cold: remove it first (docker image rm "+
		"%[1]s)", name)
}

// compare takes the samples: round by round, each image once a round, and another one first each time.
func (b *bench) compare(ctx context.Context) error {
	if err := b.look(ctx); err != nil {
		return err
	}
	order := []Form{Ordinary, Thin}
	for round := range b.Rounds {
		for _, form := range order {
			b.Tell(fmt.Sprintf("round %d of %d: %s", round+1, b.Rounds, b.name(form)))
			s, err := b.sample(ctx, form)
			if err != nil {
				return err
			}
			s.Round, s.Form = round+1, form
			b.result.Samples = append(b.result.Samples, *s)
		}
		slices.Reverse(order)
	}
	return nil
}

func (b *bench) name(form Form) string {
	if form == Thin {
		return b.Thin
	}
	return b.Ordinary
}

// look brings the thin image once, to see that it is one, and what was fetched of its repositories before.
func (b *bench) look(ctx context.Context) error {
	b.Tell("look at " + b.Thin)
	if _, _, err := b.pull(ctx, b.Thin); err != nil {
		return err
	}
	key, err := b.Node.ImageKey(ctx, b.Thin)
	if err != nil {
		return fmt.Errorf("%s can't be compared as a thin image: %w", b.Thin, err)
	}
	if _, err := b.state(ctx); err != nil {
		return err
	}
	return b.remove(ctx, b.Thin, key)
}

// sample starts an image from cold, and again.
func (b *bench) sample(ctx context.Context, form Form) (s *Sample, err error) {
	name := b.name(form)
	s = &Sample{}
	before, err := b.state(ctx)
	if err != nil {
		return nil, err
	}
	took, here, err := b.pull(ctx, name)
	if err != nil {
		return nil, err
	}
	s.Pull = took
	key, err := b.Node.ImageKey(ctx, name)
	if thin := err == nil; thin != (form == Thin) {
		if thin {
			return nil, fmt.Errorf("%s is a thin image itself: name the ordinary image first, then the thin one", name)
		}
		return nil, fmt.Errorf("%s can't be compared as a thin image: %w", name, err)
	}
	if err := b.describe(ctx, form, name); err != nil {
		return nil, err
	}
	if s.Shared, err = b.shared(ctx, form, key, here); err != nil {
		return nil, err
	}
	if s.First, err = b.run(ctx, name); err != nil {
		return nil, err
	}
	after, err := b.state(ctx)
	if err != nil {
		return nil, err
	}
	s.Fetched = b.result.Images[form].missing(here)
	if form == Thin {
		site := after.sub(before)
		s.Fetched, s.Requests = s.Fetched+site.Bytes, site.Requests
	}
	var warm []float64
	for range warmRuns {
		took, err := b.run(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("run again: %w", err)
		}
		warm = append(warm, took)
	}
	s.Warm = Median(warm)
	return s, b.remove(ctx, name, key)
}

// pull brings an image that isn't here. It returns how many seconds that took, and the layers that were here already,
// by the beginnings of their digests.
func (b *bench) pull(ctx context.Context, name string) (took float64, here map[string]bool, err error) {
	if err := b.absent(ctx, name); err != nil { // somebody else may have pulled it meanwhile
		return 0, nil, err
	}
	images, err := b.Engine.Client().ImageList(ctx, image.ListOptions{All: true})
	if err != nil {
		return 0, nil, fmt.Errorf("ask the engine for its images: %w", err)
	}
	b.pulled[name] = map[string]bool{}
	for _, i := range images {
		b.pulled[name][i.ID] = true
	}
	here = map[string]bool{}
	begin := time.Now()
	err = b.Engine.Pull(ctx, name, func(layer, becomes string) {
		if _, told := here[layer]; !told { // a layer that occurs twice is there the second time
			here[layer] = strings.EqualFold(becomes, "already exists")
		}
	})
	took = time.Since(begin).Seconds()
	if err != nil {
		return 0, nil, explainFull(err)
	}
	found, err := b.inspect(ctx, name)
	if err != nil {
		return 0, nil, err
	}
	if former := b.ids[name]; former != "" && former != found.ID {
		return 0, nil, fmt.Errorf("the registry has another image by the name %s since the comparison began: name it "+
			"by its digest", name)
	}
	b.ids[name] = found.ID
	return took, here, nil
}

// inspect returns an image that was pulled here. It is an error if the engine had it before by another name, or by
// none: it can't be started from cold, and isn't ours to remove, not even by its new name alone, with which an engine
// also removes an image that only digests of the same repository name.
func (b *bench) inspect(ctx context.Context, name string) (found image.InspectResponse, err error) {
	found, err = b.Engine.Client().ImageInspect(ctx, name)
	if errdefs.IsNotFound(err) {
		return found, err
	}
	if err != nil {
		return found, fmt.Errorf("ask the engine for image %s: %w", name, err)
	}
	if b.pulled[name][found.ID] {
		delete(b.pulled, name)
		return found, fmt.Errorf("image %s was on this host before, as %s: it can't be started from cold. It stays, and "+
			"has this name now, too", name, found.ID)
	}
	return found, nil
}

// explainFull adds the remedy to the error of an engine that has no room left; errors of engines are texts.
func explainFull(err error) error {
	if err != nil && strings.Contains(err.Error(), "no space left on device") {
		return fmt.Errorf("%w (make room where the engine keeps its images)", err)
	}
	return err
}

// shared returns how many bytes of an image were here before it was started: of a thin one in files of other images, of
// an ordinary one in the registry's layers.
func (b *bench) shared(ctx context.Context, form Form, key string, here map[string]bool) (int64, error) {
	if form == Ordinary {
		i := b.result.Images[form]
		return i.Compressed - i.missing(here), nil
	}
	st, err := b.Node.State(ctx)
	if err != nil {
		return 0, err
	}
	for _, i := range st.Store.Images {
		if i.Key == key && i.Local != nil {
			return i.Local.Bytes, nil
		}
	}
	return 0, nil
}

// state returns what the node has fetched of each repository. One that no image names is left out of what it tells, and
// counts on from what it was when it comes again.
func (b *bench) state(ctx context.Context) (counts, error) {
	st, err := b.Node.State(ctx)
	if err == nil && st.Err != "" {
		err = errors.New(st.Err)
	}
	if err != nil {
		return counts{}, fmt.Errorf("ask the node what it has fetched: %w", err)
	}
	if b.server != 0 && st.PID != b.server {
		return counts{}, errors.New("the node was started anew meanwhile, and what it has fetched isn't known any more: " +
			"compare once more")
	}
	b.server = st.PID
	var sum counts
	maps.Copy(b.fetched, st.Fetch)
	for _, f := range b.fetched {
		sum.Bytes += f.Bytes
		sum.Requests += f.Requests
	}
	return sum, nil
}

// counts is what was fetched.
type counts struct{ Bytes, Requests int64 }

func (c counts) sub(earlier counts) counts {
	return counts{c.Bytes - earlier.Bytes, c.Requests - earlier.Requests}
}

const (
	// goneWait bounds how long a node may take to let go of an image, and goneEvery is how often it is asked.
	goneWait  = time.Minute
	goneEvery = 200 * time.Millisecond
	// cleanWait bounds the removal of what was made.
	cleanWait = 2 * time.Minute
)

// remove removes an image that was pulled here, and waits until the node has let go of it. key is "" for an ordinary
// image.
func (b *bench) remove(ctx context.Context, name, key string) error {
	_, err := b.inspect(ctx, name)
	if err == nil {
		_, err = b.Engine.Client().ImageRemove(ctx, name, image.RemoveOptions{PruneChildren: true})
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %s, which was pulled for the comparison: %w", name, err)
	}
	delete(b.pulled, name)
	if key == "" {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, goneWait)
	defer cancel()
	for last := int64(-1); ; {
		st, err := b.Node.State(waiting)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("ask the node whether image %s has gone: %w", name, err)
		}
		named := slices.ContainsFunc(st.Store.Images, func(i status.Image) bool { return i.Key == key })
		if err == nil && !named && st.Cache.Objects == last {
			return nil
		}
		if last = st.Cache.Objects; named {
			last = -1
		}
		select {
		case <-waiting.Done():
			if ctx.Err() != nil || !named { // others fetch, which is no reason to wait on
				return ctx.Err()
			}
			return fmt.Errorf("image %s was removed, and the node has its layers still: another image consists of the "+
				"same ones (\"cvmfs-graphdriver cache ls\" names it), or a container: remove that first", name)
		case <-time.After(goneEvery):
		}
	}
}

// end removes what was made and is there still, and says why a comparison ended before it was through.
func (b *bench) end(ctx context.Context, err error) error {
	interrupted := ctx.Err() != nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanWait)
	defer cancel()
	left := false
	for name := range b.pulled {
		if failed := b.remove(ctx, name, ""); failed != nil {
			err, left = errors.Join(err, failed), true
		}
	}
	if interrupted && !left {
		return ErrInterrupted
	}
	return err
}
