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

// usage counts what a server or proxy was used for. It is guarded by Fetcher.mu.
type usage struct {
	answers, failures int64
	waited            time.Duration
}

func (u *usage) member(name string, h *health) Member {
	m := Member{Name: name, Answers: u.answers, Failures: u.failures}
	if u.answers > 0 {
		m.Wait = u.waited / time.Duration(u.answers)
	}
	if !h.since.IsZero() {
		m.Err = h.cause
	}
	return m
}

// answered counts an answer.
func (f *Fetcher) answered(r route, waited time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, u := range []*usage{&r.server.usage, &r.proxy.usage} {
		u.answers++
		u.waited += waited
	}
}

// failed counts an attempt that brought nothing.
func (f *Fetcher) failed(r route) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.server.failures++
	r.proxy.failures++
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
		servers = append(servers, s.member(s.name, &s.health))
		remote = remote || !s.file
	}
	for _, p := range f.proxies {
		name := p.name
		if p.direct() {
			name = "DIRECT"
		}
		if remote {
			proxies = append(proxies, p.member(name, &p.health))
		}
	}
	return servers, proxies
}
