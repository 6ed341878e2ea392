package config

import (
	"maps"
	"slices"
	"strings"
)

// Type is how a parameter's value is read.
type Type string

// Types of parameters. Whatever isn't yes, on, 1 or true, in any case, is off. A number is what digits a value begins
// with, as the reference client reads it; a value without is 0.
const (
	Text      Type = "text"
	Switch    Type = "switch"
	Number    Type = "number"
	Seconds   Type = "seconds"
	Minutes   Type = "minutes"
	Mebibytes Type = "MiB"
	Rate      Type = "bytes per second"
	Names     Type = "names divided by ,"
	Servers   Type = "URLs divided by ;"
	Proxies   Type = "groups divided by ; of proxies divided by |"
	Files     Type = "files divided by :"
	File      Type = "file"
	Path      Type = "folder"
)

// Status says what a parameter does here.
type Status string

// Statuses.
const (
	Honored     Status = "honored"
	Meaningless Status = "no meaning here" // what it is about doesn't exist here
	Unsupported Status = "not supported"   // setting it should have an effect, and has none
)

// Parameter is a parameter that the CernVM-FS client knows.
type Parameter struct {
	Name    string
	Type    Type
	Default string // where no file sets it, that of the plugin included; "" for none
	Status  Status
	Meaning string // one sentence; of what isn't honored, also what holds instead

	min, max int64  // of a number
	packaged string // what CernVM-FS's own default.conf sets: nobody's wish
	guard    bool   // a failed line that would set it makes the repository unusable: it would fail open
}

// Lookup returns the parameter of a name.
func Lookup(name string) (Parameter, bool) {
	p, ok := byName[name]
	return p, ok
}

var byName = func() map[string]Parameter {
	m := make(map[string]Parameter, len(Parameters))
	for _, p := range Parameters {
		m[p.Name] = p
	}
	return m
}()

// guards are the names of parameters that protect.
var guards = func() map[string]bool {
	m := map[string]bool{}
	for _, p := range Parameters {
		if p.guard {
			m[p.Name] = true
		}
	}
	return m
}()

const (
	maxSeconds = 10 * 365 * 24 * 60 * 60
	maxNumber  = 1 << 40
)

