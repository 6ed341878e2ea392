package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/images"
)

// repository is where all layers are published.
const repository = "bench.example.org"

// form is what an image is published as: a tag in the registry.
type form string

// The forms there are. That of a thin image with a start profile is made of the thin one.
const (
	ordinary form = "ordinary"
	thin     form = "thin"
	profiled form = "profiled"
)

// origin is where nodes fetch from, without a link: a registry and a repository's web server.
type origin struct {
	dir       string
	converter string // the program docker2cvmfs
	registry  *server
	site      *server
	published map[string]*images.Image // by their references
}

// newOrigin makes an origin without an image, below a folder.
func newOrigin(ctx context.Context, dir, converter string) (*origin, error) {
	o := &origin{dir: dir, converter: converter, published: map[string]*images.Image{}}
	if err := publish.Create(ctx, o.publisher(), publish.Settings{FQRN: repository}, publish.Options{}); err != nil {
		return nil, err
	}
	blobs := filepath.Join(dir, "registry")
	if err := os.Mkdir(blobs, 0o755); err != nil {
		return nil, err
	}
	var err error
	o.registry, err = serve(registry.New(registry.Logger(log.New(io.Discard, "", 0)),
		registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs))))
	if err != nil {
		return nil, err
	}
	if o.site, err = serve(http.FileServer(http.Dir(filepath.Join(o.publisher(), "www")))); err != nil {
		return nil, errors.Join(err, o.registry.close())
	}
	return o, nil
}

func (o *origin) close() error { return errors.Join(o.registry.close(), o.site.close()) }

func (o *origin) publisher() string { return filepath.Join(o.dir, "publisher") }

// key is the file with the repository's public key.
func (o *origin) key() string { return filepath.Join(o.publisher(), "keys", repository+".pub") }

// reference is how an image is called in a registry at an address.
func reference(host, image string, f form) string {
	return fmt.Sprintf("%s/bench/%s:%s", host, image, f)
}

// image returns what was published under a name, in a form, or nil.
func (o *origin) image(name string, f form) *images.Image {
	return o.published[reference(o.registry.addr, name, f)]
}

// publish puts an image into the registry and the repository, in a form.
func (o *origin) publish(ctx context.Context, image sampleImage, content *images.Image, f form) (err error) {
	ref := reference(o.registry.addr, image.name, f)
	switch f {
	case ordinary:
		err = push(ctx, ref, content)
	case thin:
		err = o.convert(ctx, content, ref)
	case profiled:
		profile := filepath.Join(o.dir, image.name+".profile")
		err = o.record(ctx, image, profile)
		if err == nil {
			err = o.convert(ctx, content, ref, "--profile", profile)
		}
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w", ref, err)
	}
	o.published[ref] = content
	return nil
}

// push puts an image into a registry as it is.
func push(ctx context.Context, ref string, image *images.Image) error {
	to, err := name.ParseReference(ref)
	if err != nil {
		return err
	}
	list, err := layout.ImageIndexFromPath(image.Dir)
	if err != nil {
		return err
	}
	manifest, err := list.IndexManifest()
	if err != nil {
		return err
	}
	if len(manifest.Manifests) != 1 {
		return fmt.Errorf("%s has %d images, not one", image.Dir, len(manifest.Manifests))
	}
	content, err := list.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return err
	}
	return remote.Write(to, content, remote.WithContext(ctx))
}

// convert has an image published as a thin one.
func (o *origin) convert(ctx context.Context, image *images.Image, ref string, more ...string) error {
	return command(ctx, slices.Concat([]string{
		o.converter, "make-thin", "--plain-http", "--input-reference", "oci:" + image.Dir,
		"--output-reference", "http://" + ref, "--repository", repository, "--target", "native:" + o.publisher(),
	}, more)...)
}

// record writes what a start of the thin image reads, which must have been published, into a file. The start ends by
// itself.
func (o *origin) record(ctx context.Context, image sampleImage, file string) error {
	return command(ctx, slices.Concat([]string{
		o.converter, "profile", "record", "--for", "0s", "--plain-http", "--target", "native:" + o.publisher(),
		"--output", file,
		"http://" + reference(o.registry.addr, image.name, thin),
	}, image.command)...)
}

// server is a web server on loopback that counts what is asked of it.
type server struct {
	addr string // host and port
	http http.Server

	mu    sync.Mutex
	count traffic
}

// traffic is what was fetched of a server.
type traffic struct {
	Requests int   `json:"requests"`
	Catalogs int64 `json:"catalogs,omitempty"` // bytes of catalogs
	Bytes    int64 `json:"bytes"`              // of all answers, as they pass the link
}

func (t traffic) sub(earlier traffic) traffic {
	return traffic{t.Requests - earlier.Requests, t.Catalogs - earlier.Catalogs, t.Bytes - earlier.Bytes}
}

func serve(handler http.Handler) (*server, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{addr: listener.Addr().String()}
	counting := func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.count.Requests++
		s.mu.Unlock()
		if strings.Contains(r.URL.Path, "/data/") && strings.HasSuffix(r.URL.Path, "C") {
			w = &catalogs{w, s}
		}
		handler.ServeHTTP(w, r)
	}
	s.http = http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(counting)}
	go s.http.Serve(listener) // ends with an error that says that it was closed
	return s, nil
}

func (s *server) close() error { return s.http.Close() }

// counted is what was asked up to now; bytes are the link's to count.
func (s *server) counted() traffic {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// catalogs counts the bytes of a catalog.
type catalogs struct {
	http.ResponseWriter
	server *server
}

func (c *catalogs) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.server.count.Catalogs += int64(n)
	return n, err
}
