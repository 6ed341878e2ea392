package config

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Seen is what a configuration was read from: all files and folders that were looked at, those included that weren't
// there, as they were before. The zero value is ready; nil records nothing. It is safe for concurrent use.
type Seen struct {
	mu    sync.Mutex
	files map[string]look
	host  unix.Utsname // by which files may tell hosts apart
	young bool         // a file had changed just before
}

// settlesIn is how old a change must be so that another one will show: as coarse as times of file systems are.
const settlesIn = 2 * time.Second

// look is how a name is found: what it is and, where that is a link, what the link leads to.
type look [2]struct {
	err          error
	dev, ino     uint64
	size         int64
	mode         uint32
	mtime, ctime unix.Timespec
}

func lookAt(name string) (l look) {
	for i, stat := range []func(string, *unix.Stat_t) error{unix.Lstat, unix.Stat} {
		var st unix.Stat_t
		if l[i].err = stat(name, &st); l[i].err != nil {
			continue
		}
		l[i].dev, l[i].ino, l[i].size, l[i].mode = st.Dev, st.Ino, st.Size, st.Mode
		l[i].mtime, l[i].ctime = st.Mtim, st.Ctim
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			break
		}
	}
	return l
}

// Look records how a name is found. It must come before what is read from there.
func (s *Seen) Look(name string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.files[name]; ok {
		return
	}
	if s.files == nil {
		s.files = map[string]look{}
		unix.Uname(&s.host) // it fails for no valid pointer
	}
	l := lookAt(name)
	for _, at := range l {
		s.young = s.young || time.Since(time.Unix(at.ctime.Unix())) < settlesIn && at.ctime.Sec != 0
	}
	s.files[name] = l
}

// Same reports whether all is still found as it was, so that reading it again would give the same.
func (s *Seen) Same() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var host unix.Utsname
	unix.Uname(&host) // as above
	if s.young || len(s.files) == 0 || host != s.host {
		return false
	}
	for name, l := range s.files {
		if lookAt(name) != l {
			return false
		}
	}
	return true
}
