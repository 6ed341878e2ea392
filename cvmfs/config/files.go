package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"
)

// errForbidden refuses a file to what came over the network.
var errForbidden = errors.New("the configuration repository's files may read nothing outside of it")

// absolute makes a name that a file uses absolute, as settings spell it: below HostDir, wherever that lies here.
func (s *shell) absolute(name string) string {
	if !path.IsAbs(name) {
		name = path.Join(s.cwd, name)
	}
	return path.Clean(name)
}

// mountDir is where repositories are mounted in the eyes of settings.
func (s *shell) mountDir() string {
	if dir := s.params["CVMFS_MOUNT_DIR"].value; path.IsAbs(dir) {
		return path.Clean(dir)
	}
	return "/cvmfs"
}

// inRepository returns a name's rest behind the configuration repository's root, if it lies in there.
func (s *shell) inRepository(name string) (rest string, ok bool) {
	if s.repo == nil {
		return "", false
	}
	return below(s.absolute(name), s.repo.root)
}

// inside reports whether a name lies in the folder or in the configuration repository, of which all is known here.
// Elsewhere there may be a file for the host that isn't there for this process.
func (s *shell) inside(name string) bool {
	if _, ok := s.inRepository(name); ok {
		return true
	}
	_, ok := below(s.absolute(name), HostDir)
	return ok
}

// place is where a file lies that a command names.
//
// The host's own files are as trusted as whoever is root there, and may name any. What came over the network opens
// nothing but what came with it: not even a link leads out of it.
func (s *shell) place(name string) (root, rest string, err error) {
	if rest, ok := s.inRepository(name); ok {
		if rest == "" {
			rest = "."
		}
		return s.repo.dir, rest, nil
	}
	if s.net {
		return "", "", fmt.Errorf("%.200q: %w", name, errForbidden)
	}
	return "", s.folder.locate(s.absolute(name)), nil
}

func (s *shell) stat(name string) (fs.FileInfo, error) {
	return s.statWith(name, os.Stat, (*os.Root).Stat)
}

func (s *shell) lstat(name string) (fs.FileInfo, error) {
	return s.statWith(name, os.Lstat, (*os.Root).Lstat)
}

func (s *shell) statWith(name string, stat func(string) (fs.FileInfo, error),
	within func(*os.Root, string) (fs.FileInfo, error),
) (fs.FileInfo, error) {
	root, rest, err := s.place(name)
	if err != nil {
		return nil, err
	}
	s.folder.Seen.Look(filepath.Join(root, rest))
	if root == "" {
		return stat(rest)
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return within(r, rest)
}

// names lists a folder in the configuration folder or repository.
func (s *shell) names(name string) ([]string, error) {
	root, rest, err := s.place(name)
	if err != nil {
		return nil, err
	}
	if !s.inside(name) {
		return nil, fmt.Errorf("%.200q is not below %s", name, s.folder.Shown)
	}
	s.folder.Seen.Look(filepath.Join(root, rest))
	var entries []fs.DirEntry
	if root == "" {
		entries, err = os.ReadDir(rest)
	} else {
		var r *os.Root
		if r, err = os.OpenRoot(root); err == nil {
			defer r.Close()
			entries, err = fs.ReadDir(r.FS(), rest)
		}
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// read reads a text file that a command names.
func (s *shell) read(n syntax.Node, name string) ([]byte, error) {
	if s.files++; s.files > maxFiles {
		return nil, fmt.Errorf("%v: %w: more than %d files are read: does one of them source itself?", s.at(n), errLimit,
			maxFiles)
	}
	root, rest, err := s.place(name)
	if err != nil {
		return nil, err
	}
	text, err := s.folder.readText(root, rest)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.shownAs(name), err)
	}
	return text, s.step(n, len(text))
}

// shownAs is what the host calls a file that a command names.
func (s *shell) shownAs(name string) string {
	name = s.absolute(name)
	if rest, ok := below(name, HostDir); ok {
		return path.Join(s.folder.Shown, rest)
	}
	return name
}

// read reads a text file of the folder. Errors name it as the host does.
func (f Folder) read(file string) ([]byte, error) {
	text, err := f.readText("", file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.show(file), err)
	}
	return text, nil
}

// readText reads a regular text file of reasonable size, below root if that isn't "". It never waits, as it would for a
// pipe's writer, and changes nothing. Errors name no file.
func (f Folder) readText(root, file string) ([]byte, error) {
	f.Seen.Look(filepath.Join(root, file))
	opened, err := openText(root, file)
	if err != nil {
		return nil, cause(err)
	}
	defer opened.Close() // only read
	info, err := opened.Stat()
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if kernels(opened) {
		return nil, errors.New("a file of the kernel's, which may wait or change when it is read")
	}
	text, err := io.ReadAll(io.LimitReader(opened, maxFile+1))
	switch {
	case err != nil:
		return nil, cause(err)
	case len(text) > maxFile:
		return nil, fmt.Errorf("more than %d bytes", maxFile)
	case bytes.IndexByte(text, 0) >= 0:
		return nil, errors.New("not a text file")
	}
	return text, nil
}

