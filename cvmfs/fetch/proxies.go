package fetch

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// proxy is a way to the servers, with the connections kept open on it: a proxy at one of its addresses, or DIRECT.
type proxy struct {
	health
	count
	name    string // as it may be printed; "" is DIRECT
	host    string // its name as it's configured
	addr    string // host and port that is connected to
	ip      netip.Addr
	client  *http.Client
	timeout time.Duration
	group   int
	err     error // why it has no address
}

func (p *proxy) direct() bool { return p.name == "" }

// member is a proxy as it's configured. Its name may have several addresses, each of which is a proxy.
type member struct {
	url     *url.URL // nil: DIRECT
	err     error    // stands for a proxy that isn't known, for this reason
	proxies []*proxy
}

// named reports whether the member must be resolved.
func (m *member) named() bool {
	if m.url == nil {
		return false
	}
	_, err := netip.ParseAddr(m.url.Hostname())
	return err != nil
}

func newMember(spec string) (*member, error) {
	if spec == "DIRECT" {
		return &member{}, nil
	}
	u, err := parseProxy(spec)
	return &member{url: u}, err
}

func parseProxy(spec string) (*url.URL, error) {
	full := spec
	if !strings.Contains(full, "://") {
		full = "http://" + full
	}
	u, err := url.Parse(full)
	if err != nil {
		return nil, fmt.Errorf("fetch: proxy %s: %w", hideCredentials(spec), cause(err))
	}
	if u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5" {
		return nil, fmt.Errorf("fetch: proxy %s: want DIRECT or http://HOST:PORT", redact(u))
	}
	return u, nil
}

// newProxy makes the proxy of a member at an address.
func (f *Fetcher) newProxy(m *member, ip netip.Addr) *proxy {
	p := &proxy{ip: ip, timeout: f.cfg.TimeoutDirect}
	t := &http.Transport{
		DisableCompression:     true, // digests are over the bytes as stored
		MaxIdleConnsPerHost:    mostConnections,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         16 << 10,
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	if m.url != nil {
		t.Proxy = http.ProxyURL(m.url)
		p.name, p.timeout, p.host = redact(m.url), f.cfg.Timeout, m.url.Hostname()
		p.addr = net.JoinHostPort(ip.String(), port(m.url))
		if m.named() {
			p.name += " (" + ip.String() + ")"
		}
	}
	t.TLSHandshakeTimeout = p.timeout
	t.TLSClientConfig = &tls.Config{RootCAs: f.authorities}
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		key := addr
		if m.url != nil {
			addr, key = p.addr, p.addr
		}
		return f.names.dial(ctx, f.cfg.Connections.lane(key), network, addr, p.timeout)
	}
	p.client = &http.Client{Transport: t, CheckRedirect: redirects(f.cfg.FollowRedirects)}
	return p
}

// redirects says how many are followed.
func redirects(follow bool) func(*http.Request, []*http.Request) error {
	return func(_ *http.Request, via []*http.Request) error {
		if !follow {
			return http.ErrUseLastResponse
		}
		if len(via) > 4 {
			return fmt.Errorf("more than four redirects")
		}
		return nil
	}
}

// port is that of a URL.
func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if p := map[string]string{"https": "443", "socks5": "1080"}[u.Scheme]; p != "" {
		return p
	}
	return "80"
}

// setProxies reads the groups. Those with names have no proxies before they are resolved.
func (f *Fetcher) setProxies(groups [][]string) error {
	for _, specs := range groups {
		if slices.Equal(specs, []string{Discover}) {
			f.discovers = true
			f.configured = append(f.configured, nil)
			continue
		}
		var group []*member
		for _, spec := range specs {
			m, err := newMember(spec)
			if err != nil {
				return err
			}
			group = append(group, m)
		}
		rand.Shuffle(len(group), func(i, j int) { group[i], group[j] = group[j], group[i] })
		f.configured = append(f.configured, group)
	}
	if len(f.configured) == 0 {
		f.configured = [][]*member{{{}}}
	}
	if !f.discovers && !slices.ContainsFunc(slices.Concat(f.configured...), (*member).named) {
		f.lookUp() // there is nothing to ask for
	}
	return nil
}

