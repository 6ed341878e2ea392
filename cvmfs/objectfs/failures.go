package objectfs

import (
	"sync"
	"time"
)

const (
	// retryAfter is how long an object that could not be fetched whole is not tried again. One open(2) and read(2) make
	// up to three requests; they are to wait for a dead server once.
	retryAfter = time.Second
	// quiet is how long the same object's failures are not logged again.
	quiet = time.Minute
	// manyFailures is how many objects' failures are remembered; of others nothing is said meanwhile.
	manyFailures = 1000
)

// failures remembers which objects failed lately. The zero value is ready.
type failures struct {
	mu   sync.Mutex
	seen map[uint64]failure // by node
}

type failure struct{ logged, last time.Time }

// add notes a failure and reports whether it is to be logged.
func (l *failures) add(node uint64, now time.Time) (log bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f, ok := l.seen[node]; ok && now.Sub(f.logged) < quiet {
		l.seen[node] = failure{f.logged, now}
		return false
	}
	if len(l.seen) >= manyFailures {
		l.drop(now)
	}
	if len(l.seen) >= manyFailures {
		return false
	}
	if l.seen == nil {
		l.seen = map[uint64]failure{}
	}
	l.seen[node] = failure{now, now}
	return true
}

// drop forgets what would be logged again anyway.
func (l *failures) drop(now time.Time) {
	for node, f := range l.seen {
		if now.Sub(f.logged) >= quiet {
			delete(l.seen, node)
		}
	}
}

// fresh reports whether the object has just failed.
func (l *failures) fresh(node uint64, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, ok := l.seen[node]
	return ok && now.Sub(f.last) < retryAfter
}
