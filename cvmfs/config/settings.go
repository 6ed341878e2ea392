package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// settings turns parameters into a Config.
type settings struct {
	folder Folder
	fqrn   string
	shell  *shell
	errs   []error
	found  []Finding
}

func (s *settings) config() (*Config, error) {
	if err := s.allowed(); err != nil {
		return nil, err
	}
	c := &Config{
		FQRN:            s.fqrn,
		Servers:         s.servers("CVMFS_SERVER_URL"),
		ProxyGroups:     s.proxies("CVMFS_HTTP_PROXY", "CVMFS_FALLBACK_PROXY", ""),
		Timeout:         s.duration("CVMFS_TIMEOUT"),
		TimeoutDirect:   s.duration("CVMFS_TIMEOUT_DIRECT"),
		LowSpeedLimit:   s.number("CVMFS_LOW_SPEED_LIMIT"),
		MaxRetries:      int(s.number("CVMFS_MAX_RETRIES")),
		BackoffInit:     s.duration("CVMFS_BACKOFF_INIT"),
		BackoffMax:      s.duration("CVMFS_BACKOFF_MAX"),
		ProxyResetAfter: s.duration("CVMFS_PROXY_RESET_AFTER"),
		HostResetAfter:  s.duration("CVMFS_HOST_RESET_AFTER"),
		FollowRedirects: s.isOn("CVMFS_FOLLOW_REDIRECTS"),
		PublicKeys:      s.publicKeys(),
		Blacklists:      s.blacklists(),
		UIDMap:          s.idMap("CVMFS_UID_MAP"),
		GIDMap:          s.idMap("CVMFS_GID_MAP"),
		ClaimOwnership:  s.isOn("CVMFS_CLAIM_OWNERSHIP"),
		WorldReadable:   s.isOn("CVMFS_WORLD_READABLE"),
		MaxTTL:          s.duration("CVMFS_MAX_TTL"),
		Network:         s.network(),
		External:        s.external(),
		Fixed: Fixed{
			RootHash: s.guarded("CVMFS_ROOT_HASH"), Tag: s.guarded("CVMFS_REPOSITORY_TAG"),
			Date: s.guarded("CVMFS_REPOSITORY_DATE"),
		},
		Params:  s.shell.values(),
		Origins: s.shell.origins(),
	}
	if n := c.Network; n.MaxServers > 0 && !n.GeoAPI && len(c.Servers) > n.MaxServers {
		c.Servers = c.Servers[:n.MaxServers]
	}
	s.repository()
	s.tellQuota()
	c.Findings = s.findings()
	if len(s.errs) > 0 {
		return nil, fmt.Errorf("configuration of %s: %w", s.fqrn, errors.Join(s.errs...))
	}
	if err := s.complete(c); err != nil {
		return nil, err
	}
	return c, nil
}

func (s *settings) network() Network {
	return Network{
		MaxServers:      int(s.number("CVMFS_MAX_SERVERS")),
		GeoAPI:          s.isOn("CVMFS_USE_GEOAPI"),
		ProxyTemplate:   s.value("CVMFS_PROXY_TEMPLATE"),
		Auto:            s.auto("CVMFS_FALLBACK_PROXY"),
		ProxyShard:      s.isOn("CVMFS_PROXY_SHARD"),
		ShardPolicy:     s.value("CVMFS_PROXY_SHARDING_POLICY"),
		MaxAddresses:    int(s.number("CVMFS_MAX_IPADDR_PER_PROXY")),
		IPFamily:        int(s.number("CVMFS_IPFAMILY_PREFER")),
		IPv4Only:        s.value("CVMFS_IPV4_ONLY") != "",
		DNSTimeout:      s.duration("CVMFS_DNS_TIMEOUT"),
		DNSRetries:      int(s.number("CVMFS_DNS_RETRIES")),
		DNSMinTTL:       s.duration("CVMFS_DNS_MIN_TTL"),
		DNSMaxTTL:       s.duration("CVMFS_DNS_MAX_TTL"),
		DNSServer:       s.value("CVMFS_DNS_SERVER"),
		SendInfoHeader:  s.isOn("CVMFS_SEND_INFO_HEADER"),
		Indefinitely:    s.isOn("CVMFS_FAILOVER_INDEFINITELY"),
		SystemCA:        s.isOn("CVMFS_USE_SSL_SYSTEM_CA"),
		CertificateDir:  s.file("X509_CERT_DIR"),
		CertificateFile: s.file("X509_CERT_BUNDLE"),
	}
}

// auto is how the group "auto" is found. The reference client exports all parameters to its environment, and takes
// http_proxy from there.
func (s *settings) auto(fallbackName string) Discovery {
	return Discovery{
		URLs: s.pacURLs(), Proxies: s.value("http_proxy"), NoDirect: len(s.list(fallbackName, ";")) > 0,
	}
}

