// Package client reads CernVM-FS repositories: it finds a repository's newest trusted revision, looks paths up in it,
// walks its tree and reads its files.
//
// The words used here:
//
//   - A Repository is a repository as this host knows it: its servers, whom it trusts, and what it has seen before.
//   - A Revision is one published state of it. It never changes and stays readable as long as the servers keep its
//     objects.
//   - A path is "" for the repository's root and otherwise "/a/b": absolute, without empty, "." or ".." components, any
//     bytes but NUL. No symbolic link is ever followed.
//   - A mount is where a catalog joins the tree: the root, or the folder at which a nested catalog goes on.
//
// # Trust
//
// Everything is verified, each time and from the top: the whitelist by a master key of this host, the certificate by
// the whitelist and the host's blacklist, the manifest by the certificate, the root catalog by the manifest, nested
// catalogs by the rows of their parents, and each object by the row that names it. A server that delivers something
// else is passed over for the next one. The newest revision and time seen are remembered on disk, and what is older is
// refused (ErrRollback), for an old state with a good signature is how one would bring back a mended flaw.
//
// Catalogs are trusted because of where they lie: a file below Options.Dir is named by a digest, got that name only
// after its stored form was found to have it, and was synced before. The folder must be writable by nobody else.
package client

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/fqrn"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/trust"
)

var (
	// ErrRollback refuses a revision older than one seen before.
	ErrRollback = errors.New("rollback")
	// ErrIncomplete says that no server has an object that a trusted catalog or manifest names. It is never
	// fs.ErrNotExist: the path may well exist.
	ErrIncomplete = errors.New("object missing on all servers")
	// ErrInconsistent says that trusted catalogs contradict each other.
	ErrInconsistent = errors.New("inconsistent catalogs")
	// ErrNotAllowed refuses a repository the administrator doesn't allow here.
	ErrNotAllowed = config.ErrNotAllowed
)

const (
	defaultFresh        = 10 * time.Second
	defaultCatalogLimit = 512 << 20
)

// Options say how repositories are opened, besides what the host's configuration says of them.
type Options struct {
	// Dir keeps the newest state seen and catalogs. It is made if it's missing, and belongs to one process at a time.
	Dir       string
	UserAgent string       // tells servers who asks: product and version, such as "cvmfs-graphdriver/1.0"
	Log       *slog.Logger // nil: none

	connections *fetch.Connections // shared with other repositories; nil: not shared
}

// sources is what a Repository is made of.
type sources struct {
	FQRN      string
	Fetcher   *fetch.Fetcher
	Keys      trust.Keys       // master keys
	Blacklist *trust.Blacklist // nil: nothing is blacklisted

	Fixed        fixed
	Dir          string            // as in Options
	Params       map[string]string // for the expansion of symbolic links, see Expand
	Readable     bool              // people's views show everything as readable by all
	Tells        bool              // servers are told which paths are read
	MaxTTL       time.Duration     // upper bound of Revision.TTL; 0: none
	Fresh        time.Duration     // how long Newest answers from memory; 0: 10 s, negative: never
	CatalogLimit int64             // bytes of catalogs kept in Dir; 0: 512 MiB
	Now          func() time.Time  // what whitelists' expiry is compared with; nil: time.Now
	Log          *slog.Logger
}

// Repository reads one repository. It is safe for concurrent use.
type Repository struct {
	cfg    sources
	arch   string
	asking chan struct{} // holds a token while somebody asks for the newest revision

	// guarded by asking
	last   answer
	tagged struct { // what the configured tag or date was in a history
		history hash.Digest
		tag     history.Tag
	}

	mu   sync.Mutex // guards kept
	kept int64      // bytes of catalogs in Dir; -1: not counted yet
}

// Open opens the repository of a configuration: it reads the master keys and blacklists. It makes no request.
func Open(c *config.Config, o Options) (*Repository, error) {
	r, err := fromConfig(c, o)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", c.FQRN, err)
	}
	return r, nil
}

