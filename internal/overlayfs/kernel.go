package overlayfs

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Lack is what a kernel hasn't got; values may be joined. A [Kernel] that is made with one behaves as an older kernel
// does.
type Lack uint

// The lacks, with the version of Linux from which on kernels have them.
const (
	NoMountAPI Lack = 1 << iota // 5.2: fsopen(2) and its kin
	// 6.5: parameters of overlayfs' own; fsconfig(2) takes any string, which is judged when the file system is made
	NoParameters
	NoLayers // 6.8: the parameters lowerdir+ and datadir+
	NoData   // 6.5: data-only layers
	// after 6.12: data-only layers in an overlay without metacopy, which one with an upper folder is
	NoDataForUpper
	NoFileBackedEROFS // 6.12: EROFS images mounted from their files
	NoMapped          // 5.19: overlays whose layers have mapped owners
)

// lacks are the words for the lacks, see [ParseLack].
var lacks = []struct {
	word string
	Lack
}{
	{"mountapi", NoMountAPI},
	{"parameters", NoParameters},
	{"layers", NoLayers},
	{"data", NoData},
	{"metacopy=off", NoDataForUpper},
	{"filebacked", NoFileBackedEROFS},
	{"mapped", NoMapped},
}

// ParseLack returns the lacks that a list of words divided by commas names: mountapi, parameters, layers, data,
// metacopy=off, filebacked, mapped. Other words are somebody else's.
func ParseLack(words string) (l Lack) {
	for word := range strings.SplitSeq(words, ",") {
		for _, known := range lacks {
			if word == known.word {
				l |= known.Lack
			}
		}
	}
	return l
}

// Kernel mounts in the way that the kernel it runs on takes. The zero value is that kernel as it is, ready to be used.
// It is safe for concurrent use, and must not be copied after its first use.
type Kernel struct {
	Lack Lack // what is not to be used of the kernel, for tests
	// a folder that tiny mounts are made on, in a mount namespace of their own; "" is that for temporary files
	Scratch string

	once sync.Once
	api  bool // overlays are mounted with the mount API, layers given one by one
}

// lacks reports whether the kernel is made to lack something.
func (k *Kernel) lacks(l Lack) bool { return k.Lack&l != 0 }

// Mount mounts an overlay on a folder. Errors are [*MountError].
func (k *Kernel) Mount(target string, s *Spec) error {
	k.once.Do(k.settle)
	return k.mount(target, s, s.options(), k.refusesData)
}

// mount mounts an overlay, in the way that was found. Where the kernel says "invalid argument" of data-only layers,
// which it says of much, refuses reports whether they are the reason.
func (k *Kernel) mount(target string, s *Spec, options []param, refuses func(s *Spec) bool) error {
	if len(s.Data) > 0 && (k.lacks(NoData) || k.lacks(NoDataForUpper) && !s.Metacopy) {
		return &MountError{FSType: "overlay", Target: target, Err: ErrData}
	}
	err := k.pass(target, s, options)
	var failed *MountError
	if len(s.Data) > 0 && errors.As(err, &failed) && errors.Is(err, unix.EINVAL) && refuses(s) {
		failed.Err = fmt.Errorf("%w: %w", ErrData, failed.Err)
	}
	return err
}

// pass has the kernel mount an overlay.
func (k *Kernel) pass(target string, s *Spec, options []param) error {
	if k.api {
		return k.mountLayers(target, s, options)
	}
	return mountClassic(target, s, options)
}

// ErrData is the error of overlays with data-only layers on a kernel that takes none, or none without metacopy.
var ErrData = errors.New("this kernel's overlayfs takes no data-only lower layers, or none without metacopy")

// MountImage mounts an EROFS image on a folder, from its file. Errors are [*MountError].
func (k *Kernel) MountImage(source, target string) error {
	k.once.Do(k.settle)
	var err error
	switch {
	case k.lacks(NoFileBackedEROFS):
		err = &MountError{FSType: "erofs", Target: target, Err: unix.ENOTBLK}
	case k.api:
		err = k.create("erofs", target, []param{{"source", source}, {"ro", ""}})
	default:
		if errno := unix.Mount(source, target, "erofs", unix.MS_RDONLY, ""); errno != nil {
			err = &MountError{FSType: "erofs", Target: target, Err: errno}
		}
	}
	var failed *MountError
	if errors.As(err, &failed) && (errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.ENODEV)) {
		failed.Err = fmt.Errorf("this kernel can't mount EROFS images from files, which takes Linux 6.12 with CONFIG_EROFS_FS: %w", failed.Err)
	}
	return err
}