// external takes the timeouts of the repository where it has none of its own.
func (s *settings) external() External {
	name := "CVMFS_EXTERNAL_URL"
	if s.value(name) == "" {
		name = "CVMFS_EXTERNAL_SERVER_URL"
	}
	e := External{Servers: s.servers(name)}
	if len(e.Servers) == 0 {
		return External{}
	}
	e.ProxyGroups = s.proxies("CVMFS_EXTERNAL_HTTP_PROXY", "CVMFS_EXTERNAL_FALLBACK_PROXY", Direct)
	e.Auto = s.auto("CVMFS_EXTERNAL_FALLBACK_PROXY")
	e.Timeout = s.duration(firstSet(s, "CVMFS_EXTERNAL_TIMEOUT", "CVMFS_TIMEOUT"))
	e.TimeoutDirect = s.duration(firstSet(s, "CVMFS_EXTERNAL_TIMEOUT_DIRECT", "CVMFS_TIMEOUT_DIRECT"))
	e.MaxServers = int(s.number("CVMFS_EXTERNAL_MAX_SERVERS"))
	return e
}

func firstSet(s *settings, name, otherwise string) string {
	if s.value(name) != "" {
		return name
	}
	return otherwise
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
		lacking = append(lacking, s.lackingKey())
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
	var notes []string
	for _, f := range c.Findings {
		if f.Kind == Failed || f.Kind == Unread || f.Kind == Note {
			notes = append(notes, f.String())
		}
	}
	if len(notes) > 0 {
		err = fmt.Errorf("%w; note: %s", err, strings.Join(notes, "; "))
	}
	if len(c.PublicKeys) == 0 {
		err = Untrusted(err)
	}
	return err
}

// lackingKey says how a master key comes to be there.
func (s *settings) lackingKey() string {
	// A setting names a file as the plugin sees it; the file itself may lie elsewhere.
	key, file := path.Join("keys", s.domain()+".pub"), "that file"
	if s.folder.Shown != HostDir {
		file = path.Join(s.folder.Shown, key)
	}
	text := "CVMFS_PUBLIC_KEY=" + path.Join(HostDir, key) + " (and the repository's master key as " + file
	if dir := s.shell.params["CVMFS_KEYS_DIR"]; dir.value != "" {
		text += fmt.Sprintf("; CVMFS_KEYS_DIR=%s, set in %v, holds no file *.pub", dir.value, dir.at)
	}
	return text + ")"
}

func (s *settings) domain() string {
	_, domain, _ := strings.Cut(s.fqrn, ".")
	return domain
}

// allowed applies CVMFS_STRICT_MOUNT.
func (s *settings) allowed() error {
	strict := isOn(s.guarded("CVMFS_STRICT_MOUNT")) || isOn(s.hosts("CVMFS_STRICT_MOUNT"))
	if len(s.errs) > 0 {
		return fmt.Errorf("configuration of %s: %w", s.fqrn, errors.Join(s.errs...))
	}
	if !strict {
		return nil
	}
	s.guarded("CVMFS_REPOSITORIES")
	if len(s.errs) > 0 {
		return fmt.Errorf("configuration of %s: %w", s.fqrn, errors.Join(s.errs...))
	}
	list := cmp.Or(s.hosts("CVMFS_REPOSITORIES"), s.value("CVMFS_REPOSITORIES"))
	for _, name := range items(list, ",") {
		if !strings.Contains(name, ".") {
			name += "." + s.value("CVMFS_DEFAULT_DOMAIN")
		}
		if name == s.fqrn {
			return nil
		}
	}
	return Untrusted(fmt.Errorf("repository %s is %w: with CVMFS_STRICT_MOUNT=yes it must be named in "+
		"CVMFS_REPOSITORIES, in %s", s.fqrn, ErrNotAllowed, path.Join(s.folder.Shown, "default.local")))
}

func (s *settings) servers(name string) []string {
	servers := s.list(name, ";")
	for i, server := range servers {
		u, err := url.Parse(server)
		switch {
		case err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		case err != nil || u.Scheme != "file" || u.Host != "" || !path.IsAbs(u.Path):
			s.bad(name, fmt.Sprintf("server %d isn't a URL such as http://SERVER/cvmfs/@fqrn@ or file:///FOLDER", i+1))
		case s.shell.params[name].remote:
			s.bad(name, fmt.Sprintf("server %d: %v", i+1, errForbidden))
		}
		servers[i] = strings.TrimRight(server, "/")
	}
	return servers
}

