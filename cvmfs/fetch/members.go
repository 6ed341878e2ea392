package fetch

import "time"

// Member is a server or a proxy as it was found.
type Member struct {
	Name     string        // as it may be printed; "DIRECT": no proxy
	Answers  int64         // attempts that it answered or led to an answer of, whatever the answer
	Failures int64         // attempts on it that failed, whosever fault that was
	Wait     time.Duration // from a request to the header of its answer, connecting included, on average
	Err      error         // why others are preferred; nil: it is in order
}

// memberOf tells of a server or a proxy. It is called with Fetcher.mu held.
func memberOf(name string, c *count, h *health) Member {
	m := Member{Name: name, Answers: c.answers.Load(), Failures: c.failures()}
	if m.Answers > 0 {
		m.Wait = time.Duration(c.waited.Load() / m.Answers)
	}
	if !h.since.IsZero() {
		m.Err = h.cause
	}
	return m
}

// Members returns the servers and the proxies, in order of preference, and how they were found so far. Proxies are
// those whose names are resolved; servers that are folders have none. Servers of external files come last, without the
// proxies to them.
func (f *Fetcher) Members() (servers, proxies []Member) {
	servers, proxies = f.ownMembers()
	if f.external != nil {
		external, _ := f.external.ownMembers()
		servers = append(servers, external...)
	}
	return servers, proxies
}

func (f *Fetcher) ownMembers() (servers, proxies []Member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	remote := false
	for _, s := range f.servers {
		servers = append(servers, memberOf(s.name, &s.count, &s.health))
		remote = remote || !s.file
	}
	for _, p := range f.proxies {
		name := p.name
		if p.direct() {
			name = "DIRECT"
		}
		if remote {
			proxies = append(proxies, memberOf(name, &p.count, &p.health))
		}
	}
	return servers, proxies
}