// Parameters are all parameters of the reference client (2.12: mountpoint.cc, loader.cc, options.cc, wpad.cc, cvmfs.cc
// and its scripts), in the order of docs/configuration.md.
var Parameters = slices.Concat(
	section(Honored,
		Parameter{
			Name: "CVMFS_SERVER_URL", Type: Servers,
			Meaning: "Servers of the repository, in the order of preference, by `http://`, `https://` or `file:///FOLDER`; `@fqrn@` and `@org@` stand for its name and what precedes the first dot of it.",
		},
		Parameter{
			Name: "CVMFS_HTTP_PROXY", Type: Proxies,
			Meaning: "Proxies to go through, in the order of preference; `DIRECT` for none, the group `auto` for those that a script says (CVMFS_PAC_URLS). It must be set.",
		},
		Parameter{
			Name: "CVMFS_FALLBACK_PROXY", Type: Proxies,
			Meaning: "Further groups behind those of CVMFS_HTTP_PROXY, from which they remove `DIRECT`.",
		},
		Parameter{
			Name: "CVMFS_PAC_URLS", Type: Servers, Default: "http://wpad/wpad.dat",
			Meaning: "Scripts for `auto`, by `http://`, `https://` or `file:///FILE`, of which the first that answers counts; `auto` is the default. Where none answers, what was found before is used. If the files set `http_proxy`, no script is asked: that is it.",
		},
		Parameter{
			Name: "CVMFS_MAX_SERVERS", Type: Number, Default: "0", max: 1 << 20,
			Meaning: "How many of the servers are used; 0 for all.",
		},
		Parameter{
			Name: "CVMFS_TIMEOUT", Type: Seconds, Default: "5", max: maxSeconds,
			Meaning: "How long connecting through a proxy may take, and how long a transfer may be slow.",
		},
		Parameter{
			Name: "CVMFS_TIMEOUT_DIRECT", Type: Seconds, Default: "10", max: maxSeconds,
			Meaning: "The same without a proxy.",
		},
		Parameter{
			Name: "CVMFS_LOW_SPEED_LIMIT", Type: Rate, Default: "1024", max: maxNumber,
			Meaning: "Below this a transfer is slow.",
		},
		Parameter{
			Name: "CVMFS_MAX_RETRIES", Type: Number, Default: "1", max: 100,
			Meaning: "How often one request may be tried again after a transfer failed, beside trying other servers and proxies.",
		},
		Parameter{
			Name: "CVMFS_BACKOFF_INIT", Type: Seconds, Default: "2", max: maxSeconds,
			Meaning: "Longest first pause before a transfer is tried again.",
		},
		Parameter{
			Name: "CVMFS_BACKOFF_MAX", Type: Seconds, Default: "10", max: maxSeconds,
			Meaning: "Longest pause at all.",
		},
		Parameter{
			Name: "CVMFS_PROXY_RESET_AFTER", Type: Seconds, Default: "300", max: maxSeconds,
			Meaning: "When the first proxy group is tried again after another took over; 0 for never.",
		},
		Parameter{
			Name: "CVMFS_HOST_RESET_AFTER", Type: Seconds, Default: "1800", max: maxSeconds,
			Meaning: "When the first server is tried again after another took over; 0 for never.",
		},
		Parameter{
			Name: "CVMFS_FOLLOW_REDIRECTS", Type: Switch, Default: "no",
			Meaning: "Whether a server may send to another address, up to four times.",
		},
		Parameter{
			Name: "CVMFS_PUBLIC_KEY", Type: Files, guard: true,
			Meaning: "Master keys that are trusted; if it is set, CVMFS_KEYS_DIR isn't read.",
		},
		Parameter{
			Name: "CVMFS_KEYS_DIR", Type: Path, Default: HostDir + "/keys", guard: true,
			Meaning: "Folder whose files *.pub are the master keys that are trusted.",
		},
		Parameter{
			Name: "CVMFS_BLACKLIST", Type: File, Default: HostDir + "/blacklist", guard: true,
			Meaning: "Fingerprints of certificates, and revisions, that are not trusted; that of the configuration repository is read, too.",
		},
		Parameter{
			Name: "CVMFS_STRICT_MOUNT", Type: Switch, Default: "no", guard: true,
			Meaning: "Whether only the repositories in CVMFS_REPOSITORIES may be used.",
		},
		Parameter{
			Name: "CVMFS_REPOSITORIES", Type: Names,
			Meaning: "Repositories of this host: what `doctor` tries, and all that may be used with CVMFS_STRICT_MOUNT.",
		},
		Parameter{
			Name: "CVMFS_DEFAULT_DOMAIN", Type: Text,
			Meaning: "Completes repository names without a dot, in CVMFS_REPOSITORIES and on the command line; in images names are complete.",
		},
		Parameter{
			Name: configRepository, Type: Text, guard: true,
			Meaning: "Repository whose files below /etc/cvmfs are configuration, too, keys and blacklist included; it must be set in default.conf or default.d.",
		},
		Parameter{
			Name: "CVMFS_CONFIG_REPO_REQUIRED", Type: Switch, Default: "no", guard: true,
			Meaning: "Whether nothing may be used where the configuration repository can't be read, and was not before.",
		},
		Parameter{
			Name: "CVMFS_UID_MAP", Type: File,
			Meaning: "Lines `FROM TO` that change owners of files in images; `*` as FROM is everybody else.",
		},
		Parameter{
			Name: "CVMFS_GID_MAP", Type: File,
			Meaning: "The same for groups.",
		},
		Parameter{
			Name: "CVMFS_MAX_TTL", Type: Minutes, Default: "0", max: maxSeconds / 60,
			Meaning: "Upper bound of how long a revision says it is the newest; 0 for none.",
		},
		Parameter{
			Name: "CVMFS_MOUNT_DIR", Type: Path, Default: "/cvmfs",
			Meaning: "Where settings expect repositories; below it only the configuration repository's files are found.",
		},
		Parameter{
			Name: "CVMFS_FQRN", Type: Text,
			Meaning: "The repository's name, set for every file.",
		},
		Parameter{
			Name: "CVMFS_ARCH", Type: Text,
			Meaning: "The machine's name, as `uname -m` gives it, for symbolic links in repositories.",
		},
		Parameter{
			Name: "CVMFS_CLIENT_PROFILE", Type: Text,
			Meaning: "Read by the configuration repository's files: `single` for a host without a site's proxies.",
		},
		Parameter{
			Name: "CVMFS_USE_CDN", Type: Switch,
			Meaning: "Read by domain files: servers behind a content delivery network.",
		},
		Parameter{
			Name: "CVMFS_BASE_ENV", Type: Text,
			Meaning: "Set by default.conf so that its settings are made once.",
		},
		Parameter{
			Name: "CVMFS_CONFIG_REPO_DEFAULT_ENV", Type: Text,
			Meaning: "Set by the configuration repository's default.conf, so that domain files know it was read.",
		},
		Parameter{
			Name: "CVMFS_USE_GEOAPI", Type: Switch, Default: "no",
			Meaning: "Whether one of the servers is asked for their order by distance before the first file.",
		},
		Parameter{
			Name: "CVMFS_PROXY_TEMPLATE", Type: Text,
			Meaning: "Name by which CVMFS_USE_GEOAPI asks, instead of the proxy's.",
		},
		Parameter{
			Name: "CVMFS_PROXY_SHARD", Type: Switch, Default: "no",
			Meaning: "Whether each object has its proxy of a group; otherwise one proxy of a group serves all until it fails.",
		},
		Parameter{
			Name: "CVMFS_MAX_IPADDR_PER_PROXY", Type: Number, Default: "0", max: 1 << 20,
			Meaning: "How many addresses of a proxy's name are used, each as a proxy; 0 for all.",
		},
		Parameter{
			Name: "CVMFS_IPFAMILY_PREFER", Type: Number, Default: "0", max: 6,
			Meaning: "Which addresses of a name are used where it has both kinds: 6, or else those of IPv4.",
		},
		Parameter{
			Name: "CVMFS_IPV4_ONLY", Type: Text,
			Meaning: "Whether no address of IPv6 is used, if it isn't empty.",
		},
		Parameter{
			Name: "CVMFS_DNS_TIMEOUT", Type: Seconds, Default: "3", max: maxSeconds,
			Meaning: "How long a name server may take for one question.",
		},
		Parameter{
			Name: "CVMFS_DNS_RETRIES", Type: Number, Default: "1", max: 100,
			Meaning: "How often a name server is asked again.",
		},
		Parameter{
			Name: "CVMFS_DNS_MIN_TTL", Type: Seconds, Default: "60", max: maxSeconds,
			Meaning: "How long the addresses of a name are used before it is resolved again, whatever its zone says.",
		},
		Parameter{
			Name: "CVMFS_DNS_MAX_TTL", Type: Seconds, Default: "86400", max: maxSeconds,
			Meaning: "Upper bound of CVMFS_DNS_MIN_TTL.",
		},
		Parameter{
			Name: "CVMFS_DNS_SERVER", Type: Text,
			Meaning: "Address of the name server to ask, instead of the host's.",
		},
		Parameter{
			Name: "X509_CERT_DIR", Type: Path, Default: "/etc/grid-security/certificates",
			Meaning: "Folder with further certificate authorities for https, for the plugin below /etc/cvmfs.",
		},
		Parameter{
			Name: "X509_CERT_BUNDLE", Type: File,
			Meaning: "File with further certificate authorities for https, for the plugin below /etc/cvmfs.",
		},
		Parameter{
			Name: "CVMFS_USE_SSL_SYSTEM_CA", Type: Switch, Default: "no",
			Meaning: "Whether the host's certificate authorities are trusted for https: they always are, or where there are none those built into the program.",
		},
		Parameter{
			Name: quotaLimit, Type: Mebibytes, packaged: "4000", min: -maxNumber, max: maxNumber,
			Meaning: "Limit of the cache of all repositories, 0 for none, where a file of the site's own sets it (default.local) and the storage option cvmfs.cache-limit doesn't; else it is half of the file system.",
		},
		Parameter{
			Name: "CVMFS_ROOT_HASH", Type: Text, guard: true,
			Meaning: "Root catalog of the revision to use instead of the newest. The newest manifest is verified all the same, and neither it nor this revision may be blacklisted.",
		},
		Parameter{
			Name: "CVMFS_REPOSITORY_TAG", Type: Text, guard: true,
			Meaning: "Tag of the revision to use instead, as the newest manifest's database of tags has it; CVMFS_ROOT_HASH counts before it.",
		},
		Parameter{
			Name: "CVMFS_REPOSITORY_DATE", Type: Text, guard: true,
			Meaning: "Time in UTC, as 2026-01-31T12:00:00Z, whose newest tagged revision is used instead; CVMFS_REPOSITORY_TAG counts before it.",
		},
		Parameter{
			Name: "CVMFS_FAILOVER_INDEFINITELY", Type: Switch, Default: "no",
			Meaning: "Whether a request goes on while servers can't be reached, until whoever reads gives up; a pull or a start of a container may then wait for ever.",
		},
		Parameter{
			Name: "CVMFS_WORLD_READABLE", Type: Switch, Default: "no",
			Meaning: "Whether `repo ls` and `repo mount` show everything as readable by all; images keep their permissions.",
		},
		Parameter{
			Name: "CVMFS_SEND_INFO_HEADER", Type: Switch, Default: "no",
			Meaning: "Whether requests tell, in the header cvmfs-info, the path that is read: servers and proxies see it. It counts for images that are pulled from then on.",
		},
		Parameter{
			Name: "CVMFS_EXTERNAL_URL", Type: Servers,
			Meaning: "Servers of external files, whose content isn't in the repository itself; the first that works is used. Without them reading such a file fails.",
		},
		Parameter{
			Name: "CVMFS_EXTERNAL_HTTP_PROXY", Type: Proxies, Default: "DIRECT", Meaning: "Proxies to these servers.",
		},
		Parameter{Name: "CVMFS_EXTERNAL_FALLBACK_PROXY", Type: Proxies, Meaning: "Further proxies to these servers."},
		Parameter{
			Name: "CVMFS_EXTERNAL_TIMEOUT", Type: Seconds, max: maxSeconds,
			Meaning: "As CVMFS_TIMEOUT, for these servers.",
		},
		Parameter{
			Name: "CVMFS_EXTERNAL_TIMEOUT_DIRECT", Type: Seconds, max: maxSeconds,
			Meaning: "As CVMFS_TIMEOUT_DIRECT, for these servers.",
		},
		Parameter{
			Name: "CVMFS_EXTERNAL_MAX_SERVERS", Type: Number, Default: "0", max: 1 << 20,
			Meaning: "How many of these servers are used; 0 for all.",
		},
		Parameter{Name: "CVMFS_EXTERNAL_SERVER_URL", Type: Servers, Meaning: "Another name of CVMFS_EXTERNAL_URL."},
	),
	section(Unsupported,
		Parameter{
			Name: "CVMFS_PROXY_SHARDING_POLICY", Type: Text,
			Meaning: "How CVMFS_PROXY_SHARD chooses; always by the object's name.",
		},
		Parameter{
			Name: "CVMFS_DNS_ROAMING", Type: Switch, Default: "no",
			Meaning: "Whether a change of the host's name servers is noticed.",
		},
		Parameter{
			Name: "CVMFS_HTTP_TRACING", Type: Switch, Default: "no",
			Meaning: "Whether requests have headers for tracing.",
		},
		Parameter{
			Name: "CVMFS_HTTP_TRACING_HEADERS", Type: Text,
			Meaning: "These headers.",
		},
		Parameter{
			Name: "CVMFS_NOTIFICATION_SERVER", Type: Text,
			Meaning: "Server that tells of new revisions; they are asked for when an image is pulled.",
		},
		Parameter{
			Name: "CVMFS_ALT_ROOT_PATH", Type: Switch, Default: "no",
			Meaning: "Whether the root catalog has another address, as for repositories with members only.",
		},
		Parameter{
			Name: "CVMFS_AUTHZ_HELPER", Type: File,
			Meaning: "Program that tells who may read a repository for members only; such repositories can't be read.",
		},
		Parameter{Name: "CVMFS_AUTHZ_SEARCH_PATH", Type: Path, Meaning: "Where such programs lie."},
		Parameter{
			Name: "CVMFS_CACHE_QUOTA_LIMIT", Type: Mebibytes, min: -maxNumber, max: maxNumber,
			Meaning: "The same of the main cache.",
		},
	),
	section(Meaningless, meaningless...),
)

