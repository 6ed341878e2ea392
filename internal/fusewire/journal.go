package fusewire

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// journalSlots is how many requests may be under way. A slot takes memory only when it is first used, one page.
const journalSlots = 4096

// NewJournal makes an empty journal, a memory file. Whoever supervises servers keeps it open and hands it to each of
// them.
func NewJournal() (*os.File, error) {
	fd, err := unix.MemfdCreate("fuse-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the journal of FUSE requests: %w", err)
	}
	f := os.NewFile(uintptr(fd), "fuse-journal")
	if err := f.Truncate(journalSlots * requestSize); err != nil {
		f.Close() // the error that is told is the first one
		return nil, fmt.Errorf("make the journal of FUSE requests: %w", err)
	}
	return f, nil
}

// journal is the file as a server sees it: slots of requestSize bytes. The kernel writes a request into a slot while it
// hands it over, so there is no moment in which a request is in neither place. A slot is in use as long as its first
// four bytes, the request's length, are not 0.
type journal struct {
	mem []byte

	mu   sync.Mutex
	some sync.Cond // free is not empty
	free []int     // slots; the last used comes first, so that few pages are touched
}

// openJournal maps the file and gives the slots in which a predecessor has left requests.
func openJournal(f *os.File) (*journal, []int, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, journalSlots*requestSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map the journal of FUSE requests: %w", err)
	}
	j := &journal{mem: mem}
	j.some.L = &j.mu
	var left []int
	for i := journalSlots - 1; i >= 0; i-- {
		if native.Uint32(j.slot(i)) != 0 {
			left = append(left, i)
		} else {
			j.free = append(j.free, i)
		}
	}
	return j, left, nil
}

func (j *journal) slot(i int) []byte {
	return j.mem[i*requestSize : (i+1)*requestSize : (i+1)*requestSize]
}

// take returns an empty slot; it waits for one if all are in use.
func (j *journal) take() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.free) == 0 {
		j.some.Wait()
	}
	i := j.free[len(j.free)-1]
	j.free = j.free[:len(j.free)-1]
	native.PutUint32(j.slot(i), 0) // brings the page in: the kernel must not fail to write to it
	return i
}

// release marks the slot empty: its request is answered, or needs no answer.
func (j *journal) release(i int) {
	native.PutUint32(j.slot(i), 0)
	j.mu.Lock()
	j.free = append(j.free, i)
	j.mu.Unlock()
	j.some.Signal()
}