// resolve sees to it that proxies have addresses. The first request waits for them; later, when they are due again,
// requests go on with those at hand.
func (f *Fetcher) resolve(ctx context.Context) error {
	f.mu.Lock()
	if f.proxies != nil && (f.due.IsZero() || time.Now().Before(f.due)) {
		f.mu.Unlock()
		return nil
	}
	if f.resolving == nil {
		done := make(chan struct{})
		f.resolving = done
		go func() {
			defer close(done)
			f.lookUp()
		}()
	}
	done, first := f.resolving, f.proxies == nil
	f.mu.Unlock()
	if !first {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lookUp finds the proxies and resolves the names of all side by side. It ends within the time that scripts and names
// may take.
func (f *Fetcher) lookUp() {
	type answer struct {
		m     *member
		addrs []netip.Addr
		err   error
	}
	answers := make(chan answer)
	n, due := 0, time.Time{}
	groups, again := f.chain(context.Background())
	if again > 0 {
		due = time.Now().Add(again)
	}
	for _, group := range groups {
		for _, m := range group {
			if m.url == nil {
				continue
			}
			n++
			go func() {
				addrs, err := f.names.addresses(context.Background(), m.url.Hostname())
				answers <- answer{m, addrs, err}
			}()
		}
	}
	all := map[*member]answer{}
	for range n {
		a := <-answers
		all[a.m] = a
		wait := f.names.cfg.ttl()
		if a.err != nil {
			wait = failedTTL
			f.log.Warn("proxy's name can't be resolved", slog.String("proxy", redact(a.m.url)), slog.Any("err", a.err))
		}
		if next := time.Now().Add(wait); a.m.named() && (due.IsZero() || next.Before(due)) {
			due = next
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var proxies []*proxy
	for i, group := range groups {
		var here []*proxy
		for _, m := range group {
			f.place(m, all[m].addrs, all[m].err)
			here = append(here, m.proxies...)
		}
		for _, p := range here {
			p.group = i
		}
		proxies = append(proxies, f.mixed(here)...)
	}
	f.proxies, f.due, f.resolving = proxies, due, nil
}

// place gives a member a proxy for each of its addresses, keeping those it has.
func (f *Fetcher) place(m *member, addrs []netip.Addr, err error) {
	switch {
	case m.err != nil:
		m.proxies = []*proxy{{name: Discover, err: m.err, timeout: f.cfg.Timeout}}
		return
	case m.url == nil:
		if m.proxies == nil {
			m.proxies = []*proxy{f.newProxy(m, netip.Addr{})}
		}
		return
	case err != nil:
		p := &proxy{name: redact(m.url), err: err, timeout: f.cfg.Timeout}
		m.proxies = []*proxy{p}
		return
	}
	addrs = bestFamily(addrs)
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	var kept []*proxy
	for _, p := range m.proxies {
		if i := slices.Index(addrs, p.ip); i >= 0 && p.err == nil {
			kept = append(kept, p)
			addrs = slices.Delete(addrs, i, i+1)
		} else if p.client != nil {
			p.client.CloseIdleConnections()
		}
	}
	for _, a := range addrs {
		kept = append(kept, f.newProxy(m, a))
	}
	if most := f.cfg.Names.MaxAddresses; most > 0 {
		kept = kept[:min(len(kept), most)]
	}
	m.proxies = kept
}

// mixed puts a group's proxies in the order they have already, and new ones behind these at random. It is called with
// mu held.
func (f *Fetcher) mixed(group []*proxy) []*proxy {
	rand.Shuffle(len(group), func(i, j int) { group[i], group[j] = group[j], group[i] })
	slices.SortStableFunc(group, func(a, b *proxy) int { return f.rank(a) - f.rank(b) })
	return group
}

func (f *Fetcher) rank(p *proxy) int {
	if i := slices.Index(f.proxies, p); i >= 0 {
		return i
	}
	return len(f.proxies)
}

// sharded returns proxies in the order for a file: of each group the file's own comes first, and where that fails its
// files are spread over the others (rendezvous hashing).
func sharded(proxies []*proxy, path string) []*proxy {
	weight := map[*proxy]uint64{}
	for _, p := range proxies {
		h := fnv.New64a()
		io.WriteString(h, p.name+"\n"+path) // never fails
		sum := h.Sum64()
		weight[p] = (sum ^ sum>>33) * 0xff51afd7ed558ccd // names that differ in a digit must not weigh alike
	}
	proxies = slices.Clone(proxies)
	slices.SortStableFunc(proxies, func(a, b *proxy) int {
		return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(weight[b], weight[a]))
	})
	return proxies
}
