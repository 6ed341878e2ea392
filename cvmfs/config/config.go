// Package config reads a host's CernVM-FS configuration for one repository.
//
// The words used here:
//
//   - The configuration folder is the host's /etc/cvmfs. It may lie elsewhere for this process, as in a container into which it
//     is mounted; names in it, and in what is told to users, remain those the host knows.
//   - A parameter is a shell variable that one of its files sets, such as CVMFS_SERVER_URL.
//   - The fqrn is a repository's fully qualified name; its domain is what follows the first dot, its organisation what precedes it.
//   - A proxy group is a set of proxies of equal rank; the groups are in the order of preference. "DIRECT" stands for no proxy.
//
// Files are read in the order of the CernVM-FS client (options.cc), later ones overriding earlier ones; those that
// don't exist are passed over:
//
//	default.conf, default.d/*.conf (alphabetically), default.local,
//	domain.d/<domain>.conf, domain.d/<domain>.local, config.d/<fqrn>.conf, config.d/<fqrn>.local
//
// The client runs them by /bin/sh. Here nothing is run: they are parsed, and the part of the language is understood
// that configuration is written in. That is assignments, also by export and readonly; quotes; $NAME and ${NAME} with
// the operators :- - := = :+ + :? ?; if, elif, else; [ … ] or test with = == != -z -n -e -f -d -r -s ! -a -o; && and ||
// and ! around these; "." or source of a file in the folder; return. Whatever else there is, a command above all, is an
// error that names file and line. At the end of a file runs of blanks in values become one (the client passes values
// through the shell's word splitting) and @fqrn@ and @org@ are replaced.
//
// Where nothing sets a parameter, not the folder's Defaults either, it is what the client has built in, which differs
// from its packaged default.conf. Settings that have no meaning here have no effect but stay in Params.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	names "cvmfs-graphdriver/cvmfs/fqrn"
)

// HostDir is the configuration folder as the host's administrator, and every setting in it, calls it.
const HostDir = "/etc/cvmfs"

var (
	// ErrNotConfigured means that the host doesn't say where a repository is, through which proxy to go, or whom to
	// trust.
	ErrNotConfigured = errors.New("not configured on this host")
	// ErrNotAllowed means that CVMFS_STRICT_MOUNT=yes leaves a repository out.
	ErrNotAllowed = errors.New("not allowed on this host")
)

// Config is what a host's configuration says of a repository.
type Config struct {
	FQRN    string
	Servers []string // base URLs without a final slash, in order of preference; at least one

	// ProxyGroups has at least one group, each has at least one member: "DIRECT" or a URL.
	ProxyGroups [][]string

	Timeout         time.Duration // to connect through a proxy, and how long a transfer may be slow
	TimeoutDirect   time.Duration // the same without proxy
	LowSpeedLimit   int64         // bytes per second below which a transfer is slow
	MaxRetries      int           // on the same server and proxy, after a failed transfer
	BackoffInit     time.Duration // upper bound of the first pause before a retry
	BackoffMax      time.Duration // upper bound of all pauses
	ProxyResetAfter time.Duration // until the first proxy group is tried again; 0: never
	HostResetAfter  time.Duration // until the first server is tried again; 0: never
	FollowRedirects bool

	PublicKeys []string // files with one master key each; at least one
	Blacklists []string // files, which may not exist

	UIDMap, GIDMap *IDMap        // nil: ids stay as they are
	ClaimOwnership bool          // everything belongs to whoever runs the client
	WorldReadable  bool          // everything may be read by all
	MaxTTL         time.Duration // upper bound of how long a revision is taken for the newest; 0: none
	QuotaLimit     int64         // bytes of cache to aim at; 0: no limit

	Params   map[string]string // all parameters, as symbolic links in the repository may refer to them
	Warnings []string          // settings that should have an effect and don't
}

// Folder is a configuration folder. Its zero value is HostDir in its own place.
type Folder struct {
	Dir   string // where it lies for this process; "" is HostDir
	Shown string // what messages call it; "" is HostDir

	// Defaults is the text of a default.conf that is read before all files, so that each of their settings overrides
	// it.
	Defaults []byte
}

// Load reads the folder dir, which the host calls HostDir, for the repository fqrn. Settings that name a file below
// HostDir mean the one below dir.
func Load(dir, fqrn string) (*Config, error) { return Folder{Dir: dir}.Load(fqrn) }