func fromConfig(c *config.Config, o Options) (*Repository, error) {
	keys, err := trust.LoadKeys(c.PublicKeys...)
	if err != nil {
		return nil, config.Untrusted(fmt.Errorf("%w: correct it, or %s", err, c.KeysNamedBy()))
	}
	blacklist, err := trust.LoadBlacklist(c.Blacklists...)
	if err != nil {
		return nil, config.Untrusted(err)
	}
	if o.Log != nil {
		for _, line := range blacklist.Ignored() {
			o.Log.Warn("blacklist: a line has no effect", "repo", c.FQRN, "line", line)
		}
	}
	fixed, err := parseFixed(c.Fixed)
	if err != nil {
		return nil, err
	}
	fetcher, err := fetch.New(servers(c, o))
	if err != nil {
		return nil, err
	}
	return newRepository(sources{
		FQRN: c.FQRN, Fetcher: fetcher, Keys: keys, Blacklist: blacklist, Fixed: fixed, Dir: o.Dir,
		Params: c.Params, Readable: c.WorldReadable, Tells: c.Network.SendInfoHeader, MaxTTL: c.MaxTTL, Log: o.Log,
	})
}

// servers is how a configuration says that a repository's files are fetched.
func servers(c *config.Config, o Options) fetch.Config {
	n := c.Network
	f := fetch.Config{
		Servers: c.Servers,
		Proxies: c.ProxyGroups,
		Auto: fetch.Auto{
			URLs: n.Auto.URLs, Proxies: n.Auto.Proxies, NoDirect: n.Auto.NoDirect,
			Cache: filepath.Join(o.Dir, "proxies"),
		},
		Timeout:         orNone(c.Timeout),
		TimeoutDirect:   orNone(c.TimeoutDirect),
		LowSpeedLimit:   orNone(c.LowSpeedLimit),
		MaxRetries:      c.MaxRetries,
		BackoffInit:     orNone(c.BackoffInit),
		BackoffMax:      orNone(c.BackoffMax),
		ProxyResetAfter: c.ProxyResetAfter,
		HostResetAfter:  c.HostResetAfter,
		FollowRedirects: c.FollowRedirects,
		Names: fetch.Names{
			MaxAddresses: n.MaxAddresses,
			PreferIPv6:   n.IPFamily == 6,
			IPv4Only:     n.IPv4Only,
			Timeout:      orNone(n.DNSTimeout),
			Retries:      orNone(n.DNSRetries),
			MinTTL:       orNone(n.DNSMinTTL),
			MaxTTL:       orNone(n.DNSMaxTTL),
			Server:       n.DNSServer,
		},
		Geo:         fetch.Geo{Use: n.GeoAPI, Template: n.ProxyTemplate},
		MaxServers:  n.MaxServers,
		Shard:       n.ProxyShard,
		Persistent:  n.Indefinitely,
		Authorities: fetch.Authorities{Dir: n.CertificateDir, File: n.CertificateFile},
		Connections: o.connections,
		UserAgent:   o.UserAgent,
		TellInfo:    n.SendInfoHeader,
		Log:         o.Log,
	}
	f.External = external(c.External, f, o)
	return f
}

// external is how a configuration says that external files are fetched; nil where it doesn't. What it doesn't set of
// its own is as for the repository.
func external(e config.External, f fetch.Config, o Options) *fetch.Config {
	if len(e.Servers) == 0 {
		return nil
	}
	f.Servers, f.Proxies, f.MaxServers = e.Servers, e.ProxyGroups, e.MaxServers
	f.Timeout, f.TimeoutDirect = orNone(e.Timeout), orNone(e.TimeoutDirect)
	f.Auto = fetch.Auto{
		URLs: e.Auto.URLs, Proxies: e.Auto.Proxies, NoDirect: e.Auto.NoDirect,
		Cache: filepath.Join(o.Dir, "proxies-external"),
	}
	f.Geo = fetch.Geo{} // the repository's servers are asked for their order
	return &f
}