// meaningless are parameters of what doesn't exist here.
var meaningless = slices.Concat(
	alike(Switch, "The cache has one place and form, in the engine's data folder, shared by all repositories.",
		"CVMFS_SHARED_CACHE", "CVMFS_CACHE_SHARED", "CVMFS_SERVER_CACHE_MODE", "CVMFS_CACHE_SERVER_MODE",
		"CVMFS_CACHE_REFCOUNT", "CVMFS_STREAMING_CACHE", "CVMFS_CWD_CACHE"),
	alike(Path, "The cache lies in the engine's data folder.",
		"CVMFS_CACHE_BASE", "CVMFS_CACHE_DIR", "CVMFS_WORKSPACE", "CVMFS_CACHE_WORKSPACE", "CVMFS_ALIEN_CACHE",
		"CVMFS_CACHE_ALIEN"),
	alike(Text, "The cache has one kind.", "CVMFS_CACHE_PRIMARY", "CVMFS_CACHE_LOCATOR", "CVMFS_CACHE_CMDLINE"),
	alike(Number, "Files are opened as the engine's containers do.", "CVMFS_NFILES"),
	alike(Switch, "Images keep the owners and permissions that they were published with.",
		"CVMFS_CLAIM_OWNERSHIP", "CVMFS_CHECK_PERMISSIONS", "CVMFS_SUID", "CVMFS_MOUNT_RW", "CVMFS_ENFORCE_ACLS"),
	alike(Switch, "An image stays at the revision it was pulled from.", "CVMFS_AUTO_UPDATE"),
	alike(Number, "There is no mounted repository whose kernel and memory caches it could size.",
		"CVMFS_KCACHE_TIMEOUT", "CVMFS_STATFS_CACHE_TIMEOUT", "CVMFS_MEMCACHE_SIZE", "CVMFS_CATALOG_WATERMARK"),
	alike(Switch, "There is no mounted repository whose kernel cache it could change.", "CVMFS_CACHE_SYMLINKS"),
	alike(Text, "There is no mounted repository with attributes of its own.",
		"CVMFS_HIDE_MAGIC_XATTRS", "CVMFS_MAGIC_XATTRS_VISIBILITY", "CVMFS_XATTR_PRIVILEGED_GIDS",
		"CVMFS_XATTR_PROTECTED_XATTRS"),
	alike(Text, "There is no mounted repository.",
		"CVMFS_NFS_SOURCE", "CVMFS_NFS_SHARED", "CVMFS_NFS_INTERLEAVED_INODES", "CVMFS_INITIAL_GENERATION",
		"CVMFS_FUSE_NOTIFY_INVALIDATION", "CVMFS_FUSE3_MAX_THREADS", "CVMFS_FUSE3_IDLE_THREADS",
		"CVMFS_INSTRUMENT_FUSE"),
	alike(Text, "The plugin logs to the engine's log; its setting DEBUG chooses how much.",
		"CVMFS_SYSLOG_LEVEL", "CVMFS_SYSLOG_FACILITY", "CVMFS_SYSLOG_PREFIX", "CVMFS_USYSLOG", "CVMFS_DEBUGLOG",
		"CVMFS_TRACEFILE", "CVMFS_TRACEBUFFER", "CVMFS_TRACEBUFFER_THRESHOLD"),
	alike(Text, "The client's own telemetry; nothing is sent.",
		"CVMFS_TELEMETRY_SEND", "CVMFS_TELEMETRY_RATE", "CVMFS_INFLUX_HOST", "CVMFS_INFLUX_PORT",
		"CVMFS_INFLUX_METRIC_NAME", "CVMFS_INFLUX_EXTRA_TAGS", "CVMFS_INFLUX_EXTRA_FIELDS"),
	alike(Text, "There is no client to be controlled by cvmfs_talk and cvmfs_config.",
		"CVMFS_TALK_SOCKET", "CVMFS_TALK_OWNER", "CVMFS_RELOAD_SOCKETS", "CVMFS_LIBRARY_PATH"),
	alike(Text, "The process is the engine's.",
		"CVMFS_USER", "CVMFS_CPU_AFFINITY", "CVMFS_OOM_SCORE_ADJ", "CVMFS_SYSTEMD_NOKILL"),
	alike(Switch, "Signatures are always verified.",
		"CVMFS_IGNORE_SIGNATURE", "_CVMFS_DEVEL_IGNORE_SIGNATURE_FAILURES"),
	alike(Path, "It has no effect in the reference client.", "CVMFS_TRUSTED_CERTS"),
)

