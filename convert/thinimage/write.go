package thinimage

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/client"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/internal/registry"
)

// Written is an image that was written.
type Written struct {
	Digest v1.Hash // of its manifest
	Note   string  // what a registry couldn't do, and what was done instead; "" if there is nothing to tell
}

// Write puts the image where the reference says: a registry, the daemon, an archive, or a layout.
func (t *Image) Write(ctx context.Context, to source.Reference, o source.Options) (Written, error) {
	w, err := t.write(ctx, to, o)
	if err != nil {
		return Written{}, fmt.Errorf("write thin image %s: %w", to, err)
	}
	return w, nil
}

func (t *Image) write(ctx context.Context, to source.Reference, o source.Options) (Written, error) {
	w := Written{Digest: t.Digest}
	switch to.Kind {
	case source.Daemon:
		return w, t.load(ctx, to.Name)
	case source.Archive:
		return w, t.save(to.Path, to.Name)
	case source.Layout:
		return w, t.layOut(to.Path, to.Tag)
	default:
		return t.push(ctx, to, o)
	}
}

// CheckWrite finds out whether an image can be put where the reference says, as far as that can be told beforehand.
func CheckWrite(ctx context.Context, to source.Reference, o source.Options) error {
	if err := checkWrite(ctx, to, o); err != nil {
		return fmt.Errorf("thin images can't be written to %s: %w", to, err)
	}
	return nil
}

func checkWrite(ctx context.Context, to source.Reference, o source.Options) error {
	switch to.Kind {
	case source.Daemon:
		daemon, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
		if err != nil {
			return err
		}
		defer daemon.Close()
		_, err = daemon.Ping(ctx)
		return unanswered(err)
	case source.Archive:
		return checkFolder(filepath.Dir(to.Path))
	case source.Layout:
		if _, err := os.Stat(to.Path); errors.Is(err, os.ErrNotExist) {
			return nil // it is made, with all above
		}
		return checkFolder(to.Path)
	default:
		access, ref, err := o.Access(to)
		if err != nil {
			return err
		}
		return access.CheckPush(ctx, ref)
	}
}

// checkFolder makes sure that a file can be written in a folder.
func checkFolder(dir string) error {
	f, err := durable.Create(filepath.Join(dir, "image"))
	if err != nil {
		return err
	}
	return f.Close()
}

// unanswered says what to do where no daemon is.
func unanswered(err error) error {
	if client.IsErrConnectionFailed(err) {
		return fmt.Errorf("no Docker daemon answers (DOCKER_HOST names another): %w", err)
	}
	return err
}

// push writes the image to a registry. One that refuses a subject, as those made before OCI 1.1 may, gets the image
// without; one that has the image, but doesn't take the list of what refers to the original, has it without the list.
func (t *Image) push(ctx context.Context, to source.Reference, o source.Options) (Written, error) {
	access, ref, err := o.Access(to)
	if err != nil {
		return Written{}, err
	}
	image, err := partial.CompressedToImage(t)
	if err != nil {
		return Written{}, err
	}
	w := Written{Digest: t.Digest}
	err = registry.Explain(ref, remote.Write(ref, image, access.Remote(ctx)...))
	if err == nil || t.bare == nil {
		return w, err
	}
	if d, ok := t.published(ctx, to, o); ok && d == t.Digest {
		w.Note = fmt.Sprintf("the image is written, but the registry's list of what refers to the original is not: %v", err)
		return w, nil
	}
	if !refusesManifest(err) {
		return w, err
	}
	if w, err = t.bare.push(ctx, to, o); err == nil {
		w.Note = "the registry refuses a manifest with a subject: the image is written without"
	}
	return w, err
}