// orNone is a setting for package fetch, to which zero means its default: what a configuration sets to zero is none.
func orNone[T ~int | ~int64](v T) T {
	if v == 0 {
		return -1
	}
	return v
}

func newRepository(cfg sources) (*Repository, error) {
	if err := fqrn.Check(cfg.FQRN); err != nil {
		return nil, err
	}
	if len(cfg.Keys) == 0 {
		return nil, errors.New("no master key")
	}
	if cfg.Fresh == 0 {
		cfg.Fresh = defaultFresh
	}
	if cfg.CatalogLimit == 0 {
		cfg.CatalogLimit = defaultCatalogLimit
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Log = cfg.Log.With("repo", cfg.FQRN)
	r := &Repository{cfg: cfg, asking: make(chan struct{}, 1), kept: -1}
	for _, dir := range []string{r.catalogs(), r.temporary()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("machine name: %w", err)
	}
	r.arch = unix.ByteSliceToString(uts.Machine[:])
	return r, nil
}

// FQRN is the repository's name.
func (r *Repository) FQRN() string { return r.cfg.FQRN }

// Fetcher is where the repository's objects come from.
func (r *Repository) Fetcher() *fetch.Fetcher { return r.cfg.Fetcher }

// ShownMode is a mode as people's views of the repository have it: what is wanted readable by all is. Images keep modes
// as they are published.
func (r *Repository) ShownMode(mode uint32) uint32 {
	if r.cfg.Readable {
		mode |= 0o444
	}
	return mode
}

// TellsPaths reports whether servers are to be told which paths are read.
func (r *Repository) TellsPaths() bool { return r.cfg.Tells }

func (r *Repository) catalogs() string  { return filepath.Join(r.cfg.Dir, "catalogs") }
func (r *Repository) temporary() string { return filepath.Join(r.cfg.Dir, "tmp") }

// Expand replaces the variables in a symbolic link's target by the repository's parameters and by CVMFS_FQRN and
// CVMFS_ARCH, the machine's name. The reference client looks into its own process's environment, too; here the
// environment has no part in it, so that a link reads the same wherever it is read.
func (r *Repository) Expand(target string) string {
	return Expand(target, func(name string) (string, bool) {
		switch name {
		case "CVMFS_FQRN":
			return r.cfg.FQRN, true
		case "CVMFS_ARCH":
			return r.arch, true
		}
		v, ok := r.cfg.Params[name]
		return v, ok
	})
}

// Expand replaces each $(NAME) and $(NAME:-default) in target (CernVM-FS client, catalog_sql.cc: ExpandSymlink). The
// default is for a variable that lookup doesn't know: one that is set but empty gives nothing. There is no nesting, and
// without ")" the rest is taken literally.
func Expand(target string, lookup func(name string) (value string, ok bool)) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(target, "$(")
		inner, after, closed := strings.Cut(rest, ")")
		if !found || !closed {
			b.WriteString(target)
			return b.String()
		}
		name, standard, _ := strings.Cut(inner, ":-")
		value, ok := lookup(name)
		if !ok {
			value = standard
		}
		b.WriteString(before + value)
		target = after
	}
}

// maxPath is the longest path that is resolved or walked, in bytes: four times PATH_MAX.
const maxPath = 16 << 10

// checkPath refuses what isn't a path in a repository.
func checkPath(path string) error {
	if path == "" {
		return nil
	}
	good := len(path) <= maxPath && path[0] == '/' && strings.IndexByte(path, 0) < 0
	for name := range strings.SplitSeq(path[min(1, len(path)):], "/") {
		good = good && name != "" && name != "." && name != ".."
	}
	if !good {
		return fmt.Errorf("%.200q is not a path in a repository: %w", path, errPath)
	}
	return nil
}

// errPath says what a path must look like.
var errPath = errors.New(`want "/a/b", without empty, "." or ".." components`)
