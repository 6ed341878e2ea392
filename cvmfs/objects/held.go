package objects

import (
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	heldFor  = 2 * time.Minute // nobody has asked: then it is stored like all others
	mostHeld = 1024            // at once; each is an open file
)

// heldObjects are those that were fetched ahead, complete and verified, and that nobody has asked for yet. They have no
// name in the store, so that a kernel that looks for one finds nothing, and asks: that is how it is known which are
// used. The zero value is ready.
type heldObjects struct {
	mu    sync.Mutex
	m     map[string]*heldObject
	order []*heldObject // as they came, some of which are claimed
}

type heldObject struct {
	*temp // nil: claimed
	ref   named
	sha   []byte
	since time.Time
}

func (h *heldObjects) has(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.m[name] != nil
}

// hold takes a complete file over. Its bytes count as those of partial files.
func (s *Store) hold(t *temp, r named, sha []byte) {
	s.aheadBytes.Add(r.Size())
	o := &heldObject{t, r, sha, time.Now()}
	h := &s.holds
	h.mu.Lock()
	if h.m == nil {
		h.m = map[string]*heldObject{}
	}
	h.m[r.Name()] = o
	h.order = append(h.order, o)
	many := len(h.m) > mostHeld
	h.mu.Unlock()
	if many {
		s.settleOldest(mostHeld / 8)
	}
}

// open opens a held object's file once more.
func (h *heldObjects) open(name string) (*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := h.m[name]
	if o == nil {
		return nil, fs.ErrNotExist
	}
	fd, err := unix.FcntlInt(o.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), o.Name()), nil
}

// claim gives an object that is held its name, as somebody has asked for it. It reports whether it was held.
func (s *Store) claim(r named) (bool, error) {
	h := &s.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	o := h.m[r.Name()]
	if o == nil {
		return false, nil
	}
	s.aheadUsed.Add(r.Size())
	return true, s.name(o)
}

// name makes a held file an object. The caller holds holds.mu, so that nobody fetches it meanwhile.
func (s *Store) name(o *heldObject) error {
	err := s.publish(o.temp, o.ref.Path(), o.ref.Size(), o.sha)
	s.giveUp(o)
	return err
}

// giveUp closes a held file, which without a name is gone. The caller holds holds.mu.
func (s *Store) giveUp(o *heldObject) {
	delete(s.holds.m, o.ref.Name())
	o.discard()
	o.temp = nil
	s.admission.freed(o.ref.Size())
}

// settle stores what is held since before then.
func (s *Store) settle(before time.Time) {
	s.eachHeld(func(o *heldObject) bool { return o.since.Before(before) }, s.name)
}

// settleOldest stores what is held for longest.
func (s *Store) settleOldest(n int) {
	s.eachHeld(func(*heldObject) bool { n--; return n >= 0 }, s.name)
}

// dropHeld gives up what is held: nobody has asked for it, and its room is needed. It reports whether there was any.
func (s *Store) dropHeld() (dropped bool) {
	s.eachHeld(func(*heldObject) bool { return true }, func(o *heldObject) error {
		s.giveUp(o)
		dropped = true
		return nil
	})
	return dropped
}

// eachHeld calls do for the oldest held objects, as long as these says so.
func (s *Store) eachHeld(these func(*heldObject) bool, do func(*heldObject) error) {
	h := &s.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.order) > 0 {
		o := h.order[0]
		if o.temp != nil {
			if !these(o) {
				return
			}
			if err := do(o); err != nil {
				s.log.Debug("object store: an object that was fetched ahead is not kept",
					slog.String("object", o.ref.Name()), slog.Any("err", err))
			}
		}
		h.order = h.order[1:]
	}
	h.order = nil
}