// refusesManifest reports whether a registry takes a manifest for invalid.
func refusesManifest(err error) bool {
	refusal, ok := errors.AsType[*transport.Error](err)
	if !ok || refusal.Request == nil || !strings.Contains(refusal.Request.URL.Path, "/manifests/") {
		return false
	}
	switch refusal.StatusCode {
	case http.StatusBadRequest, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// Published reports whether a registry has exactly this image at the reference, be it without the subject. Elsewhere it
// isn't known: false.
func (t *Image) Published(ctx context.Context, at source.Reference, o source.Options) bool {
	_, ok := t.published(ctx, at, o)
	return ok
}

func (t *Image) published(ctx context.Context, at source.Reference, o source.Options) (v1.Hash, bool) {
	if at.Kind != source.Registry {
		return v1.Hash{}, false
	}
	access, ref, err := o.Access(at)
	if err != nil {
		return v1.Hash{}, false
	}
	d, err := remote.Head(ref, access.Remote(ctx)...)
	if err != nil {
		return v1.Hash{}, false
	}
	return d.Digest, d.Digest == t.Digest || t.bare != nil && d.Digest == t.bare.Digest
}

func (t *Image) load(ctx context.Context, name string) error {
	daemon, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return err
	}
	defer daemon.Close()
	var archive bytes.Buffer
	if err := t.archiveTo(&archive, name); err != nil {
		return err
	}
	answer, err := daemon.ImageLoad(ctx, &archive)
	if err != nil {
		return unanswered(err)
	}
	defer answer.Body.Close()
	return loadError(answer.Body)
}

// loadError reads the daemon's messages: a failure comes as one of them.
func loadError(r io.Reader) error {
	for in := json.NewDecoder(r); ; {
		var message struct {
			Error string `json:"error"`
		}
		err := in.Decode(&message)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("the daemon's answer: %w", err)
		case message.Error != "":
			return fmt.Errorf("the daemon says %.500q", message.Error)
		}
	}
}

// save writes an archive as docker save does.
func (t *Image) save(path, name string) error {
	return durable.ReplaceBy(path, 0o644, func(w io.Writer) error { return t.archiveTo(w, name) })
}

// archiveTo writes the image in the form all engines load.
func (t *Image) archiveTo(w io.Writer, called string) error {
	tags := []string{}
	if called != "" {
		tag, err := name.NewTag(called)
		if err != nil {
			return fmt.Errorf("name of the image: %w", err)
		}
		if !strings.HasSuffix(called, ":"+tag.TagStr()) {
			called += ":" + tag.TagStr() // engines load no name without a tag
		}
		tags = append(tags, called)
	}
	config, layer := sum(t.config).Hex+".json", t.diffID.Hex+"/layer.tar"
	manifest, err := json.Marshal([]struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{{config, tags, []string{layer}}})
	if err != nil {
		return err
	}
	archive := tar.NewWriter(w)
	for _, f := range []struct {
		name    string
		content []byte
	}{{config, t.config}, {layer, t.archive}, {"manifest.json", manifest}} {
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.content)), Mode: 0o644,
			ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
		}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		if _, err := archive.Write(f.content); err != nil {
			return err
		}
	}
	return archive.Close()
}

// refName is the annotation that holds an image's tag in an OCI layout.
const refName = "org.opencontainers.image.ref.name"

// layOut puts the image into an OCI layout, which is made if it isn't there, in place of the one of the same tag. The
// index, which decides, comes last and by a rename: the registry library would write over it.
func (t *Image) layOut(dir, tag string) error {
	index, err := layout.ImageIndexFromPath(dir)
	if errors.Is(err, os.ErrNotExist) {
		_, err = layout.Write(dir, empty.Index)
		index = empty.Index
	}
	if err != nil {
		return err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return err
	}
	image, err := partial.CompressedToImage(t)
	if err != nil {
		return err
	}
	if err := layout.Path(dir).WriteImage(image); err != nil {
		return err
	}
	d, err := partial.Descriptor(image)
	if err != nil {
		return err
	}
	if tag != "" {
		d.Annotations = map[string]string{refName: tag}
	}
	m.Manifests = append(slices.DeleteFunc(m.Manifests, func(other v1.Descriptor) bool {
		return other.Annotations[refName] == tag && (tag != "" || other.Digest == t.Digest)
	}), *d)
	return durable.ReplaceBy(filepath.Join(dir, "index.json"), 0o644,
		func(w io.Writer) error { return json.NewEncoder(w).Encode(m) })
}
