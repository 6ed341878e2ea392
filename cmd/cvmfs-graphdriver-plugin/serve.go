package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/objectfs"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/supervise"
	"cvmfs-graphdriver/driver/view"
	"cvmfs-graphdriver/internal/fusewire"
	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/rootfs"
)

// serve is the server's life: it takes over from the supervisor and answers the kernel and the engine until SIGTERM.
func serve(ctx context.Context, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	in, err := supervise.Inherited()
	if err != nil {
		return err
	}
	s, err := newServer(in.Generation, log)
	if err != nil {
		return err
	}
	defer s.close()
	// The kernel first: mounting an overlay asks the object file system.
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() {
		err := fusewire.Serve(in.Fuse, s.view, fusewire.Config{Init: in.Init, Journal: in.Journal, Log: log})
		end(fmt.Errorf("the object file system has ended: %w", cmp.Or(err, errUnmounted)))
	}()
	go s.objects.Run(ctx)
	go s.layers.Run(ctx)
	log.Info("serving", "version", version, "commit", commit)
	server := graphdriver.New(graphdriver.Config{Store: s.layers, Status: s.status, Log: log})
	err = server.Serve(ctx, in.Listener)
	s.layers.CloseIdle()
	if err != nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// errUnmounted: only the supervisor unmounts, when the plugin ends.
var errUnmounted = errors.New("unmounted")

// server is the parts of the driver.
type server struct {
	index        *objects.Index
	view         *view.FS
	objects      *objects.Store
	layers       *layers.Store
	repositories atomic.Pointer[client.Repositories] // nil until the engine has said which may be used
	composer     atomic.Pointer[images.Composer]     // likewise
	log          *slog.Logger

	finding     sync.Mutex // while a file is looked for
	nextFinding time.Time  // when one may be; finding guards it
}

// newServer opens what is on disk. When it returns the index holds the objects of every mounted image.
func newServer(generation string, log *slog.Logger) (*server, error) {
	// Node ids must be the same in every server of one FUSE mount, so the key is made from what names the mount.
	key := sha256.Sum256([]byte(generation))
	s := &server{index: objects.NewIndex([16]byte(key[:16])), log: log}
	var err error
	s.objects, err = objects.Open(objects.Config{
		Dir: filepath.Join(rootDir, "store", "objects"), Fresh: filepath.Join(rootDir, "fresh", "objects"),
		State: filepath.Join(rootDir, "state", "objects"), Sources: s, Log: log,
	})
	if err != nil {
		return nil, err
	}
	s.view = view.New(view.Config{
		Objects: objectfs.New(objectfs.Config{Index: s.index, Store: s.objects, Users: s.users, Log: log}),
		Index:   s.index, Store: s.objects,
		Dir: filepath.Join(rootDir, "store", "objects"), Layers: filepath.Join(rootDir, "layers"), Log: log,
		Users: func(key string) []any { return []any{"layers", some(s.layers.Users(key))} },
	})
	s.layers, err = layers.Open(layers.Config{
		Root: rootDir, Run: runDir, Generation: generation,
		Mounter: &graphdriver.Mounter{Kernel: overlayfs.Kernel{
			Lack:    overlayfs.ParseLack(os.Getenv(lackVariable)),
			Scratch: runDir,
		}},
		NewComposer: s.newComposer, Objects: s, Log: log,
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *server) close() {
	if err := s.objects.Close(); err != nil {
		s.log.Warn("close the object store", "err", err)
	}
}

// newComposer makes the composer for what the engine has set.
func (s *server) newComposer(set layers.Settings) (layers.Composer, error) {
	dir := cmp.Or(os.Getenv("CVMFS_EXT_CONFIG"), configDir)
	defaults, err := os.ReadFile(rootfs.DefaultConf)
	if errors.Is(err, fs.ErrNotExist) {
		defaults, err = rootfs.Defaults, nil // not in a bundle's root file system
	}
	if err != nil {
		return nil, fmt.Errorf("read the default configuration: %w", err)
	}
	repositories := client.NewRepositories(config.Folder{Dir: dir, Defaults: defaults}, set.Repositories,
		client.Options{
			Dir:       filepath.Join(rootDir, "state", "repositories"),
			UserAgent: "cvmfs-graphdriver-plugin/" + version, Log: s.log,
		})
	composer, err := images.New(images.Config{
		Dir: filepath.Join(rootDir, "images"), Repositories: repositories, Index: s.index, IDs: set.IDs, Log: s.log,
	})
	if err != nil {
		return nil, err
	}
	if former := s.repositories.Swap(repositories); former != nil {
		former.Reload() // its connections are not needed any more
	}
	s.composer.Store(composer)
	return shownComposer{composer, s.view}, nil
}

// shownComposer has the images in use shown by FUSE too: whether that is looked at is up to the store.
type shownComposer struct {
	*images.Composer
	view *view.FS
}

func (c shownComposer) Compose(ctx context.Context, chain []images.Layer) (*images.Image, error) {
	image, err := c.Composer.Compose(ctx, chain)
	if err != nil {
		return nil, err
	}
	return image, c.view.Add(image.Key, image.Meta)
}

func (c shownComposer) Image(key string) (*images.Image, error) {
	image, err := c.Composer.Image(key)
	if err != nil {
		return nil, err
	}
	return image, c.view.Add(image.Key, image.Meta)
}

func (c shownComposer) Remove(key string) error {
	c.view.Remove(key)
	return c.Composer.Remove(key)
}

// Fetcher makes the server the source of objects: the way to a repository's servers, as the newest settings have it.
func (s *server) Fetcher(fqrn string) (*fetch.Fetcher, error) {
	repositories := s.repositories.Load()
	if repositories == nil {
		return nil, layers.ErrNotReady
	}
	return repositories.Fetcher(fqrn)
}

// users reports what an object is needed for: images, a file of one of them, and the layers that are mounted from them,
// which docker inspect shows as the ends of a container's MergedDir. With no server up many objects fail at once: files
// are looked for a tenth of the time, and none for longer than a moment.
func (s *server) users(r objects.Ref) (attrs []any) {
	composer := s.composer.Load()
	if composer == nil {
		return nil
	}
	var images, layers []string
	for _, t := range s.index.Tables(r) {
		key := filepath.Base(filepath.Dir(t.Path()))
		images, layers = append(images, key), append(layers, s.layers.Users(key)...)
	}
	attrs = []any{"images", some(images), "layers", some(layers)}
	if !s.finding.TryLock() {
		return attrs
	}
	defer s.finding.Unlock()
	began := time.Now()
	if began.Before(s.nextFinding) {
		return attrs
	}
	defer func() { s.nextFinding = time.Now().Add(9 * time.Since(began)) }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if file, err := composer.Find(ctx, images[0], r); err == nil && file != "" { // else the image is asked for itself
		attrs = append(attrs, "file", file)
	}
	return attrs
}

// patience is how long a file is looked for that a log line is to name.
const patience = 300 * time.Millisecond

// some spells the first of several names.
func some(names []string) string {
	const most = 3
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], " "), len(names)-most)
	}
	return strings.Join(names, " ")
}

// Local reports how much of a composed image is on disk.
func (s *server) Local(image string) (objects.Share, error) {
	composer := s.composer.Load()
	if composer == nil {
		return objects.Share{}, layers.ErrNotReady
	}
	t, err := composer.Peek(image)
	if err != nil {
		return objects.Share{}, err
	}
	return s.objects.Local(t), nil
}

// Complete fetches what of a composed image isn't.
func (s *server) Complete(ctx context.Context, image string) (objects.Completion, error) {
	composer := s.composer.Load()
	if composer == nil {
		return objects.Completion{}, layers.ErrNotReady
	}
	t, err := composer.Table(image)
	if err != nil {
		return objects.Completion{}, err
	}
	return s.objects.Complete(ctx, s.index, t)
}