// section gives parameters a status.
func section(s Status, parameters ...Parameter) []Parameter {
	for i := range parameters {
		parameters[i].Status = s
	}
	return parameters
}

// alike makes parameters that differ in their names.
func alike(t Type, meaning string, names ...string) (parameters []Parameter) {
	for _, name := range names {
		parameters = append(parameters, Parameter{Name: name, Type: t, Meaning: meaning})
	}
	return parameters
}

// cacheInstance begins the names of parameters of a cache that has a name itself: CVMFS_CACHE_NAME_TYPE.
const cacheInstance = "CVMFS_CACHE_"

// misspelt returns the parameter that a name which isn't one may be meant for, or "".
func misspelt(name string) string {
	best, least := "", 3 // changes
	for _, known := range slices.Sorted(maps.Keys(byName)) {
		if d := distance(name, known, least); d < least {
			best, least = known, d
		}
	}
	return best
}

// distance is the number of letters to insert, remove, replace or exchange with their neighbour to make b of a; limit
// if it is at least that.
func distance(a, b string, limit int) int {
	if diff := len(a) - len(b); diff >= limit || -diff >= limit {
		return limit
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range a {
		row[0] = i + 1
		for j := range b {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(row[j]+1, last[j+1]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return min(last[len(b)], limit)
}

// recognized reports whether a name is a parameter's of the reference client.
func recognized(name string) bool {
	if _, ok := byName[name]; ok {
		return true
	}
	rest, ok := strings.CutPrefix(name, cacheInstance)
	if !ok {
		return false
	}
	i := strings.LastIndexByte(rest, '_')
	return i > 0 && slices.Contains([]string{
		"TYPE", "UPPER", "LOWER", "READONLY", "CMDLINE", "LOCATOR", "SIZE", "MALLOC", "BASE", "DIR", "LIMIT", "SHARED",
		"ALIEN", "MODE", "WORKSPACE", "REFCOUNT",
	}, rest[i+1:])
}
