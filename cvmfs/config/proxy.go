package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

const (
	Direct = "DIRECT" // the member of a proxy group that means no proxy
	Auto   = "auto"   // the group that stands for what proxy auto-configuration finds
)

// ParseProxies reads a proxy specification: groups separated by ";", tried in this order, of proxies separated by "|",
// among which load is spread. A proxy without a scheme is spoken to by HTTP. Errors don't quote the proxies, which may
// hold passwords.
func ParseProxies(spec string) ([][]string, error) {
	var groups [][]string
	for text := range strings.SplitSeq(spec, ";") {
		var group []string
		for proxy := range strings.SplitSeq(text, "|") {
			if proxy = strings.TrimSpace(proxy); proxy == "" {
				continue
			}
			proxy, err := parseProxy(proxy)
			if err != nil {
				return nil, fmt.Errorf("proxy %d of group %d: %w", len(group)+1, len(groups)+1, err)
			}
			group = append(group, proxy)
		}
		if len(group) > 1 && slices.Contains(group, Auto) {
			return nil, fmt.Errorf("group %d: auto must be a group of its own", len(groups)+1)
		}
		if len(group) > 0 {
			groups = append(groups, group)
		}
	}
	if len(groups) == 0 {
		return nil, errors.New("names no proxy: set CVMFS_HTTP_PROXY to the site's proxies, as http://PROXY:3128, or to DIRECT")
	}
	return groups, nil
}

// withoutAuto takes "auto" out of groups in which it isn't alone, and, unless it may be found, out of all. The
// reference client takes it for a proxy's name there.
func withoutAuto(spec string, mayFind bool) (rest string, found bool) {
	isAuto := func(proxy string) bool { return strings.TrimSpace(proxy) == Auto }
	groups := strings.Split(spec, ";")
	for i, group := range groups {
		proxies := items(group, "|")
		if mayFind && len(proxies) == 1 {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(proxies), isAuto)
		found = found || len(others) < len(proxies)
		groups[i] = strings.Join(others, "|")
	}
	if rest = strings.Join(groups, ";"); !found {
		return spec, false
	}
	return rest, true
}

func parseProxy(proxy string) (string, error) {
	if proxy == Direct || proxy == Auto {
		return proxy, nil
	}
	if !strings.Contains(proxy, "://") {
		proxy = "http://" + proxy
	}
	u, err := url.Parse(proxy)
	if err != nil || u.Hostname() == "" || !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
		return "", errors.New("isn't a URL such as http://PROXY:3128, nor DIRECT")
	}
	return proxy, nil
}

// withFallback puts groups behind the regular ones. No fallback would ever be tried behind DIRECT, and DIRECT isn't
// one: so it is taken out on both sides, as the reference client does (download.cc, SetProxyChain).
func withFallback(regular, fallback [][]string) [][]string {
	if fallback = withoutDirect(fallback); len(fallback) == 0 {
		return regular
	}
	return append(withoutDirect(regular), fallback...)
}

func withoutDirect(groups [][]string) [][]string {
	var rest [][]string
	for _, group := range groups {
		group = slices.DeleteFunc(slices.Clone(group), func(proxy string) bool { return proxy == Direct })
		if len(group) > 0 {
			rest = append(rest, group)
		}
	}
	return rest
}