// proxies returns the groups of a parameter and its fallbacks; where it isn't set, otherwise stands for it.
func (s *settings) proxies(name, fallbackName, otherwise string) [][]string {
	groups := [][]string{{otherwise}}
	switch {
	case s.value(name) != "":
		var err error
		if groups, err = s.parseProxies(name, true); err != nil {
			s.bad(name, err.Error())
			return nil
		}
	case otherwise == "":
		return nil // even where there are fallbacks, as in the reference client
	}
	if s.value(fallbackName) == "" {
		return groups
	}
	fallback, err := s.parseProxies(fallbackName, false)
	if err != nil {
		s.bad(fallbackName, err.Error())
		return nil
	}
	return withFallback(groups, fallback)
}

func (s *settings) parseProxies(name string, mayFind bool) ([][]string, error) {
	spec, auto := withoutAuto(s.value(name), mayFind)
	if auto {
		s.found = append(s.found, Finding{
			Kind: Odd, Place: s.shell.params[name].at, Parameter: name,
			Text: "auto has no effect here: it must be a group of its own in CVMFS_HTTP_PROXY",
		})
		if len(items(strings.ReplaceAll(spec, "|", ";"), ";")) == 0 && !mayFind {
			return nil, nil
		}
	}
	return ParseProxies(spec)
}

// pacURLs are where scripts for the group "auto" are.
func (s *settings) pacURLs() []string {
	const name = "CVMFS_PAC_URLS"
	urls := s.list(name, ";")
	if s.value(name) == "" {
		return []string{byName[name].Default}
	}
	for i, text := range urls {
		if text == Auto {
			urls[i] = byName[name].Default
			continue
		}
		u, err := url.Parse(text)
		switch {
		case err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		case err != nil || u.Scheme != "file" || u.Host != "" || !path.IsAbs(u.Path):
			s.bad(name, fmt.Sprintf("script %d isn't a URL such as http://wpad/wpad.dat or file:///FILE, nor auto", i+1))
		case s.shell.params[name].remote:
			s.bad(name, fmt.Sprintf("script %d: %v", i+1, errForbidden))
		default:
			urls[i] = (&url.URL{Scheme: "file", Path: s.within(u.Path)}).String()
		}
	}
	return urls
}

func (s *settings) publicKeys() []string {
	s.guarded("CVMFS_PUBLIC_KEY")
	if files := s.list("CVMFS_PUBLIC_KEY", ":"); len(files) > 0 {
		for i, file := range files {
			files[i] = s.located("CVMFS_PUBLIC_KEY", file)
		}
		return files
	}
	s.guarded("CVMFS_KEYS_DIR")
	files, err := s.folder.filesIn(s.file("CVMFS_KEYS_DIR"), ".pub")
	if err != nil {
		s.bad("CVMFS_KEYS_DIR", err.Error())
	}
	return files
}

func (s *settings) blacklists() []string {
	s.guarded("CVMFS_BLACKLIST")
	files := []string{s.file("CVMFS_BLACKLIST")}
	if hosts := s.hosts("CVMFS_BLACKLIST"); hosts != s.value("CVMFS_BLACKLIST") {
		files = append(files, s.within(cmp.Or(hosts, byName["CVMFS_BLACKLIST"].Default)))
	}
	if r := s.shell.repo; r != nil {
		files = append(files, filepath.Join(r.dir, "etc/cvmfs/blacklist"))
	}
	return files
}

// repository judges whether the configuration repository was read as its parameters want it.
func (s *settings) repository() {
	repo := s.guarded(configRepository)
	required := isOn(s.guarded("CVMFS_CONFIG_REPO_REQUIRED"))
	if repo == "" || repo == s.fqrn || s.folder.ConfigRepository != nil {
		return
	}
	s.found = append(s.found, Finding{
		Kind: Unread, Place: s.shell.params[configRepository].at, Parameter: configRepository,
		Text: "its files are not read here",
	})
	if required {
		s.bad("CVMFS_CONFIG_REPO_REQUIRED", "the configuration repository's files are not read here")
	}
}

