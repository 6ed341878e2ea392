// Package config reads a host's CernVM-FS configuration for one repository.
//
// The words used here:
//
//   - The configuration folder is the host's /etc/cvmfs. It may lie elsewhere for this process, as in a container into
//     which it is mounted; names in it, and in what is told to users, remain those the host knows.
//   - A parameter is a shell variable that one of its files sets, such as CVMFS_SERVER_URL.
//   - The fqrn is a repository's fully qualified name; its domain is what follows the first dot, its organisation what
//     precedes it.
//   - A proxy group is a set of proxies of equal rank; the groups are in the order of preference. "DIRECT" stands for
//     no proxy.
//   - The configuration repository is a repository with further files, for many hosts.
//
// Files are read in the order of the CernVM-FS client (options.cc), later ones overriding earlier ones; those that
// don't exist are passed over:
//
//	default.conf, default.d/*.conf (alphabetically), R/default.conf, default.local,
//	R/domain.d/<domain>.conf, domain.d/<domain>.conf, domain.d/<domain>.local,
//	R/config.d/<fqrn>.conf, config.d/<fqrn>.conf, config.d/<fqrn>.local
//
// where R is /etc/cvmfs in the configuration repository, if default.conf or default.d name one. Its files come over the
// network: they open nothing but what is in that repository, and name as keys and blacklists nothing but that and what
// is below the host's folder.
//
// The client runs them by /bin/sh. Here they are interpreted: the language is the shell's, but a command is one of a
// short list that reads and writes text and nothing else (see programs), and no process is started. A line that isn't
// understood has no effect, is told as a [Finding], and the rest is read on, as the client does. Yet nothing fails
// open: where such a line would set master keys, a blacklist, or what is allowed, or might have, the repository isn't
// used until another line sets them for certain. Steps, bytes and levels are limited; beyond them reading ends with an
// error.
//
// At the end of a file runs of blanks in values become one (the client passes values through the shell's word
// splitting) and @fqrn@ and @org@ are replaced.
//
// [Parameters] are all there are, with their defaults. Settings that have no meaning here have no effect but stay in
// Params.
package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
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
	// ErrTrust means that whom to trust can't be told, or that the repository isn't to be. What was read before must
	// not count in its stead.
	ErrTrust = errors.New("it is not certain whom to trust")
)

// Untrusted makes an error one that is ErrTrust. Its text stays.
func Untrusted(err error) error { return untrusted{err} }

type untrusted struct{ error }

func (u untrusted) Unwrap() error { return u.error }

func (untrusted) Is(target error) bool { return target == ErrTrust }

// Config is what a host's configuration says of a repository.
type Config struct {
	FQRN    string
	Servers []string // base URLs without a final slash, in order of preference; at least one

	// ProxyGroups has at least one group, each has at least one member: "DIRECT" or a URL; or "auto" alone.
	ProxyGroups [][]string

	Timeout         time.Duration // to connect through a proxy, and how long a transfer may be slow
	TimeoutDirect   time.Duration // the same without proxy
	LowSpeedLimit   int64         // bytes per second below which a transfer is slow
	MaxRetries      int           // of a request, after a failed transfer
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

	Network  Network
	External External
	Fixed    Fixed

	Params   map[string]string // all parameters, as symbolic links in the repository may refer to them
	Origins  map[string]Place  // where each was set last
	Findings []Finding         // what the files' author should be told, in the order of the files
}

// Network is how servers and proxies are found and spoken to, beyond their lists.
type Network struct {
	MaxServers      int // how many servers are used; 0: all. Without GeoAPI, Config.Servers has no more
	GeoAPI          bool
	ProxyTemplate   string // by which the geographic order is asked for; "": chosen by the client
	Auto            Discovery
	ProxyShard      bool // each object has its proxy of a group
	ShardPolicy     string
	MaxAddresses    int // of a proxy's name; 0: all
	IPFamily        int // 4 or 6: preferred addresses; 0: no preference
	IPv4Only        bool
	DNSTimeout      time.Duration
	DNSRetries      int
	DNSMinTTL       time.Duration
	DNSMaxTTL       time.Duration
	DNSServer       string
	SendInfoHeader  bool   // requests tell the path that is read
	Indefinitely    bool   // servers and proxies are tried for ever
	SystemCA        bool   // the host's certificate authorities are trusted for https
	CertificateDir  string // folder with further ones; "": none is configured
	CertificateFile string // file with further ones; "": none
}

// Discovery is how the proxies that "auto" stands for are found.
type Discovery struct {
	URLs     []string // where the script may be, in this order
	Proxies  string   // what they are, without a script; "": what it says
	NoDirect bool     // DIRECT isn't taken from a script: there are fallbacks
}

// External is where external files come from. Its zero value: from nowhere.
type External struct {
	Servers       []string
	ProxyGroups   [][]string // as Config's; the repository's own are for the repository alone
	Auto          Discovery
	Timeout       time.Duration
	TimeoutDirect time.Duration
	MaxServers    int
}

