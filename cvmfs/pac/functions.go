package pac

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/robertkrimen/otto"
)

// functions are those that scripts rely on: Netscape's of 1996, as browsers have them, and Microsoft's for IPv6.
func (e *environment) functions() map[string]function {
	return map[string]function{
		"isPlainHostName":     func(a []otto.Value) any { return !strings.ContainsAny(text(a, 0), ".:") },
		"dnsDomainIs":         func(a []otto.Value) any { return strings.HasSuffix(text(a, 0), text(a, 1)) },
		"localHostOrDomainIs": func(a []otto.Value) any { return sameHost(text(a, 0), text(a, 1)) },
		"dnsDomainLevels":     func(a []otto.Value) any { return float64(strings.Count(text(a, 0), ".")) },
		"shExpMatch":          func(a []otto.Value) any { return matches(text(a, 1), text(a, 0)) },
		"isResolvable":        func(a []otto.Value) any { return e.ip4(text(a, 0)).IsValid() },
		"isResolvableEx":      func(a []otto.Value) any { return len(e.all(text(a, 0))) > 0 },
		"dnsResolve":          func(a []otto.Value) any { return named(e.ip4(text(a, 0))) },
		"dnsResolveEx":        func(a []otto.Value) any { return e.all(text(a, 0)).String() },
		"myIpAddress":         func([]otto.Value) any { return e.myAddress().String() },
		"myIpAddressEx":       func([]otto.Value) any { return e.own.String() },
		"isInNet":             func(a []otto.Value) any { return e.inNet(text(a, 0), text(a, 1), text(a, 2)) },
		"isInNetEx":           func(a []otto.Value) any { return inPrefix(text(a, 0), text(a, 1)) },
		"convert_addr":        func(a []otto.Value) any { return number4(address4(text(a, 0))) },
		"sortIpAddressList":   func(a []otto.Value) any { return sorted(text(a, 0)) },
		"getClientVersion":    func([]otto.Value) any { return "1.0" },
		"weekdayRange":        func(a []otto.Value) any { return e.clock(&a).weekdayRange(a) },
		"dateRange":           func(a []otto.Value) any { return e.clock(&a).dateRange(a) },
		"timeRange":           func(a []otto.Value) any { return e.clock(&a).timeRange(a) },
		"alert":               func([]otto.Value) any { return nil },
	}
}

// text is an argument as a string; "" where there is none.
func text(args []otto.Value, i int) string {
	if i >= len(args) {
		return ""
	}
	return args[i].String()
}

// sameHost reports whether a host is the one of a full name, or what precedes a dot of it.
func sameHost(host, full string) bool { return host == full || strings.HasPrefix(full, host+".") }

// matches reports whether all of a text fits a pattern of the shell: * and ?. It takes the product of their lengths at
// most.
func matches(pattern, text string) bool {
	p, t := []rune(pattern), []rune(text)
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(t) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == t[j]):
			i, j = i+1, j+1
		case star >= 0: // the star takes one more
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// all are the addresses of a host, which may be an address.
func (e *environment) all(host string) addresses {
	if a, err := netip.ParseAddr(host); err == nil {
		return addresses{a}
	}
	return e.lookUp(host)
}