// filesIn are the files of a folder with that ending, sorted; none where there is no such folder.
func (f Folder) filesIn(dir, ending string) ([]string, error) {
	f.Seen.Look(dir)
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
	if s.value(name) == "" {
		return nil
	}
	file := s.file(name)
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

// bad records a parameter that can't be used. Values that may hold a password must not be in why.
func (s *settings) bad(name, why string) {
	if at := s.shell.params[name].at; at.File != "" {
		name = at.String() + ": " + name
	}
	s.errs = append(s.errs, fmt.Errorf("%s: %s", name, why))
}

func (s *settings) value(name string) string { return s.shell.params[name].value }

// hosts is the value that the host's own files alone give a parameter. What came over the network may only add to it.
func (s *settings) hosts(name string) string {
	if s.shell.own != nil {
		return s.shell.own[name].value
	}
	return s.value(name)
}

// guarded is the value of a parameter that protects. If it is in doubt the configuration can't be used.
func (s *settings) guarded(name string) string {
	v := s.shell.params[name]
	if v.doubt != "" {
		s.errs = append(s.errs, Untrusted(fmt.Errorf("%s is not certain, and without it the repository is not used: %s",
			name, v.doubt)))
	}
	return v.value
}

// list splits a value and leaves out what is empty.
func (s *settings) list(name, separator string) []string { return items(s.value(name), separator) }

func items(list, separator string) (items []string) {
	for item := range strings.SplitSeq(list, separator) {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// file is where the file or folder lies that a parameter names, or its default; "" where it has none.
func (s *settings) file(name string) string {
	if v := s.value(name); v != "" {
		return s.located(name, v)
	}
	if d := byName[name].Default; strings.HasPrefix(d, HostDir+"/") {
		return s.folder.locate(d)
	}
	return ""
}

// located is where a file lies that a parameter names. What came over the network may name public files alone: those of
// the configuration repository, and of the host only keys and blacklists.
func (s *settings) located(name, file string) string {
	_, inFolder := below(path.Clean(file), HostDir)
	public := slices.Contains([]string{"CVMFS_PUBLIC_KEY", "CVMFS_KEYS_DIR", "CVMFS_BLACKLIST"}, name)
	if _, own := s.fromRepository(file); s.shell.params[name].remote && !own && !(inFolder && public) {
		s.bad(name, fmt.Sprintf("%.200q: %v", file, errForbidden))
	}
	return s.within(file)
}

// within is where a file lies, in the folder or the configuration repository.
func (s *settings) within(file string) string {
	if kept, ok := s.fromRepository(file); ok {
		return kept
	}
	return s.folder.locate(file)
}

// fromRepository is where a file of the configuration repository lies.
func (s *settings) fromRepository(file string) (string, bool) {
	r := s.shell.repo
	if r == nil || !path.IsAbs(file) {
		return "", false
	}
	rest, ok := below(path.Clean(file), r.root)
	return filepath.Join(r.dir, rest), ok
}

// isOn reads a switch the way the reference does: whatever isn't one of these words is off.
func (s *settings) isOn(name string) bool { return isOn(s.value(name)) }

func isOn(value string) bool {
	return slices.Contains([]string{"yes", "on", "1", "true"}, strings.ToLower(value))
}

// number reads a number as the reference client does: the digits that a value begins with.
func (s *settings) number(name string) int64 {
	p := byName[name]
	v := s.value(name)
	if v == "" {
		n, _ := leading(p.Default)
		return n
	}
	n, whole := leading(v)
	within := min(max(n, p.min), p.max)
	if !whole || within != n {
		text := fmt.Sprintf("%.40q is taken as %d: it is a number of %s", v, within, p.Type)
		if p.Type == Number {
			text = fmt.Sprintf("%.40q is taken as %d", v, within)
		}
		s.found = append(s.found, Finding{Kind: Odd, Place: s.shell.params[name].at, Parameter: name, Text: text})
	}
	return within
}

// leading is the number that a text begins with, and whether that is all of the text.
func leading(text string) (n int64, whole bool) {
	digits := strings.TrimLeft(text, "+-")
	negative := strings.HasPrefix(text, "-")
	if len(text)-len(digits) > 1 {
		return 0, false
	}
	i := 0
	for ; i < len(digits) && '0' <= digits[i] && digits[i] <= '9'; i++ {
		n = min(n*10+int64(digits[i]-'0'), 1<<58)
	}
	if negative {
		n = -n
	}
	return n, i > 0 && i == len(digits)
}

func (s *settings) duration(name string) time.Duration {
	unit := time.Second
	if byName[name].Type == Minutes {
		unit = time.Minute
	}
	return time.Duration(s.number(name)) * unit
}

// findings are those of the files, and those of the parameters in the order of their names.
func (s *settings) findings() []Finding {
	found := slices.Concat(s.shell.findings, s.found)
	for _, name := range slices.Sorted(maps.Keys(s.shell.params)) {
		v := s.shell.params[name]
		if !v.set {
			continue
		}
		f := Finding{Place: v.at, Parameter: name}
		p, known := Lookup(name)
		switch {
		case known && p.Status == Unsupported && p.changed(v.value):
			f.Kind, f.Text = NotHonored, "is set and has no effect here: "+p.Meaning
		case !known && !recognized(name) && !s.shell.used[name]:
			meant := misspelt(name)
			if meant == "" && !strings.HasPrefix(name, "CVMFS_") {
				continue
			}
			f.Kind, f.Text = Unknown, "no such parameter is known"
			if meant != "" {
				f.Text += ": is " + meant + " meant?"
			}
		default:
			continue
		}
		found = append(found, f)
	}
	return found
}

// changed reports whether a value says something else than the default.
func (p Parameter) changed(value string) bool {
	switch {
	case p.Type == Switch:
		return isOn(value) != isOn(p.Default)
	case value == "":
		return false
	}
	return value != p.Default && value != p.packaged
}
