package layers

import "sync"

// rank is a lock's place in the order that doc.go gives: who holds a lock takes none of the same or a lower rank, but
// for the locks of layers, which are taken from a layer up to its ancestors.
type rank int

const (
	rankLayer  rank = iota + 1 // locks, by layer
	rankImages                 // Store.images
	rankLeaf                   // all others, which are held for a few lines that call nothing
)

// lockWatcher is told of every lock before it is taken and after it is given back, to check the order in tests.
type lockWatcher interface {
	Taking(r rank, name string)
	Released(r rank, name string)
}

// mutex is a mutex with a rank. The zero value is one that nobody watches.
type mutex struct {
	mu    sync.Mutex
	rank  rank
	name  string
	watch lockWatcher // nil: nobody
}

func (m *mutex) Lock() {
	if m.watch != nil {
		m.watch.Taking(m.rank, m.name)
	}
	m.mu.Lock()
}

func (m *mutex) Unlock() {
	m.mu.Unlock()
	if m.watch != nil {
		m.watch.Released(m.rank, m.name)
	}
}

// rankLocks returns the locks of a new store their ranks.
func (s *Store) rankLocks(watch lockWatcher) {
	s.locks.watch = watch
	s.images.rank, s.images.name, s.images.watch = rankImages, "images", watch
	for name, m := range map[string]*mutex{
		"locks": &s.locks.mu, "settings": &s.mu, "records": &s.records.mutex, "idle": &s.idle.mu,
		"stranded": &s.stranded.mu, "quota": &s.quota.mu,
		"made": &s.made.mu,
	} {
		m.rank, m.name, m.watch = rankLeaf, name, watch
	}
}

// locks are the locks of layers, by id. One exists while somebody holds or awaits it.
type locks struct {
	watch lockWatcher

	mu mutex
	by map[string]*layerLock
}

type layerLock struct {
	mutex
	users int
}

// lock waits for the lock of a layer and gives what releases it.
func (l *locks) lock(id string) (unlock func()) {
	l.mu.Lock()
	if l.by == nil {
		l.by = map[string]*layerLock{}
	}
	n := l.by[id]
	if n == nil {
		n = &layerLock{mutex: mutex{rank: rankLayer, name: id, watch: l.watch}}
		l.by[id] = n
	}
	n.users++
	l.mu.Unlock()
	n.Lock()
	return func() {
		n.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if n.users--; n.users == 0 {
			delete(l.by, id)
		}
	}
}