// Load reads the folder for a repository. A name without a dot gets CVMFS_DEFAULT_DOMAIN.
func (f Folder) Load(name string) (*Config, error) {
	f = f.placed()
	if err := names.Check(name); err != nil {
		return nil, err
	}
	fqrn, err := f.qualify(name)
	if err != nil {
		return nil, err
	}
	s := newShell(f, fqrn)
	if err := s.defaults(); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", fqrn, err)
	}
	if err := s.repository(); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", fqrn, err)
	}
	return (&settings{folder: f, fqrn: fqrn, params: s.params, origin: s.origin, unread: s.warnings}).config()
}

// Repositories returns the full names of the repositories that the folder names, sorted: those with a file in config.d,
// and those in CVMFS_REPOSITORIES. A file whose name is no repository's is passed over. An error is fs.ErrNotExist
// where there is no folder.
func (f Folder) Repositories() ([]string, error) {
	f = f.placed()
	if _, err := os.Stat(f.Dir); err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, ending := range []string{".conf", ".local"} {
		files, err := filesIn(filepath.Join(f.Dir, "config.d"), ending)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if name := strings.TrimSuffix(filepath.Base(file), ending); strings.Contains(name, ".") &&
				names.Check(name) == nil {
				named[name] = true
			}
		}
	}
	s := newShell(f, "")
	if err := s.defaults(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	for name := range strings.SplitSeq(s.params["CVMFS_REPOSITORIES"], ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if err := names.Check(name); err != nil {
			return nil, fmt.Errorf("configuration: CVMFS_REPOSITORIES: %w", err)
		}
		name, err := f.qualify(name)
		if err != nil {
			return nil, err
		}
		named[name] = true
	}
	return slices.Sorted(maps.Keys(named)), nil
}

// placed returns the folder with what its zero value stands for.
func (f Folder) placed() Folder {
	if f.Dir == "" {
		f.Dir = HostDir
	}
	if f.Shown == "" {
		f.Shown = HostDir
	}
	return f
}

// qualify completes a name without a dot.
func (f Folder) qualify(name string) (string, error) {
	if strings.Contains(name, ".") {
		return name, nil
	}
	s := newShell(f, name)
	if err := s.defaults(); err != nil {
		return "", fmt.Errorf("configuration of %s: %w", name, err)
	}
	domain := s.params["CVMFS_DEFAULT_DOMAIN"]
	if domain == "" {
		return "", fmt.Errorf("repository %s is %w: give the name with its domain, or set CVMFS_DEFAULT_DOMAIN in %s",
			name, ErrNotConfigured, path.Join(f.Shown, "default.local"))
	}
	name += "." + domain
	return name, names.Check(name)
}

// locate is where a file lies that a setting or command names: below HostDir means in the folder, and so does a
// relative name.
func (f Folder) locate(name string) string {
	if !path.IsAbs(name) {
		return filepath.Join(f.Dir, name)
	}
	if rest, ok := below(path.Clean(name), HostDir); ok {
		return filepath.Join(f.Dir, rest)
	}
	return path.Clean(name)
}

// read reads a regular text file of reasonable size. Errors name it as the host does.
func (f Folder) read(file string) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		return nil, &fs.PathError{Op: "read", Path: f.show(file), Err: err}
	}
	info, err := os.Stat(file)
	if err != nil {
		return fail(errors.Unwrap(err))
	}
	if !info.Mode().IsRegular() {
		return fail(errors.New("not a regular file"))
	}
	text, err := readAll(file)
	switch {
	case err != nil:
		return fail(err)
	case len(text) > maxFile:
		return fail(fmt.Errorf("more than %d bytes", maxFile))
	case bytes.IndexByte(text, 0) >= 0:
		return fail(errors.New("not a text file"))
	}
	return text, nil
}

