package objectfs

import (
	"errors"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"time"

	"cvmfs-graphdriver/cvmfs/fetch"
)

const (
	// retryAfter is how long an object that could not be fetched whole is not tried again. One open(2) and read(2) make
	// up to three requests; they are to wait for a dead server once.
	retryAfter = time.Second
	// quiet is how long the same object's failures are not logged again.
	quiet = time.Minute
	// mostLines is how many failures are logged in that time. With no server up all that is read fails.
	mostLines = 20
	// manyFailures is how many objects' failures are remembered; of others nothing is said meanwhile.
	manyFailures = 1000
)

// failures remembers which objects failed lately. The zero value is ready.
type failures struct {
	mu      sync.Mutex
	seen    map[uint64]failure // by node
	began   time.Time          // of the time in which lines are counted
	lines   int                // logged in it
	leftOut int                // failures since the last line, which were not logged
}

type failure struct {
	logged, last time.Time
	errno        syscall.Errno // what readers got
}

// add notes a failure, and reports whether it is to be logged, and how many before it were not.
func (l *failures) add(node uint64, errno syscall.Errno, now time.Time) (log bool, leftOut int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.began) >= quiet {
		l.began, l.lines = now, 0
	}
	f, known := l.seen[node]
	if !known && len(l.seen) >= manyFailures {
		l.drop(now)
	}
	if log = now.Sub(f.logged) >= quiet && l.lines < mostLines; log {
		f.logged = now
		l.lines++
		leftOut, l.leftOut = l.leftOut, 0
	} else {
		l.leftOut++
	}
	if known || len(l.seen) < manyFailures {
		if l.seen == nil {
			l.seen = map[uint64]failure{}
		}
		l.seen[node] = failure{f.logged, now, errno}
	}
	return log, leftOut
}

// remedy says what to do about an object that can't be read.
func remedy(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return "make room on the file system of the objects"
	case errors.Is(err, fetch.ErrBadData):
		return "a server or proxy has damaged files or alters them: ask its operator, or use others"
	case errors.Is(err, fs.ErrNotExist):
		return "no server has the object: tell the repository's operator"
	case errors.Is(err, fetch.ErrUnavailable):
		return "see to the servers and proxies that the error names"
	}
	return "see to what the error names; cvmfs-graphdriver doctor says more"
}

// from tells which server and proxy an error came from; nothing if from none.
func from(err error) (attrs []any) {
	e, ok := errors.AsType[*fetch.Error](err)
	if !ok {
		return nil
	}
	server, _, _ := strings.Cut(e.URL, "/data/")
	attrs = []any{"server", server}
	if e.Proxy != "" {
		attrs = append(attrs, "proxy", e.Proxy)
	}
	return attrs
}

// drop forgets what has not failed for long.
func (l *failures) drop(now time.Time) {
	for node, f := range l.seen {
		if now.Sub(f.last) >= quiet {
			delete(l.seen, node)
		}
	}
}

// fresh returns how the object has just failed; 0 if it hasn't.
func (l *failures) fresh(node uint64, now time.Time) syscall.Errno {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f, ok := l.seen[node]; ok && now.Sub(f.last) < retryAfter {
		return f.errno
	}
	return 0
}