// ip4 is the first IPv4 address of a host.
func (e *environment) ip4(host string) netip.Addr {
	for _, a := range e.all(host) {
		if a.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// myAddress is this host's IPv4 address of the way to others.
func (e *environment) myAddress() netip.Addr {
	for _, a := range e.own {
		if a.Is4() {
			return a
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func (a addresses) String() string {
	var all []string
	for _, one := range a {
		all = append(all, one.String())
	}
	return strings.Join(all, ";")
}

// named is an address as scripts have it: null where there is none.
func named(a netip.Addr) any {
	if !a.IsValid() {
		return otto.NullValue()
	}
	return a.String()
}

// inNet reports whether a host's IPv4 address is in a network given by an address and a mask.
func (e *environment) inNet(host, network, mask string) bool {
	a, n, m := e.ip4(host), address4(network), address4(mask)
	return a.IsValid() && n.IsValid() && m.IsValid() && bits(a)&bits(m) == bits(n)&bits(m)
}

// address4 is the IPv4 address that a text is.
func address4(text string) netip.Addr {
	if a, err := netip.ParseAddr(text); err == nil && a.Is4() {
		return a
	}
	return netip.Addr{}
}

func bits(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func number4(a netip.Addr) float64 {
	if !a.IsValid() {
		return 0
	}
	return float64(bits(a))
}

// inPrefix reports whether an address is in a network such as 2001:db8::/32.
func inPrefix(address, network string) bool {
	a, errA := netip.ParseAddr(address)
	p, errP := netip.ParsePrefix(network)
	return errA == nil && errP == nil && p.Contains(a)
}

// sorted sorts addresses divided by ";", those of IPv6 first; false where one isn't an address.
func sorted(list string) any {
	var all addresses
	for text := range strings.SplitSeq(list, ";") {
		a, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil {
			return false
		}
		all = append(all, a)
	}
	slices.SortStableFunc(all, func(a, b netip.Addr) int {
		return cmp.Or(cmp.Compare(b.BitLen(), a.BitLen()), a.Compare(b))
	})
	return all.String()
}

// clock is the time that ranges are compared with.
type clock time.Time

// clock takes the last argument off if it is GMT: then that is the time meant, and not this host's.
func (e *environment) clock(args *[]otto.Value) clock {
	if last := len(*args) - 1; last >= 0 && text(*args, last) == "GMT" {
		*args = (*args)[:last]
		return clock(e.now.UTC())
	}
	return clock(e.now)
}

// between reports whether now lies between two, which are in it; where the first is the later one, the range goes on
// past the end of what it counts: from Friday to Monday.
func between(from, now, to int) bool {
	if from <= to {
		return from <= now && now <= to
	}
	return now >= from || now <= to
}

var (
	weekdays = []string{"SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"}
	months   = []string{"JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"}
)

// weekdayRange is for one day or from one to another.
func (c clock) weekdayRange(args []otto.Value) bool {
	if len(args) < 1 || len(args) > 2 {
		return false
	}
	from := slices.Index(weekdays, text(args, 0))
	to := slices.Index(weekdays, text(args, len(args)-1))
	return from >= 0 && to >= 0 && between(from, int(time.Time(c).Weekday()), to)
}

// timeRange is for an hour, or from and to an hour, an hour and minute, or an hour, minute and second.
func (c clock) timeRange(args []otto.Value) bool {
	numbers := make([]int, len(args))
	for i, v := range args {
		var ok bool
		if numbers[i], ok = whole(v, 0, 60); !ok {
			return false
		}
	}
	now := time.Time(c)
	second := now.Hour()*3600 + now.Minute()*60 + now.Second()
	switch n := numbers; len(n) {
	case 1:
		return now.Hour() == n[0]
	case 2:
		return between(n[0], now.Hour(), n[1])
	case 4:
		return between(n[0]*3600+n[1]*60, second, n[2]*3600+n[3]*60+59)
	case 6:
		return between(n[0]*3600+n[1]*60+n[2], second, n[3]*3600+n[4]*60+n[5])
	}
	return false
}

// date is a day of a month, a month, a year, or several of them; 0 is any.
type date struct{ year, month, day int }

func (d date) number() int { return (d.year*16+d.month)*32 + d.day }

// dateRange is for a date or from one to another. Both say the same kinds of things.
func (c clock) dateRange(args []otto.Value) bool {
	half := (len(args) + 1) / 2
	if len(args) == 3 {
		half = 3 // one whole date
	}
	if len(args) == 0 || len(args)%half != 0 {
		return false
	}
	from, ok := dateOf(args[:half])
	to, okay := dateOf(args[len(args)-half:])
	if !ok || !okay {
		return false
	}
	now := date{}
	if from.year > 0 {
		now.year = time.Time(c).Year()
	}
	if from.month > 0 {
		now.month = int(time.Time(c).Month())
	}
	if from.day > 0 {
		now.day = time.Time(c).Day()
	}
	return between(from.number(), now.number(), to.number())
}

func dateOf(args []otto.Value) (d date, ok bool) {
	for i, v := range args {
		if month := slices.Index(months, text(args, i)); month >= 0 {
			d.month = month + 1
			continue
		}
		n, ok := whole(v, 1, 9999)
		switch {
		case !ok:
			return date{}, false
		case n <= 31:
			d.day = n
		default:
			d.year = n
		}
	}
	return d, true
}

// whole is an argument as a whole number within bounds.
func whole(v otto.Value, least, most int) (int, bool) {
	f, err := v.ToFloat()
	n := int(f)
	return n, err == nil && float64(n) == f && least <= n && n <= most
}