// readAll reads at most one byte more than maxFile.
func readAll(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close() // only read
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// show is what the host calls a file of the folder.
func (f Folder) show(file string) string {
	if rest, ok := below(file, filepath.Clean(f.Dir)); ok {
		return path.Join(f.Shown, rest)
	}
	return file
}

// below returns the rest of a clean path behind dir.
func below(name, dir string) (rest string, ok bool) {
	if name == dir {
		return "", true
	}
	return strings.CutPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// settings turns parameters into a Config.
type settings struct {
	folder Folder
	fqrn   string
	params map[string]string
	origin map[string]string // "file:line" of a parameter's last assignment
	unread []string          // warnings about files
	errs   []error
}

func (s *settings) config() (*Config, error) {
	if err := s.allowed(); err != nil {
		return nil, err
	}
	c := &Config{
		FQRN:            s.fqrn,
		Servers:         s.servers(),
		ProxyGroups:     s.proxies(),
		Timeout:         s.duration("CVMFS_TIMEOUT", 5, 1, time.Second),
		TimeoutDirect:   s.duration("CVMFS_TIMEOUT_DIRECT", 5, 1, time.Second),
		LowSpeedLimit:   s.number("CVMFS_LOW_SPEED_LIMIT", 1024, 0, 1<<40),
		MaxRetries:      int(s.number("CVMFS_MAX_RETRIES", 1, 0, 100)),
		BackoffInit:     s.duration("CVMFS_BACKOFF_INIT", 2, 0, time.Second),
		BackoffMax:      s.duration("CVMFS_BACKOFF_MAX", 10, 0, time.Second),
		ProxyResetAfter: s.duration("CVMFS_PROXY_RESET_AFTER", 0, 0, time.Second),
		HostResetAfter:  s.duration("CVMFS_HOST_RESET_AFTER", 0, 0, time.Second),
		FollowRedirects: s.isOn("CVMFS_FOLLOW_REDIRECTS"),
		PublicKeys:      s.publicKeys(),
		Blacklists:      []string{s.file("CVMFS_BLACKLIST", HostDir+"/blacklist")},
		UIDMap:          s.idMap("CVMFS_UID_MAP"),
		GIDMap:          s.idMap("CVMFS_GID_MAP"),
		ClaimOwnership:  s.isOn("CVMFS_CLAIM_OWNERSHIP"),
		WorldReadable:   s.isOn("CVMFS_WORLD_READABLE"),
		MaxTTL:          s.duration("CVMFS_MAX_TTL", 0, 0, time.Minute),
		QuotaLimit:      max(0, s.number("CVMFS_QUOTA_LIMIT", 1024, -1<<62, 1<<40)) << 20,
		Params:          s.params,
		Warnings:        s.warnings(),
	}
	if len(s.errs) > 0 {
		return nil, fmt.Errorf("configuration of %s: %w", s.fqrn, errors.Join(s.errs...))
	}
	if err := s.complete(c); err != nil {
		return nil, err
	}
	return c, nil
}

// complete reports what a configuration lacks to be of use, and where to write it.
func (s *settings) complete(c *Config) error {
	var lacking []string
	if len(c.Servers) == 0 {
		lacking = append(lacking, "CVMFS_SERVER_URL=http://SERVER/cvmfs/@fqrn@")
	}
	if len(c.ProxyGroups) == 0 {
		lacking = append(lacking, "CVMFS_HTTP_PROXY=DIRECT (or the site's proxies, as http://PROXY:3128)")
	}
	if len(c.PublicKeys) == 0 {
		// A setting names a file as the plugin sees it; the file itself may lie elsewhere.
		key, file := path.Join("keys", s.domain()+".pub"), "that file"
		if s.folder.Shown != HostDir {
			file = path.Join(s.folder.Shown, key)
		}
		lacking = append(lacking, "CVMFS_PUBLIC_KEY="+path.Join(HostDir, key)+" (and the repository's master key as "+
			file+")")
	}
	if len(lacking) == 0 {
		return nil
	}
	name := s.fqrn + ".conf"
	if _, err := os.Stat(filepath.Join(s.folder.Dir, "config.d", name)); err == nil {
		name = s.fqrn + ".local" // what is there may be a package's
	}
	err := fmt.Errorf("repository %s is %w: write %s with %s", s.fqrn, ErrNotConfigured,
		path.Join(s.folder.Shown, "config.d", name), strings.Join(lacking, " and "))
	if warnings := s.warnings(); len(warnings) > 0 {
		err = fmt.Errorf("%w; note: %s", err, strings.Join(warnings, "; "))
	}
	return err
}

func (s *settings) domain() string {
	_, domain, _ := strings.Cut(s.fqrn, ".")
	return domain
}

// allowed applies CVMFS_STRICT_MOUNT.
func (s *settings) allowed() error {
	if !s.isOn("CVMFS_STRICT_MOUNT") {
		return nil
	}
	for _, name := range s.list("CVMFS_REPOSITORIES", ",") {
		if !strings.Contains(name, ".") {
			name += "." + s.params["CVMFS_DEFAULT_DOMAIN"]
		}
		if name == s.fqrn {
			return nil
		}
	}
	return fmt.Errorf("repository %s is %w: with CVMFS_STRICT_MOUNT=yes it must be named in CVMFS_REPOSITORIES, in %s",
		s.fqrn, ErrNotAllowed, path.Join(s.folder.Shown, "default.local"))
}

func (s *settings) servers() []string {
	servers := s.list("CVMFS_SERVER_URL", ";")
	for i, server := range servers {
		if u, err := url.Parse(server); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			s.bad("CVMFS_SERVER_URL", fmt.Sprintf("server %d isn't a URL such as http://SERVER/cvmfs/@fqrn@", i+1))
		}
		servers[i] = strings.TrimRight(server, "/")
	}
	if most := s.number("CVMFS_MAX_SERVERS", 0, 0, 1<<20); most > 0 && int64(len(servers)) > most {
		return servers[:most]
	}
	return servers
}

func (s *settings) proxies() [][]string {
	spec := s.params["CVMFS_HTTP_PROXY"]
	if spec == "" {
		return nil // even where there are fallbacks, as in the reference client
	}
	groups, err := ParseProxies(spec)
	if err != nil {
		s.bad("CVMFS_HTTP_PROXY", err.Error())
		return nil
	}
	spec = s.params["CVMFS_FALLBACK_PROXY"]
	if spec == "" {
		return groups
	}
	fallback, err := ParseProxies(spec)
	if err != nil {
		s.bad("CVMFS_FALLBACK_PROXY", err.Error())
		return nil
	}
	return withFallback(groups, fallback)
}

func (s *settings) publicKeys() []string {
	if files := s.list("CVMFS_PUBLIC_KEY", ":"); len(files) > 0 {
		for i, file := range files {
			files[i] = s.folder.locate(file)
		}
		return files
	}
	dir := s.file("CVMFS_KEYS_DIR", HostDir+"/keys")
	files, err := filesIn(dir, ".pub")
	if err != nil {
		s.bad("CVMFS_KEYS_DIR", err.Error())
	}
	return files
}

// filesIn are the files of a folder with that ending, sorted; none where there is no such folder.
func filesIn(dir, ending string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ending) {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

func (s *settings) idMap(name string) *IDMap {
	if s.params[name] == "" {
		return nil
	}
	file := s.file(name, "")
	text, err := s.folder.read(file)
	if err != nil {
		s.bad(name, err.Error())
		return nil
	}
	m, err := ParseIDMap(string(text))
	if err != nil {
		s.bad(name, fmt.Sprintf("%s:%v", s.folder.show(file), err))
	}
	return m
}

func (s *settings) warnings() []string {
	w := slices.Clone(s.unread)
	if repo := s.params[configRepository]; repo != "" && repo != s.fqrn {
		w = append(w, fmt.Sprintf("%s=%s is set, but settings in that repository are not read: those the repository %s needs must be in %s",
			configRepository, repo, s.fqrn, s.folder.Shown))
	}
	for _, name := range []string{"CVMFS_ROOT_HASH", "CVMFS_REPOSITORY_TAG", "CVMFS_REPOSITORY_DATE"} {
		if s.params[name] != "" {
			w = append(w, name+" is set, but the newest revision is used")
		}
	}
	return w
}

// bad records a parameter that can't be used. Values that may hold a password must not be in why.
func (s *settings) bad(name, why string) {
	if at := s.origin[name]; at != "" {
		name = at + ": " + name
	}
	s.errs = append(s.errs, fmt.Errorf("%s: %s", name, why))
}

// list splits a value and leaves out what is empty.
func (s *settings) list(name, separator string) []string {
	var items []string
	for item := range strings.SplitSeq(s.params[name], separator) {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func (s *settings) file(name, otherwise string) string {
	if v := s.params[name]; v != "" {
		return s.folder.locate(v)
	}
	return s.folder.locate(otherwise)
}

// isOn reads a switch the way the reference does: whatever isn't one of these words is off.
func (s *settings) isOn(name string) bool {
	return slices.Contains([]string{"yes", "on", "1", "true"}, strings.ToLower(s.params[name]))
}

func (s *settings) number(name string, otherwise, least, most int64) int64 {
	v := s.params[name]
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < least || n > most {
		s.bad(name, fmt.Sprintf("%.40q isn't a number from %d to %d", v, least, most))
		return otherwise
	}
	return n
}

func (s *settings) duration(name string, otherwise, least int64, unit time.Duration) time.Duration {
	const most = 10 * 365 * 24 * time.Hour
	return time.Duration(s.number(name, otherwise, least, int64(most/unit))) * unit
}
