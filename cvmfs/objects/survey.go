package objects

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// survey is what lies in the store, or a part of it, and which images name it. It takes 56 bytes of memory for each
// object.
type survey struct {
	first [folders + 1]int // where each folder's objects begin in all
	all   []surveyed       // in the order of folders, and of names in them
}

type surveyed struct {
	Name
	used int64 // last use of the latest used image that names it, Unix seconds; 0: none does
	keep bool
}

// survey lists the names in all folders. It looks at no file.
func (s *Store) survey(ctx context.Context) (*survey, error) {
	// Until they are counted, more may have gone than the ledger knew of.
	v := &survey{all: make([]surveyed, 0, max(0, s.ledger.objects.Load()))}
	for n := range folders {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		v.first[n] = len(v.all)
		err := s.eachFile(n, func(file string) error {
			if name, err := ParseName(file); err == nil && int(name.Digest.Sum[0]) == n {
				v.all = append(v.all, surveyed{Name: name})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	v.sort()
	return v, nil
}

// surveyTables lists those objects of tables that are here.
func (s *Store) surveyTables(ctx context.Context, tables ...*Table) (*survey, error) {
	v := &survey{}
	for _, t := range tables {
		for i := range t.Len() {
			if err := context.Cause(ctx); err != nil {
				return nil, err
			}
			n := t.name(i)
			if unix.Faccessat(int(s.dir.Fd()), place(n.String()), unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil {
				v.all = append(v.all, surveyed{Name: n})
			}
		}
	}
	v.sort()
	return v, nil
}

func (v *survey) sort() {
	slices.SortFunc(v.all, func(a, b surveyed) int { return compare(a.Name, b.Name) })
	v.all = slices.CompactFunc(v.all, func(a, b surveyed) bool { return a.Name == b.Name })
	n := 0
	for i := range v.all {
		for ; n <= int(v.all[i].Digest.Sum[0]); n++ {
			v.first[n] = i
		}
	}
	for ; n <= folders; n++ {
		v.first[n] = len(v.all)
	}
}

// compare orders names, by folder first.
func compare(a, b Name) int {
	if c := bytes.Compare(a.Digest.Sum[:], b.Digest.Sum[:]); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.Digest.Algorithm, b.Digest.Algorithm), cmp.Compare(a.Compression, b.Compression),
		cmp.Compare(a.Size, b.Size), cmp.Compare(number(a.Chunked), number(b.Chunked)), cmp.Compare(a.Owner, b.Owner))
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// find returns the object of that name; nil if it isn't here.
func (v *survey) find(n Name) *surveyed {
	folder := int(n.Digest.Sum[0])
	part := v.all[v.first[folder]:v.first[folder+1]]
	i, ok := slices.BinarySearchFunc(part, n, func(e surveyed, n Name) int { return compare(e.Name, n) })
	if !ok {
		return nil
	}
	return &part[i]
}

// mark enters an image that names objects.
func (v *survey) mark(t *Table, used time.Time, keep bool) {
	for i := range t.Len() {
		if e := v.find(t.name(i)); e != nil {
			e.used = max(e.used, used.Unix())
			e.keep = e.keep || keep
		}
	}
}

// markImages enters all images. Which are kept is the caller's to say.
func (s *Store) markImages(ctx context.Context, v *survey, keep func(*known) bool) (kept map[string]bool, err error) {
	list, err := s.images()
	if err != nil {
		return nil, err
	}
	kept = map[string]bool{}
	for i := range list {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		t, err := list[i].table()
		if err != nil && list[i].inUse() {
			return nil, err
		}
		if err != nil {
			s.log.Warn("object store: objects of an image count as named by none", slog.String("image", list[i].Key),
				slog.Any("err", err))
			continue
		}
		k := keep(&list[i])
		v.mark(t, list[i].used, k)
		if k {
			kept[list[i].Key] = true
		}
	}
	return kept, nil
}

// victim is an object that is to go.
type victim struct {
	Name
	arrived int64 // Unix nanoseconds: its change time
}

// youth is how long an object that no image names stays: the image may be in the making.
const youth = 2 * time.Minute

// victims returns what may go, what goes first at the beginning, most of them. Young objects that no image names
// are among them only if young says so.
func (s *Store) victims(v *survey, most int, young bool) (list []victim) {
	free := make([]*surveyed, 0, len(v.all))
	for i := range v.all {
		if !v.all[i].keep {
			free = append(free, &v.all[i])
		}
	}
	slices.SortStableFunc(free, func(a, b *surveyed) int { return cmp.Compare(a.used, b.used) })
	latest := time.Now().Add(-youth)
	if young {
		latest = time.Now().Add(time.Hour) // of any age
	}
	for len(free) > 0 && len(list) < most {
		n := 1
		for n < len(free) && free[n].used == free[0].used {
			n++
		}
		list = append(list, s.byArrival(free[:n], latest)...)
		free = free[n:]
	}
	if len(list) > most {
		list = slices.Clone(list[:most])
	}
	return list
}

// byArrival orders objects of equal use. Those that no image names are left out if they came after latest.
func (s *Store) byArrival(equals []*surveyed, latest time.Time) (list []victim) {
	for _, e := range equals {
		var st unix.Stat_t
		err := unix.Fstatat(int(s.dir.Fd()), place(e.Name.String()), &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		arrived := time.Unix(st.Ctim.Unix())
		if e.used == 0 && arrived.After(latest) {
			continue
		}
		list = append(list, victim{e.Name, arrived.UnixNano()})
	}
	slices.SortStableFunc(list, func(a, b victim) int { return cmp.Compare(a.arrived, b.arrived) })
	return list
}
