package snapshotter

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"

	"cvmfs-graphdriver/driver/node"
)

// mapping is how users or groups are mapped, as labels and records spell it: ranges CONTAINER:HOST:COUNT with commas
// between them, in the order of what containers see.
type mapping []user.IDMap

// maxRanges is how many ranges the kernel takes, see user_namespaces(7).
const maxRanges = 340

// MarshalText spells a mapping.
func (m mapping) MarshalText() ([]byte, error) {
	var ranges []string
	for _, r := range m {
		ranges = append(ranges, fmt.Sprintf("%d:%d:%d", r.ID, r.ParentID, r.Count))
	}
	return []byte(strings.Join(ranges, ",")), nil
}

// UnmarshalText reads a mapping. What the kernel would refuse is refused, and one without root, whose files a container
// could not have.
func (m *mapping) UnmarshalText(text []byte) error {
	var read mapping
	for word := range strings.SplitSeq(string(text), ",") {
		r, err := parseRange(word)
		if err != nil {
			return err
		}
		read = append(read, r)
	}
	if len(read) > maxRanges {
		return fmt.Errorf("%d ranges, the kernel takes %d", len(read), maxRanges)
	}
	byHost := slices.Clone(read)
	slices.SortFunc(byHost, func(a, b user.IDMap) int { return cmp.Compare(a.ParentID, b.ParentID) })
	slices.SortFunc(read, func(a, b user.IDMap) int { return cmp.Compare(a.ID, b.ID) })
	if read[0].ID != 0 {
		return errors.New("0, which is root, isn't mapped")
	}
	for i := 1; i < len(read); i++ {
		if read[i-1].ID+read[i-1].Count > read[i].ID || byHost[i-1].ParentID+byHost[i-1].Count > byHost[i].ParentID {
			return errors.New("ranges overlap")
		}
	}
	*m = read
	return nil
}

// parseRange reads one range.
func parseRange(word string) (user.IDMap, error) {
	var numbers []int64
	for part := range strings.SplitSeq(word, ":") {
		n, err := strconv.ParseUint(part, 10, 32)
		if err != nil {
			return user.IDMap{}, fmt.Errorf("range %.40q: want three numbers, CONTAINER:HOST:COUNT", word)
		}
		numbers = append(numbers, int64(n))
	}
	if len(numbers) != 3 {
		return user.IDMap{}, fmt.Errorf("range %.40q: want three numbers, CONTAINER:HOST:COUNT", word)
	}
	r := user.IDMap{ID: numbers[0], ParentID: numbers[1], Count: numbers[2]}
	if r.Count == 0 || r.ID+r.Count > math.MaxUint32 || r.ParentID+r.Count > math.MaxUint32 {
		return user.IDMap{}, fmt.Errorf("range %.40q: it holds nobody, or more than there can be", word)
	}
	return r, nil
}

// mapOwners has a new snapshot map owners as its labels ask for.
func (r *record) mapOwners() error {
	uids, byUser := r.Labels[snapshots.LabelSnapshotUIDMapping]
	gids, byGroup := r.Labels[snapshots.LabelSnapshotGIDMapping]
	if !byUser && !byGroup {
		return nil
	}
	for label, to := range map[string]struct {
		value string
		*mapping
	}{
		snapshots.LabelSnapshotUIDMapping: {uids, &r.UIDs}, snapshots.LabelSnapshotGIDMapping: {gids, &r.GIDs},
	} {
		if err := to.UnmarshalText([]byte(to.value)); err != nil {
			return fmt.Errorf("snapshot %q: owners can't be mapped as the label %s=%.200s says: %w: %w", r.Name, label,
				to.value, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// ids returns how owners are mapped; empty where they aren't.
func (r *record) ids() user.IdentityMapping {
	return user.IdentityMapping{UIDMaps: r.UIDs, GIDMaps: r.GIDs}
}

// asRefusal has containerd know what the host can't do.
func asRefusal(err error) error {
	if errors.Is(err, node.ErrNotMapped) {
		return fmt.Errorf("%w; take remap-ids out of the snapshotter's capabilities in containerd's configuration: %w",
			err, errdefs.ErrNotImplemented)
	}
	return err
}

// ownRoot gives the root folder of a new layer the owner and mode that containers are to see: those of what is below
// it, which it hides, or else the owner whom root is mapped to.
func ownRoot(shown shown, ids user.IdentityMapping) error {
	if len(shown.Lower) == 0 {
		uid, gid := ids.RootPair()
		return os.Chown(shown.folder, uid, gid)
	}
	info, err := os.Stat(shown.Lower[0])
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	return errors.Join(os.Chown(shown.Upper, int(st.Uid), int(st.Gid)), os.Chmod(shown.Upper, info.Mode()))
}
