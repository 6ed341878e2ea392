package snapshotter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"

	"cvmfs-graphdriver/internal/durable"
)

// numbers gives ids to layers. None is given twice, also not to a layer that has gone: a composed image is known by the
// ids of the ordinary layers in it.
type numbers struct {
	file string // the lowest number that no layer can have

	mu          sync.Mutex
	last, below uint64 // the last number that was given, and what is in the file
}

// block is how many numbers are set aside at once, as each time is a write to disk.
const block = 64

func (s *Snapshotter) openNumbers() error {
	s.numbers.file = s.node.Path("state", "next-layer")
	b, err := os.ReadFile(s.numbers.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	next, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || next == 0 {
		return fmt.Errorf("%s: %.40q is no number", s.numbers.file, b)
	}
	s.numbers.last, s.numbers.below = next-1, next
	return nil
}

// next returns a new number.
func (n *numbers) next() (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.last+1 >= n.below {
		below := n.last + 1 + block
		if err := durable.Replace(n.file, 0o600, fmt.Appendln(nil, below)); err != nil {
			return "", fmt.Errorf("set numbers of layers aside: %w", err)
		}
		n.below = below
	}
	n.last++
	return strconv.FormatUint(n.last, 10), nil
}
