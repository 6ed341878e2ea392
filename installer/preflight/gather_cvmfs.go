package preflight

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/trust"
	"cvmfs-graphdriver/pushback"
)

// atOnce is how many repositories are asked at a time.
const atOnce = 32

// lookAtConfiguration reads the configuration folder and asks for each repository's newest revision.
func lookAtConfiguration(ctx context.Context, p Plan, setting string) Configuration {
	c := Configuration{Dir: firstOf(p.CVMFSConfig, setting, config.HostDir)}
	folder := config.Folder{Dir: c.Dir, Shown: c.Dir}
	names, found, err := folder.Repositories()
	if errors.Is(err, fs.ErrNotExist) {
		c.Missing = true
		return c
	}
	if err != nil {
		c.Err = err.Error()
		return c
	}
	if c.Quota, _, err = folder.Quota(); err != nil {
		c.Err = err.Error()
		return c
	}
	common := map[string]bool{}
	for _, f := range found {
		c.Notes = append(c.Notes, f.String())
		common[f.String()] = true
	}
	// Nothing that was seen before may tell a revision old, and nothing is left behind.
	state, err := os.MkdirTemp("", "cvmfs-graphdriver-")
	if err != nil {
		c.Err = err.Error()
		return c
	}
	defer os.RemoveAll(state)
	folder.ConfigRepository = client.ConfigRepository(ctx, client.Options{Dir: state, UserAgent: p.Agent})
	c.Repositories = make([]Repository, len(names))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, fqrn := range names {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, repositoryWait)
			defer cancel()
			r := ask(ctx, folder, fqrn, filepath.Join(state, fqrn), p.Agent)
			r.Notes = slices.DeleteFunc(r.Notes, func(note string) bool { return common[note] })
			c.Repositories[i] = r
			return nil
		})
	}
	g.Wait() // none fails
	c.Notes = append(c.Notes, shared(c.Repositories)...)
	return c
}

// shared takes the notes that several repositories have out of theirs, and returns them: they are about a file that all
// of these read, and are told once.
func shared(repositories []Repository) (notes []string) {
	count := map[string]int{}
	for _, r := range repositories {
		for _, note := range r.Notes {
			if count[note]++; count[note] == 2 {
				notes = append(notes, note)
			}
		}
	}
	for i, r := range repositories {
		repositories[i].Notes = slices.DeleteFunc(r.Notes, func(note string) bool { return count[note] > 1 })
	}
	return notes
}

func firstOf(names ...string) string {
	for _, name := range names {
		if name != "" {
			return name
		}
	}
	return ""
}

// ask gets and verifies a repository's newest revision.
func ask(ctx context.Context, folder config.Folder, fqrn, state, agent string) Repository {
	r := Repository{FQRN: fqrn}
	cfg, err := folder.Load(fqrn)
	if err != nil {
		r.Trouble, r.Err = Unreadable, err.Error()
		return r
	}
	for _, f := range cfg.Findings {
		r.Notes = append(r.Notes, f.String())
	}
	if _, err := trust.LoadKeys(cfg.PublicKeys...); err != nil {
		r.Trouble, r.Err = Key, err.Error()
		return r
	}
	var said notes
	repository, err := client.Open(cfg, client.Options{Dir: state, UserAgent: agent, Log: slog.New(&said)})
	if err != nil {
		r.Trouble, r.Err = Unreadable, err.Error()
		return r
	}
	defer repository.Fetcher().Close()
	v, err := repository.Newest(ctx)
	if err != nil {
		r.Trouble, r.Err = trouble(ctx, err), err.Error()
		return r
	}
	r.Notes = append(r.Notes, said.lines...)
	r.Revision, r.Published, r.Expires = v.Number, v.Published, v.Expires
	return r
}

// trouble reports what kind an error of a repository is of.
func trouble(ctx context.Context, err error) Trouble {
	attempt, asked := errors.AsType[*fetch.Error](err)
	switch {
	case errors.Is(err, trust.ErrExpired):
		return Expired
	case errors.Is(err, trust.ErrSignature), errors.Is(err, trust.ErrNotWhitelisted),
		errors.Is(err, trust.ErrBlacklisted), errors.Is(err, trust.ErrInvalid):
		return Untrusted
	case ctx.Err() != nil:
		return Slow
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, client.ErrIncomplete):
		return Absent
	case asked && attempt.Proxy != "" && attempt.Status < 500: // with 5xx it says that the server doesn't answer
		return Proxy
	case asked, errors.Is(err, fetch.ErrUnavailable):
		return Unreachable
	}
	return Other
}

// notes keeps the warnings of a log.
type notes struct {
	mu    sync.Mutex
	lines []string
}

// Enabled implements slog.Handler.
func (n *notes) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// Handle implements slog.Handler.
func (n *notes) Handle(_ context.Context, r slog.Record) error {
	line := []string{r.Message}
	r.Attrs(func(a slog.Attr) bool {
		line = append(line, a.String())
		return true
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, strings.Join(line, " "))
	return nil
}

// WithAttrs implements slog.Handler; what all lines have in common is known.
func (n *notes) WithAttrs([]slog.Attr) slog.Handler { return n }

// WithGroup implements slog.Handler.
func (n *notes) WithGroup(string) slog.Handler { return n }

// tryWait bounds how long store and service may take to answer.
const tryWait = 30 * time.Second

// lookAtMinio reads the settings of push-back, set being their file on a host that wasn't told, if there are some or
// have to be. It asks whom they name where a folder is named for that.
func lookAtMinio(ctx context.Context, p Plan, set string) *Minio {
	file := set
	if p.MinioConfig != "" {
		file = filepath.Join(p.MinioConfig, pushback.FileName)
	}
	if file == "" {
		return nil
	}
	m := &Minio{File: file, Asked: p.MinioConfig != ""}
	settings, err := pushback.Read(m.File)
	if errors.Is(err, fs.ErrNotExist) && p.MinioConfig == "" {
		if set == p.PushBack {
			return &Minio{File: file, Missing: true}
		}
		return nil
	}
	if err == nil {
		m.Repository = settings.CvmfsRepo
		if !p.Snapshots {
			m.Outside = settings.Outside(filepath.Dir(m.File))
		}
	}
	if err == nil && m.Asked {
		ctx, cancel := context.WithTimeout(ctx, tryWait)
		defer cancel()
		err = settings.Try(ctx)
	}
	if err != nil {
		m.Err = err.Error()
	}
	return m
}

// pushBackFile is where the settings of push-back are looked for on a host that wasn't told; "" is nowhere.
func (f *Facts) pushBackFile(p Plan) string {
	if p.Snapshots {
		return firstOf(p.PushBack, snapshotterPushBack)
	}
	if dir := f.Plugin.Settings["minio_ext_config"]; dir != "" {
		return filepath.Join(dir, pushback.FileName)
	}
	return ""
}

// snapshotterPushBack is what the snapshotter reads unless it is told otherwise.
const snapshotterPushBack = "/etc/cvmfs-snapshotter/push-back/" + pushback.FileName
