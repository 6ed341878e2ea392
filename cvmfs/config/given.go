package config

import "strings"

// Given is what the caller of a command says of a repository instead of the configuration. What is "" stays as it is
// configured.
type Given struct {
	Servers    string // as CVMFS_SERVER_URL
	PublicKeys string // as CVMFS_PUBLIC_KEY, but as this process calls the files, wherever the folder lies
	Proxies    string // as CVMFS_HTTP_PROXY
}

// LoadGiven is Load for a caller who knows better.
func (f Folder) LoadGiven(fqrn string, g Given) (*Config, error) {
	f.Overrides = g.overrides()
	c, err := f.Load(fqrn)
	if err == nil && g.PublicKeys != "" {
		c.PublicKeys = strings.Split(g.PublicKeys, ":")
	}
	return c, err
}

func (g Given) overrides() map[string]string {
	set := map[string]string{}
	for parameter, value := range map[string]string{
		"CVMFS_SERVER_URL": g.Servers, "CVMFS_PUBLIC_KEY": g.PublicKeys, "CVMFS_HTTP_PROXY": g.Proxies,
	} {
		if value != "" {
			set[parameter] = value
		}
	}
	if g.Proxies != "" {
		set["CVMFS_FALLBACK_PROXY"] = "" // that is for the configured ones
	}
	return set
}