// Fixed is the revision to be used instead of the newest, the first that isn't "" counting.
type Fixed struct {
	RootHash, Tag, Date string
}

// Folder is a configuration folder. Its zero value is HostDir in its own place.
type Folder struct {
	Dir   string // where it lies for this process; "" is HostDir
	Shown string // what messages call it; "" is HostDir

	// Defaults is the text of a default.conf that is read before all files, so that each of their settings overrides
	// it.
	Defaults []byte

	// ConfigRepository gets the files of the repository that CVMFS_CONFIG_REPOSITORY names, which is configured as
	// given, and returns the folder they lie in as below the repository's root: etc/cvmfs/default.conf and so on. There
	// must be only folders and regular files in it. nil: its files are not read.
	ConfigRepository func(*Config) (dir string, err error)

	// Overrides are parameters that replace what all files say, as flags of a command do.
	Overrides map[string]string

	// Seen is told what is looked at; nil: nobody is.
	Seen *Seen
}

// Load reads the folder dir, which the host calls HostDir, for the repository fqrn. Settings that name a file below
// HostDir mean the one below dir.
func Load(dir, fqrn string) (*Config, error) { return Folder{Dir: dir}.Load(fqrn) }

// Load reads the folder for a repository. A name without a dot gets CVMFS_DEFAULT_DOMAIN.
func (f Folder) Load(fqrn string) (*Config, error) {
	f = f.placed()
	s, err := f.evaluated(fqrn)
	if err != nil {
		return nil, err
	}
	return (&settings{folder: f, fqrn: s.fqrn, shell: s}).config()
}

// evaluated evaluates the files for a repository.
func (f Folder) evaluated(fqrn string) (*shell, error) {
	if err := names.Check(fqrn); err != nil {
		return nil, err
	}
	fqrn, err := f.qualify(fqrn)
	if err != nil {
		return nil, err
	}
	s := newShell(f, fqrn)
	if err := s.defaults(); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", fqrn, err)
	}
	s.common = s.params[quotaLimit]
	if err := s.repository(); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", fqrn, err)
	}
	for name, value := range f.Overrides {
		s.params[name] = variable{value: value, set: true, at: Place{File: "the command line"}}
	}
	s.finish()
	if s.repo == nil {
		return s, nil
	}
	// What came over the network may have taken part in what the host's own files decided.
	f.ConfigRepository = nil
	alone, err := f.evaluated(fqrn)
	if err != nil {
		return nil, err
	}
	s.own = alone.params
	return s, nil
}

// Repositories returns the full names of the repositories that the folder names, sorted: those with a file in config.d,
// and those in CVMFS_REPOSITORIES. A name that is no repository's is passed over, of a parameter as a finding. The
// findings are those of the files that all repositories have in common. An error is fs.ErrNotExist where there is no
// folder.
func (f Folder) Repositories() ([]string, []Finding, error) {
	f = f.placed()
	if _, err := os.Stat(f.Dir); err != nil {
		return nil, nil, err
	}
	named := map[string]bool{}
	for _, ending := range []string{".conf", ".local"} {
		files, err := f.filesIn(filepath.Join(f.Dir, "config.d"), ending)
		if err != nil {
			return nil, nil, err
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
		return nil, nil, fmt.Errorf("configuration: %w", err)
	}
	found := (&settings{shell: s}).findings()
	list := s.params["CVMFS_REPOSITORIES"]
	for name := range strings.SplitSeq(list.value, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if domain := s.params["CVMFS_DEFAULT_DOMAIN"].value; !strings.Contains(name, ".") && domain != "" {
			name += "." + domain
		}
		err := names.Check(name)
		if err == nil && !strings.Contains(name, ".") {
			err = fmt.Errorf("%q has no domain, and CVMFS_DEFAULT_DOMAIN is not set", name)
		}
		if err != nil {
			found = append(found, Finding{Kind: Odd, Place: list.at, Parameter: "CVMFS_REPOSITORIES", Text: err.Error()})
			continue
		}
		named[name] = true
	}
	return slices.Sorted(maps.Keys(named)), found, nil
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
func (f Folder) qualify(fqrn string) (string, error) {
	if strings.Contains(fqrn, ".") {
		return fqrn, nil
	}
	s := newShell(f, fqrn)
	if err := s.defaults(); err != nil {
		return "", fmt.Errorf("configuration of %s: %w", fqrn, err)
	}
	domain := s.params["CVMFS_DEFAULT_DOMAIN"].value
	if domain == "" {
		return "", fmt.Errorf("repository %s is %w: give the name with its domain, or set CVMFS_DEFAULT_DOMAIN in %s",
			fqrn, ErrNotConfigured, path.Join(f.Shown, "default.local"))
	}
	fqrn += "." + domain
	return fqrn, names.Check(fqrn)
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
