package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Names says how names of servers and proxies become addresses. Zero values take the defaults named, those of the
// CernVM-FS client; negative ones are none.
type Names struct {
	MaxAddresses int           // of a proxy's name, chosen at random; 0: all
	PreferIPv6   bool          // where a name has addresses of both families, IPv6 is used rather than IPv4
	IPv4Only     bool          // IPv6 addresses don't count
	Timeout      time.Duration // of a question; 3 s
	Retries      int           // of a question; 1
	MinTTL       time.Duration // how long an answer is used before the name is asked for again; 1 min
	MaxTTL       time.Duration // the longest that may be; 1 day
	Server       string        // address of the name server, with a port if it isn't 53; "": the host's
}

// failedTTL is how soon a name that could not be resolved is asked for again.
const failedTTL = 10 * time.Second

func (n *Names) defaults() {
	setDefault(&n.Timeout, 3*time.Second, longest)
	setDefault(&n.MinTTL, time.Minute, time.Second)
	setDefault(&n.MaxTTL, 24*time.Hour, 0)
	n.Retries = max(0, cmp.Or(n.Retries, 1))
}

// ttl is how long an answer is used. What the name's zone says of that isn't known: the system's resolver doesn't tell.
func (n *Names) ttl() time.Duration { return min(n.MinTTL, cmp.Or(n.MaxTTL, n.MinTTL)) }

// names resolves names and remembers the answers.
type names struct {
	cfg      Names
	resolver *net.Resolver

	mu    sync.Mutex
	known map[string]*known
}

// known is what is known of a name.
type known struct {
	asking chan struct{} // holds a token while somebody asks
	addrs  []netip.Addr
	until  time.Time
	bad    map[netip.Addr]time.Time // when it last failed
}

func newNames(cfg Names) *names {
	cfg.defaults()
	n := &names{cfg: cfg, resolver: net.DefaultResolver, known: map[string]*known{}}
	if cfg.Server != "" {
		server := cfg.Server
		if _, _, err := net.SplitHostPort(server); err != nil {
			server = net.JoinHostPort(server, "53")
		}
		dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server)
		}
		n.resolver = &net.Resolver{PreferGo: true, Dial: dial}
	}
	return n
}

func (n *names) entry(host string) *known {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := n.known[host]
	if k == nil {
		k = &known{asking: make(chan struct{}, 1), bad: map[netip.Addr]time.Time{}}
		n.known[host] = k
	}
	return k
}

// addresses returns the addresses of a host, those of the preferred family first and those that failed last. Where the
// name can't be resolved any more, the last answer goes on to be used.
func (n *names) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	k := n.entry(host)
	select {
	case k.asking <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-k.asking }()
	if now := time.Now(); now.After(k.until) {
		addrs, err := n.ask(ctx, host)
		switch {
		case err == nil:
			k.addrs, k.until = addrs, now.Add(n.cfg.ttl())
		case k.addrs == nil:
			return nil, err
		default:
			k.until = now.Add(failedTTL)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	addrs := slices.Clone(k.addrs)
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return k.bad[a].Compare(k.bad[b]) })
	return addrs, nil
}

// ask asks the name server, as often as it may.
func (n *names) ask(ctx context.Context, host string) (addrs []netip.Addr, err error) {
	for range 1 + n.cfg.Retries {
		limited, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
		addrs, err = n.resolver.LookupNetIP(limited, "ip", host)
		cancel()
		if e, ok := errors.AsType[*net.DNSError](err); err == nil || ctx.Err() != nil || ok && e.IsNotFound {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	seen := map[netip.Addr]bool{}
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		twice := seen[a]
		seen[a] = true
		return twice || n.cfg.IPv4Only && !a.Is4()
	})
	if len(addrs) == 0 {
		return nil, &net.DNSError{Err: "no address of a family that may be used", Name: host, IsNotFound: true}
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return n.rank(a) - n.rank(b) })
	return addrs, nil
}

// rank is 0 for an address of the preferred family.
func (n *names) rank(a netip.Addr) int {
	if a.Is4() == n.cfg.PreferIPv6 {
		return 1
	}
	return 0
}

// bestFamily returns the addresses of the first one's family.
func bestFamily(addrs []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return a.Is4() != addrs[0].Is4() })
}

// failed records that an address of a host didn't do, and reports whether there are others.
func (n *names) failed(host string, addr netip.Addr) (others bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := n.known[host]
	if k == nil {
		return false
	}
	k.bad[addr] = time.Now()
	return len(k.addrs) > 1
}

// share is the time for the first of n addresses where so much of the whole is left. It is a fifth at least, so that a
// long way isn't taken for none where a name has many addresses; the last ones then come first the next time.
func share(whole, left time.Duration, n int) time.Duration {
	return min(left, max(left/time.Duration(n), whole/5))
}

// dial connects to one of the addresses of a host within the time. Each has its share of it.
func (n *names) dial(ctx context.Context, l *lane, network, addr string, timeout time.Duration) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	addrs, err := n.addresses(ctx, host)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	dialer := net.Dialer{KeepAlive: 30 * time.Second}
	left := timeout
	for i, a := range addrs {
		if dialer.Timeout = share(timeout, left, len(addrs)-i); dialer.Timeout <= 0 {
			break
		}
		var c net.Conn
		c, err = l.connect(ctx, func(ctx context.Context) (net.Conn, error) {
			start := time.Now() // others may have been let in before
			defer func() { left -= time.Since(start) }()
			return dialer.DialContext(ctx, network, net.JoinHostPort(a.String(), port))
		})
		if err == nil || ctx.Err() != nil {
			return c, err
		}
		n.failed(host, a)
	}
	if len(addrs) > 1 {
		err = fmt.Errorf("none of %d addresses of %s: %w", len(addrs), host, err)
	}
	return nil, err
}
