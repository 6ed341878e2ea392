package objects

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// freshAge is how long a fresh link stays. The kernel looks for it within microseconds; only a machine that was
// suspended would need longer.
const freshAge = 2 * time.Minute

// freshLinks are the links there are.
type freshLinks struct {
	dir string

	mu sync.Mutex
	m  map[string]time.Time // path below dir → when it was last wanted
}

// LinkFresh makes a fresh link of an object that is here. One that exists stays for another two minutes.
func (s *Store) LinkFresh(r Ref) error {
	path := r.Path()
	s.fresh.want(path, time.Now())
	err := os.Link(filepath.Join(s.cfg.Dir, path), filepath.Join(s.cfg.Fresh, path))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("fresh link: %w", err)
	}
	return nil
}

// want notes a link before it is made, so that sweep leaves it alone.
func (l *freshLinks) want(path string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.m[path] = now
}

// sweep removes the links whose time has come.
func (l *freshLinks) sweep(now time.Time) {
	for _, path := range l.old(now) {
		l.remove(path, now)
	}
}

func (l *freshLinks) old(now time.Time) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var paths []string
	for path, t := range l.m {
		if now.Sub(t) >= freshAge {
			paths = append(paths, path)
		}
	}
	return paths
}

// remove removes a link unless it is wanted again. It holds the lock while it does.
func (l *freshLinks) remove(path string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.m[path]) < freshAge {
		return
	}
	if err := os.Remove(filepath.Join(l.dir, path)); err == nil || errors.Is(err, fs.ErrNotExist) {
		delete(l.m, path)
	}
}

// inherit takes over the links of a former life. Where the machine was restarted, nobody looks for them any more.
func (l *freshLinks) inherit(dir string, restarted bool, now time.Time) error {
	l.dir, l.m = dir, map[string]time.Time{}
	since := now
	if restarted {
		since = time.Time{}
	}
	err := l.adopt(since)
	l.sweep(now)
	return err
}

// adopt takes over links that others have made: those of a former life, and of a predecessor that is ending.
func (l *freshLinks) adopt(since time.Time) error {
	for i := range folders {
		folder := folderName(i)
		entries, err := os.ReadDir(filepath.Join(l.dir, folder))
		if err != nil {
			return err
		}
		l.mu.Lock()
		for _, e := range entries {
			path := filepath.Join(folder, e.Name())
			if _, ours := l.m[path]; !ours {
				l.m[path] = since
			}
		}
		l.mu.Unlock()
	}
	return nil
}

func (l *freshLinks) count() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.m))
}
