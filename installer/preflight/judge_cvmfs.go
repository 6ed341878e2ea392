package preflight

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/driver/options"
	"cvmfs-graphdriver/installer/daemonjson"
)

const (
	expiresSoon = 3 * 24 * time.Hour // a whitelist is renewed long before
	clockSlack  = 5 * time.Minute    // by which clocks may differ
)

// configuration judges the configuration folder as a whole.
func configuration(f *Facts, p *Plan) (found []Finding) {
	const id = "cvmfs.configuration"
	if notes := f.Configuration.Notes; len(notes) > 0 {
		found = with(one(Warning, id+".notes", "not all that the files in "+f.Configuration.Dir+" say has an effect",
			"correct them, or see docs/configuration.md for what holds instead"), strings.Join(notes, "; "))
	}
	found = append(found, folderFound(f, p, id)...)
	return append(found, quota(f, p)...)
}

// quota tells what becomes of CVMFS_QUOTA_LIMIT.
func quota(f *Facts, p *Plan) []Finding {
	const id = "cvmfs.quota"
	q := f.Configuration.Quota
	opts := daemonjson.DriverOptions(f.File.Options, p.StorageOpts)
	set := slices.ContainsFunc(opts, func(o string) bool { return options.Name(o) == options.CacheLimit }) ||
		!p.Install && limitedByOption(f)
	what := fmt.Sprintf("CVMFS_QUOTA_LIMIT (%v) ", q.Place)
	switch {
	case q == config.Quota{}:
		return nil
	case set:
		return one(OK, id, what+"has no effect: the storage option "+options.CacheLimit+" limits the object cache", "")
	case q.Unused != "":
		return with(one(Note, id, what+"does not limit the object cache", "if the cache is to have this limit, set it in "+
			f.Configuration.Dir+"/default.local, or by the storage option "+options.CacheLimit), q.Unused)
	case q.Odd != "":
		return with(one(Warning, id, what+"limits the object cache to "+units.BytesSize(float64(q.Bytes)),
			"write it as a number of MiB: 20000 for 20 GB"), q.Odd)
	case q.Bytes == 0:
		return one(OK, id, what+"leaves the object cache without a limit of its own", "")
	}
	return one(OK, id, what+"limits the object cache to "+units.BytesSize(float64(q.Bytes)), "")
}

// limitedByOption reports whether a node says that the storage option limits its cache: the snapshotter has options
// that the engine's file doesn't tell.
func limitedByOption(f *Facts) bool {
	states := []*State{f.Plugin.State}
	if f.Snapshotter != nil {
		states = append(states, f.Snapshotter.State)
	}
	return slices.ContainsFunc(states, func(s *State) bool {
		return s != nil && strings.Contains(s.Cache.LimitBy, options.CacheLimit)
	})
}

func folderFound(f *Facts, p *Plan, id string) []Finding {
	switch c := f.Configuration; {
	case c.Missing && p.Install && p.CVMFSConfig == "":
		return one(Warning, id,
			fmt.Sprintf("there is no folder %s; it will be made, empty: no repository is configured", c.Dir),
			configure(c.Dir))
	case c.Missing:
		return one(Error, id, fmt.Sprintf("there is no folder %s, without which the plugin can't be enabled", c.Dir),
			"make it, or name another one with --cvmfs-config; then "+configure(c.Dir))
	case c.Err != "":
		return with(one(Error, id, "the CernVM-FS configuration can't be read: "+c.Dir, "correct it by hand"), c.Err)
	case len(c.Repositories) == 0:
		return one(Warning, id, "no repository is configured in "+c.Dir+": ordinary images run, thin ones don't",
			configure(c.Dir))
	}
	return nil
}

func configure(dir string) string {
	return fmt.Sprintf("write %s/config.d/REPOSITORY.conf with CVMFS_SERVER_URL and CVMFS_PUBLIC_KEY, and %s/default.local with CVMFS_HTTP_PROXY", dir, dir)
}

// named tells of repositories that the driver's option allows and nobody configured.
func named(f *Facts, p *Plan) []Finding {
	options := f.File.Options
	if p.Install && len(p.StorageOpts) > 0 {
		options = p.StorageOpts
	}
	var found []Finding
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "cvmfs.repositories") {
			continue
		}
		for fqrn := range strings.SplitSeq(value, ",") {
			fqrn = strings.TrimSpace(fqrn)
			if !slices.ContainsFunc(f.Configuration.Repositories, func(r Repository) bool { return r.FQRN == fqrn }) {
				found = append(found, one(Warning, "cvmfs.allowed",
					fmt.Sprintf("the option cvmfs.repositories allows %q, which isn't configured in %s", fqrn,
						f.Configuration.Dir),
					"correct the option, or "+configure(f.Configuration.Dir))...)
			}
		}
	}
	return found
}