// kernels reports whether a file is one of /proc or /sys. Reading some of them waits for ever, or takes what is read.
func kernels(f *os.File) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return true
	}
	var fs unix.Statfs_t
	if e := conn.Control(func(fd uintptr) { err = unix.Fstatfs(int(fd), &fs) }); e != nil || err != nil {
		return true
	}
	return fs.Type == unix.PROC_SUPER_MAGIC || fs.Type == unix.SYSFS_MAGIC
}

func openText(root, file string) (*os.File, error) {
	const flags = os.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
	if root == "" {
		return os.OpenFile(file, flags, 0)
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.OpenFile(file, flags, 0)
}

// cause is an error without its file's name.
func cause(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// load evaluates a file of the folder, if it exists.
func (s *shell) load(name string) error {
	file := filepath.Join(s.folder.Dir, name)
	s.folder.Seen.Look(file)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		if to, err := os.Readlink(file); err == nil {
			s.findings = append(s.findings, Finding{
				Kind: Note, Place: Place{File: s.folder.show(file)},
				Text: fmt.Sprintf("the file is not read: it is a link to %s, which doesn't exist, or not for this process", to),
			})
		}
		return nil
	}
	text, err := s.folder.read(file)
	if err != nil {
		return err
	}
	s.net, s.local = false, strings.HasSuffix(name, ".local")
	return s.whole(path.Join(HostDir, path.Dir(name)), s.folder.show(file), string(text))
}

// whole evaluates a file that no other sources.
func (s *shell) whole(cwd, shown, text string) error {
	s.cwd, s.shown, s.rest = cwd, shown, ""
	clear(s.functions)
	if err := s.evaluate(text); err != nil && !flow(err) {
		return err
	}
	s.finish()
	return nil
}

// defaults reads what all repositories have in common.
func (s *shell) defaults() error {
	if err := s.whole(HostDir, BuiltIn, string(s.folder.Defaults)); err != nil {
		return err
	}
	if err := s.load("default.conf"); err != nil {
		return err
	}
	files, err := s.folder.filesIn(filepath.Join(s.folder.Dir, "default.d"), ".conf")
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := s.load("default.d/" + filepath.Base(file)); err != nil {
			return err
		}
	}
	if err := s.openRepository(); err != nil {
		return err
	}
	return s.loadProtecting("R/default.conf", "default.local")
}

// repository reads what the domain and the repository have of their own.
func (s *shell) repository() error {
	_, domain, _ := strings.Cut(s.fqrn, ".")
	domain, repository := "domain.d/"+domain, "config.d/"+s.fqrn
	return s.loadProtecting("R/"+domain+".conf", domain+".conf", domain+".local",
		"R/"+repository+".conf", repository+".conf", repository+".local")
}

// configRepository is protected once the files of default.d were read: later ones can't change it.
const configRepository = "CVMFS_CONFIG_REPOSITORY"

// configRepo is a configuration repository whose files are there.
type configRepo struct {
	root string // where settings expect it: below CVMFS_MOUNT_DIR
	dir  string // where its files lie
}

// openRepository gets the configuration repository's files, if one is set. Without them the host's files alone count,
// unless CVMFS_CONFIG_REPO_REQUIRED says otherwise.
func (s *shell) openRepository() error {
	v := s.params[configRepository]
	if v.value == "" || v.value == s.fqrn || s.fqrn == "" || s.folder.ConfigRepository == nil {
		return nil
	}
	repo, err := s.gotten(v.value)
	if err == nil {
		s.repo = repo
		return nil
	}
	err = fmt.Errorf("%v: the configuration repository %.80s: %w", v.at, v.value, err)
	if required := s.params["CVMFS_CONFIG_REPO_REQUIRED"]; isOn(required.value) || required.doubt != "" {
		return Untrusted(fmt.Errorf("%w; nothing is used without it (CVMFS_CONFIG_REPO_REQUIRED)", err))
	}
	s.findings = append(s.findings, Finding{Kind: Unread, Place: v.at, Parameter: configRepository, Text: err.Error()})
	return nil
}

func (s *shell) gotten(name string) (*configRepo, error) {
	folder := s.folder
	folder.Overrides = nil // they are of the repository that is asked for
	c, err := folder.Load(name)
	if err != nil {
		return nil, err
	}
	dir, err := s.folder.ConfigRepository(c)
	return &configRepo{root: path.Join(s.mountDir(), name), dir: dir}, err
}

// loadProtecting reads files, of the configuration repository where they begin with R/, and keeps them from changing
// the configuration repository once one is set.
func (s *shell) loadProtecting(names ...string) error {
	repo := s.params[configRepository]
	for _, name := range names {
		load := s.load
		if rest, ok := strings.CutPrefix(name, "R/"); ok {
			name, load = "etc/cvmfs/"+rest, s.loadRemote
		}
		if err := load(name); err != nil {
			return err
		}
		if repo.value != "" {
			s.params[configRepository] = repo
		}
	}
	return nil
}

// loadRemote evaluates a file of the configuration repository, if it exists.
func (s *shell) loadRemote(name string) error {
	if s.repo == nil {
		return nil
	}
	shown := path.Join(s.repo.root, name)
	text, err := s.folder.readText(s.repo.dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", shown, err)
	}
	s.net, s.local = true, false
	return s.whole(path.Dir(shown), shown, string(text))
}
