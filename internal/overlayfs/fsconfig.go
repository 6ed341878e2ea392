package overlayfs

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// maxOption is the most bytes fsconfig(2) takes as the value of a parameter.
const maxOption = 255

// refusesLayers reports whether overlayfs can't be given its layers one by one, as far as a question tells that changes
// nothing and leaves no line in the kernel's log. False means that it is worth trying.
func (k *Kernel) refusesLayers() bool {
	c, err := k.open("overlay")
	if err != nil {
		return true
	}
	defer c.close()
	// Whoever takes this doesn't look at parameters yet. It is not asked for a layer that is missing, since kernels log
	// that.
	if c.set(param{"no-such-parameter", "1"}) == nil {
		return true
	}
	return c.set(param{"lowerdir+", "/"}) != nil
}

// mountLayers mounts an overlay whose layers are given one by one. Folders with long names, or with special characters,
// which the kernel interprets in some parameters and not in others, are named by descriptors.
func (k *Kernel) mountLayers(target string, s *Spec, options []param) error {
	if s.anyFolder(func(dir string) bool { return len(dir) > maxOption || strings.ContainsAny(dir, special) }) {
		dirs, err := s.open()
		if err != nil {
			return &MountError{FSType: "overlay", Target: target, Err: err}
		}
		defer dirs.close()
		s = dirs.named(s)
	}
	return k.create("overlay", target, layerParams(s, options))
}

// layerParams spells an overlay, layers one by one.
func layerParams(s *Spec, options []param) []param {
	params := []param{{"source", "overlay"}}
	for _, dir := range s.Lower {
		params = append(params, param{"lowerdir+", dir})
	}
	for _, dir := range s.Data {
		params = append(params, param{"datadir+", dir})
	}
	params = append(params, options...)
	if s.Upper != "" {
		params = append(params, param{"upperdir", s.Upper}, param{"workdir", s.Work})
	} else {
		params = append(params, param{"ro", ""})
	}
	if s.Label != "" {
		params = append(params, param{"context", s.Label})
	}
	return params
}

// create makes a file system and mounts it on a folder.
func (k *Kernel) create(fstype, target string, params []param) error {
	failed := func(detail string, err error, log []string) error {
		return &MountError{FSType: fstype, Target: target, Detail: detail, Err: err, Log: log}
	}
	c, err := k.open(fstype)
	if err != nil {
		return failed("fsopen", err, nil)
	}
	defer c.close()
	for _, p := range params {
		if err := c.set(p); err != nil {
			return failed(p.key+"="+p.value, err, c.log())
		}
	}
	if err := c.create(); err != nil {
		return failed("", err, c.log())
	}
	fd, err := unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return failed("fsmount", err, c.log())
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return failed("move_mount", err, nil)
	}
	return nil
}

// context is a file system that is being configured. With anyString it behaves as overlayfs does before it has
// parameters of its own: strings are kept, and judged when the file system is made; without layers it has no lowerdir+
// and datadir+.
type context struct {
	fd                int
	anyString, layers bool
	kept              []param
}

// open begins a file system.
func (k *Kernel) open(fstype string) (*context, error) {
	if k.lacks(NoMountAPI) {
		return nil, unix.ENOSYS
	}
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	overlay := fstype == "overlay"
	return &context{fd: fd, anyString: overlay && k.lacks(NoParameters), layers: !overlay ||
		!k.lacks(NoParameters|NoLayers)}, nil
}

func (c *context) close() { unix.Close(c.fd) } // nothing was written

// set returns the file system a parameter.
func (c *context) set(p param) error {
	switch {
	case len(p.value) > maxOption:
		return fmt.Errorf("%d bytes, the kernel takes %d", len(p.value), maxOption)
	case c.anyString:
		c.kept = append(c.kept, p)
		return nil
	}
	return c.pass(p)
}

// pass hands a parameter to the kernel.
func (c *context) pass(p param) error {
	switch {
	case !c.layers && (p.key == "lowerdir+" || p.key == "datadir+"):
		return unix.EINVAL
	case p.value == "":
		return unix.FsconfigSetFlag(c.fd, p.key)
	}
	return unix.FsconfigSetString(c.fd, p.key, p.value)
}

// create makes the file system.
func (c *context) create() error {
	for _, p := range c.kept {
		if err := c.pass(p); err != nil {
			return err
		}
	}
	return unix.FsconfigCreate(c.fd)
}

// log returns what the kernel has to say: lines, each led by its level.
func (c *context) log() (lines []string) {
	buf := make([]byte, 4096)
	for range 16 {
		n, err := unix.Read(c.fd, buf)
		if err != nil || n <= 0 {
			break
		}
		line := strings.TrimSpace(string(buf[:n]))
		if len(line) > 2 && line[1] == ' ' {
			line = line[2:]
		}
		lines = append(lines, line)
	}
	return lines
}