// remedies say what to do about each kind of trouble; serious ones lie on this host.
var remedies = map[Trouble]struct {
	serious bool
	remedy  string
}{
	Unreadable:  {true, "correct the repository's configuration"},
	Key:         {true, "put the repository's master key, a PEM file, where CVMFS_PUBLIC_KEY says"},
	Untrusted:   {true, "compare the master key with that of the repository's operator; if it is right, what the server gives is forged or not in order"},
	Unreachable: {false, "see that the server is reached from here: CVMFS_SERVER_URL, name service, firewall; a proxy may be needed (CVMFS_HTTP_PROXY)"},
	Proxy:       {false, "see that the proxy runs and lets this host through: CVMFS_HTTP_PROXY"},
	Slow:        {false, "see why the way to the server is slow; CVMFS_HTTP_PROXY=DIRECT shows whether it is the proxy"},
	Absent:      {false, "see that the name is right and the server has the repository: CVMFS_SERVER_URL"},
	Expired:     {false, "the operator has to renew the whitelist; if this host's clock is wrong, set it"},
	Other:       {false, "\"cvmfs-graphdriver repo ls --verbose\" shows each step"},
}

// repositories judges each repository.
func repositories(f *Facts, p *Plan) []Finding {
	var found []Finding
	for _, r := range f.Configuration.Repositories {
		found = append(found, repository(f, p, r)...)
	}
	return found
}

func repository(f *Facts, p *Plan, r Repository) []Finding {
	id := "cvmfs.repository"
	var found []Finding
	if r.Trouble != "" {
		severity, rule := Error, remedies[r.Trouble]
		if p.Install && !rule.serious {
			severity = Warning // the plugin takes it: what lies with others may be mended while it runs
		}
		found = with(one(severity, id+"."+string(r.Trouble), "repository "+r.FQRN+" can't be used: "+
			troubled[r.Trouble], rule.remedy), r.Err)
	} else {
		what := fmt.Sprintf("repository %s is at revision %d of %s", r.FQRN, r.Revision,
			r.Published.UTC().Format(time.DateTime))
		switch left := r.Expires.Sub(f.Time); {
		case r.Published.After(f.Time.Add(clockSlack)):
			found = one(Warning, id+".future", what+", which is in the future by this host's clock", "set the clock")
		case left < expiresSoon:
			found = one(Warning, id+".expires", fmt.Sprintf("%s, and its whitelist expires on %s", what,
				r.Expires.UTC().Format(time.DateTime)),
				"ask the repository's operator to renew it; afterwards no thin image of it can be pulled")
		default:
			found = one(OK, id, what, "")
		}
	}
	if len(r.Notes) > 0 {
		found = append(found, with(one(Note, id+".notes", "repository "+r.FQRN+": there is more to know", ""),
			strings.Join(r.Notes, "; "))...)
	}
	return found
}

// troubled says what is the matter.
var troubled = map[Trouble]string{
	Unreadable:  "its configuration is not in order",
	Key:         "its master key can't be read",
	Untrusted:   "what the server gives is not signed by whom this host trusts",
	Unreachable: "no server answers",
	Proxy:       "no proxy answers",
	Slow:        "no answer came in time",
	Absent:      "the server doesn't have it",
	Expired:     "its whitelist has expired by this host's clock",
	Other:       "it can't be read",
}

func minio(f *Facts, p *Plan) (found []Finding) {
	const id = "minio"
	const fail = "layers of commits can't be published, and commits of thin containers fail: "
	m := f.Minio
	if m == nil {
		return nil
	}
	if m.Missing {
		return one(Warning, id, "the snapshotter's settings name "+m.File+", which isn't there: commits give ordinary layers",
			"write it (docs/pushback.md), or take push-back out of the settings")
	}
	if m.Err != "" {
		return with(one(Error, id, fail+m.File,
			"correct it (docs/pushback.md), or remove it (with install, leave --minio-config out): commits then give ordinary layers"), m.Err)
	}
	if len(m.Outside) > 0 {
		found = one(Error, id+".outside", fail+m.File+" names files outside of its folder, which the plugin doesn't see: "+
			strings.Join(m.Outside, ", "), "put them into the folder, and name them without a path")
	}
	c := f.Configuration
	unknown := !slices.ContainsFunc(c.Repositories, func(r Repository) bool { return r.FQRN == m.Repository })
	if unknown && !c.Missing && c.Err == "" {
		severity := Error
		if p.Install { // it may be configured while the plugin runs
			severity = Warning
		}
		found = append(found, one(severity, id+".repository", fail+m.File+" says that they are published in "+m.Repository+
			", which isn't configured on this host", "correct CvmfsRepo there, or "+configure(c.Dir))...)
	}
	switch {
	case len(found) > 0:
		return found
	case m.Asked:
		return one(OK, id, "push-back is set up in "+m.File+", and all that it names answer", "")
	}
	return one(OK, id, "push-back is set up in "+m.File+"; nobody was asked: --minio-config "+filepath.Dir(m.File)+
		" tries the service and the store", "")
}
