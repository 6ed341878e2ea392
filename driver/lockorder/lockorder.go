// Package lockorder is the order in which the packages of the driver take their locks, and the locks that keep to it.
//
// Locks run down as imports do. Who holds a lock takes none of the same or a lower rank, with one exception: of the
// locks of mounts, one for each layer, a layer's comes before those of its ancestors. Tests watch every lock that is
// taken, with a [Watcher], and fail where the order isn't kept.
package lockorder

import (
	"sync"

	"github.com/moby/locker"
)

// Rank is a lock's place in the order.
type Rank int

// The ranks, in the order in which locks are taken.
const (
	Mounts    Rank = iota + 1 // graphdriver: mounts and their records, by layer; a layer's before its ancestors'
	Composing                 // node: thin layers that are being composed, by layer
	Naming                    // node: an image comes to be named by a layer or goes, or a composer takes over
	Layers                    // layers: folders and records, by layer; only one at a time
	Leaf                      // all others, which are held for a few lines that call nothing
)

// Watcher is told of every lock before it is taken and after it is given back.
type Watcher interface {
	Taking(r Rank, name string)
	Released(r Rank, name string)
}

// place is a lock in the order. The zero value is nowhere, and nobody watches it.
type place struct {
	rank  Rank
	watch Watcher // nil: nobody
}

func (p place) taking(name string) {
	if p.watch != nil {
		p.watch.Taking(p.rank, name)
	}
}

func (p place) released(name string) {
	if p.watch != nil {
		p.watch.Released(p.rank, name)
	}
}

// Mutex is a mutex with a rank. The zero value is one that nobody watches.
type Mutex struct {
	mu   sync.Mutex
	name string
	place
}

// Place gives the mutex its rank, and a name for messages, before it is used. watch may be nil.
func (m *Mutex) Place(r Rank, name string, watch Watcher) { m.name, m.place = name, place{r, watch} }

// Lock locks the mutex.
func (m *Mutex) Lock() {
	m.taking(m.name)
	m.mu.Lock()
}

// Unlock unlocks the mutex.
func (m *Mutex) Unlock() {
	m.mu.Unlock()
	m.released(m.name)
}

// IDs are locks of one rank, one for each layer. The zero value is ready to be used, and nobody watches it.
type IDs struct {
	locks locker.Locker
	place
}

// Place gives the locks their rank before they are used. watch may be nil.
func (l *IDs) Place(r Rank, watch Watcher) { l.place = place{r, watch} }

// Lock waits for the lock of a layer and returns what releases it.
func (l *IDs) Lock(id string) (unlock func()) {
	l.taking(id)
	l.locks.Lock(id)
	return func() {
		_ = l.locks.Unlock(id) // fails for what isn't locked alone
		l.released(id)
	}
}
